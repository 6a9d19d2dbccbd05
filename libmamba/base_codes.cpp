// SPDX-License-Identifier: Apache-2.0
#include "libmamba/base_codes.h"

#include <array>

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

constexpr std::array<uint8_t, 256> letter_table() {
  std::array<uint8_t, 256> table{};
  for (uint8_t& code : table) code = kNoBase;
  table['A'] = table['a'] = 0;
  table['C'] = table['c'] = 1;
  table['G'] = table['g'] = 2;
  table['T'] = table['t'] = table['U'] = table['u'] = 3;
  return table;
}
constexpr std::array<uint8_t, 256> kLetterTable = letter_table();

}  // namespace

void encode_bases(std::string_view letters, std::span<uint8_t> codes) {
  require(letters.size() == codes.size(), ErrorKind::kInternal, "encode_bases: ", letters.size(),
          " letters into ", codes.size(), " codes");
  for (size_t i = 0; i < letters.size(); ++i) {
    codes[i] = kLetterTable[static_cast<uint8_t>(letters[i])];
  }
}

std::vector<uint8_t> encode_bases(std::string_view letters) {
  std::vector<uint8_t> codes(letters.size());
  encode_bases(letters, codes);
  return codes;
}

void tokens_to_bases(const Vocabulary& vocabulary, std::span<const uint8_t> tokens,
                     std::span<uint8_t> codes) {
  require(tokens.size() == codes.size(), ErrorKind::kInternal, "tokens_to_bases: ", tokens.size(),
          " tokens into ", codes.size(), " codes");
  std::array<uint8_t, 256> table{};
  for (uint8_t& code : table) code = kNoBase;
  for (size_t base = 0; base < vocabulary.bases.size(); ++base) {
    const int id = vocabulary.bases[base];
    if (id >= 0) table[static_cast<size_t>(id)] = static_cast<uint8_t>(base);
  }
  for (size_t i = 0; i < tokens.size(); ++i) codes[i] = table[tokens[i]];
}

}  // namespace gmamba
