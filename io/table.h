// SPDX-License-Identifier: Apache-2.0
/// Tables: TSV and CSV in (plain or compressed), TSV out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace gmamba {

/// Reads a table with a header line; separator by the header (tab, else comma). Gzip by content.
/// Errors name file and line: a row with another number of fields, a missing column, a name given
/// twice.
class TableReader {
 public:
  explicit TableReader(const std::string& path);
  ~TableReader();
  const std::vector<std::string>& columns() const;
  /// Index of a column, or -1.
  int find(std::string_view column) const;
  /// Index of a column; throws kInput listing the columns that are there.
  int column(std::string_view name) const;
  bool next(std::vector<std::string>& fields);
  int64_t line() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Text output to a file that appears whole, or to stdout for "" and "-". Gzip (BGZF) for .gz
/// names.
class TextWriter {
 public:
  explicit TextWriter(const std::string& path);
  ~TextWriter();
  void write(std::string_view text);
  /// Flushes, checks and renames; throws kIo when something was not written.
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Fields joined by tabs with a line end; throws kInput when a field holds a tab or line end.
std::string tsv_line(const std::vector<std::string>& fields);

}  // namespace gmamba
