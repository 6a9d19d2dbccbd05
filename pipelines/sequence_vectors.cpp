// SPDX-License-Identifier: Apache-2.0
#include "pipelines/sequence_vectors.h"

#include <algorithm>
#include <utility>

#include "libmamba/core/parallel.h"
#include "pipelines/inference_plan.h"
#include "pipelines/progress.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

constexpr int64_t kMostWaveTokens = int64_t{1} << 20;

std::span<const std::byte> bytes_of(std::span<const float> values) { return std::as_bytes(values); }

/// Rows of `width` values in the opposite order.
void reverse_rows(std::span<float> rows, int64_t width) {
  const auto w = static_cast<std::ptrdiff_t>(width);
  if (rows.empty()) return;  // no segment ended a row
  auto front = rows.begin();
  auto back = rows.end() - w;
  for (; front < back; front += w, back -= w) std::swap_ranges(front, front + w, back);
}

}  // namespace

/// Pools one strand of one record that arrives in segments.
class SequenceVectors::StrandPooler {
 public:
  /// `first_bin`: bases of the first bin, where bins are asked for.
  StrandPooler(Context& ctx, const ModelConfig& config, const VectorOptions& options,
               int64_t first_bin)
      : ctx_(ctx),
        options_(options),
        d_model_(config.d_model),
        target_(first_bin),
        accumulator_(ctx.make(DType::kF64, {1, d_model_})),
        position_(ctx.make(DType::kI64, {1, d_model_})),
        length_(ctx.make(DType::kI64, {1})) {}

  /// hidden (S, D); vectors that are complete are appended to `rows`.
  void add(ConstTensorView hidden, std::vector<float>& rows) {
    const int64_t length = hidden.dim(0);
    if (options_.bin == 0) {
      update(hidden, options_.pool, read_);
      read_ += length;
      return;
    }
    if (options_.bin == 1) {
      append(hidden, rows);
      return;
    }
    int64_t at = 0;
    while (at < length) {
      const int64_t whole = filled_ == 0 && target_ == options_.bin ? (length - at) / target_ : 0;
      if (whole > 0) {
        add_whole_bins(hidden.slice(0, at, at + whole * target_), whole, rows);
        at += whole * target_;
        continue;
      }
      const int64_t take = std::min(length - at, target_ - filled_);
      update(hidden.slice(0, at, at + take), PoolMode::kMean, filled_);
      filled_ += take;
      at += take;
      if (filled_ == target_) flush_bin(rows);
    }
  }

  /// The record's end: the last bin, or the vector of the whole record.
  void finish(std::vector<float>& rows) {
    if (options_.bin == 0) {
      finish_row(options_.pool, read_, rows);
    } else if (filled_ > 0) {
      flush_bin(rows);
    }
  }

 private:
  void append(ConstTensorView values, std::vector<float>& rows) {
    const size_t before = rows.size();
    rows.resize(before + static_cast<size_t>(values.size()));
    ctx_.download(values, host_view(rows.data() + before, {values.size()}));
  }

  TensorView lengths_view(std::vector<int64_t> lengths) {
    const auto count = static_cast<int64_t>(lengths.size());
    const TensorView view = ctx_.arena().tensor(DType::kI64, {count});
    ctx_.upload(host_view(std::as_const(lengths).data(), {count}), view);
    return view;
  }

  /// One length; brought to the device when it changes, for which the host waits.
  ConstTensorView length_view(int64_t length) {
    if (length != length_there_) ctx_.upload(host_view(&std::as_const(length), {1}), length_);
    length_there_ = length;
    return length_;
  }

  void update(ConstTensorView hidden, PoolMode mode, int64_t offset) {
    if (hidden.dim(0) == 0) return;
    const Arena::Scope scope(ctx_.arena());
    pool_update(ctx_, {.mode = mode,
                       .hidden = hidden.reshape({1, hidden.dim(0), d_model_}),
                       .valid = length_view(hidden.dim(0)),
                       .offset = offset,
                       .accumulator = accumulator_,
                       .position = position_});
  }

  void finish_row(PoolMode mode, int64_t length, std::vector<float>& rows) {
    const Arena::Scope scope(ctx_.arena());
    const TensorView pooled = ctx_.arena().f32({1, d_model_});
    pool_finish(ctx_, mode, accumulator_, length_view(length), pooled);
    append(pooled, rows);
  }

  void flush_bin(std::vector<float>& rows) {
    finish_row(PoolMode::kMean, filled_, rows);
    accumulator_.fill_zero();
    filled_ = 0;
    target_ = options_.bin;
  }

