// SPDX-License-Identifier: Apache-2.0
/// Which passes are worth a recording: those that came a few times, as many as there is room for,
/// the ones not used for longest making room. A number of passes that come in turn and don't fit
/// together don't push each other out: a recording stays while it is in use.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "kernels/replay.h"

namespace gmamba {

template <class Recording>
class ReplayTable {
 public:
  /// Calls of a pass before the one that is recorded: the first may allocate and load code.
  static constexpr int kCalls = 2;

  struct Entry {
    int calls = 0;
    bool refused = false;  ///< can't be recorded
    uint64_t last_use = 0;
    std::optional<Recording> recording;
  };

  explicit ReplayTable(int64_t most) : most_(most) {}

  /// The entry of a pass that is about to be done. Others may go: references to them end.
  Entry& use(PassKey key) {
    forget_old();
    Entry& entry = entries_[std::move(key)];
    entry.last_use = ++clock_;
    return entry;
  }

  /// True when a pass should be recorded now; makes room for it. `before_removal` is called when
  /// that removes a recording.
  template <class Call>
  bool wants(const Entry& entry, Call&& before_removal) {
    if (entry.recording || entry.refused || entry.calls < kCalls) return false;
    if (held_ < most_) return true;
    auto oldest = entries_.end();
    for (auto at = entries_.begin(); at != entries_.end(); ++at) {
      if (!at->second.recording) continue;
      if (oldest == entries_.end() || at->second.last_use < oldest->second.last_use) oldest = at;
    }
    if (oldest->second.last_use + window() > clock_) return false;
    before_removal();
    entries_.erase(oldest);
    --held_;
    return true;
  }

  void keep(Entry& entry, Recording recording) {
    entry.recording.emplace(std::move(recording));
    ++held_;
  }

  void clear() {
    entries_.clear();
    held_ = 0;
  }
  int64_t held() const { return held_; }
  bool empty() const { return entries_.empty(); }

 private:
  /// Uses for which a pass that doesn't come is remembered.
  uint64_t window() const { return 4 * static_cast<uint64_t>(most_); }

  /// Keys that never come again don't gather.
  void forget_old() {
    if (entries_.size() < static_cast<size_t>(most_) + 2 * window()) return;
    std::erase_if(entries_, [&](const auto& item) {
      return !item.second.recording && item.second.last_use + window() <= clock_;
    });
  }

  int64_t most_;
  int64_t held_ = 0;
  uint64_t clock_ = 0;
  std::map<PassKey, Entry> entries_;
};

}  // namespace gmamba
