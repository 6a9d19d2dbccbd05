// SPDX-License-Identifier: Apache-2.0
#include "io/batch_rows.h"

#include <algorithm>

#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// Marks positions without a target, as the losses know it.
constexpr int32_t kNoTarget = -100;
constexpr int64_t kMostEmpty = 10000;

}  // namespace

RowWriter::RowWriter(const Tokenizer& tokenizer, const LoaderOptions& options)
    : tokenizer_(tokenizer), options_(options) {
  require(options.batch >= 1 && options.context >= 1, ErrorKind::kUsage,
          "a batch needs at least 1 row and 1 token, found ", options.batch, " and ",
          options.context);
  require(options.repeat_weight >= 0 && options.repeat_weight <= 1e6F, ErrorKind::kUsage,
          "the weight of repeats must be between 0 and 1,000,000, found ", options.repeat_weight);
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  for (int id = 0; id < 256; ++id) {
    target_[static_cast<size_t>(id)] = vocabulary.is_base(id) ? id : kNoTarget;
  }
  pad_ = static_cast<uint8_t>(vocabulary.pad >= 0 ? vocabulary.pad : vocabulary.n);
}

Batch RowWriter::make(int64_t rows) const {
  Batch batch;
  batch.batch = rows;
  batch.length = options_.context;
  const auto size = static_cast<size_t>(checked_mul(rows, options_.context, "batch"));
  batch.tokens.resize(size);
  batch.targets.resize(size);
  batch.weights.resize(size);
  batch.valid.resize(static_cast<size_t>(rows));
  return batch;
}

bool RowWriter::write(std::string_view letters, Batch& batch, size_t row) {
  const auto length = static_cast<size_t>(options_.context);
  require(letters.size() <= length + 1, ErrorKind::kInternal, "loader: ", letters.size(),
          " bases for a row of ", options_.context, " tokens");
  ids_.resize(letters.size());
  tokenizer_.encode(letters, ids_);

  const size_t valid = std::min(letters.size(), length);
  const size_t predictable = letters.empty() ? 0 : letters.size() - 1;
  uint8_t* const tokens = batch.tokens.data() + row * length;
  int32_t* const targets = batch.targets.data() + row * length;
  float* const weights = batch.weights.data() + row * length;
  std::copy_n(ids_.data(), valid, tokens);
  std::fill(tokens + valid, tokens + length, pad_);
  std::fill(targets + predictable, targets + length, kNoTarget);
  std::fill(weights + predictable, weights + length, 0.0F);
  int64_t plain = 0;
  int64_t masked = 0;
  for (size_t t = 0; t < predictable; ++t) {
    const int32_t target = target_[ids_[t + 1]];
    const bool lower = (static_cast<unsigned char>(letters[t + 1]) & 32) != 0;
    targets[t] = target;
    weights[t] = target == kNoTarget ? 0.0F : lower ? options_.repeat_weight : 1.0F;
    plain += target != kNoTarget && !lower ? 1 : 0;
    masked += target != kNoTarget && lower ? 1 : 0;
  }
  batch.valid[row] = static_cast<int64_t>(valid);
  const double weight =
      static_cast<double>(plain) + static_cast<double>(masked) * double{options_.repeat_weight};
  if (!(weight > 0)) return false;
  batch.weight_sum += weight;
  batch.predicted += plain + masked;
  return true;
}

void EmptyRows::note(bool something) {
  in_a_row_ = something ? 0 : in_a_row_ + 1;
  require(in_a_row_ < kMostEmpty, ErrorKind::kInput, "the last ", format_count(kMostEmpty),
          " windows had nothing to predict: the sequence is N, or soft-masked with weight 0");
}

}  // namespace gmamba
