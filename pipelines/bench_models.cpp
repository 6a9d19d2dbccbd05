// SPDX-License-Identifier: Apache-2.0
/// Whole models: reading, and one optimiser step.
#include <utility>

#include "libmamba/core/text.h"
#include "libmamba/trainer.h"
#include "pipelines/bench.h"

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
  ModelBench(Context& ctx, const ModelConfig& config, int64_t repeats, const MachineRates& rates)
      : ctx_(ctx), config_(config), repeats_(repeats), rates_(rates) {}

  Model make() const {
    Model host(config_, Device{});
    initialize(host.parameters(), config_, 1);
    Model model(config_, ctx_.device());
    ctx_.upload(host.parameters().flat(), model.parameters().flat());
    return model;
  }

  BenchRow forward(int64_t batch, int64_t length) {
    const Arena::Scope scope(ctx_.arena());
    const Model model = make();
    const std::vector<uint8_t> ids = bases(batch * length);
    const TensorView tokens = ctx_.arena().tensor(DType::kU8, {batch, length});
    ctx_.upload(host_view(ids.data(), {batch, length}), tokens);
    const TensorView hidden =
        ctx_.arena().tensor(ctx_.activations(), {batch, length, config_.d_model});
    const TensorView logits = ctx_.arena().f32({batch * length, config_.vocab_size});
    SequenceState state(config_, batch, ctx_.device());
    return row("model forward", batch, length, 1, [&] {
      model.forward(ctx_, tokens, state, hidden);
      model.logits(ctx_, hidden.reshape({batch * length, config_.d_model}), logits);
    });
  }

  /// `segment` tokens of a sequence at once; the whole sequence when it is its length.
  BenchRow step(int64_t batch, int64_t length, int64_t segment) {
    Trainer trainer(ctx_, make(), OptimizerOptions{});
    const std::vector<uint8_t> ids = bases(batch * length);
    std::vector<int32_t> targets(ids.begin() + 1, ids.end());
    targets.push_back(7);
    const std::vector<float> weights(ids.size(), 1.0F);
    const double scale = 1 / static_cast<double>(ids.size());
    // three passes' products, two passes' exponentials, and one pass more in several segments
    return row(segment < length ? concat("training step, segments of ", segment) : "training step",
               batch, length, segment < length ? 4 : 3, [&] {
                 trainer.begin_step();
                 trainer.add_language_batch(ids, targets, weights, batch, length, segment, scale);
                 trainer.end_step();
               });
  }

 private:
  BenchRow row(std::string name, int64_t batch, int64_t length, double passes,
               const std::function<void()>& body) {
    BenchRow out;
    out.name = std::move(name);
    out.shape = concat(batch, " x ", length);
    out.tokens = static_cast<double>(batch * length);
    Work work = forward_work(config_, static_cast<double>(size_of(ctx_.activations())));
    work = scaled(work, out.tokens * passes);
    if (passes > 1) work.exps *= (passes - 1) / passes;
    out.floor = work.floor(rates_, !ctx_.device().is_cpu());
    out.seconds = median_seconds(ctx_, repeats_, body);
    return out;
  }

  Context& ctx_;
  const ModelConfig& config_;
  int64_t repeats_;
  MachineRates rates_;
};

}  // namespace

std::vector<BenchRow> bench_models(Context& ctx, const ModelConfig& config, int64_t tokens,
                                   int64_t repeats, const MachineRates& rates) {
  ModelBench bench(ctx, config, repeats, rates);
  std::vector<BenchRow> rows;
  rows.push_back(bench.forward(1, tokens));
  if (tokens >= 8) rows.push_back(bench.forward(8, tokens / 8));
  rows.push_back(bench.step(1, tokens, tokens));
  if (tokens >= 1024) rows.push_back(bench.step(tokens / 1024, 1024, 1024));
  if (tokens >= 16) rows.push_back(bench.step(1, tokens, tokens / 8));
  return rows;
}

}  // namespace gmamba
