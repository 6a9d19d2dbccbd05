// SPDX-License-Identifier: Apache-2.0
/// Where the libraries say things. They never print: apps/ passes a Log that writes to stderr,
/// tests pass one that remembers, and nullptr means silence.
#pragma once

#include <string_view>

namespace gmamba {

enum class LogLevel { kDebug, kInfo, kWarning };

class Log {
 public:
  virtual ~Log() = default;
  /// One line, without its newline. May be called from any thread.
  virtual void write(LogLevel level, std::string_view line) = 0;
};

inline void log_line(Log* log, LogLevel level, std::string_view line) {
  if (log != nullptr) {
    log->write(level, line);
  }
}

}  // namespace gmamba
