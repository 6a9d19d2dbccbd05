// SPDX-License-Identifier: Apache-2.0
#include "pipelines/bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "io/table.h"
#include "kernels/convert.h"
#include "kernels/exp_rate.h"
#include "kernels/linear.h"
#include "libmamba/core/parallel.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

constexpr double kShortestTiming = 0.01;  // seconds; shorter bodies are repeated

double copy_rate(Context& ctx) {
  const bool cpu = ctx.device().is_cpu();
  const int64_t bytes = cpu ? int64_t{256} << 20 : int64_t{2} << 30;
  const Arena::Scope scope(ctx.arena());
  const TensorView from = ctx.arena().zeros(DType::kU8, {bytes}, ctx.stream());
  const TensorView to = ctx.arena().zeros(DType::kU8, {bytes}, ctx.stream());
  const double seconds = median_seconds(ctx, 7, [&] {
    if (!cpu) {
      ctx.copy(from, to);
      return;
    }
    constexpr int64_t kPiece = int64_t{4} << 20;
    parallel_for(ctx, bytes / kPiece, [&](int64_t i) {
      std::memcpy(to.data + i * kPiece, from.data + i * kPiece, static_cast<size_t>(kPiece));
    });
  });
  return 2 * static_cast<double>(bytes) / seconds;
}

double gemm_rate(Context& ctx) {
  const int64_t size = ctx.device().is_cpu() ? 2048 : 8192;
  const DType type = ctx.activations();
  const Arena::Scope scope(ctx.arena());
  const TensorView x = ctx.arena().tensor(type, {size, size});
  const TensorView weight = ctx.arena().tensor(type, {size, size});
  const TensorView y = ctx.arena().tensor(type, {size, size});
  fill_random(ctx, x, 1, 1);
  fill_random(ctx, weight, 1, 2);
  const double seconds = median_seconds(ctx, 7, [&] { linear_forward(ctx, x, weight, {}, y); });
  return 2 * std::pow(static_cast<double>(size), 3) / seconds;
}

std::string padded(std::string text, size_t width, bool left = false) {
  const std::string gap(width > text.size() ? width - text.size() : 0, ' ');
  return left ? text + gap : gap + text;
}

std::string milliseconds(double seconds) {
  const double ms = seconds * 1e3;
  const int digits = ms < 1 ? 3 : ms < 100 ? 2 : 1;
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, ms);
  return text;
}

std::string table_text(const std::vector<BenchRow>& rows) {
  std::string out = concat(padded("what", 34, true), padded("shape", 24, true), padded("ms", 10),
                           padded("floor ms", 10), padded("of floor", 10), padded("tokens/s", 10),
                           padded("memory", 12), "\n");
  for (const BenchRow& row : rows) {
    const double share = row.floor / row.seconds;
    out += concat(padded(row.name, 34, true), padded(row.shape, 24, true),
                  padded(milliseconds(row.seconds), 10), padded(milliseconds(row.floor), 10),
                  padded(concat(std::lround(100 * share), "%"), 10),
                  padded(row.tokens > 0 ? format_short(row.tokens / row.seconds) : "-", 10),
                  padded(row.memory > 0 ? format_bytes(row.memory) : "-", 12), "\n");
  }
  return out;
}

Json to_json(const BenchRow& row) {
  Json json = {{"what", row.name},
               {"shape", row.shape},
               {"seconds", row.seconds},
               {"floor_seconds", row.floor},
               {"of_floor", row.floor / row.seconds}};
  if (row.tokens > 0) json["tokens_per_second"] = row.tokens / row.seconds;
  if (row.memory > 0) json["memory_bytes"] = row.memory;
  if (row.planned > 0) json["planned_memory_bytes"] = row.planned;
  return json;
}

}  // namespace

void BenchOptions::validate() const {
  require(tokens >= 0 && tokens <= (int64_t{1} << 30), ErrorKind::kUsage,
          "--tokens must be at most 2^30");
  require(stream >= 0 && train >= 0 && stream <= (int64_t{1} << 36) && train <= (int64_t{1} << 31),
          ErrorKind::kUsage, "--stream takes at most 2^36 tokens, --train at most 2^31");
  require(repeats >= 1 && repeats <= 10000, ErrorKind::kUsage, "--repeats must be 1 to 10000");
}

Work& Work::operator+=(const Work& other) {
  bytes += other.bytes;
  flops += other.flops;
  exps += other.exps;
  return *this;
}

double Work::floor(const MachineRates& rates, bool gpu) const {
  const double memory = bytes / rates.copy_bytes;
  const double products = flops / rates.gemm_flops;
  const double exponentials = exps / rates.exps;
  return gpu ? std::max({memory, products, exponentials})
             : std::max(memory, products + exponentials);
}

