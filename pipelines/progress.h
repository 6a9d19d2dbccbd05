// SPDX-License-Identifier: Apache-2.0
/// How far a job is, said as a bar that is redrawn or as a line every ten seconds. The rate is that
/// since the line before, of a bar that of the last ten to twenty seconds; the time left follows
/// from the whole time so far. The reporter formats; where text goes is the sink's affair, so that
/// libraries never print.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "pipelines/options.h"

namespace gmamba {

enum class ProgressMode { kAuto, kBar, kPlain, kNone };

template <>
struct OptionWords<ProgressMode> {
  static constexpr std::pair<std::string_view, ProgressMode> kWords[] = {
      {"auto", ProgressMode::kAuto},
      {"bar", ProgressMode::kBar},
      {"plain", ProgressMode::kPlain},
      {"none", ProgressMode::kNone}};
};

class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  /// Whether a bar can be redrawn here.
  virtual bool is_terminal() const = 0;
  /// A line that stays.
  virtual void progress_line(std::string_view text) = 0;
  /// Replaces the bar; empty text removes it.
  virtual void progress_bar(std::string_view text) = 0;
};

class Progress {
 public:
  /// Says nothing.
  Progress() = default;
  /// `mode` kAuto becomes a bar on a terminal, else plain lines. A null sink is silence.
  Progress(ProgressSink* sink, ProgressMode mode);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  /// Begins a task: `what` such as "embedding", counted in `unit` ("bases"), `total` -1: unknown.
  void start(std::string_view what, std::string_view unit, int64_t total);
  /// More is done; may be called from any thread and often. With `seconds`, the time that it took,
  /// rates leave out what was done besides.
  void add(int64_t amount, std::optional<double> seconds = std::nullopt);
  /// Share of the whole that is done (0 to 1), for totals that are not known in units, such as
  /// bases in a compressed file.
  void set_fraction(double fraction);
  /// Words shown after the rate, such as "loss 1.312".
  void set_note(std::string_view note);
  /// Ends the task and removes its bar.
  void finish();

  int64_t done() const;

  /// What a line says, besides names.
  struct State {
    int64_t done = 0;
    double fraction = -1;  ///< of the whole; below 0: unknown
    double rate = 0;       ///< units a second; 0: unknown
    double seconds = 0;    ///< since the start
  };
  /// The line for a state of things; pure, for tests.
  static std::string line(std::string_view what, std::string_view unit, const State& state,
                          std::string_view note, bool bar);

 private:
  using Clock = std::chrono::steady_clock;
  /// How far the work was at a moment, in seconds of work.
  struct Mark {
    int64_t done = 0;
    double seconds = 0;
  };
  void report();
  double next_rate(double seconds, bool bar);
  double fraction() const;

  ProgressSink* sink_ = nullptr;
  ProgressMode mode_ = ProgressMode::kNone;
  mutable std::mutex mutex_;
  std::string what_;
  std::string unit_;
  std::string note_;
  int64_t total_ = -1;
  int64_t done_ = 0;
  double fraction_ = -1;
  std::optional<double> worked_;  // sum of the seconds given to add()
  Mark from_, next_from_;         // what the rate counts from, now and later
  bool active_ = false;
  bool shown_ = false;
  Clock::time_point started_;
  Clock::time_point last_;
};

}  // namespace gmamba
