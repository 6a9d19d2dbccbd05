// SPDX-License-Identifier: Apache-2.0
#include "pipelines/progress.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr double kBarSeconds = 0.2;
constexpr double kPlainSeconds = 10;
constexpr double kRateSeconds = 10;  // least stretch of work that the rate of a bar is of
constexpr int kBarWidth = 24;

double seconds_between(std::chrono::steady_clock::time_point from,
                       std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Progress::Progress(ProgressSink* sink, ProgressMode mode)
    : sink_(sink), mode_(sink == nullptr ? ProgressMode::kNone : mode) {
  if (mode_ == ProgressMode::kAuto) {
    mode_ = sink_->is_terminal() ? ProgressMode::kBar : ProgressMode::kPlain;
  }
}

Progress::~Progress() {
  try {
    finish();
  } catch (...) {  // a bar that can't be removed is no reason to end the program
  }
}

void Progress::start(std::string_view what, std::string_view unit, int64_t total) {
  finish();
  const std::lock_guard<std::mutex> lock(mutex_);
  what_ = what;
  unit_ = unit;
  note_.clear();
  total_ = total;
  done_ = 0;
  fraction_ = -1;
  worked_.reset();
  from_ = next_from_ = {};
  active_ = true;
  shown_ = false;
  started_ = last_ = Clock::now();
}

void Progress::add(int64_t amount, std::optional<double> seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  done_ += amount;
  if (seconds) worked_ = worked_.value_or(0) + *seconds;
  report();
}

void Progress::set_fraction(double fraction) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fraction_ = std::clamp(fraction, 0.0, 1.0);
}

void Progress::set_note(std::string_view note) {
  const std::lock_guard<std::mutex> lock(mutex_);
  note_ = note;
}

void Progress::finish() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!active_) {
    return;
  }
  active_ = false;
  if (shown_ && mode_ == ProgressMode::kBar) {
    sink_->progress_bar({});
  }
}

int64_t Progress::done() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return done_;
}

double Progress::fraction() const {
  if (fraction_ >= 0) {
    return fraction_;
  }
  return total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : -1;
}

/// `seconds`: of work, so far.
double Progress::next_rate(double seconds, bool bar) {
  const double span = seconds - from_.seconds;
  const double rate = span > 0 ? static_cast<double>(done_ - from_.done) / span : 0;
  const Mark now{done_, seconds};
  if (!bar) {
    from_ = now;
  } else if (seconds - next_from_.seconds >= kRateSeconds) {
    from_ = std::exchange(next_from_, now);
  }
  return rate;
}

void Progress::report() {
  if (mode_ == ProgressMode::kNone || !active_) {
    return;
  }
  const Clock::time_point now = Clock::now();
  const bool bar = mode_ == ProgressMode::kBar;
  if (seconds_between(last_, now) < (bar ? kBarSeconds : kPlainSeconds)) {
    return;
  }
  last_ = now;
  shown_ = true;
  const double seconds = seconds_between(started_, now);
  const double rate = next_rate(worked_.value_or(seconds), bar);
  const std::string text = line(what_, unit_, {done_, fraction(), rate, seconds}, note_, bar);
  if (bar) {
    sink_->progress_bar(text);
  } else {
    sink_->progress_line(text);
  }
}

std::string Progress::line(std::string_view what, std::string_view unit, const State& state,
                           std::string_view note, bool bar) {
  const double fraction = state.fraction;
  std::string out(what);
  if (fraction >= 0) {
    const double share = std::min(fraction, 1.0);
    if (bar) {
      const auto full = static_cast<size_t>(std::lround(share * kBarWidth));
      out += concat(" [", std::string(full, '#'), std::string(kBarWidth - full, '.'), "]");
    }
    out += concat(" ", std::lround(share * 100), "%");
  }
  out += concat(" ", format_short(static_cast<double>(state.done)), " ", unit);
  if (state.rate > 0) out += concat(", ", format_short(state.rate), " ", unit, "/s");
  if (fraction > 0 && fraction < 1) {
    out += concat(", ", format_duration(state.seconds / fraction * (1 - fraction)), " left");
  }
  if (!note.empty()) {
    out += concat(", ", note);
  }
  return out;
}

}  // namespace gmamba
