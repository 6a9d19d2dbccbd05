// SPDX-License-Identifier: Apache-2.0
#include "pipelines/doctor.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <span>
#include <utility>

#include "io/table.h"
#include "kernels/conv1d.h"
#include "kernels/cross_entropy.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "libmamba/segmented.h"
#include "pipelines/plain_model.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

using Values = std::vector<float>;
using Outcome = DoctorCheck::Outcome;

/// Bounds of the arithmetic, relative: some hundred roundings of 6e-8 in fp32 or 4e-3 in bf16 that
/// mostly cancel, and of a gradient some thousand.
double forward_limit(const Context& ctx) { return ctx.activations() == DType::kBF16 ? 2e-2 : 2e-5; }
double gradient_limit(const Context& ctx) {
  return ctx.activations() == DType::kBF16 ? 5e-2 : 2e-4;
}

ModelConfig check_config() {
  ModelConfig config;
  config.d_model = 24;
  config.n_layers = 2;
  config.dt_rank = 3;
  return config;
}

/// A model of some size for the comparison of two devices and of chunkings.
ModelConfig larger_config() {
  ModelConfig config;
  config.d_model = 64;
  config.n_layers = 3;
  config.dt_rank = ModelConfig::auto_dt_rank(64);
  return config;
}

ParameterBuffer random_values(const ModelConfig& config, uint64_t seed) {
  ParameterBuffer values(std::make_shared<const ParameterLayout>(config), Device{});
  initialize(values, config, seed);
  // the usual embedding is tiny; a larger one makes every equation count
  for (float& x : values.view("backbone.embeddings.weight").flat<float>()) x *= 25;
  return values;
}

std::vector<uint8_t> random_tokens(int64_t count, uint64_t seed) {
  Random random(seed, RandomUse::kTest);
  const Vocabulary vocabulary = Vocabulary::characters();
  std::vector<uint8_t> tokens(static_cast<size_t>(count));
  for (uint8_t& token : tokens) {
    token = static_cast<uint8_t>(vocabulary.bases[random.below(4)]);
  }
  return tokens;
}

template <class A, class B>
double relative_error(const A& found, const B& expected) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(found[i]) - static_cast<double>(expected[i]);
    difference += d * d;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// One model on one device, with what the checks ask of it.
class Subject {
 public:
  Subject(Context& ctx, const ModelConfig& config, const ParameterBuffer& values)
      : ctx_(ctx), model_(config, ctx.device()) {
    ctx.upload(values.flat(), model_.parameters().flat());
  }

  struct Read {
    Values hidden;
    Values state;
  };
  /// Hidden states and final scan states when the sequence is read in segments.
  Read read(std::span<const uint8_t> tokens, int64_t segment) {
    const ModelConfig& config = model_.config();
    Read out;
    SequenceState state(config, 1, ctx_.device());
    const auto total = static_cast<int64_t>(tokens.size());
    for (int64_t at = 0; at < total; at += segment) {
      const Arena::Scope scope(ctx_.arena());
      const int64_t length = std::min(segment, total - at);
      const TensorView on_device = ctx_.arena().tensor(DType::kU8, {1, length});
      const TensorView hidden = ctx_.arena().f32({1, length, config.d_model});
      ctx_.upload(host_view(tokens.data() + at, {1, length}), on_device);
      model_.forward(ctx_, on_device, state, hidden);
      append(hidden, out.hidden);
    }
    for (int64_t layer = 0; layer < config.n_layers; ++layer) append(state.ssm(layer), out.state);
    return out;
  }

  /// Gradient of the summed next-token loss, in the order of the parameter buffer.
  Values gradient(std::span<const uint8_t> tokens, int64_t segment) {
    const Arena::Scope scope(ctx_.arena());
    const auto length = static_cast<int64_t>(tokens.size());
    std::vector<int32_t> next(tokens.begin() + 1, tokens.end());
    next.push_back(kIgnoreTarget);
    const TensorView on_device = ctx_.arena().tensor(DType::kU8, {1, length});
    const TensorView targets = ctx_.arena().tensor(DType::kI32, {1, length});
    ctx_.upload(host_view(tokens.data(), {1, length}), on_device);
    ctx_.upload(host_view(std::as_const(next).data(), {1, length}), targets);
    ParameterBuffer gradients(model_.parameters().shared_layout(), ctx_.device());
    LanguageModelLoss loss(ctx_, model_, targets, {}, 1.0F, gradients);
    segmented_gradient(ctx_, model_, on_device, segment, loss, gradients);
    Values out;
    append(gradients.flat(), out);
    return out;
  }

