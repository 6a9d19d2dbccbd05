// SPDX-License-Identifier: Apache-2.0
/// Lines of a text, compressed or not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/byte_source.h"

namespace gmamba {

class LineReader {
 public:
  /// Throws kInput when a line is longer than `longest` bytes.
  explicit LineReader(OpenedBytes input, int64_t longest = int64_t{1} << 30);
  /// The next line without its end ("\n" or "\r\n"; the last may lack it), valid until the next
  /// call; false at the checked end. A byte-order mark at the start is skipped.
  bool next(std::string_view& line);
  /// Number of the line last given, from 1.
  int64_t line() const { return line_; }
  const std::string& name() const { return input_.name; }

 private:
  OpenedBytes input_;
  size_t longest_;
  std::vector<char> buffer_;
  size_t at_ = 0;
  size_t end_ = 0;
  bool ended_ = false;
  int64_t line_ = 0;
};

}  // namespace gmamba
