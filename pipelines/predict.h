// SPDX-License-Identifier: Apache-2.0
/// Scores of a task head for sequences held in memory, in batches of similar length.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "io/tokenizer.h"
#include "libmamba/model.h"

namespace gmamba {

using Ids = std::vector<uint8_t>;

/// Groups of indices whose padded batch holds at most `tokens` tokens (or one sequence), shortest
/// first.
std::vector<std::vector<size_t>> batches_by_length(std::span<const int64_t> lengths,
                                                   int64_t tokens);

/// Rows of equal length, padded with `pad`: (batch, longest), row-major.
struct PaddedBatch {
  int64_t length = 0;
  std::vector<uint8_t> tokens;
  std::vector<int64_t> lengths;
};
PaddedBatch pad_batch(std::span<const Ids> sequences, std::span<const size_t> which, uint8_t pad);

/// Class probabilities (rows, labels), or values (rows, 1) for regression, in input order. Both
/// strands are averaged (probabilities, not scores) when the model's config says so.
std::vector<float> predict(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                           std::span<const Ids> sequences, int64_t segment);

/// Softmax of each row of (rows, classes), in place.
void softmax_rows(std::span<float> values, int64_t classes);

}  // namespace gmamba