  const ParameterLayout& layout() const { return model_.parameters().layout(); }

 private:
  void append(ConstTensorView from, Values& to) {
    const size_t before = to.size();
    to.resize(before + static_cast<size_t>(from.size()));
    ctx_.download(from, host_view(to.data() + before, from.shape()));
  }

  Context& ctx_;
  Model model_;
};

// ---- the checks; each returns its error and says what it compared

DoctorCheck judged(double error, double limit, std::string note) {
  DoctorCheck check;
  check.outcome = error <= limit ? Outcome::kPassed : Outcome::kFailed;  // NaN fails
  check.error = error;
  check.limit = limit;
  check.note = std::move(note);
  return check;
}

DoctorCheck skipped(std::string why) {
  DoctorCheck check;
  check.note = std::move(why);
  return check;
}

DoctorCheck check_oracle(Context& ctx, uint64_t seed) {
  const ModelConfig config = check_config();
  const ParameterBuffer values = random_values(config, seed);
  const auto tokens = random_tokens(150, seed + 1);
  const auto expected = PlainModel(config, values).hidden(tokens);
  const auto found = Subject(ctx, config, values).read(tokens, 150);
  return judged(relative_error(found.hidden, expected), forward_limit(ctx),
                "hidden states against the equations in double precision");
}

/// Each parameter's gradient g along its own direction g / |g|: the slope there must be |g|.
DoctorCheck check_gradients(Context& ctx, uint64_t seed) {
  const ModelConfig config = check_config();
  const ParameterBuffer values = random_values(config, seed);
  const auto tokens = random_tokens(40, seed + 2);
  Subject subject(ctx, config, values);
  const Values gradient = subject.gradient(tokens, 40);
  PlainModel plain(config, values);
  constexpr double kStep = 1e-5;
  double worst = 0;
  for (const ParameterInfo& info : subject.layout().all()) {
    check_stop();
    const auto g = std::span(gradient).subspan(static_cast<size_t>(info.offset),
                                               static_cast<size_t>(info.size));
    double norm = 0;
    for (const float x : g) norm += static_cast<double>(x) * x;
    norm = std::sqrt(norm);
    const auto loss_at = [&](double step) {
      const std::vector<double> kept = plain.values();
      for (size_t i = 0; i < g.size(); ++i) {
        plain.values()[static_cast<size_t>(info.offset) + i] += step * g[i] / norm;
      }
      const double loss = plain.loss(tokens);
      plain.values() = kept;
      return loss;
    };
    const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
    const double error = std::abs(slope - norm) / norm;
    worst = std::isnan(error) ? error : std::max(worst, error);
    if (std::isnan(worst)) break;
  }
  return judged(worst, gradient_limit(ctx),
                "gradient of every parameter against differences in double precision");
}

DoctorCheck check_chunking(Context& ctx, uint64_t seed) {
  const ModelConfig config = larger_config();
  const ParameterBuffer values = random_values(config, seed);
  const auto tokens = random_tokens(2500, seed + 3);
  Subject subject(ctx, config, values);
  const auto whole = subject.read(tokens, 2500);
  double worst = 0;
  for (const int64_t segment : {1, 3, 64, 1000, 2048}) {
    check_stop();
    // one token at a time is checked over the beginning only
    const auto part = std::span(tokens).first(segment < 3 ? 300 : tokens.size());
    const auto split = subject.read(part, segment);
    const auto same = segment < 3 ? subject.read(part, 300) : whole;
    worst = std::max({worst, relative_error(split.hidden, same.hidden),
                      relative_error(split.state, same.state)});
  }
  return judged(worst, forward_limit(ctx), "segments of 1, 3, 64, 1000, 2048 against one piece");
}

DoctorCheck check_segmented_gradient(Context& ctx, uint64_t seed) {
  const ModelConfig config = larger_config();
  Subject subject(ctx, config, random_values(config, seed));
  const auto tokens = random_tokens(1500, seed + 4);
  const Values whole = subject.gradient(tokens, 1500);
  const Values split = subject.gradient(tokens, 256);
  return judged(relative_error(split, whole), gradient_limit(ctx),
                "gradients through segments of 256 against one piece");
}