  /// Bins that lie whole in a segment are a batch of sequences.
  void add_whole_bins(ConstTensorView hidden, int64_t count, std::vector<float>& rows) {
    const Arena::Scope scope(ctx_.arena());
    const TensorView sums = ctx_.arena().zeros(DType::kF64, {count, d_model_}, ctx_.stream());
    const TensorView pooled = ctx_.arena().f32({count, d_model_});
    const TensorView lengths =
        lengths_view(std::vector<int64_t>(static_cast<size_t>(count), options_.bin));
    pool_update(ctx_, {.mode = PoolMode::kMean,
                       .hidden = hidden.reshape({count, options_.bin, d_model_}),
                       .valid = lengths,
                       .offset = 0,
                       .accumulator = sums,
                       .position = {}});
    pool_finish(ctx_, PoolMode::kMean, sums, lengths, pooled);
    append(pooled, rows);
  }

  Context& ctx_;
  const VectorOptions& options_;
  int64_t d_model_;
  int64_t target_;      // bases of the bin being filled
  int64_t filled_ = 0;  // of them, read
  int64_t read_ = 0;    // bases of the record
  Tensor accumulator_;  // (1, D) fp64
  Tensor position_;     // (1, D) int64
  Tensor length_;       // (1) int64
  int64_t length_there_ = -1;
};

FeedLimits vector_feed_limits(const ModelConfig& config, const VectorOptions& options) {
  FeedLimits limits;
  limits.longest_held = options.segment;
  // a record has one row, or one for each bin
  const int64_t rows_at_once = std::max<int64_t>(1, kWaveBytes / (8 * config.d_model));
  const int64_t by_rows =
      options.bin == 0 ? kMostWaveTokens : std::min(kMostWaveTokens, rows_at_once * options.bin);
  limits.wave_tokens = std::max(options.segment, by_rows);
  limits.wave_records = std::min<int64_t>(limits.wave_records, std::max<int64_t>(1, rows_at_once));
  return limits;
}

SequenceVectors::SequenceVectors(Context& ctx, const Model& model, VectorOptions options,
                                 VectorSink& sink, Progress* progress)
    : ctx_(ctx),
      model_(model),
      tokenizer_(model.vocabulary()),
      options_(std::move(options)),
      sink_(sink),
      progress_(progress) {}

void SequenceVectors::run(RecordFeed& feed, const TokenSource& source) {
  source_ = &source;
  while (true) {
    switch (feed.next()) {
      case RecordFeed::Kind::kEnd:
        return;
      case RecordFeed::Kind::kWave:
        run_wave(feed.wave());
        break;
      case RecordFeed::Kind::kLong:
        if (options_.both_strands) {
          run_long_both(feed);
        } else {
          run_long(feed);
        }
        sink_.end_record(feed.long_record());
        bases_ += feed.long_record().length;
        break;
    }
  }
}

int64_t SequenceVectors::row_count(int64_t length) const {
  return options_.bin == 0 ? 1 : pieces(length, options_.bin);
}

int64_t SequenceVectors::first_bin(int64_t length, bool reverse) const {
  const int64_t odd = reverse && options_.bin > 0 ? length % options_.bin : 0;
  return odd > 0 ? odd : options_.bin;
}

void SequenceVectors::advance(int64_t bases) {
  check_stop();
  if (progress_ == nullptr) return;
  if (const double fraction = source_->fraction(); fraction >= 0) {
    progress_->set_fraction(fraction);
  }
  progress_->add(bases);
}

/// The other strand of a long record has no share of its own in the input.
void SequenceVectors::note_reverse(int64_t done, int64_t total) {
  check_stop();
  if (progress_ == nullptr) return;
  progress_->set_note(concat("reverse strand ", 100 * done / total, "%"));
  progress_->add(0);
}

SequenceState& SequenceVectors::state_for(int64_t batch) {
  if (state_.batch() == batch) {
    ctx_.fill_zero(state_.all_conv());
    ctx_.fill_zero(state_.all_ssm());
  } else {
    state_ = SequenceState(model_.config(), batch, ctx_.device());
  }
  return state_;
}

void SequenceVectors::forward_segment(std::span<const uint8_t> tokens, int64_t batch,
                                      SequenceState& state, TensorView hidden) {
  const int64_t length = static_cast<int64_t>(tokens.size()) / batch;
  const ConstTensorView host = host_view(tokens.data(), {batch, length});
  const Staged staged = ctx_.stage({&host, 1});
  model_.forward(ctx_, staged.view(0), state, hidden, options_.layer);
}

// ---- records that fit a segment

void SequenceVectors::run_wave(const std::vector<HeldRecord>& wave) {
  std::vector<Slot> slots(wave.size());
  const int64_t state_bytes = SequenceState::bytes(model_.config(), 1);
  const int64_t most = std::max<int64_t>(1, kBatchStateBytes / std::max<int64_t>(1, state_bytes));
  for (const std::vector<size_t>& batch : plan_batches(wave, options_.segment, most)) {
    run_batch(wave, batch, false, slots);
    if (options_.both_strands) run_batch(wave, batch, true, slots);
    int64_t bases = 0;
    for (const size_t i : batch) bases += wave[i].info.length;
    advance(bases);
  }
  for (size_t i = 0; i < wave.size(); ++i) {
    const RecordInfo& info = wave[i].info;
    emit(info, 0, info.length, slots[i].forward, slots[i].reverse);
    sink_.end_record(info);
    bases_ += info.length;
  }
}

