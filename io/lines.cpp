// SPDX-License-Identifier: Apache-2.0
#include "io/lines.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {

LineReader::LineReader(OpenedBytes input, int64_t longest)
    : input_(std::move(input)), longest_(static_cast<size_t>(longest)), buffer_(1 << 16) {}

bool LineReader::next(std::string_view& line) {
  size_t searched = 0;
  const char* newline = nullptr;
  while (true) {
    const char* const start = buffer_.data() + at_;
    newline = static_cast<const char*>(std::memchr(start + searched, '\n', end_ - at_ - searched));
    if (newline != nullptr || ended_) break;
    searched = end_ - at_;
    if (at_ > 0) std::memmove(buffer_.data(), start, searched);
    at_ = 0;
    end_ = searched;
    if (searched > longest_) {
      fail(ErrorKind::kInput, input_.name, ": line ", line_ + 1, ": longer than ",
           format_bytes(static_cast<int64_t>(longest_)));
    }
    if (end_ == buffer_.size()) buffer_.resize(buffer_.size() * 2);
    const size_t got = input_.bytes->read(buffer_.data() + end_, buffer_.size() - end_);
    ended_ = got == 0;
    end_ += got;
  }
  if (newline == nullptr && at_ == end_) return false;
  const char* const start = buffer_.data() + at_;
  const char* const stop = newline != nullptr ? newline : buffer_.data() + end_;
  line = {start, static_cast<size_t>(stop - start)};
  at_ += line.size() + (newline != nullptr ? 1 : 0);
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line_ == 0 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
  ++line_;
  return true;
}

}  // namespace gmamba
