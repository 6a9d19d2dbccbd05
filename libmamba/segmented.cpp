// SPDX-License-Identifier: Apache-2.0
#include "libmamba/segmented.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cross_entropy.h"
#include "libmamba/core/parallel.h"
#include "libmamba/memory_plan.h"

namespace gmamba {

LossTotals& LossTotals::operator+=(const LossTotals& other) {
  loss += other.loss;
  weight += other.weight;
  correct += other.correct;
  count += other.count;
  return *this;
}

std::vector<int64_t> valid_in_segment(const std::vector<int64_t>& lengths, int64_t offset,
                                      int64_t length) {
  std::vector<int64_t> valid;
  valid.reserve(lengths.size());
  for (const int64_t whole : lengths) {
    valid.push_back(std::clamp<int64_t>(whole - offset, 0, length));
  }
  return valid;
}

namespace {

/// A contiguous (B, S) view on the device, and where it came from the host, what holds it there.
struct Piece {
  ConstTensorView view;
  Staged staged;
};

/// Columns [begin, end) of `all` (B, L); copied only when rows must move together or lie on the
/// host, from where all of them come at once.
Piece segment_of(Context& ctx, ConstTensorView all, int64_t begin, int64_t end) {
  const ConstTensorView part = all.slice(1, begin, end);
  if (all.device != ctx.device()) {
    Staged staged = ctx.stage({&part, 1});
    const ConstTensorView there = staged.view(0);
    return {there, std::move(staged)};
  }
  if (part.contiguous()) return {part, {}};
  const int64_t batch = all.dim(0);
  const TensorView out = ctx.arena().tensor(all.dtype, {batch, end - begin});
  for (int64_t b = 0; b < batch; ++b) {
    ctx.copy(part.slice(0, b, b + 1).reshape({end - begin}),
             out.slice(0, b, b + 1).reshape({end - begin}));
  }
  return {out, {}};
}

/// Makes one block for the scratch of a step of `count` segments, so that tens of gigabytes aren't
/// gathered from blocks with gaps between them; on a GPU at most `most` bytes when not 0. Returns
/// how many layers can keep everything in what is left there; results don't depend on it.
int64_t reserve_scratch(Context& ctx, const ModelConfig& config, int64_t batch, int64_t segment,
                        int64_t count, int64_t most) {
  const Arithmetic arithmetic{ctx.device(), ctx.activations()};
  const int64_t states = (count > 1 ? count + 3 : 3) * SequenceState::bytes(config, batch);
  const int64_t least = states + training_scratch(config, batch, segment, arithmetic);
  if (ctx.device().is_cpu()) {
    // a little more, for what is too small to be planned: a second block would be half as large
    ctx.arena().reserve(least + least / 64 + (int64_t{1} << 16));
    return 0;
  }
  const int64_t layer = whole_layer_bytes(config, batch, segment, arithmetic);
  const int64_t room =
      most > 0 ? most : std::max(ctx.arena().largest_block(), step_memory(0, ctx.device()));
  const int64_t whole =
      std::clamp<int64_t>((room - least) / std::max<int64_t>(1, layer), 0, config.n_layers);
  ctx.arena().reserve(least + whole * layer);
  return whole;
}

}  // namespace

void segmented_gradient(Context& ctx, const Model& model, ConstTensorView tokens, int64_t segment,
                        SegmentLoss& loss, ParameterBuffer& gradients,
                        const SegmentedOptions& options) {
  require(tokens.rank == 2, ErrorKind::kShape, "segmented_gradient: tokens must be (B, L), found ",
          to_string(tokens.shape()));
  require(segment >= 1, ErrorKind::kUsage, "--segment must be at least 1, found ", segment);
  const int64_t batch = tokens.dim(0);
  const int64_t length = tokens.dim(1);
  const int64_t d_model = model.config().d_model;
  const int64_t count = pieces(length, segment);
  const auto border = [&](int64_t i) { return std::min(length, i * segment); };
  const bool backbone = options.backbone;
  const Arena::Scope outer(ctx.arena());
  const int64_t whole_layers =
      backbone ? reserve_scratch(ctx, model.config(), batch, std::min(length, segment), count,
                                 options.most_scratch)
               : 0;
  const auto new_state = [&] { return SequenceState::scratch(ctx, model.config(), batch); };
  SequenceState state = new_state();
  if (options.start != nullptr) state.assign(ctx, *options.start);

  // one segment is read once, keeping everything; several are read twice
  const bool once = count <= 1 && backbone;
  std::vector<SequenceState> borders;
  if (!once) {
    for (int64_t i = 0; i < count; ++i) {
      borders.push_back(new_state());
      borders.back().assign(ctx, state);
      const bool needed = loss.needs_whole_sequence() || i + 1 < count;
      if (!needed) break;
      const Arena::Scope scope(ctx.arena());
      const Piece piece = segment_of(ctx, tokens, border(i), border(i + 1));
      const TensorView hidden =
          ctx.arena().tensor(ctx.activations(), {batch, piece.view.dim(1), d_model});
      model.forward(ctx, piece.view, state, hidden);
      if (loss.needs_whole_sequence()) loss.observe(ctx, border(i), hidden);
    }
    loss.finish_observing(ctx);
    if (!backbone && loss.needs_whole_sequence()) {  // the head's gradient is complete
      if (options.end != nullptr) options.end->assign(ctx, state);
      return;
    }
  }

  SequenceState dstate = new_state();
  SequenceState after = new_state();
  for (int64_t i = count - 1; i >= 0; --i) {
    const Arena::Scope scope(ctx.arena());
    const Piece held = segment_of(ctx, tokens, border(i), border(i + 1));
    const ConstTensorView piece = held.view;
    const Shape shape = {batch, piece.dim(1), d_model};
    const TensorView hidden = ctx.arena().tensor(ctx.activations(), shape);
    const TensorView dhidden = ctx.arena().tensor(ctx.activations(), shape);
    const SequenceState& before = once ? state : borders[static_cast<size_t>(i)];
    after.assign(ctx, before);
    if (!backbone) {
      model.forward(ctx, piece, after, hidden);
      if (i + 1 == count && options.end != nullptr) options.end->assign(ctx, after);
      loss.gradient(ctx, border(i), hidden, dhidden);
      continue;
    }
    ForwardSaved saved;
    model.forward_saving(ctx, piece, after, hidden, saved, whole_layers);
    if (i + 1 == count && options.end != nullptr) options.end->assign(ctx, after);
    if (once && loss.needs_whole_sequence()) {
      loss.observe(ctx, 0, hidden);
      loss.finish_observing(ctx);
    }
    loss.gradient(ctx, border(i), hidden, dhidden);
    model.backward(ctx, piece, before, saved, dhidden, dstate, gradients);
  }
}

LanguageModelLoss::LanguageModelLoss(Context& ctx, const Model& model, ConstTensorView targets,
                                     ConstTensorView weights, float scale,
                                     ParameterBuffer& gradients, TensorView totals)
    : model_(model),
      targets_(targets),
      weights_(weights),
      scale_(scale),
      gradients_(gradients),
      totals_(totals.empty() ? ctx.arena().zeros(DType::kF64, {4}, ctx.stream()) : totals) {}

void LanguageModelLoss::gradient(Context& ctx, int64_t offset, ConstTensorView hidden,
                                 TensorView dhidden) {
  const Arena::Scope scope(ctx.arena());
  const int64_t end = offset + hidden.dim(1);
  const int64_t rows = hidden.dim(0) * hidden.dim(1);
  const int64_t vocab = model_.config().vocab_size;
  const Piece targets = segment_of(ctx, targets_, offset, end);
  const Piece weights = weights_.empty() ? Piece{} : segment_of(ctx, weights_, offset, end);
  const TensorView logits = ctx.arena().f32({rows, vocab});
  const TensorView dlogits = ctx.arena().tensor(hidden.dtype, {rows, vocab});
  const ConstTensorView flat = hidden.reshape({rows, hidden.dim(2)});
  model_.logits(ctx, flat, logits);
  cross_entropy(ctx,
                {.logits = logits,
                 .targets = targets.view.reshape({rows}),
                 .weights = weights_.empty() ? ConstTensorView{} : weights.view.reshape({rows}),
                 .scale = scale_,
                 .dlogits = dlogits,
                 .totals = totals_});
  model_.logits_backward(ctx, dlogits, flat, dhidden.reshape({rows, hidden.dim(2)}), gradients_);
}

LossTotals download_totals(Context& ctx, ConstTensorView totals) {
  std::array<double, 4> values{};
  ctx.download(totals, host_view(values.data(), {4}));
  return {values[0], values[1], values[2], static_cast<int64_t>(values[3])};
}

SequenceLoss::SequenceLoss(Context& ctx, const Model& model, std::vector<int64_t> lengths,
                           std::vector<int32_t> classes, std::vector<float> values, float scale,
                           ParameterBuffer& gradients)
    : model_(model),
      lengths_(std::move(lengths)),
      classes_(std::move(classes)),
      values_(std::move(values)),
      scale_(scale),
      gradients_(gradients) {
  const auto batch = static_cast<int64_t>(lengths_.size());
  const Shape shape = {batch, model.config().d_model};
  device_lengths_ = ctx.make(DType::kI64, {batch});
  accumulator_ = ctx.make(DType::kF64, shape);
  position_ = ctx.make(DType::kI64, shape);
  dpooled_ = ctx.make(DType::kF32, shape);
  ctx.upload(host_view(std::as_const(lengths_).data(), {batch}), device_lengths_);
}

void SequenceLoss::observe(Context& ctx, int64_t offset, ConstTensorView hidden) {
  const Arena::Scope scope(ctx.arena());
  const auto batch = static_cast<int64_t>(lengths_.size());
  const std::vector<int64_t> valid = valid_in_segment(lengths_, offset, hidden.dim(1));
  const TensorView device_valid = ctx.arena().tensor(DType::kI64, {batch});
  ctx.upload(host_view(valid.data(), {batch}), device_valid);
  pool_update(ctx, {.mode = model_.config().pool,
                    .hidden = hidden,
                    .valid = device_valid,
                    .offset = offset,
                    .accumulator = accumulator_,
                    .position = position_});
}

void SequenceLoss::finish_observing(Context& ctx) {
  const Arena::Scope scope(ctx.arena());
  const ModelConfig& config = model_.config();
  const auto batch = static_cast<int64_t>(lengths_.size());
  const bool classify = config.task == TaskKind::kClassification;
  const int64_t labels = classify ? static_cast<int64_t>(config.labels.size()) : 1;
  const TensorView pooled = ctx.arena().f32({batch, config.d_model});
  const TensorView scores = ctx.arena().f32({batch, labels});
  const TensorView dscores = ctx.arena().f32({batch, labels});
  pool_finish(ctx, config.pool, accumulator_, device_lengths_, pooled);
  model_.scores(ctx, pooled, scores);
  scores_.resize(static_cast<size_t>(batch * labels));
  ctx.download(scores, host_view(scores_.data(), {batch, labels}));
  if (classify) {
    const TensorView targets = ctx.arena().tensor(DType::kI32, {batch});
    const TensorView totals = ctx.arena().zeros(DType::kF64, {4}, ctx.stream());
    ctx.upload(host_view(std::as_const(classes_).data(), {batch}), targets);
    cross_entropy(ctx, {.logits = scores,
                        .targets = targets,
                        .scale = scale_,
                        .dlogits = dscores,
                        .totals = totals});
    std::array<double, 4> values{};
    ctx.download(totals, host_view(values.data(), {4}));
    totals_ = {values[0], values[1], values[2], static_cast<int64_t>(values[3])};
  } else {
    std::vector<float> gradient(static_cast<size_t>(batch));
    for (size_t b = 0; b < gradient.size(); ++b) {
      const float error = scores_[b] - values_[b];
      totals_.loss += static_cast<double>(error) * error;
      gradient[b] = 2 * error * scale_;
    }
    totals_.weight = static_cast<double>(batch);
    totals_.count = batch;
    ctx.upload(host_view(std::as_const(gradient).data(), {batch, 1}), dscores);
  }
  model_.scores_backward(ctx, dscores, pooled, dpooled_, gradients_);
}

void SequenceLoss::gradient(Context& ctx, int64_t offset, ConstTensorView, TensorView dhidden) {
  pool_backward(ctx, {.mode = model_.config().pool,
                      .dpooled = dpooled_,
                      .lengths = device_lengths_,
                      .position = position_,
                      .offset = offset,
                      .dhidden = dhidden});
}

}  // namespace gmamba
