// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/text.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

/// Length of the valid UTF-8 sequence at the start of `text`, 0 when there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = 0;
  if (lead < 0x80) {
    return 1;
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
  } else {
    return 0;
  }
  if (text.size() < length) {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) {
      return 0;
    }
  }
  // overlong forms, surrogates, and code points past U+10FFFF
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
      (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) {
    return 0;
  }
  return length;
}

int64_t parse_scaled(std::string_view text, std::string_view what, double base, bool bytes) {
  std::string_view digits = trim(text);
  double scale = 1;
  if (bytes && digits.size() > 2 && (digits.ends_with("iB") || digits.ends_with("ib"))) {
    digits.remove_suffix(2);
  } else if (bytes && digits.size() > 1 && (digits.back() == 'B' || digits.back() == 'b')) {
    digits.remove_suffix(1);
  }
  if (!digits.empty()) {
    const char unit = digits.back();
    const size_t power = std::string_view("kmgt").find(to_lower(std::string_view(&unit, 1)));
    if (power != std::string_view::npos) {
      scale = std::pow(base, static_cast<double>(power + 1));
      digits.remove_suffix(1);
    }
  }
  int64_t whole = 0;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), whole);
  if (code == std::errc() && end == digits.data() + digits.size() && scale == 1) {
    require(whole >= 0, ErrorKind::kInput, what, ": expected a ", bytes ? "size" : "number",
            " of at least 0, found '", printable(text), "'");
    return whole;
  }
  double value = 0;
  const auto [stop, parsed] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  value *= scale;
  require(parsed == std::errc() && stop == digits.data() + digits.size() && value >= 0 &&
              value < 9.2e18,
          ErrorKind::kInput, what, ": expected ",
          bytes ? "a size such as 4096, 512MiB or 2GiB" : "a number such as 4096, 16k or 1.5M",
          ", found '", printable(text), "'");
  return static_cast<int64_t>(std::llround(value));
}

}  // namespace

std::string printable(std::string_view name) {
  constexpr size_t kLongest = 120;
  std::string out;
  size_t i = 0;
  while (i < name.size()) {
    if (out.size() > kLongest) {
      out += "...";
      break;
    }
    const size_t length = utf8_length(name.substr(i));
    const auto byte = static_cast<unsigned char>(name[i]);
    const bool c1_control =
        length == 2 && byte == 0xC2 && static_cast<unsigned char>(name[i + 1]) < 0xA0;
    if (length == 0 || byte < 0x20 || byte == 0x7F || c1_control) {
      constexpr std::string_view kHex = "0123456789abcdef";
      const size_t bytes = c1_control ? 2 : 1;
      for (size_t k = 0; k < bytes; ++k) {
        const auto escaped = static_cast<unsigned char>(name[i + k]);
        out += "\\x";
        out += kHex[escaped >> 4];
        out += kHex[escaped & 15];
      }
      i += bytes;
      continue;
    }
    out.append(name.substr(i, length));
    i += length;
  }
  return out;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

int64_t parse_int(std::string_view text, std::string_view what) {
  int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(code == std::errc() && end == text.data() + text.size(), ErrorKind::kInput, what,
          ": expected a whole number, found '", printable(text), "'");
  return value;
}

double parse_double(std::string_view text, std::string_view what) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(code == std::errc() && end == text.data() + text.size() && std::isfinite(value),
          ErrorKind::kInput, what, ": expected a number, found '", printable(text), "'");
  return value;
}

int64_t parse_count(std::string_view text, std::string_view what) {
  return parse_scaled(text, what, 1000, false);
}

int64_t parse_bytes(std::string_view text, std::string_view what) {
  return parse_scaled(text, what, 1024, true);
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array<std::string_view, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (std::abs(value) >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return concat(unit == 0 ? std::to_string(bytes) : format_number(value, 3), " ", kUnits[unit]);
}

std::string format_count(int64_t count) {
  std::string digits = std::to_string(count < 0 ? -count : count);
  for (size_t i = digits.size(); i > 3; i -= 3) {
    digits.insert(i - 3, ",");
  }
  return count < 0 ? "-" + digits : digits;
}

std::string format_short(double value) {
  constexpr std::array<std::string_view, 5> kUnits = {"", "k", "M", "G", "T"};
  size_t unit = 0;
  while (std::abs(value) >= 1000 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return concat(format_number(value, 3), kUnits[unit]);
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) {
    return "unknown";
  }
  if (seconds < 60) {
    return concat(format_number(seconds, 3), "s");
  }
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  const auto pad = [](int64_t v) { return (v < 10 ? "0" : "") + std::to_string(v); };
  const int64_t hours = whole / 3600;
  const std::string rest = concat(pad(whole / 60 % 60), "m ", pad(whole % 60), "s");
  return hours > 0 ? concat(hours, "h ", rest) : rest;
}

std::string format_number(double value, int digits) {
  std::array<char, 64> buffer{};
  const auto [end, code] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                         std::chars_format::general, digits);
  require(code == std::errc(), ErrorKind::kInternal, "format_number: ", digits,
          " digits do not fit");
  return {buffer.data(), end};
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  while (true) {
    const size_t end = text.find(separator, start);
    parts.emplace_back(text.substr(start, end == std::string_view::npos ? end : end - start));
    if (end == std::string_view::npos) {
      return parts;
    }
    start = end + 1;
  }
}

std::string_view trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && blank(text.front())) {
    text.remove_prefix(1);
  }
  while (!text.empty() && blank(text.back())) {
    text.remove_suffix(1);
  }
  return text;
}

std::string to_lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') {
      c = static_cast<char>(c - 'A' + 'a');
    }
  }
  return out;
}

}  // namespace gmamba
