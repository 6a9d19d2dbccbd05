// SPDX-License-Identifier: Apache-2.0
#include "pipelines/predict.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "libmamba/segmented.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

/// Scores (rows, labels) of one padded batch, streamed in segments.
std::vector<float> batch_scores(Context& ctx, const Model& model, const PaddedBatch& batch,
                                int64_t segment) {
  const Arena::Scope whole(ctx.arena());
  const ModelConfig& config = model.config();
  const auto rows = static_cast<int64_t>(batch.lengths.size());
  const int64_t labels = std::max<int64_t>(1, static_cast<int64_t>(config.labels.size()));
  const Shape shape = {rows, config.d_model};
  const TensorView accumulator = ctx.arena().zeros(DType::kF64, shape, ctx.stream());
  const TensorView position = ctx.arena().zeros(DType::kI64, shape, ctx.stream());
  const TensorView lengths = ctx.arena().tensor(DType::kI64, {rows});
  ctx.upload(host_view(batch.lengths.data(), {rows}), lengths);
  SequenceState state(config, rows, ctx.device());
  std::vector<uint8_t> piece;
  for (int64_t begin = 0; begin < batch.length; begin += segment) {
    check_stop();
    const Arena::Scope scope(ctx.arena());
    const int64_t length = std::min(segment, batch.length - begin);
    piece.clear();
    for (int64_t row = 0; row < rows; ++row) {
      const auto from = batch.tokens.begin() + (row * batch.length + begin);
      piece.insert(piece.end(), from, from + length);
    }
    const TensorView tokens = ctx.arena().tensor(DType::kU8, {rows, length});
    const TensorView hidden = ctx.arena().f32({rows, length, config.d_model});
    const TensorView valid = ctx.arena().tensor(DType::kI64, {rows});
    const std::vector<int64_t> inside = valid_in_segment(batch.lengths, begin, length);
    ctx.upload(host_view(std::as_const(piece).data(), {rows, length}), tokens);
    ctx.upload(host_view(inside.data(), {rows}), valid);
    model.forward(ctx, tokens, state, hidden);
    pool_update(ctx, {.mode = config.pool,
                      .hidden = hidden,
                      .valid = valid,
                      .offset = begin,
                      .accumulator = accumulator,
                      .position = position});
  }
  const TensorView pooled = ctx.arena().f32(shape);
  const TensorView scores = ctx.arena().f32({rows, labels});
  pool_finish(ctx, config.pool, accumulator, lengths, pooled);
  model.scores(ctx, pooled, scores);
  std::vector<float> out(static_cast<size_t>(rows * labels));
  ctx.download(scores, host_view(out.data(), {rows, labels}));
  return out;
}

}  // namespace

std::vector<std::vector<size_t>> batches_by_length(std::span<const int64_t> lengths,
                                                   int64_t tokens) {
  std::vector<size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lengths[a] < lengths[b]; });
  std::vector<std::vector<size_t>> batches;
  for (const size_t index : order) {
    const auto rows = batches.empty() ? int64_t{0} : static_cast<int64_t>(batches.back().size());
    if (rows == 0 || (rows + 1) * lengths[index] > tokens) batches.emplace_back();
    batches.back().push_back(index);
  }
  return batches;
}

PaddedBatch pad_batch(std::span<const Ids> sequences, std::span<const size_t> which, uint8_t pad) {
  PaddedBatch batch;
  for (const size_t index : which) {
    batch.lengths.push_back(static_cast<int64_t>(sequences[index].size()));
    batch.length = std::max(batch.length, batch.lengths.back());
  }
  batch.tokens.assign(which.size() * static_cast<size_t>(batch.length), pad);
  for (size_t row = 0; row < which.size(); ++row) {
    std::copy(sequences[which[row]].begin(), sequences[which[row]].end(),
              batch.tokens.begin() + static_cast<std::ptrdiff_t>(row) * batch.length);
  }
  return batch;
}

std::vector<float> predict(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                           std::span<const Ids> sequences, int64_t segment) {
  const ModelConfig& config = model.config();
  const bool classify = config.task == TaskKind::kClassification;
  const auto labels = static_cast<size_t>(classify ? config.labels.size() : 1);
  const int strands = config.both_strands ? 2 : 1;
  std::vector<int64_t> lengths;
  for (const Ids& ids : sequences) lengths.push_back(static_cast<int64_t>(ids.size()));
  std::vector<float> out(sequences.size() * labels, 0.0F);
  const auto pad = static_cast<uint8_t>(std::max(0, tokenizer.vocabulary().pad));
  for (const std::vector<size_t>& which : batches_by_length(lengths, segment)) {
    PaddedBatch batch = pad_batch(sequences, which, pad);
    for (int strand = 0; strand < strands; ++strand) {
      if (strand == 1) {
        for (size_t row = 0; row < which.size(); ++row) {
          tokenizer.reverse_complement(std::span(batch.tokens)
                                           .subspan(row * static_cast<size_t>(batch.length),
                                                    static_cast<size_t>(batch.lengths[row])));
        }
      }
      std::vector<float> scores = batch_scores(ctx, model, batch, segment);
      if (classify) softmax_rows(scores, static_cast<int64_t>(labels));
      for (size_t row = 0; row < which.size(); ++row) {
        for (size_t c = 0; c < labels; ++c) {
          out[which[row] * labels + c] += scores[row * labels + c] / static_cast<float>(strands);
        }
      }
    }
  }
  return out;
}

void softmax_rows(std::span<float> values, int64_t classes) {
  const auto n = static_cast<size_t>(classes);
  for (size_t row = 0; row + n <= values.size(); row += n) {
    const std::span<float> of = values.subspan(row, n);
    const float largest = *std::max_element(of.begin(), of.end());
    double sum = 0;
    for (float& value : of) {
      value = std::exp(value - largest);
      sum += value;
    }
    for (float& value : of) value = static_cast<float>(value / sum);
  }
}

}  // namespace gmamba
