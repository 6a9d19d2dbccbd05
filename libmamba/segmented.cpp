// SPDX-License-Identifier: Apache-2.0
#include "libmamba/segmented.h"

#include <algorithm>
#include <array>
#include <optional>
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

/// The first reading of a sequence in segments: the state before each of them, and on a GPU states
/// within all but the last.
class Sweep {
 public:
  Sweep(Context& ctx, const ModelConfig& config, int64_t batch, int64_t length, int64_t segment,
        const FirstSweep& cut)
      : segment_(segment), every_(cut.mark_every) {
    const int64_t count = pieces(length, segment);
    for (int64_t i = 0; i < count; ++i) {
      borders_.push_back(SequenceState::scratch(ctx, config, batch));
    }
    for (int64_t i = 0; every_ > 0 && i < config.n_layers; ++i) {
      marks_.push_back(ctx.arena().f32(
          {batch, (count - 1) * (segment / every_), config.d_inner(), config.d_state}));
    }
  }

  const SequenceState& before(int64_t i) const { return borders_[static_cast<size_t>(i)]; }
  SequenceState& before(int64_t i) { return borders_[static_cast<size_t>(i)]; }

  /// What a pass over segments [begin, end) is to write. Where no marks are kept but borders are
  /// passed, marks at borders lie in the arena until the enclosing scope ends.
  StatesPassed passing(Context& ctx, const ModelConfig& config, int64_t begin, int64_t end) {
    StatesPassed passed = within(begin, std::min<int64_t>(end, last()));
    if (end - begin < 2) return passed;
    if (every_ == 0) {
      passed.every = segment_;
      for (int64_t i = 0; i < config.n_layers; ++i) {
        passed.marks.push_back(
            ctx.arena().f32({before(0).batch(), end - begin, config.d_inner(), config.d_state}));
      }
    }
    passed.border_every = segment_;
    for (int64_t i = begin + 1; i < end; ++i) passed.borders.push_back(&before(i));
    return passed;
  }

  /// The marks of segments [begin, end), if they are kept.
  StatesPassed within(int64_t begin, int64_t end) const {
    StatesPassed part;
    if (every_ == 0 || begin >= end || end > last()) return part;
    part.every = every_;
    const int64_t per = segment_ / every_;
    for (const TensorView& all : marks_) part.marks.push_back(all.slice(1, begin * per, end * per));
    return part;
  }

 private:
  int64_t last() const { return static_cast<int64_t>(borders_.size()) - 1; }

  int64_t segment_;
  int64_t every_;
  std::vector<SequenceState> borders_;
  std::vector<TensorView> marks_;  // per layer (B, marks of all segments but the last, E, N)
};

