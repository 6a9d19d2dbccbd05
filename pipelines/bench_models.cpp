// SPDX-License-Identifier: Apache-2.0
/// Whole models: reading, and one optimiser step.
#include <algorithm>
#include <utility>

#include "kernels/replay.h"
#include "libmamba/core/text.h"
#include "libmamba/memory_plan.h"
#include "libmamba/trainer.h"
#include "pipelines/bench.h"
#include "pipelines/pretrain_plan.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

/// What one token's pass through all blocks and the head cannot avoid when each operation of a
/// block reads and writes its tensors once: norm, in_proj, convolution, x_proj, dt_proj, scan,
/// out_proj.
Work forward_work(const ModelConfig& c, double act) {
  const auto d = static_cast<double>(c.d_model);
  const auto e = static_cast<double>(c.d_inner());
  const auto n = static_cast<double>(c.d_state);
  const auto r = static_cast<double>(c.dt_rank);
  const auto v = static_cast<double>(c.vocab_size);
  const double x_dbl = r + 2 * n;
  Work block;
  block.bytes = d * (8 + 2 * act) +      // norm
                act * (d + 2 * e) +      // in_proj
                act * 2 * e +            // convolution
                act * (e + x_dbl) +      // x_proj
                act * (r + e) +          // dt_proj
                act * (4 * e + 2 * n) +  // scan
                act * (e + d);           // out_proj
  block.flops = 2 * (d * 2 * e + e * x_dbl + r * e + e * d);
  block.exps = e * (n + 4);
  Work all;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) all += block;
  all += {.bytes = act * d + 4 * v, .flops = 2 * d * v, .exps = v};
  return all;
}

Work scaled(Work work, double factor) {
  work.bytes *= factor;
  work.flops *= factor;
  work.exps *= factor;
  return work;
}

std::vector<uint8_t> bases(int64_t count) {
  std::vector<uint8_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<uint8_t>(7 + (i * 2654435761U >> 11) % 4);
  }
  return tokens;
}

class ModelBench {
 public:
  ModelBench(Device device, const ContextOptions& context, const ModelConfig& config,
             const ModelBenchOptions& options, const MachineRates& rates)
      : device_(device),
        context_(context),
        config_(config),
        options_(options),
        rates_(rates),
        segment_(options.segment > 0 ? options.segment : default_segment(device)) {}

  /// Without `replayed`, on a GPU, kernels are launched one by one even where a pass is short.
  BenchRow forward(int64_t batch, int64_t length, bool replayed = true) const {
    Context ctx(device_, context_);
    if (!replayed) allow_replay(ctx, false);
    const Reader reader(ctx, *this, batch, length);
    SequenceState state(config_, batch, device_);
    const double seconds = median_seconds(ctx, options_.repeats, [&] { reader.read(ctx, state); });
    return row(replayed ? "model forward" : "model forward, kernel by kernel", batch, length, 1,
               seconds, held(ctx, 1) + state.bytes());
  }

  /// One sequence of `length` tokens, the state carried from segment to segment.
  BenchRow stream(int64_t length) const {
    Context ctx(device_, context_);
    const Reader reader(ctx, *this, 1, segment_);
    SequenceState state(config_, 1, device_);
    const int64_t segments = (length + segment_ - 1) / segment_;
    reader.read(ctx, state);
    state.reset();
    const double seconds = seconds_of(ctx, [&] {
      for (int64_t i = 0; i < segments; ++i) {
        check_stop();
        reader.upload(ctx);
        reader.read(ctx, state);
      }
    });
    return row(concat("model forward, segments of ", segment_), 1, segments * segment_, 1, seconds,
               held(ctx, 1) + state.bytes());
  }

