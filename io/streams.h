// SPDX-License-Identifier: Apache-2.0
/// Sequence read from end to end by many streams side by side, for models that carry their state
/// from one batch to the next. In each pass the intervals are put into a random order, one after
/// the other, and every stream reads an equal part of that: each base is read once a pass. Which
/// stream reads what is a pure function of (seed, part, pass).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "io/loader.h"

namespace gmamba {

/// Who reads what.
class StreamPlan {
 public:
  /// `part` tells runs of streams apart that share a seed. Throws kUsage when there are fewer than
  /// two bases for each stream.
  StreamPlan(std::vector<Interval> intervals, int64_t streams, bool random_strand, uint64_t seed,
             uint64_t part);

  /// A stretch of one contig that a stream reads without a break.
  struct Walk {
    Window window;
    int64_t start = 0;  ///< of its first base within the stream's part
    int64_t length() const { return window.interval.length(); }
  };
  int64_t streams() const { return streams_; }
  /// Bases of a stream's part.
  int64_t bases(int64_t stream) const { return begin_of(stream + 1) - begin_of(stream); }
  /// The walk that holds base `offset` of the stream's part.
  Walk walk(int64_t stream, int64_t pass, int64_t offset);

 private:
  struct Order {
    std::vector<size_t> intervals;
    std::vector<int64_t> ends;  ///< sums of their lengths
  };
  int64_t begin_of(int64_t stream) const;
  const Order& order_of(int64_t pass);

  std::vector<Interval> intervals_;
  int64_t streams_;
  bool random_strand_;
  uint64_t seed_;
  uint64_t part_;
  int64_t total_ = 0;
  std::map<int64_t, Order> orders_;  ///< of the newest passes
};

struct StreamOptions {
  int64_t reset_bases = 50;         ///< a longer run of unknown bases ends what a stream remembers
  std::vector<StreamPlace> places;  ///< where the streams go on; empty: at the start
};

/// Batches whose rows are streams: batch n holds streams [k B, (k + 1) B), where k is n modulo
/// streams / B, so that each stream goes on `streams / B` batches later. A row ends early, padded,
/// where its stretch of sequence does or where a run of unknown bases got too long; the next row of
/// its stream then begins fresh, after the run. The number of streams must be a multiple of the
/// rows of a batch.
std::unique_ptr<BatchMaker> stream_batches(const Genome& genome, StreamPlan plan,
                                           const Tokenizer& tokenizer, const LoaderOptions& options,
                                           const StreamOptions& stream_options);

}  // namespace gmamba
