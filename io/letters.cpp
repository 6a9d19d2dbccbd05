// SPDX-License-Identifier: Apache-2.0
#include "io/letters.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "io/letters.cpp"
#include <hwy/foreach_target.h>
// the loop above has to come first
#include <hwy/highway.h>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Bytes = hn::ScalableTag<uint8_t>;

/// table[letter & 31], or `none` for bytes outside 0x40..0x7F.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V look_up(D d, V letters, V low_table, V high_table, V none) {
  const V index = hn::And(letters, hn::Set(d, uint8_t{31}));
  const V nibble = hn::And(index, hn::Set(d, uint8_t{15}));
  const V low = hn::TableLookupBytes(low_table, nibble);
  const V high = hn::TableLookupBytes(high_table, nibble);
  const V code = hn::IfThenElse(hn::Eq(index, nibble), low, high);
  const auto letter = hn::Eq(hn::And(letters, hn::Set(d, uint8_t{0xC0})), hn::Set(d, uint8_t{64}));
  return hn::IfThenElse(letter, code, none);
}

/// First position where table[letter] is kNone, at or after the whole vectors of `letters`.
size_t find_none(const uint8_t* table, const char* text, size_t size) {
  const Bytes d;
  const size_t lanes = hn::Lanes(d);
  const auto* letters = reinterpret_cast<const uint8_t*>(text);
  const auto low = hn::LoadDup128(d, table);
  const auto high = hn::LoadDup128(d, table + 16);
  const auto none = hn::Set(d, LetterCodes::kNone);
  size_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    const auto codes = look_up(d, hn::LoadU(d, letters + i), low, high, none);
    const intptr_t found = hn::FindFirstTrue(d, hn::Eq(codes, none));
    if (found >= 0) return i + static_cast<size_t>(found);
  }
  for (; i < size; ++i) {
    if ((letters[i] & 0xC0) != 64 || table[letters[i] & 31] == LetterCodes::kNone) return i;
  }
  return size;
}

size_t find_outside(const char* text, size_t size) {
  const Bytes d;
  const size_t lanes = hn::Lanes(d);
  const auto* bytes = reinterpret_cast<const uint8_t*>(text);
  const auto first = hn::Set(d, uint8_t{'!'});
  const auto range = hn::Set(d, uint8_t{'~' - '!'});
  size_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    const auto shifted = hn::Sub(hn::LoadU(d, bytes + i), first);
    const intptr_t found = hn::FindFirstTrue(d, hn::Gt(shifted, range));
    if (found >= 0) return i + static_cast<size_t>(found);
  }
  for (; i < size; ++i) {
    if (bytes[i] < '!' || bytes[i] > '~') return i;
  }
  return size;
}

int64_t encode(const uint8_t* table, uint8_t fallback, const char* text, size_t size,
               uint8_t* codes) {
  const Bytes d;
  const size_t lanes = hn::Lanes(d);
  const auto* letters = reinterpret_cast<const uint8_t*>(text);
  const auto low = hn::LoadDup128(d, table);
  const auto high = hn::LoadDup128(d, table + 16);
  const auto none = hn::Set(d, LetterCodes::kNone);
  const auto replacement = hn::Set(d, fallback);
  int64_t missing = 0;
  size_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    const auto code = look_up(d, hn::LoadU(d, letters + i), low, high, none);
    const auto absent = hn::Eq(code, none);
    missing += static_cast<int64_t>(hn::CountTrue(d, absent));
    hn::StoreU(hn::IfThenElse(absent, replacement, code), d, codes + i);
  }
  for (; i < size; ++i) {
    const uint8_t code =
        (letters[i] & 0xC0) == 64 ? table[letters[i] & 31] : uint8_t{LetterCodes::kNone};
    missing += code == LetterCodes::kNone ? 1 : 0;
    codes[i] = code == LetterCodes::kNone ? fallback : code;
  }
  return missing;
}

}  // namespace
}  // namespace gmamba::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {

HWY_EXPORT(find_none);
HWY_EXPORT(find_outside);
HWY_EXPORT(encode);

namespace {

/// 0 for the letters of sequences, kNone for the rest.
constexpr std::array<uint8_t, 32> sequence_letters() {
  std::array<uint8_t, 32> table{};
  for (uint8_t& code : table) code = LetterCodes::kNone;
  for (const char letter : std::string_view("ACGTURYKMSWBDHVN")) {
    table[static_cast<size_t>(letter & 31)] = 0;
  }
  return table;
}

alignas(16) constexpr std::array<uint8_t, 32> kSequenceLetters = sequence_letters();

}  // namespace

bool is_sequence_letter(unsigned char letter) {
  return (letter & 0xC0) == 64 && kSequenceLetters[letter & 31u] == 0;
}

bool may_stand_for_n(unsigned char letter) { return letter > ' ' && letter < 0x7F; }

std::string shown_byte(char byte) {
  if (may_stand_for_n(static_cast<unsigned char>(byte))) return concat("'", byte, "'");
  if (byte == ' ') return "a space";
  if (byte == '\t') return "a tab";
  if (byte == '\r') return "a carriage return";
  return concat("byte ", printable(std::string_view(&byte, 1)));
}

std::string_view letter_problem(char byte) {
  if (byte == '-' || byte == '.' || byte == '*') {
    return " is a gap or stop, not a base; remove it, or write N (--invalid n reads it so)";
  }
  if (may_stand_for_n(static_cast<unsigned char>(byte))) {
    return " is no sequence letter (IUPAC ACGTURYKMSWBDHVN); write N there (--invalid n reads "
           "it so)";
  }
  return " is no sequence letter (IUPAC ACGTURYKMSWBDHVN)";
}

std::string read_as_n(std::string_view name, int64_t count) {
  return concat(name, ": ", format_count(count),
                " letters that are no sequence letters were read as N");
}

size_t find_invalid_letter(std::string_view letters) {
  return HWY_DYNAMIC_DISPATCH(find_none)(kSequenceLetters.data(), letters.data(), letters.size());
}

size_t find_unprintable(std::string_view text) {
  return HWY_DYNAMIC_DISPATCH(find_outside)(text.data(), text.size());
}

int64_t encode_letters(const LetterCodes& table, std::string_view letters,
                       std::span<uint8_t> codes) {
  require(letters.size() == codes.size(), ErrorKind::kInternal, "encode_letters: ", letters.size(),
          " letters into ", codes.size(), " codes");
  alignas(16) const std::array<uint8_t, 32> aligned = table.code;
  return HWY_DYNAMIC_DISPATCH(encode)(aligned.data(), table.fallback, letters.data(),
                                      letters.size(), codes.data());
}

}  // namespace gmamba
#endif  // HWY_ONCE
