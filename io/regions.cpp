// SPDX-License-Identifier: Apache-2.0
#include "io/regions.h"

#include <algorithm>
#include <cctype>

#include "io/lines.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
  fail(ErrorKind::kInput, "region '", printable(text), "': ", why,
       "; expected NAME, NAME:START or NAME:START-END (1-based, inclusive)");
}

int64_t parse_position(std::string_view digits, std::string_view text) {
  std::string plain(digits);
  plain.erase(std::remove(plain.begin(), plain.end(), ','), plain.end());
  if (plain.empty() || !is_digit(plain[0])) refuse(text, "a position is missing or no number");
  return parse_count(plain, concat("region '", printable(text), "'"));
}

/// Range text after the colon into `region`.
void parse_range(std::string_view range, std::string_view text, Region& region) {
  if (range.empty()) refuse(text, "nothing follows the colon");
  const size_t dash = range.find('-');
  const std::string_view first = range.substr(0, dash);
  if (!first.empty() || dash == std::string_view::npos) {
    const int64_t start = parse_position(first, text);
    if (start < 1) refuse(text, "positions start at 1");
    region.start = start - 1;
  }
  if (dash == std::string_view::npos) return;
  const std::string_view last = range.substr(dash + 1);
  if (last.empty() && first.empty()) refuse(text, "a position is missing or no number");
  if (last.empty()) return;
  region.end = parse_position(last, text);
  if (region.end <= region.start) refuse(text, "it ends before it starts");
}

bool looks_like_range(std::string_view text) {
  return !text.empty() && (is_digit(text[0]) || (text[0] == '-' && text.size() > 1)) &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return is_digit(c) || std::string_view(",-.kKmMgGeE+").find(c) != std::string_view::npos;
         });
}

}  // namespace

Region parse_region_text(std::string_view text,
                         const std::function<bool(std::string_view)>& is_contig) {
  Region region;
  if (text.starts_with('{')) {
    const size_t close = text.rfind('}');
    if (close == std::string_view::npos) refuse(text, "'}' is missing");
    region.contig = text.substr(1, close - 1);
    const std::string_view rest = text.substr(close + 1);
    if (rest.empty()) return region;
    if (!rest.starts_with(':')) refuse(text, "expected ':' after '}'");
    parse_range(rest.substr(1), text, region);
    return region;
  }
  const size_t colon = text.rfind(':');
  const bool ranged = colon != std::string_view::npos && looks_like_range(text.substr(colon + 1));
  const std::string_view before = text.substr(0, ranged ? colon : text.size());
  if (is_contig(text)) {
    require(!ranged || !is_contig(before), ErrorKind::kInput, "region '", printable(text),
            "' has two meanings, because both are names; write {", printable(text), "} or {",
            printable(before), "}:", printable(text.substr(ranged ? colon + 1 : 0)));
    region.contig = text;
    return region;
  }
  if (!ranged && colon != std::string_view::npos && is_contig(text.substr(0, colon))) {
    parse_range(text.substr(colon + 1), text, region);  // says what is wrong with it
  }
  region.contig = before;
  if (ranged) parse_range(text.substr(colon + 1), text, region);
  return region;
}

std::vector<std::string> split_regions(std::string_view list) {
  std::vector<std::string> parts;
  std::string part;
  bool braces = false;
  for (size_t i = 0; i < list.size(); ++i) {
    const char c = list[i];
    if (c == '{') braces = true;
    if (c == '}') braces = false;
    if (c != ',' || braces) {
      part += c;
      continue;
    }
    size_t digits = 0;
    while (i + 1 + digits < list.size() && is_digit(list[i + 1 + digits])) ++digits;
    const char after = i + 1 + digits < list.size() ? list[i + 1 + digits] : ',';
    const bool thousands = digits == 3 && (after == ',' || after == '-') && !part.empty() &&
                           is_digit(part.back()) && part.find(':') != std::string::npos;
    if (thousands) {
      part += c;
    } else {
      parts.push_back(std::move(part));
      part.clear();
    }
  }
  parts.push_back(std::move(part));
  return parts;
}

std::vector<BedRegion> read_bed(const std::string& path) {
  LineReader lines(open_bytes(path), int64_t{1} << 24);
  std::vector<BedRegion> regions;
  std::string_view line;
  while (lines.next(line)) {
    if (line.empty() || line.starts_with('#') || line == "track" || line == "browser" ||
        line.starts_with("track ") || line.starts_with("browser ")) {
      continue;
    }
    const std::string where = concat(lines.name(), ": line ", lines.line());
    const char separator = line.find('\t') == std::string_view::npos ? ' ' : '\t';
    const std::vector<std::string> fields = split(line, separator);
    require(fields.size() >= 3, ErrorKind::kInput, where,
            ": expected at least three columns (chrom, start, end), found ", fields.size());
    Region region;
    region.contig = fields[0];
    region.start = parse_int(fields[1], concat(where, ": start"));
    region.end = parse_int(fields[2], concat(where, ": end"));
    require(region.start >= 0 && region.end >= region.start, ErrorKind::kInput, where,
            ": expected 0 <= start <= end, found ", region.start, " and ", region.end);
    regions.push_back({std::move(region), lines.line()});
  }
  return regions;
}

}  // namespace gmamba
