// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

/// The vocabulary's byte table as a table of letters, if it is one: case does not matter, other
/// bytes are unknown, and no id collides with the mark for unknown letters.
std::optional<LetterCodes> letter_codes(const Vocabulary& vocabulary) {
  LetterCodes table;
  table.code.fill(LetterCodes::kNone);
  table.fallback = static_cast<uint8_t>(vocabulary.n);
  for (size_t byte = 0; byte < 256; ++byte) {
    const int id = vocabulary.id_of_byte[byte];
    if (id < 0) continue;
    const bool letter = (byte & 0xC0) == 64;
    if (!letter || vocabulary.id_of_byte[byte ^ 32] != id || id >= LetterCodes::kNone) {
      return std::nullopt;
    }
    table.code[byte & 31] = static_cast<uint8_t>(id);
  }
  return table;
}

constexpr std::array<char, 256> complement_letters() {
  std::array<char, 256> table{};
  for (size_t i = 0; i < 256; ++i) table[i] = static_cast<char>(i);
  constexpr std::string_view kFrom = "ACGTURYKMSWBDHVN";
  constexpr std::string_view kTo = "TGCAAYRMKSWVHDBN";
  for (size_t i = 0; i < kFrom.size(); ++i) {
    table[static_cast<size_t>(kFrom[i])] = kTo[i];
    table[static_cast<size_t>(kFrom[i] + 32)] = static_cast<char>(kTo[i] + 32);
  }
  return table;
}

constexpr std::array<char, 256> kComplement = complement_letters();

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  require(vocabulary_.n >= 0 && vocabulary_.n < vocabulary_.size() && vocabulary_.size() <= 256 &&
              vocabulary_.complement.size() == vocabulary_.tokens.size(),
          ErrorKind::kInternal, "tokenizer: a vocabulary of ", vocabulary_.size(),
          " tokens whose N has id ", vocabulary_.n, " and with ", vocabulary_.complement.size(),
          " complements");
  for (const int16_t id : vocabulary_.id_of_byte) {
    require(id < vocabulary_.size(), ErrorKind::kInternal, "tokenizer: id ", id,
            " is not in a vocabulary of ", vocabulary_.size());
  }
  letters_ = letter_codes(vocabulary_);
}

int64_t Tokenizer::encode(std::string_view letters, std::span<uint8_t> ids) const {
  if (letters_) return encode_letters(*letters_, letters, ids);
  require(letters.size() == ids.size(), ErrorKind::kInternal, "encode: ", letters.size(),
          " letters into ", ids.size(), " ids");
  int64_t missing = 0;
  for (size_t i = 0; i < letters.size(); ++i) {
    const int id = vocabulary_.id_of_byte[static_cast<unsigned char>(letters[i])];
    missing += id < 0 ? 1 : 0;
    ids[i] = static_cast<uint8_t>(id < 0 ? vocabulary_.n : id);
  }
  return missing;
}

void Tokenizer::reverse_complement(std::span<uint8_t> ids) const {
  std::array<uint8_t, 256> complement{};
  for (size_t i = 0; i < 256; ++i) {
    complement[i] =
        i < vocabulary_.complement.size() ? vocabulary_.complement[i] : static_cast<uint8_t>(i);
  }
  std::reverse(ids.begin(), ids.end());
  for (uint8_t& id : ids) id = complement[id];
}

std::string Tokenizer::decode(std::span<const uint8_t> ids) const {
  std::string letters(ids.size(), '?');
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < vocabulary_.tokens.size() && vocabulary_.tokens[ids[i]].size() == 1) {
      letters[i] = vocabulary_.tokens[ids[i]][0];
    }
  }
  return letters;
}

std::string reverse_complement(std::string_view letters) {
  std::string out(letters.size(), '\0');
  for (size_t i = 0; i < letters.size(); ++i) {
    out[i] = kComplement[static_cast<unsigned char>(letters[letters.size() - 1 - i])];
  }
  return out;
}

}  // namespace gmamba
