// SPDX-License-Identifier: Apache-2.0
/// Loss of a language model against the amount of context it has seen: whether long context pays.
///
/// A base is predicted after `seen` bases since the state was empty; bin k holds seen in
/// [2^k, 2^(k+1) - 1]. Neighbouring bases are no independent samples, so that intervals are over
/// blocks: stretches of at most kBlockBases predictions of one bin of one record. With a limit N
/// the same bases are predicted a second time by the same model, whose state is emptied every N
/// bases of the record; the paired difference of each block's losses cancels what makes one stretch
/// of sequence harder than another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "libmamba/core/json.h"
#include "libmamba/model.h"
#include "pipelines/record_feed.h"

namespace gmamba {

class Progress;

/// Mean of block values weighted by their bases, with its 95% interval.
struct Interval95 {
  double mean = 0;
  double low = 0;  ///< not a number with fewer than two blocks
  double high = 0;
};

/// Sums over blocks from which a ratio estimate and its variance follow.
class BlockSums {
 public:
  void add(double total, double bases);
  int64_t blocks() const { return blocks_; }
  double bases() const { return bases_; }
  /// total / bases, with Student's interval on the standard error of the ratio estimator.
  Interval95 interval() const;

 private:
  int64_t blocks_ = 0;
  double total_ = 0, bases_ = 0;
  double total_squared_ = 0, bases_squared_ = 0, product_ = 0;
};

struct PositionBin {
  int64_t from = 0;  ///< bases of context seen
  int64_t to = 0;
  BlockSums loss;        ///< nats, the whole record's context
  BlockSums limited;     ///< the same bases with the limited context
  BlockSums difference;  ///< limited minus whole: positive where long context helps
};

constexpr int64_t kBlockBases = 4096;

class PositionLoss {
 public:
  PositionLoss(Context& ctx, const Model& model, int64_t segment, int64_t limit,
               Progress* progress);
  /// Reads the feed (of feed_limits()) to its end.
  void run(RecordFeed& feed, const TokenSource& source);
  /// Records that fit a segment are held, and run as rows of a batch; longer ones are streamed.
  static FeedLimits feed_limits(int64_t segment) {
    return {.longest_held = segment, .wave_tokens = std::max<int64_t>(segment, 65536)};
  }
  /// The bins with predictions, by ascending context.
  std::vector<PositionBin> bins() const;
  int64_t predicted() const { return predicted_; }
  int64_t bases() const { return bases_; }

 private:
  struct Block {
    double whole = 0, limited = 0;
    int64_t bases = 0;
    size_t bin = 0;
  };
  /// Rows of a batch that are padded to the longest.
  struct Row {
    std::span<const uint8_t> tokens;
    std::span<const int32_t> targets;
    std::span<float> losses;
  };
  void run_wave(const std::vector<HeldRecord>& wave);
  void run_rows(std::span<const Row> rows);
  void run_record(RecordFeed& feed);
  void run_piece(std::span<const uint8_t> tokens, int64_t at, int64_t count);
  /// Counts the losses of the tokens from position `at` of a record on.
  void count_losses(std::span<const int32_t> targets, std::span<const float> losses,
                    std::span<const float> limited, int64_t at);
  void advance(int64_t bases);
  int64_t most_rows() const;
  int64_t piece_tokens(int64_t at) const;
  void add_losses(std::span<const uint8_t> tokens, std::span<const int32_t> targets, int64_t rows,
                  SequenceState& state, std::span<float> losses);
  void limited_losses(std::span<const uint8_t> tokens, std::span<const int32_t> targets, int64_t at,
                      std::span<float> losses);
  void close_block();

  Context& ctx_;
  const Model& model_;
  int64_t segment_;
  int64_t limit_;
  Progress* progress_;
  const TokenSource* source_ = nullptr;
  SequenceState whole_;
  SequenceState limited_;
  std::vector<PositionBin> bins_;
  Block block_;
  int64_t predicted_ = 0;
  int64_t bases_ = 0;
};

std::string position_table(const std::vector<PositionBin>& bins, bool limited);
Json position_json(const std::vector<PositionBin>& bins, bool limited);
/// A page with the curve and the table.
std::string position_page(const std::string& model, const std::vector<PositionBin>& bins,
                          int64_t limit);

}  // namespace gmamba