DoctorCheck check_repeats(Context& ctx, uint64_t seed) {
  const ModelConfig config = larger_config();
  Subject subject(ctx, config, random_values(config, seed));
  const auto tokens = random_tokens(3000, seed + 5);
  const Values first = subject.gradient(tokens, 3000);
  double different = 0;
  for (int round = 0; round < 2; ++round) {
    const Values again = subject.gradient(tokens, 3000);
    for (size_t i = 0; i < first.size(); ++i) different += first[i] == again[i] ? 0 : 1;
  }
  return judged(different, 0, "values that differ between three runs of one gradient");
}

/// Untouched memory of the device, given back at the end; on the CPU it costs address space only.
class LargeBlock {
 public:
  LargeBlock(Context& ctx, int64_t bytes) : ctx_(ctx), bytes_(bytes) {
    if (!ctx.device().is_cpu()) {
      data_ = ctx.backend().allocate(ctx.device().index, bytes);
      return;
    }
    void* const got = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(got != MAP_FAILED, ErrorKind::kIo, "no address space for ", format_bytes(bytes));
    data_ = got;
  }
  LargeBlock(const LargeBlock&) = delete;
  LargeBlock& operator=(const LargeBlock&) = delete;
  ~LargeBlock() {
    if (ctx_.device().is_cpu()) {
      ::munmap(data_, static_cast<size_t>(bytes_));
    } else {
      ctx_.backend().release(ctx_.device().index, data_);
    }
  }
  void* data() const { return data_; }

 private:
  Context& ctx_;
  int64_t bytes_;
  void* data_ = nullptr;
};

/// A convolution over rows so far apart that the last lies past 2^31 elements.
DoctorCheck check_big_offsets(Context& ctx, uint64_t seed) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kWidth = 64;
  constexpr int64_t kApart = (int64_t{1} << 30) + 64;
  const int64_t bytes = ((kRows - 1) * kApart + kWidth) * size_of(DType::kF32);
  Random random(seed + 6, RandomUse::kTest);
  Values x(kRows * kWidth);
  Values weight(kWidth * 4);
  for (float& value : x) value = static_cast<float>(random.uniform(-1, 1));
  for (float& value : weight) value = static_cast<float>(random.uniform(-1, 1));

  const auto convolve = [&](TensorView rows) {
    const Arena::Scope scope(ctx.arena());
    const TensorView w = ctx.arena().f32({kWidth, 4});
    const TensorView y = ctx.arena().f32({1, kRows, kWidth});
    ctx.upload(host_view(std::as_const(weight).data(), {kWidth, 4}), w);
    for (int64_t row = 0; row < kRows; ++row) {
      ctx.upload(host_view(std::as_const(x).data() + row * kWidth, {kWidth}),
                 rows.slice(1, row, row + 1).reshape({kWidth}));
    }
    conv1d_forward(ctx, {.x = rows, .weight = w, .y = y});
    Values out(x.size());
    ctx.download(y, host_view(out.data(), {1, kRows, kWidth}));
    return out;
  };
  const Tensor compact = ctx.make(DType::kF32, {1, kRows, kWidth});
  TensorView near = const_cast<Tensor&>(compact).view();
  const Values expected = convolve(near);
  try {
    const LargeBlock block(ctx, bytes);
    TensorView far = make_view(block.data(), DType::kF32, ctx.device(), {1, kRows, kWidth});
    far.stride[0] = kRows * kApart;
    far.stride[1] = kApart;
    return judged(relative_error(convolve(far), expected), 1e-6,
                  "rows that lie past 2^31 elements against the same rows side by side");
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDevice && error.kind() != ErrorKind::kIo) throw;
    return skipped(concat("needs ", format_bytes(bytes), " of memory: ", error.what()));
  }
}

