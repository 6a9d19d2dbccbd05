// SPDX-License-Identifier: Apache-2.0
#include "pipelines/progress.h"

#include <algorithm>
#include <cmath>

#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr double kBarSeconds = 0.2;
constexpr double kPlainSeconds = 10;
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
  active_ = true;
  shown_ = false;
  started_ = last_ = Clock::now();
}

void Progress::add(int64_t amount) {
  const std::lock_guard<std::mutex> lock(mutex_);
  done_ += amount;
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

double Progress::seconds() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return seconds_between(started_, Clock::now());
}

double Progress::fraction() const {
  if (fraction_ >= 0) {
    return fraction_;
  }
  return total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : -1;
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
  const std::string text =
      line(what_, unit_, done_, fraction(), seconds_between(started_, now), note_, bar);
  if (bar) {
    sink_->progress_bar(text);
  } else {
    sink_->progress_line(text);
  }
}

std::string Progress::line(std::string_view what, std::string_view unit, int64_t done,
                           double fraction, double seconds, std::string_view note, bool bar) {
  std::string out(what);
  if (fraction >= 0) {
    const double share = std::min(fraction, 1.0);
    if (bar) {
      const auto full = static_cast<size_t>(std::lround(share * kBarWidth));
      out += concat(" [", std::string(full, '#'), std::string(kBarWidth - full, '.'), "]");
    }
    out += concat(" ", std::lround(share * 100), "%");
  }
  out += concat(" ", format_short(static_cast<double>(done)), " ", unit);
  if (seconds > 0) {
    out += concat(", ", format_short(static_cast<double>(done) / seconds), " ", unit, "/s");
  }
  if (fraction > 0 && fraction < 1) {
    out += concat(", ", format_duration(seconds / fraction * (1 - fraction)), " left");
  }
  if (!note.empty()) {
    out += concat(", ", note);
  }
  return out;
}

}  // namespace gmamba
