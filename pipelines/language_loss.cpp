// SPDX-License-Identifier: Apache-2.0
#include "pipelines/language_loss.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cross_entropy.h"
#include "libmamba/pass_key.h"
#include "pipelines/inference_plan.h"
#include "pipelines/progress.h"
#include "pipelines/stop.h"

namespace gmamba {

std::vector<int32_t> next_base_targets(const Vocabulary& vocabulary,
                                       std::span<const uint8_t> tokens, int64_t count) {
  std::vector<int32_t> targets(static_cast<size_t>(count), kIgnoreTarget);
  for (size_t i = 0; i < targets.size() && i + 1 < tokens.size(); ++i) {
    if (vocabulary.is_base(tokens[i + 1])) targets[i] = tokens[i + 1];
  }
  return targets;
}

void add_language_loss(Context& ctx, const Model& model, std::span<const uint8_t> tokens,
                       int64_t batch, int64_t length, SequenceState& state, TensorView totals) {
  const Arena::Scope scope(ctx.arena());
  const int64_t count = batch * length;
  const int64_t d_model = model.config().d_model;
  const TensorView hidden = ctx.arena().f32({batch, length, d_model});
  const TensorView logits = ctx.arena().f32({count, model.config().vocab_size});
  const std::vector<int32_t> next = next_base_targets(model.vocabulary(), tokens, count);
  const std::array<ConstTensorView, 2> host = {host_view(tokens.data(), {batch, length}),
                                               host_view(next.data(), {count})};
  const Staged staged = ctx.stage(host);
  model.forward(ctx, staged.view(0), state, hidden);
  model.logits(ctx, hidden.reshape({count, d_model}), logits);
  cross_entropy(ctx, {.logits = logits, .targets = staged.view(1), .totals = totals});
}

LanguageLossReader::LanguageLossReader(Context& ctx, const Model& model, LossOptions options,
                                       TokenListener* listener, Progress* progress)
    : ctx_(ctx), model_(model), options_(options), listener_(listener), progress_(progress) {}

FeedLimits LanguageLossReader::feed_limits(const LossOptions& options) {
  FeedLimits limits;
  // a record that fits a window has one start whatever the windows
  limits.longest_held =
      options.context > 0 ? std::min(options.segment, options.context) : options.segment;
  limits.wave_tokens = std::max<int64_t>(options.segment, int64_t{1} << 20);
  return limits;
}

std::vector<RecordLoss> LanguageLossReader::run(RecordFeed& feed, const TokenSource& source) {
  source_ = &source;
  std::vector<RecordLoss> losses;
  while (true) {
    switch (feed.next()) {
      case RecordFeed::Kind::kEnd:
        return losses;
      case RecordFeed::Kind::kWave:
        run_wave(feed.wave(), losses);
        break;
      case RecordFeed::Kind::kLong: {
        const LossTotals totals = run_long(feed);
        losses.push_back({feed.long_record(), totals});
        break;
      }
    }
  }
}

void LanguageLossReader::advance(int64_t bases) {
  check_stop();
  if (progress_ == nullptr) return;
  if (const double fraction = source_->fraction(); fraction >= 0) {
    progress_->set_fraction(fraction);
  }
  progress_->add(bases);
}

SequenceState& LanguageLossReader::state_for(int64_t batch) {
  if (state_.batch() == batch) {
    ctx_.fill_zero(state_.all_conv());
    ctx_.fill_zero(state_.all_ssm());
  } else {
    state_ = SequenceState(model_.config(), batch, ctx_.device());
  }
  return state_;
}

// ---- records that fit a segment

void LanguageLossReader::run_wave(const std::vector<HeldRecord>& wave,
                                  std::vector<RecordLoss>& losses) {
  const size_t before = losses.size();
  for (const HeldRecord& held : wave) {
    losses.push_back({held.info, {}});
    if (listener_ != nullptr) listener_->listen(held.info.index, true, held.tokens);
  }
  const int64_t state_bytes = SequenceState::bytes(model_.config(), 1);
  const int64_t most = std::max<int64_t>(1, kBatchStateBytes / std::max<int64_t>(1, state_bytes));
  const auto pad = static_cast<uint8_t>(model_.vocabulary().n);
  const int64_t d_model = model_.config().d_model;
  const int64_t vocab = model_.config().vocab_size;
  for (const std::vector<size_t>& batch : plan_batches(wave, options_.segment, most)) {
    const auto rows = static_cast<int64_t>(batch.size());
    const int64_t longest = wave[batch.back()].info.length;
    if (longest == 0) continue;
    std::vector<uint8_t> tokens;
    std::vector<int32_t> targets;
    int64_t bases = 0;
    for (const size_t i : batch) {
      const std::vector<uint8_t>& record = wave[i].tokens;
      const std::vector<int32_t> next = next_base_targets(model_.vocabulary(), record, longest);
      tokens.insert(tokens.end(), record.begin(), record.end());
      tokens.resize(tokens.size() + static_cast<size_t>(longest) - record.size(), pad);
      targets.insert(targets.end(), next.begin(), next.end());
      bases += wave[i].info.length;
    }
    const Arena::Scope scope(ctx_.arena());
    const TensorView hidden = ctx_.arena().f32({rows, longest, d_model});
    const TensorView logits = ctx_.arena().f32({rows * longest, vocab});
    const TensorView totals = ctx_.arena().zeros(DType::kF64, {rows, 4}, ctx_.stream());
    const std::array<ConstTensorView, 2> host = {
        host_view(std::as_const(tokens).data(), {rows, longest}),
        host_view(std::as_const(targets).data(), {rows, longest})};
    const Staged staged = ctx_.stage(host);
    read_rows(staged.view(0), staged.view(1), state_for(rows), hidden, logits, totals);
    std::vector<double> sums(static_cast<size_t>(4 * rows));
    ctx_.download(totals, host_view(sums.data(), {rows, 4}));
    for (size_t row = 0; row < batch.size(); ++row) {
      losses[before + batch[row]].model = loss_totals(std::span(sums).subspan(4 * row).first<4>());
    }
    advance(bases);
  }
}

/// Adds the losses of row b of the tokens (B, L) to row b of the totals.
void LanguageLossReader::read_rows(ConstTensorView tokens, ConstTensorView targets,
                                   SequenceState& state, TensorView hidden, TensorView logits,
                                   TensorView totals) {
  const int64_t rows = tokens.dim(0);
  const int64_t length = tokens.dim(1);
  const auto read = [&] {
    model_.forward(ctx_, tokens, state, hidden);
    model_.logits(ctx_, hidden.reshape({rows * length, hidden.dim(2)}), logits);
    for (int64_t row = 0; row < rows; ++row) {
      cross_entropy(ctx_, {.logits = logits.slice(0, row * length, (row + 1) * length),
                           .targets = targets.slice(0, row, row + 1).reshape({length}),
                           .totals = totals.slice(0, row, row + 1).reshape({4})});
    }
  };
  if (!is_short(ctx_, rows * length)) return read();
  PassKey key = forward_key(model_, tokens, state, hidden, -1);
  for (const ConstTensorView& view : {targets, ConstTensorView(logits), ConstTensorView(totals)}) {
    add_to(key, view);
  }
  replay(ctx_, std::move(key), read);
}

// ---- longer records

/// Tokens read together from position `at` of a record on: never across the border of a window that
/// is longer than a segment.
int64_t LanguageLossReader::block_tokens(int64_t at) const {
  const int64_t window = options_.context;
  if (window == 0) return options_.segment;
  if (window <= options_.segment) return options_.segment / window * window;
  return std::min(options_.segment, window - at % window);
}

LossTotals LanguageLossReader::run_long(RecordFeed& feed) {
  const Arena::Scope scope(ctx_.arena());
  const TensorView totals = ctx_.arena().zeros(DType::kF64, {4}, ctx_.stream());
  // one token more than is read: the target of the last
  std::vector<uint8_t> tokens(static_cast<size_t>(options_.segment) + 1);
  state_for(1);
  int64_t at = 0;
  int64_t held = 0;
  while (true) {
    const int64_t want = block_tokens(at) + 1;
    const auto fresh =
        std::span(tokens).subspan(static_cast<size_t>(held), static_cast<size_t>(want - held));
    const int64_t got = feed.read(fresh);
    if (listener_ != nullptr) {
      listener_->listen(feed.long_record().index, held + at == 0,
                        fresh.first(static_cast<size_t>(got)));
    }
    held += got;
    const bool last = held < want;
    const int64_t count = last ? held : want - 1;
    run_block(std::span(tokens).first(static_cast<size_t>(held)), at, count, totals);
    advance(count);
    if (last) break;
    tokens[0] = tokens[static_cast<size_t>(want - 1)];
    held = 1;
    at += count;
  }
  return download_totals(ctx_, totals);
}

/// `count` tokens from position `at` of the record, and the one after them if there is one.
void LanguageLossReader::run_block(std::span<const uint8_t> tokens, int64_t at, int64_t count,
                                   TensorView totals) {
  const int64_t window = options_.context;
  if (window == 0 || window > options_.segment) {
    if (window > 0 && at % window == 0) state_.reset();
    add_language_loss(ctx_, model_, tokens, 1, count, state_, totals);
    return;
  }
  const int64_t whole = count / window;
  if (whole > 0) add_language_loss(ctx_, model_, tokens, whole, window, state_for(whole), totals);
  const int64_t rest = count - whole * window;
  if (rest > 0) {
    const auto tail = tokens.subspan(static_cast<size_t>(whole * window));
    add_language_loss(ctx_, model_, tail, 1, rest, state_for(1), totals);
  }
}

}  // namespace gmamba