double seconds_of(Context& ctx, const std::function<void()>& body) {
  ctx.synchronize();
  const auto start = std::chrono::steady_clock::now();
  body();
  ctx.synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_seconds(Context& ctx, int64_t repeats, const std::function<void()>& body) {
  const auto time = [&](int64_t calls) {
    return seconds_of(ctx, [&] {
      for (int64_t i = 0; i < calls; ++i) body();
    });
  };
  time(1);  // memory, library handles, code
  const double once = std::max(time(1), 1e-7);
  const auto calls = static_cast<int64_t>(std::ceil(std::max(1.0, kShortestTiming / once)));
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeats; ++i) {
    check_stop();
    seconds.push_back(time(calls) / static_cast<double>(calls));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void fill_random(Context& ctx, TensorView view, float scale, uint64_t seed) {
  // a block of an odd size, repeated: enough variety for timing, and quick to make
  constexpr int64_t kBlock = (int64_t{1} << 20) - 3;
  const int64_t count = view.size();
  const int64_t made = std::min(count, kBlock);
  Random random(seed, RandomUse::kTest);
  std::vector<float> values(static_cast<size_t>(made));
  for (float& x : values) x = static_cast<float>(random.uniform(-scale, scale));
  const Arena::Scope scope(ctx.arena());
  const TensorView block = ctx.arena().f32({made});
  ctx.upload(host_view(std::as_const(values).data(), {made}), block);
  const TensorView flat = view.reshape({count});
  convert(ctx, block, flat.slice(0, 0, made));
  for (int64_t done = made; done < count;) {
    const int64_t more = std::min(done, count - done);
    ctx.copy(flat.slice(0, 0, more), flat.slice(0, done, done + more));
    done += more;
  }
}

MachineRates measure_rates(Context& ctx) {
  MachineRates rates;
  rates.copy_bytes = copy_rate(ctx);
  rates.exps = measure_exp_rate(ctx);
  // last: it takes most power, and behind that a GPU may be slower for a while
  rates.gemm_flops = gemm_rate(ctx);
  return rates;
}

std::string to_text(const MachineRates& rates) {
  return concat("copy ", format_short(rates.copy_bytes), "B/s, matrix product ",
                format_short(rates.gemm_flops), "FLOP/s, exponentials ", format_short(rates.exps),
                "/s");
}

std::string slowdown(const MachineRates& before, const MachineRates& after) {
  constexpr double kNotable = 0.05;
  std::string text;
  const auto compare = [&](const char* what, double first, double last) {
    if (!(last < (1 - kNotable) * first)) return;
    text += concat(text.empty() ? "the machine became slower meanwhile: " : ", ", what, " by ",
                   std::lround(100 * (1 - last / first)), "%");
  };
  compare("copy", before.copy_bytes, after.copy_bytes);
  compare("matrix product", before.gemm_flops, after.gemm_flops);
  compare("exponentials", before.exps, after.exps);
  if (!text.empty()) text += "; later rows are slower for it";
  return text;
}

void bench(const BenchOptions& options, Job& job) {
  auto ctx = open_context(options.common, job);
  const bool cpu = ctx->device().is_cpu();
  const int64_t tokens = options.tokens > 0 ? options.tokens : int64_t{1} << (cpu ? 14 : 20);
  ModelConfig config;
  config.d_model = options.d_model;
  config.n_layers = options.layers;
  config.d_state = options.d_state;
  config.dt_rank = ModelConfig::auto_dt_rank(options.d_model);
  config.validate();
  const MachineRates rates = measure_rates(*ctx);
  const std::string device = ctx->backend().device_name(ctx->device().index);
  const std::string type(to_string(ctx->activations()));
  const int threads = ctx->threads();
  std::vector<BenchRow> rows;
  std::vector<std::string> left_out;
  if (options.part != BenchPart::kModels) {
    rows = bench_kernels(*ctx, config, tokens, options.repeats, rates);
  }
  if (options.part != BenchPart::kKernels) {
    const Device where = ctx->device();
    const ContextOptions context = {
        .threads = threads, .log = job.log, .activations = ctx->activations()};
    ctx.reset();  // its memory is for the models
    const auto models = bench_models(where, context, config,
                                     {.tokens = tokens,
                                      .stream = options.stream,
                                      .train = options.train,
                                      .segment = options.common.segment,
                                      .max_memory = options.common.max_memory,
                                      .repeats = options.repeats},
                                     rates, left_out);
    rows.insert(rows.end(), models.begin(), models.end());
    ctx = std::make_unique<Context>(where, context);
  }
  const MachineRates rates_after = measure_rates(*ctx);
  job.report = concat(
      device, ", ", type, ", ", threads, threads == 1 ? " thread" : " threads", "; layers ",
      config.n_layers, ", d_model ", config.d_model, ", states ", config.d_state,
      "\nmeasured now: ", to_text(rates), "\n\n", table_text(rows),
      "\nmeasured again at the end: ", to_text(rates_after),
      "\nfloor: the bytes, products and exponentials that no implementation avoids, at these "
      "rates;\nmedians of ",
      options.repeats,
      "; longer than --tokens: at most three timings\nmemory: parameters, gradients, moments, "
      "states and "
      "scratch held at the end\n");
  if (const std::string slower = slowdown(rates, rates_after); !slower.empty()) {
    job.report += concat(slower, "\n");
  }
  for (const BenchRow& row : rows) {
    if (row.planned == 0) continue;
    job.report += concat("within ", format_bytes(options.common.max_memory), ": ", row.name, ", ",
                         row.shape, ": planned ", format_bytes(row.planned), ", at most ",
                         format_bytes(row.memory), " were in use\n");
  }
  for (const std::string& line : left_out) job.report += concat("left out: ", line, "\n");
  if (options.common.out.empty()) return;
  Json json = {{"device", device}, {"activations", type}, {"threads", threads}};
  const auto put_rates = [](Json& to, const MachineRates& from) {
    to["copy_bytes_per_second"] = from.copy_bytes;
    to["gemm_flops_per_second"] = from.gemm_flops;
    to["exps_per_second"] = from.exps;
  };
  put_rates(json, rates);
  put_rates(json["at_end"], rates_after);
  json["rows"] = Json::array();
  for (const BenchRow& row : rows) json["rows"].push_back(to_json(row));
  TextWriter writer(options.common.out);
  writer.write(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  writer.commit();
}

}  // namespace gmamba
