// SPDX-License-Identifier: Apache-2.0
/// Region texts as on samtools' command line, and BED files, before they meet a genome.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace gmamba {

/// 0-based, half-open; `end` is kToEnd when the text gives none.
struct Region {
  static constexpr int64_t kToEnd = std::numeric_limits<int64_t>::max();
  std::string contig;
  int64_t start = 0;
  int64_t end = kToEnd;
};

/// `chr1`, `chr1:100` (to the end), `chr1:1,001-2k`, `chr1:-500`, `{name:with:colon}:1-5`; numbers
/// 1-based and inclusive. `is_contig` tells names with a colon from regions. Throws kInput.
Region parse_region_text(std::string_view text,
                         const std::function<bool(std::string_view)>& is_contig);

/// Cuts a list at its commas, but not within braces nor at the thousands of a number.
std::vector<std::string> split_regions(std::string_view list);

/// Regions of a BED file in file order: the first three columns; comment, `track` and `browser`
/// lines are skipped. Throws kInput naming the line.
struct BedRegion {
  Region region;
  int64_t line = 0;
};
std::vector<BedRegion> read_bed(const std::string& path);

}  // namespace gmamba
