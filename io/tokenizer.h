// SPDX-License-Identifier: Apache-2.0
/// Letters to token ids and back, at memory speed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/letters.h"
#include "libmamba/core/vocabulary.h"

namespace gmamba {

class Tokenizer {
 public:
  explicit Tokenizer(Vocabulary vocabulary);
  const Vocabulary& vocabulary() const { return vocabulary_; }

  /// ids[i] = token of letters[i]; sizes must agree. Returns the number of letters that are not in
  /// the vocabulary's table (they become the token of N). Vectorised.
  int64_t encode(std::string_view letters, std::span<uint8_t> ids) const;
  /// Reverse complement of ids in place.
  void reverse_complement(std::span<uint8_t> ids) const;
  /// One letter per id; specials become '?'.
  std::string decode(std::span<const uint8_t> ids) const;

 private:
  Vocabulary vocabulary_;
  std::optional<LetterCodes> letters_;  ///< when the vocabulary fits the fast table
};

/// Reverse complement of letters, IUPAC aware, case kept.
std::string reverse_complement(std::string_view letters);

}  // namespace gmamba