void SequenceVectors::run_batch(const std::vector<HeldRecord>& wave,
                                const std::vector<size_t>& batch, bool reverse,
                                std::vector<Slot>& slots) {
  const auto count = static_cast<int64_t>(batch.size());
  const int64_t longest = wave[batch.back()].info.length;
  std::vector<int64_t> lengths;
  const auto pad = static_cast<uint8_t>(model_.vocabulary().n);
  std::vector<uint8_t> tokens(static_cast<size_t>(count * longest), pad);
  for (size_t b = 0; b < batch.size(); ++b) {
    const HeldRecord& record = wave[batch[b]];
    lengths.push_back(record.info.length);
    const auto row =
        std::span(tokens).subspan(b * static_cast<size_t>(longest), record.tokens.size());
    std::copy(record.tokens.begin(), record.tokens.end(), row.begin());
    if (reverse) tokenizer_.reverse_complement(row);
  }
  const Arena::Scope scope(ctx_.arena());
  const TensorView hidden = ctx_.arena().f32({count, longest, model_.config().d_model});
  if (longest > 0) forward_segment(tokens, count, state_for(count), hidden);
  pool_batch(lengths, hidden, reverse, batch, slots);
}

void SequenceVectors::pool_batch(const std::vector<int64_t>& lengths, TensorView hidden,
                                 bool reverse, const std::vector<size_t>& batch,
                                 std::vector<Slot>& slots) {
  const int64_t count = hidden.dim(0);
  const int64_t d_model = hidden.dim(2);
  const auto rows_of = [&](size_t b) -> std::vector<float>& {
    return reverse ? slots[batch[b]].reverse : slots[batch[b]].forward;
  };
  if (options_.bin > 0) {
    for (size_t b = 0; b < batch.size(); ++b) {
      StrandPooler pooler(ctx_, model_.config(), options_, first_bin(lengths[b], reverse));
      const auto row = static_cast<int64_t>(b);
      pooler.add(
          hidden.slice(0, row, row + 1).reshape({hidden.dim(1), d_model}).slice(0, 0, lengths[b]),
          rows_of(b));
      pooler.finish(rows_of(b));
      if (reverse) reverse_rows(rows_of(b), d_model);
    }
    return;
  }
  const TensorView valid = ctx_.arena().tensor(DType::kI64, {count});
  ctx_.upload(host_view(lengths.data(), {count}), valid);
  const TensorView sums = ctx_.arena().zeros(DType::kF64, {count, d_model}, ctx_.stream());
  const TensorView position = ctx_.arena().zeros(DType::kI64, {count, d_model}, ctx_.stream());
  const TensorView pooled = ctx_.arena().f32({count, d_model});
  if (hidden.dim(1) > 0) {
    pool_update(ctx_, {.mode = options_.pool,
                       .hidden = hidden,
                       .valid = valid,
                       .offset = 0,
                       .accumulator = sums,
                       .position = position});
  }
  pool_finish(ctx_, options_.pool, sums, valid, pooled);
  std::vector<float> host(static_cast<size_t>(count * d_model));
  ctx_.download(pooled, host_view(host.data(), {count, d_model}));
  for (size_t b = 0; b < batch.size(); ++b) {
    const auto begin = host.begin() + static_cast<std::ptrdiff_t>(b) * d_model;
    rows_of(b).assign(begin, begin + d_model);
  }
}

// ---- longer records

void SequenceVectors::run_long(RecordFeed& feed) {
  const int64_t d_model = model_.config().d_model;
  StrandPooler pooler(ctx_, model_.config(), options_, first_bin(0, false));
  SequenceState& state = state_for(1);
  std::vector<uint8_t> tokens(static_cast<size_t>(options_.segment));
  std::vector<float> rows;
  int64_t emitted = 0;
  const auto emit_rows = [&] {
    emit(feed.long_record(), emitted, feed.long_record().length, rows, {});
    emitted += static_cast<int64_t>(rows.size()) / d_model;
    rows.clear();
  };
  while (const int64_t got = feed.read(tokens)) {
    const Arena::Scope scope(ctx_.arena());
    const TensorView hidden = ctx_.arena().f32({1, got, d_model});
    forward_segment(std::span(tokens).first(static_cast<size_t>(got)), 1, state, hidden);
    pooler.add(hidden.reshape({got, d_model}), rows);
    emit_rows();
    advance(got);
  }
  pooler.finish(rows);
  emit_rows();
}