  /// `segment` tokens of a sequence at once; the whole sequence when it is its length. Activations
  /// may take `scratch` bytes of a GPU; 0: most of what is free.
  BenchRow step(int64_t batch, int64_t length, int64_t segment, int64_t scratch = 0) const {
    Context ctx(device_, context_);
    Trainer trainer(ctx, model(ctx), OptimizerOptions{});
    trainer.limit_scratch(scratch);
    const std::vector<uint8_t> ids = bases(batch * length);
    std::vector<int32_t> targets(ids.begin() + 1, ids.end());
    targets.push_back(7);
    const std::vector<float> weights(ids.size(), 1.0F);
    const double scale = 1 / static_cast<double>(ids.size());
    const auto staged = [&] {
      return trainer.stage(ids, targets, weights, batch, length, segment);
    };
    // as a training run does it: the next batch is on its way while this one is computed
    StagedBatch next = staged();
    const auto body = [&] {
      trainer.begin_step();
      const StagedBatch now = std::exchange(next, {});
      trainer.add_language_batch(now, segment, scale);
      next = staged();
      trainer.end_step();
    };
    const bool segments = segment < length;
    const double seconds = batch * length > options_.tokens
                               ? long_seconds(ctx, batch * length, body)
                               : median_seconds(ctx, options_.repeats, body);
    // three passes' products, two passes' exponentials, and one pass more in several segments
    return row(segments ? concat("training step, segments of ", segment) : "training step", batch,
               length, segments ? 4 : 3, seconds, held(ctx, 4));
  }

  /// A step over one sequence within options.max_memory, planned as a pretraining of such steps;
  /// throws kUsage where none fits.
  BenchRow bounded_step(int64_t length) const {
    PretrainOptions options;
    options.context = length;
    options.training.batch_tokens = length;
    options.training.steps = 1;
    options.common.segment = options_.segment;
    options.common.max_memory = options_.max_memory;
    Backend& backend = backend_for(device_.kind);
    const PretrainPlan plan = plan_pretraining(
        options, [&](const PretrainOptions&) { return config_; },
        machine_of({device_, context_.activations}));
    const int64_t before = backend.allocated_bytes(device_.index);
    backend.reset_peak(device_.index);
    BenchRow row = step(1, length, plan.last().segment, plan.scratch_bytes(plan.last(), config_));
    // a CPU has the sequence where it is, in memory that isn't its backend's
    row.memory = backend.peak_allocated_bytes(device_.index) - before +
                 (device_.is_cpu() ? kTokenBytes * length : 0);
    row.planned = plan.memory.total_bytes();
    return row;
  }

  /// Whether the device can hold a step's segment; the CPU is asked for nothing.
  bool fits(int64_t batch, int64_t segment, std::string& why) const {
    if (device_.is_cpu()) return true;
    const int64_t free_now = backend_for(device_.kind).free_bytes(device_.index);
    const int64_t needed =
        training_scratch(config_, batch, segment, {device_, context_.activations});
    why = concat("training step ", batch, " x ", segment, " at once: needs ", format_bytes(needed),
                 ", free are ", format_bytes(free_now));
    return needed < free_now;
  }

  int64_t segment() const { return segment_; }

