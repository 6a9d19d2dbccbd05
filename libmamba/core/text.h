// SPDX-License-Identifier: Apache-2.0
/// Text helpers: numbers in and out without locale, names made safe for a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gmamba {

/// A name from a file, safe to print: control bytes and invalid UTF-8 become \xNN; cut at 120
/// bytes.
std::string printable(std::string_view name);

/// Well-formed UTF-8, as JSON asks for.
bool is_utf8(std::string_view text);

/// Whole-string parse; throws ErrorKind::kInput naming `what` on anything else, NaN or overflow.
int64_t parse_int(std::string_view text, std::string_view what);
double parse_double(std::string_view text, std::string_view what);

/// "16k", "1.5M", "2G" (powers of 1000) or a plain integer; for counts of bases and tokens.
int64_t parse_count(std::string_view text, std::string_view what);
/// "800M", "2G", "2GiB" (powers of 1024) or plain bytes.
int64_t parse_bytes(std::string_view text, std::string_view what);

/// "1.23 GiB"
std::string format_bytes(int64_t bytes);
/// "12,034"
std::string format_count(int64_t count);
/// "1.2k", "15.3M": rates and rough sizes
std::string format_short(double value);
/// "1h 02m 03s", "12.3s"
std::string format_duration(double seconds);
/// `digits` significant digits, never locale-dependent.
std::string format_number(double value, int digits);

std::vector<std::string> split(std::string_view text, char separator);
std::string_view trim(std::string_view text);
std::string to_lower(std::string_view text);

}  // namespace gmamba