DoctorCheck check_against_cpu(Context& ctx, uint64_t seed) {
  if (ctx.device().is_cpu()) return skipped("runs on the CPU; there is no GPU to compare with it");
  const ModelConfig config = larger_config();
  const ParameterBuffer values = random_values(config, seed);
  const auto tokens = random_tokens(2000, seed + 7);
  Context cpu(Device{}, {.threads = ctx.threads()});
  Subject here(ctx, config, values);
  Subject there(cpu, config, values);
  const double forward =
      relative_error(here.read(tokens, 2000).hidden, there.read(tokens, 2000).hidden);
  const double backward = relative_error(here.gradient(tokens, 2000), there.gradient(tokens, 2000));
  return judged(std::max(forward, backward), gradient_limit(ctx),
                "hidden states and gradients on the GPU against the CPU");
}

const char* word_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::kPassed:
      return "passed";
    case Outcome::kFailed:
      return "FAILED";
    case Outcome::kSkipped:
      break;
  }
  return "skipped";
}

std::string verdict_of(const std::vector<DoctorCheck>& checks, const std::string& device) {
  const auto count = [&](Outcome outcome) {
    return std::count_if(checks.begin(), checks.end(),
                         [&](const DoctorCheck& c) { return c.outcome == outcome; });
  };
  if (count(Outcome::kFailed) > 0) {
    return concat("VERDICT: do not trust results of this machine (", device,
                  "): ", count(Outcome::kFailed), " of ", checks.size(),
                  " checks failed; please report them");
  }
  const auto left = count(Outcome::kSkipped);
  return concat("VERDICT: this machine (", device,
                ") computes correctly: ", count(Outcome::kPassed), " checks passed",
                left > 0 ? concat(", ", left, " skipped") : std::string());
}

}  // namespace

std::vector<DoctorCheck> run_checks(Context& ctx, uint64_t seed) {
  const std::pair<const char*, std::function<DoctorCheck(Context&, uint64_t)>> all[] = {
      {"equations", check_oracle},           {"gradients", check_gradients},
      {"chunking", check_chunking},          {"segmented gradients", check_segmented_gradient},
      {"same bits again", check_repeats},    {"big offsets", check_big_offsets},
      {"CPU against GPU", check_against_cpu}};
  std::vector<DoctorCheck> checks;
  for (const auto& [name, body] : all) {
    check_stop();
    const auto start = std::chrono::steady_clock::now();
    DoctorCheck check = body(ctx, seed);
    check.name = name;
    check.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    checks.push_back(std::move(check));
  }
  return checks;
}

void doctor(const DoctorOptions& options, Job& job) {
  const auto ctx = open_context(options.common, job);
  const std::string device = ctx->backend().device_name(ctx->device().index);
  const auto seed = static_cast<uint64_t>(options.common.seed);
  auto checks = run_checks(*ctx, seed);
  if (options.common.precision == Precision::kAuto && ctx->activations() != DType::kF32) {
    Context exact(ctx->device(), {.threads = ctx->threads(), .log = job.log});
    for (DoctorCheck& check : checks) check.name += ", bf16";
    for (DoctorCheck& check : run_checks(exact, seed)) {
      check.name += ", fp32";
      checks.push_back(std::move(check));
    }
  }
  const std::string verdict = verdict_of(checks, device);
  Json rows = Json::array();
  std::vector<std::string> lines;
  bool failed = false;
  for (const DoctorCheck& check : checks) {
    failed = failed || check.outcome == Outcome::kFailed;
    std::string line = check.name;
    line.resize(27, ' ');
    line += word_of(check.outcome);
    line.resize(36, ' ');
    if (check.outcome == Outcome::kSkipped) {
      line += check.note;
    } else {
      line += concat("error ", format_number(check.error, 2), ", allowed ",
                     format_number(check.limit, 2), "  ", check.note);
    }
    lines.push_back(std::move(line));
    rows.push_back({{"check", check.name},
                    {"outcome", word_of(check.outcome)},
                    {"error", check.error},
                    {"limit", check.limit},
                    {"note", check.note},
                    {"seconds", check.seconds}});
  }
  if (!options.common.out.empty()) {
    const Json json = {{"device", device}, {"checks", rows}, {"verdict", verdict}};
    TextWriter writer(options.common.out);
    writer.write(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    writer.commit();
  }
  if (failed) {
    for (const std::string& line : lines) log_line(job.log, LogLevel::kInfo, line);
    fail(ErrorKind::kDevice, verdict);
  }
  for (const std::string& line : lines) job.report += line + "\n";
  job.report += verdict + "\n";
}

}  // namespace gmamba