 private:
  /// Seconds of a step of more tokens than each measurement works on. The first step takes memory
  /// and loads code, on a GPU for as long as some hundred thousand tokens take: of a long one that
  /// is nothing.
  double long_seconds(Context& ctx, int64_t tokens, const std::function<void()>& body) const {
    constexpr int64_t kLong = int64_t{1} << 24;
    if (device_.is_cpu() || tokens > kLong) return seconds_of(ctx, body);
    body();
    std::vector<double> seconds;
    for (int64_t i = 0; i < std::min<int64_t>(options_.repeats, 3); ++i) {
      check_stop();
      seconds.push_back(seconds_of(ctx, body));
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  /// A model and a batch of tokens that it reads to logits.
  class Reader {
   public:
    Reader(Context& ctx, const ModelBench& bench, int64_t batch, int64_t length)
        : model_(bench.model(ctx)), ids_(bases(batch * length)), shape_{batch, length} {
      const ModelConfig& config = model_.config();
      tokens_ = ctx.arena().tensor(DType::kU8, shape_);
      hidden_ = ctx.arena().tensor(ctx.activations(), {batch, length, config.d_model});
      logits_ = ctx.arena().f32({batch * length, config.vocab_size});
      upload(ctx);
    }
    void upload(Context& ctx) const { ctx.upload(host_view(ids_.data(), shape_), tokens_); }
    void read(Context& ctx, SequenceState& state) const {
      model_.forward(ctx, tokens_, state, hidden_);
      model_.logits(ctx, hidden_.reshape({logits_.dim(0), hidden_.dim(2)}), logits_);
    }

   private:
    Model model_;
    std::vector<uint8_t> ids_;
    Shape shape_;
    TensorView tokens_, hidden_, logits_;
  };

  Model model(Context& ctx) const {
    Model host(config_, Device{});
    initialize(host.parameters(), config_, 1);
    Model model(config_, device_);
    ctx.upload(host.parameters().flat(), model.parameters().flat());
    return model;
  }

  /// Bytes of the scratch and of `buffers` buffers as long as the parameters.
  int64_t held(Context& ctx, int64_t buffers) const {
    return ctx.arena().held_bytes() +
           buffers * ParameterLayout(config_).buffer_size() * size_of(DType::kF32);
  }

  BenchRow row(std::string name, int64_t batch, int64_t length, double passes, double seconds,
               int64_t memory) const {
    BenchRow out;
    out.name = std::move(name);
    out.shape = concat(batch, " x ", length);
    out.tokens = static_cast<double>(batch * length);
    Work work = forward_work(config_, static_cast<double>(size_of(context_.activations)));
    work = scaled(work, out.tokens * passes);
    if (passes > 1) work.exps *= (passes - 1) / passes;
    out.floor = work.floor(rates_, !device_.is_cpu());
    out.seconds = seconds;
    out.memory = memory;
    return out;
  }

  Device device_;
  ContextOptions context_;
  const ModelConfig& config_;
  ModelBenchOptions options_;
  MachineRates rates_;
  int64_t segment_;
};

}  // namespace

std::vector<BenchRow> bench_models(Device device, const ContextOptions& context,
                                   const ModelConfig& config, const ModelBenchOptions& options,
                                   const MachineRates& rates, std::vector<std::string>& left_out) {
  const ModelBench bench(device, context, config, options, rates);
  const int64_t tokens = options.tokens;
  std::vector<BenchRow> rows;
  rows.push_back(bench.forward(1, tokens));
  if (tokens >= 8) rows.push_back(bench.forward(8, tokens / 8));
  if (tokens >= 1024) rows.push_back(bench.forward(tokens / 1024, 1024));
  if (tokens > 4096) rows.push_back(bench.forward(1, 4096));
  if (tokens > 16384 && !device.is_cpu()) {
    for (const auto& [batch, length] : {std::pair{1, 1024}, {16, 256}, {1, 16384}}) {
      rows.push_back(bench.forward(batch, length));
    }
    for (const auto& [batch, length] : {std::pair{1, 1024}, {16, 256}, {1, 4096}, {1, 16384}}) {
      rows.push_back(bench.forward(batch, length, false));
    }
  }
  const auto step = [&](int64_t batch, int64_t length, int64_t segment) {
    std::string why;
    const bool fits = bench.fits(batch, segment, why);
    fits ? rows.push_back(bench.step(batch, length, segment)) : left_out.push_back(why);
  };
  step(1, tokens, tokens);
  if (tokens >= 1024) step(tokens / 1024, 1024, 1024);
  if (tokens > bench.segment()) step(1, tokens, bench.segment());
  if (options.stream > 0) rows.push_back(bench.stream(options.stream));
  if (options.train > 0 && options.max_memory == 0) {
    step(1, options.train, std::min(options.train, bench.segment()));
  } else if (options.train > 0) {
    try {
      rows.push_back(bench.bounded_step(options.train));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUsage) throw;
      left_out.push_back(concat("training step 1 x ", options.train, ": ", error.message()));
    }
  } else if (options.max_memory > 0) {
    left_out.push_back("training step within --max-memory: --train says of how many tokens");
  }
  return rows;
}

}  // namespace gmamba
