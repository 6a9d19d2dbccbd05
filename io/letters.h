// SPDX-License-Identifier: Apache-2.0
/// Whole arrays of sequence letters checked and translated at memory speed; the body is compiled
/// for several instruction sets and picked at run time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace gmamba {

/// IUPAC nucleotide letters and U, either case.
bool is_sequence_letter(unsigned char letter);

/// Position of the first byte that is no sequence letter; letters.size() when all are.
size_t find_invalid_letter(std::string_view letters);

/// Whether --invalid n may read this byte as N: what can be typed, but no blank or control byte.
bool may_stand_for_n(unsigned char letter);

/// A byte for messages: "'X'", "a space", "byte \x00".
std::string shown_byte(char byte);
/// Why this byte is refused in a sequence, and what to do: " is a gap or stop, ...".
std::string_view letter_problem(char byte);
/// The warning of --invalid n: that `count` letters of the input `name` (printable) were read as N.
std::string read_as_n(std::string_view name, int64_t count);

/// Position of the first byte outside '!'..'~'; text.size() when there is none.
size_t find_unprintable(std::string_view text);

/// Translation of letters by their five low bits, so that case does not matter.
struct LetterCodes {
  static constexpr uint8_t kNone = 255;
  std::array<uint8_t, 32> code{};  ///< kNone: not a letter of this table
  uint8_t fallback = 0;            ///< written for those and for bytes that are no ASCII letters
};

/// codes[i] of letters[i], sizes equal; returns how many fell back.
int64_t encode_letters(const LetterCodes& table, std::string_view letters,
                       std::span<uint8_t> codes);

}  // namespace gmamba
