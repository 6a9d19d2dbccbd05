// SPDX-License-Identifier: Apache-2.0
/// Random access to indexed FASTA files, plain or bgzip, of any size: a stretch is read from disk
/// when asked for, nothing is held but the index. An existing .fai or .gzi is checked against the
/// file before it is used and rebuilt in memory when it does not fit; a missing one is built and,
/// where the folder can be written, saved beside the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/sequence_reader.h"
#include "libmamba/core/log.h"

namespace gmamba {

struct Contig {
  std::string name;
  int64_t length = 0;
};

/// [start, end) of contig `contig` of file `file`; 0-based, half-open.
struct Interval {
  int32_t file = 0;
  int32_t contig = 0;
  int64_t start = 0;
  int64_t end = 0;
  int64_t length() const { return end - start; }
  auto operator<=>(const Interval&) const = default;
};

struct GenomeOptions {
  Log* log = nullptr;
  /// kN: files are read to their ends when they are opened, and the letters counted in a warning.
  InvalidLetters invalid = InvalidLetters::kError;
  bool save_index = true;  ///< write a missing .fai or .gzi where the folder allows it
  /// An index beside a file up to this size is compared with one made anew, which takes less than a
  /// second; for larger files its places are checked, and the lines again at every read. 0: never
  /// compared unless it is older than the file.
  int64_t compare_bytes = int64_t{1} << 28;
};

class Genome {
 public:
  /// Opens every file and indexes it. Throws kInput for duplicate names within a file, lines of
  /// unequal length within a record, plain gzip, and what open_sequences refuses. Records without
  /// bases are left out.
  explicit Genome(std::vector<std::string> paths, Log* log = nullptr);
  Genome(std::vector<std::string> paths, const GenomeOptions& options);
  ~Genome();
  Genome(const Genome&) = delete;
  Genome& operator=(const Genome&) = delete;

  int32_t files() const;
  const std::string& path(int32_t file) const;
  const std::vector<Contig>& contigs(int32_t file) const;
  int64_t total_bases() const;
  /// Letters as in the file; thread-safe. Throws kInput when the interval is outside the contig, a
  /// letter is none (or gives N, as asked for), or the file does not fit its index.
  std::string read(const Interval& interval) const;
  /// Contig by name over all files; throws kInput with a hint ("chr20" against "20") when absent or
  /// found in several files.
  Interval find(std::string_view contig) const;
  /// `chr1:1,001-2000` (1-based, inclusive), `chr1`, `chr1:100` (to the end),
  /// `{name:with:colon}:1-5`. Clipped at the contig's end with a warning; throws when fully
  /// outside.
  Interval parse_region(std::string_view region) const;
  /// Regions of a BED file (0-based, half-open), in file order; or, when the text names no file,
  /// the comma-separated list of regions.
  std::vector<Interval> parse_regions(const std::string& bed_or_list) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gmamba
