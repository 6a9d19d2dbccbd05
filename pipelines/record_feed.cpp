// SPDX-License-Identifier: Apache-2.0
#include "pipelines/record_feed.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace gmamba {

bool RecordFeed::pull() { return source_.next(part_); }

/// Joins the parts of the next record until it ends or is too long to be held; false at the end of
/// the input. The record is whole when `long_ended_`.
bool RecordFeed::gather_record(HeldRecord& record) {
  if (!pull()) return false;
  record.info = {std::move(part_.id), records_++, part_.start, 0};
  record.tokens = std::move(part_.tokens);
  long_ended_ = part_.last;
  while (!long_ended_ && static_cast<int64_t>(record.tokens.size()) <= limits_.longest_held) {
    require(pull(), ErrorKind::kInternal, "a record ended without its last part");
    record.tokens.insert(record.tokens.end(), part_.tokens.begin(), part_.tokens.end());
    long_ended_ = part_.last;
  }
  record.info.length = static_cast<int64_t>(record.tokens.size());
  return true;
}

RecordFeed::Kind RecordFeed::next() {
  while (in_long_ && !long_ended_) {
    require(pull(), ErrorKind::kInternal, "a record ended without its last part");
    long_ended_ = part_.last;
  }
  in_long_ = false;
  wave_.clear();
  int64_t tokens = 0;
  while (!pending_ && tokens < limits_.wave_tokens &&
         static_cast<int64_t>(wave_.size()) < limits_.wave_records) {
    HeldRecord record;
    if (!gather_record(record)) break;
    if (record.info.length > limits_.longest_held) {
      held_ = std::move(record);
      held_at_ = 0;
      pending_ = true;
      break;
    }
    tokens += record.info.length;
    wave_.push_back(std::move(record));
  }
  if (!wave_.empty()) return Kind::kWave;
  if (!pending_) return Kind::kEnd;
  pending_ = false;
  in_long_ = true;
  long_ = held_.info;
  long_.length = 0;
  return Kind::kLong;
}

int64_t RecordFeed::read(std::span<uint8_t> to) {
  size_t done = 0;
  while (done < to.size()) {
    if (held_at_ == held_.tokens.size()) {
      if (long_ended_) break;
      require(pull(), ErrorKind::kInternal, "a record ended without its last part");
      held_.tokens = std::move(part_.tokens);
      held_at_ = 0;
      long_ended_ = part_.last;
      continue;
    }
    const size_t take = std::min(to.size() - done, held_.tokens.size() - held_at_);
    std::copy_n(held_.tokens.begin() + static_cast<std::ptrdiff_t>(held_at_), take,
                to.begin() + static_cast<std::ptrdiff_t>(done));
    held_at_ += take;
    done += take;
  }
  long_.length += static_cast<int64_t>(done);
  return static_cast<int64_t>(done);
}

std::vector<std::vector<size_t>> plan_batches(const std::vector<HeldRecord>& wave, int64_t tokens,
                                              int64_t records) {
  std::vector<size_t> order(wave.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return wave[a].info.length < wave[b].info.length; });
  std::vector<std::vector<size_t>> batches;
  for (const size_t i : order) {
    // ascending lengths: the newcomer is the longest, so it decides the padded size
    const auto grown = [&] { return static_cast<int64_t>(batches.back().size()) + 1; };
    if (batches.empty() || grown() > records || grown() * wave[i].info.length > tokens) {
      batches.emplace_back();
    }
    batches.back().push_back(i);
  }
  return batches;
}

}  // namespace gmamba
