// SPDX-License-Identifier: Apache-2.0
/// Records in input order, in the two shapes that compute wants: many short ones held in memory, to
/// be run together, or one long one to be read piece by piece.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pipelines/sequence_input.h"

namespace gmamba {

struct RecordInfo {
  std::string id;
  int64_t index = 0;   ///< from 0, over all inputs
  int64_t start = 0;   ///< 0-based position of its first base in its contig
  int64_t length = 0;  ///< of a long record: known when it was read to its end
};

struct HeldRecord {
  RecordInfo info;
  std::vector<uint8_t> tokens;
};

struct FeedLimits {
  int64_t longest_held = 4096;  ///< longer records are streamed
  int64_t wave_tokens = 65536;  ///< held at a time, over all records of a wave
  int64_t wave_records = 65536;
};

class RecordFeed {
 public:
  enum class Kind { kWave, kLong, kEnd };

  RecordFeed(TokenSource& source, FeedLimits limits) : source_(source), limits_(limits) {}

  /// What comes next: short records in wave(), or a long record to be read by read(); a long record
  /// that was not read to its end is skipped over.
  Kind next();
  const std::vector<HeldRecord>& wave() const { return wave_; }
  /// Of the long record; its length is what was read so far.
  const RecordInfo& long_record() const { return long_; }
  /// Fills `to` with the next tokens of the long record; fewer only at its end.
  int64_t read(std::span<uint8_t> to);
  int64_t records() const { return records_; }

 private:
  bool pull();
  bool gather_record(HeldRecord& record);

  TokenSource& source_;
  FeedLimits limits_;
  std::vector<HeldRecord> wave_;
  bool pending_ = false;  // held_ is a long record's beginning, not yet announced
  HeldRecord held_;
  size_t held_at_ = 0;
  bool in_long_ = false;
  bool long_ended_ = false;
  RecordInfo long_;
  TokenPart part_;
  int64_t records_ = 0;
};

/// Groups of records of similar length, each at most `tokens` when padded to its longest and at
/// most `records` in number (a longer record is alone). A function of the lengths only; indices
/// into `wave`.
std::vector<std::vector<size_t>> plan_batches(const std::vector<HeldRecord>& wave, int64_t tokens,
                                              int64_t records);

}  // namespace gmamba