void SequenceVectors::run_long_both(RecordFeed& feed) {
  if (!spilled_tokens_) spilled_tokens_.emplace(options_.scratch_folder);
  if (!spilled_rows_) spilled_rows_.emplace(options_.scratch_folder);
  spilled_tokens_->clear();
  spilled_rows_->clear();
  std::vector<uint8_t> tokens(static_cast<size_t>(std::max(options_.segment, int64_t{1} << 18)));
  while (const int64_t got = feed.read(tokens)) {
    spilled_tokens_->append(std::as_bytes(std::span(tokens).first(static_cast<size_t>(got))));
    check_stop();
  }
  const RecordInfo& record = feed.long_record();
  StrandPooler reverse(ctx_, model_.config(), options_, first_bin(record.length, true));
  read_reverse(*spilled_tokens_, reverse, *spilled_rows_);
  StrandPooler forward(ctx_, model_.config(), options_, first_bin(record.length, false));
  read_forward(record, *spilled_tokens_, forward, *spilled_rows_);
}

/// The reverse complement from its start, which is the record's end; vectors go to `rows` in that
/// order.
void SequenceVectors::read_reverse(const SpillFile& tokens, StrandPooler& pooler, SpillFile& rows) {
  const int64_t d_model = model_.config().d_model;
  SequenceState& state = state_for(1);
  std::vector<uint8_t> segment;
  std::vector<float> made;
  for (int64_t end = tokens.size(); end > 0; end -= static_cast<int64_t>(segment.size())) {
    segment.resize(static_cast<size_t>(std::min(options_.segment, end)));
    tokens.read(end - static_cast<int64_t>(segment.size()),
                std::as_writable_bytes(std::span(segment)));
    tokenizer_.reverse_complement(segment);
    const Arena::Scope scope(ctx_.arena());
    const auto length = static_cast<int64_t>(segment.size());
    const TensorView hidden = ctx_.arena().f32({1, length, d_model});
    forward_segment(segment, 1, state, hidden);
    pooler.add(hidden.reshape({length, d_model}), made);
    rows.append(bytes_of(made));
    made.clear();
    note_reverse(tokens.size() - end + length, tokens.size());
  }
  pooler.finish(made);
  rows.append(bytes_of(made));
  if (progress_ != nullptr) progress_->set_note({});
}

void SequenceVectors::read_forward(const RecordInfo& record, const SpillFile& tokens,
                                   StrandPooler& pooler, const SpillFile& reverse_rows_file) {
  const int64_t d_model = model_.config().d_model;
  const int64_t row_bytes = d_model * static_cast<int64_t>(sizeof(float));
  const int64_t rows_in_all = row_count(record.length);
  SequenceState& state = state_for(1);
  std::vector<uint8_t> segment;
  std::vector<float> made, other;
  int64_t emitted = 0;
  const auto emit_rows = [&](int64_t known) {
    const int64_t count = static_cast<int64_t>(made.size()) / d_model;
    // row r of this strand is row n-1-r of the other
    other.resize(made.size());
    reverse_rows_file.read((rows_in_all - emitted - count) * row_bytes,
                           std::as_writable_bytes(std::span(other)));
    reverse_rows(other, d_model);
    emit(record, emitted, known, made, other);
    emitted += count;
    made.clear();
  };
  for (int64_t at = 0; at < tokens.size(); at += static_cast<int64_t>(segment.size())) {
    segment.resize(static_cast<size_t>(std::min(options_.segment, tokens.size() - at)));
    tokens.read(at, std::as_writable_bytes(std::span(segment)));
    const Arena::Scope scope(ctx_.arena());
    const auto length = static_cast<int64_t>(segment.size());
    const TensorView hidden = ctx_.arena().f32({1, length, d_model});
    forward_segment(segment, 1, state, hidden);
    pooler.add(hidden.reshape({length, d_model}), made);
    emit_rows(at + length);
    advance(length);
  }
  pooler.finish(made);
  emit_rows(record.length);
}

/// Hands vectors to the sink; `known` bases of the record were read so far, which bounds the last
/// bin.
void SequenceVectors::emit(const RecordInfo& record, int64_t first_row, int64_t known,
                           std::span<const float> forward, std::span<const float> reverse) {
  const auto width = static_cast<size_t>(model_.config().d_model);
  const size_t count = forward.size() / width;
  for (size_t r = 0; r < count; ++r) {
    const int64_t row = first_row + static_cast<int64_t>(r);
    const int64_t start = options_.bin == 0 ? 0 : row * options_.bin;
    const int64_t end = options_.bin == 0 ? known : std::min(known, start + options_.bin);
    sink_.add(record, start, end, forward.subspan(r * width, width),
              reverse.empty() ? reverse : reverse.subspan(r * width, width));
  }
}

}  // namespace gmamba