/// Makes one block for the scratch of a step of `count` segments, so that tens of gigabytes aren't
/// gathered from blocks with gaps between them; on a GPU at most `most` bytes when not 0. Returns
/// how many extras can be kept in what is left there; results don't depend on it.
int64_t reserve_scratch(Context& ctx, const ModelConfig& config, int64_t batch, int64_t segment,
                        int64_t count, int64_t marks, int64_t of_loss, int64_t most) {
  const Arithmetic arithmetic{ctx.device(), ctx.activations()};
  const int64_t states = (count > 1 ? count + 3 : 3) * SequenceState::bytes(config, batch);
  const int64_t least =
      states + marks + of_loss + training_scratch(config, batch, segment, arithmetic);
  if (ctx.device().is_cpu()) {
    // a little more, for what is too small to be planned: a second block would be half as large
    ctx.arena().reserve(least + least / 64 + (int64_t{1} << 16));
    return 0;
  }
  const int64_t room =
      most > 0 ? most : std::max(ctx.arena().largest_block(), step_memory(0, ctx.device()));
  const int64_t extras = extras_in(room - least, config, batch, segment, arithmetic);
  ctx.arena().reserve(least + extras_bytes(config, batch, segment, arithmetic, extras));
  return extras;
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
  FirstSweep cut{.length = segment};
  if (backbone) {
    cut = first_sweep(model.config(), batch, length, segment, {ctx.device(), ctx.activations()});
  }
  // a loss that sees the whole sequence sees it by segments
  if (loss.needs_whole_sequence()) cut.length = std::min(length, segment);
  const int64_t extras =
      backbone ? reserve_scratch(ctx, model.config(), batch, std::min(length, segment), count,
                                 cut.mark_bytes, loss.scratch_bytes(), options.most_scratch)
               : 0;
  loss.begin(ctx);
  const auto new_state = [&] { return SequenceState::scratch(ctx, model.config(), batch); };
  SequenceState state = new_state();
  if (options.start != nullptr) state.assign(ctx, *options.start);

  // one segment is read once, keeping everything; several are read twice
  const bool once = count <= 1 && backbone;
  const bool comes_back = backbone || !loss.needs_whole_sequence();
  std::optional<Sweep> sweep;
  if (!once) {
    if (comes_back) sweep.emplace(ctx, model.config(), batch, length, segment, cut);
    // the last segment is read where its gradient is wanted
    const int64_t read = loss.needs_whole_sequence() ? count : count - 1;
    const int64_t step = std::max<int64_t>(1, cut.length / segment);
    for (int64_t i = 0; i < read; i += step) {
      const int64_t end = std::min(read, i + step);
      if (comes_back) sweep->before(i).assign(ctx, state);
      const Arena::Scope scope(ctx.arena());
      const Piece piece = segment_of(ctx, tokens, border(i), border(end));
      const StatesPassed passed =
          comes_back ? sweep->passing(ctx, model.config(), i, end) : StatesPassed{};
      TensorView hidden;
      if (loss.needs_whole_sequence()) {
        hidden = ctx.arena().tensor(ctx.activations(), {batch, piece.view.dim(1), d_model});
      }
      model.advance(ctx, piece.view, state, passed, hidden);
      if (!hidden.empty()) loss.observe(ctx, border(i), hidden);
    }
    if (comes_back && read < count) sweep->before(read).assign(ctx, state);
    loss.finish_observing(ctx);
    if (!comes_back) {  // the head's gradient is complete
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
    const SequenceState& before = once ? state : sweep->before(i);
    after.assign(ctx, before);
    if (!backbone) {
      model.forward(ctx, piece, after, hidden);
      if (i + 1 == count && options.end != nullptr) options.end->assign(ctx, after);
      loss.gradient(ctx, border(i), hidden, dhidden);
      continue;
    }
    ForwardSaved saved;
    const StatesPassed known = once ? StatesPassed{} : sweep->within(i, i + 1);
    model.forward_saving(ctx, piece, after, hidden, saved, extras, known);
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
  return loss_totals(values);
}

LossTotals loss_totals(std::span<const double, 4> totals) {
  return {totals[0], totals[1], totals[2], static_cast<int64_t>(totals[3])};
}

SequenceBatch::SequenceBatch(Context& ctx, std::span<const uint8_t> tokens,
                             std::vector<int64_t> lengths, std::vector<int32_t> classes,
                             std::vector<float> values, int64_t segment)
    : host_lengths_(std::move(lengths)),
      host_classes_(std::move(classes)),
      values_(std::move(values)),
      segment_(segment) {
  const int64_t batch = rows();
  const auto count = static_cast<int64_t>(tokens.size());
  require(segment >= 1, ErrorKind::kUsage, "--segment must be at least 1, found ", segment);
  require(batch > 0 && count % batch == 0, ErrorKind::kInternal, "a batch of ", batch,
          " sequences and ", count, " tokens");
  const int64_t length = count / batch;
  const int64_t segments = std::max<int64_t>(1, pieces(length, segment));
  for (int64_t i = 0; i < segments; ++i) {
    const std::vector<int64_t> inside = valid_in_segment(host_lengths_, i * segment, segment);
    host_valid_.insert(host_valid_.end(), inside.begin(), inside.end());
  }
  std::vector<ConstTensorView> host = {
      host_view(std::as_const(host_lengths_).data(), {batch}),
      host_view(std::as_const(host_valid_).data(), {segments, batch})};
  if (!host_classes_.empty()) {
    host.push_back(host_view(std::as_const(host_classes_).data(), {batch}));
  }
  tokens_ = host_view(tokens.data(), {batch, length});
  const bool whole = length <= segment;
  if (whole) host.push_back(tokens_);
  staged_ = ctx.stage(host);
  lengths_ = staged_.view(0);
  valid_ = staged_.view(1);
  if (!host_classes_.empty()) classes_ = staged_.view(2);
  if (whole) tokens_ = staged_.view(host.size() - 1);
}

ConstTensorView SequenceBatch::valid(int64_t offset) const {
  const int64_t i = offset / segment_;
  return valid_.slice(0, i, i + 1).reshape({rows()});
}

SequenceLoss::SequenceLoss(Context& ctx, const Model& model, const SequenceBatch& batch,
                           float scale, ParameterBuffer& gradients, TensorView totals)
    : model_(model),
      batch_(batch),
      scale_(scale),
      gradients_(gradients),
      totals_(totals.empty() ? ctx.arena().zeros(DType::kF64, {4}, ctx.stream()) : totals) {}

int64_t SequenceLoss::scratch_bytes() const {
  return pooling_bytes(model_.config(), batch_.rows());
}

void SequenceLoss::begin(Context& ctx) {
  const Shape shape = {batch_.rows(), model_.config().d_model};
  accumulator_ = ctx.arena().zeros(DType::kF64, shape, ctx.stream());
  position_ = ctx.arena().zeros(DType::kI64, shape, ctx.stream());
  dpooled_ = ctx.arena().f32(shape);
}

void SequenceLoss::observe(Context& ctx, int64_t offset, ConstTensorView hidden) {
  pool_update(ctx, {.mode = model_.config().pool,
                    .hidden = hidden,
                    .valid = batch_.valid(offset),
                    .offset = offset,
                    .accumulator = accumulator_,
                    .position = position_});
}

void SequenceLoss::classify(Context& ctx, ConstTensorView scores, TensorView dscores) {
  cross_entropy(ctx, {.logits = scores,
                      .targets = batch_.classes(),
                      .scale = scale_,
                      .dlogits = dscores,
                      .totals = totals_});
}

void SequenceLoss::regress(Context& ctx, ConstTensorView scores, TensorView dscores) {
  const int64_t batch = batch_.rows();
  std::vector<float> found(static_cast<size_t>(batch));
  ctx.download(scores, host_view(found.data(), {batch, 1}));
  std::vector<float> gradient(found.size());
  for (size_t b = 0; b < gradient.size(); ++b) {
    const float error = found[b] - batch_.values()[b];
    host_totals_.loss += static_cast<double>(error) * error;
    gradient[b] = 2 * error * scale_;
  }
  host_totals_.weight += static_cast<double>(batch);
  host_totals_.count += batch;
  ctx.upload(host_view(std::as_const(gradient).data(), {batch, 1}), dscores);
}

void SequenceLoss::finish_observing(Context& ctx) {
  const Arena::Scope scope(ctx.arena());
  const ModelConfig& config = model_.config();
  const bool classification = config.task == TaskKind::kClassification;
  const int64_t labels = classification ? static_cast<int64_t>(config.labels.size()) : 1;
  const TensorView pooled = ctx.arena().f32({batch_.rows(), config.d_model});
  const TensorView scores = ctx.arena().f32({batch_.rows(), labels});
  const TensorView dscores = ctx.arena().f32({batch_.rows(), labels});
  pool_finish(ctx, config.pool, accumulator_, batch_.lengths(), pooled);
  model_.scores(ctx, pooled, scores);
  classification ? classify(ctx, scores, dscores) : regress(ctx, scores, dscores);
  model_.scores_backward(ctx, dscores, pooled, dpooled_, gradients_);
}

void SequenceLoss::gradient(Context& ctx, int64_t offset, ConstTensorView, TensorView dhidden) {
  pool_backward(ctx, {.mode = model_.config().pool,
                      .dpooled = dpooled_,
                      .lengths = batch_.lengths(),
                      .position = position_,
                      .offset = offset,
                      .dhidden = dhidden});
}

LossTotals SequenceLoss::totals(Context& ctx) const {
  LossTotals totals = download_totals(ctx, totals_);
  totals += host_totals_;
  return totals;
}

}  // namespace gmamba
