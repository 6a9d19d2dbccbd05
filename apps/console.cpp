// SPDX-License-Identifier: Apache-2.0
#include "apps/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <ctime>

#include "libmamba/core/text.h"

namespace gmamba::app {
namespace {

constexpr int64_t kShownPerKind = 20;
constexpr size_t kMostFrames = 3;

/// One line stays one line whatever a message carries.
std::string one_line(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return out;
}

/// Writes to stderr; that it is closed or full can't be told to anyone.
void put_stderr(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

size_t terminal_width() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

Console::Console(std::string name)
    : name_(std::move(name)), terminal_(isatty(STDERR_FILENO) == 1) {}

void Console::put(std::string_view prefix, std::string_view text) {
  const std::string clear = bar_.empty() ? "" : "\r\033[K";
  put_stderr(concat(clear, prefix, one_line(text), "\n", bar_));
}

void Console::put_stamped(std::string_view text) {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  std::array<char, 16> stamp{};
  std::strftime(stamp.data(), stamp.size(), "[%H:%M:%S] ", &parts);
  put(stamp.data(), text);
}

void Console::write(LogLevel level, std::string_view line) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (level == LogLevel::kWarning) {
    ++warning_count_;
    Kind& kind = warnings_[warning_kind(line)];
    if (kind.count++ == 0) kind.first = line;
    if (verbosity_ != Verbosity::kQuiet && kind.count <= kShownPerKind) {
      put(name_ + ": warning: ", line);
    }
    return;
  }
  const Verbosity needed = level == LogLevel::kDebug ? Verbosity::kVerbose : Verbosity::kNormal;
  if (verbosity_ >= needed) {
    put_stamped(line);
  }
}

void Console::progress_line(std::string_view text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (verbosity_ != Verbosity::kQuiet) put_stamped(text);
}

void Console::progress_bar(std::string_view text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (verbosity_ == Verbosity::kQuiet) return;
  // a bar wider than the terminal would wrap and could not be redrawn
  bar_ = std::string(text.substr(0, terminal_width() - 1));
  put_stderr("\r\033[K" + bar_);
}

void Console::error(const Error& error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  put(name_ + ": error: ", error.message());
  for (size_t i = 0; i < error.frames().size() && i < kMostFrames; ++i) {
    put("  ", error.frames()[i]);
  }
}

void Console::error(std::string_view message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  put(name_ + ": error: ", message);
}

void Console::summarise_warnings() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (verbosity_ == Verbosity::kQuiet || warning_count_ == 0) {
    return;
  }
  for (const auto& [key, kind] : warnings_) {
    if (kind.count > kShownPerKind) {
      put(name_ + ": warning: ",
          concat(format_count(kind.count - kShownPerKind), " more warnings like: ", kind.first));
    }
  }
  put_stamped(concat(format_count(warning_count_), warning_count_ == 1 ? " warning" : " warnings"));
}

std::string warning_kind(std::string_view line) {
  const size_t colon = line.find(": ");
  if (colon != std::string_view::npos) {
    line.remove_prefix(colon + 2);
  }
  std::string kind;
  bool quoted = false;
  for (const char c : line) {
    if (c == '\'') {
      quoted = !quoted;
      continue;
    }
    const bool digit = std::isdigit(static_cast<unsigned char>(c)) != 0;
    if (quoted || digit) {
      if (kind.empty() || kind.back() != '#') kind += '#';
      continue;
    }
    kind += c;
  }
  return kind;
}

}  // namespace gmamba::app
