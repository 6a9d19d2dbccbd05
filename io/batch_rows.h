// SPDX-License-Identifier: Apache-2.0
/// Letters into the rows of a batch: tokens, the next base of each as its target, its weight.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "io/loader.h"
#include "io/tokenizer.h"

namespace gmamba {

class RowWriter {
 public:
  /// Throws kUsage when the options make no sense.
  RowWriter(const Tokenizer& tokenizer, const LoaderOptions& options);

  /// A batch of `rows` rows of options.context tokens, to be written.
  Batch make(int64_t rows) const;
  /// At most context + 1 letters, as the model is to read them. Every element of the row is
  /// written. Whether there is anything to predict; then it was counted in the batch's sums.
  bool write(std::string_view letters, Batch& batch, size_t row);

 private:
  const Tokenizer& tokenizer_;
  LoaderOptions options_;
  std::array<int32_t, 256> target_{};
  uint8_t pad_ = 0;
  std::vector<uint8_t> ids_;
};

/// Counts rows with nothing to predict; throws kInput after 10,000 in a row.
class EmptyRows {
 public:
  void note(bool something);

 private:
  int64_t in_a_row_ = 0;
};

}  // namespace gmamba
