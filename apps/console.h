// SPDX-License-Identifier: Apache-2.0
/// The one writer of stderr: log lines, warnings with their count, the progress bar, errors.
#pragma once

#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "libmamba/core/error.h"
#include "libmamba/core/log.h"
#include "pipelines/progress.h"

namespace gmamba::app {

enum class Verbosity { kQuiet, kNormal, kVerbose };

class Console final : public Log, public ProgressSink {
 public:
  /// `name` stands before each message: "gmamba embed".
  explicit Console(std::string name);

  void set_verbosity(Verbosity verbosity) { verbosity_ = verbosity; }

  /// Debug lines show with --verbose, warnings unless --quiet; of warnings that differ only in
  /// names and numbers the first 20 are printed.
  void write(LogLevel level, std::string_view line) override;
  bool is_terminal() const override { return terminal_; }
  void progress_line(std::string_view text) override;
  void progress_bar(std::string_view text) override;

  void error(const Error& error);
  void error(std::string_view message);
  /// How many warnings there were, and how many of each kind were not shown.
  void summarise_warnings();

 private:
  void put(std::string_view prefix, std::string_view text);
  void put_stamped(std::string_view text);

  std::string name_;
  Verbosity verbosity_ = Verbosity::kNormal;
  bool terminal_;
  std::mutex mutex_;
  std::string bar_;
  struct Kind {
    std::string first;
    int64_t count = 0;
  };
  std::map<std::string, Kind> warnings_;
  int64_t warning_count_ = 0;
};

/// A warning without what varies: numbers and names in quotes, and the place before the first
/// colon.
std::string warning_kind(std::string_view line);

}  // namespace gmamba::app
