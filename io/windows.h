// SPDX-License-Identifier: Apache-2.0
/// Which bases are trained on and which are held out, and which window the n-th draw is. A draw is
/// a pure function of (seed, index): a resumed run draws what the uninterrupted one would have.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/genome.h"

namespace gmamba {

struct SplitOptions {
  std::vector<Interval> regions;  ///< training and validation come from here; empty: everything
  std::vector<Interval> valid_regions;  ///< held out; or
  std::vector<std::string> valid_contigs;
  double valid_fraction = 0;    ///< or whole blocks of contigs making up this share
  int64_t block_bases = 65536;  ///< size of those blocks
  uint64_t seed = 0;
};

/// Disjoint by base: sorted, merged intervals of each part.
struct Split {
  std::vector<Interval> train;
  std::vector<Interval> valid;
  int64_t train_bases = 0;
  int64_t valid_bases = 0;
};

/// Throws kUsage when nothing is left to train on, kInternal when the parts overlap (checked).
Split make_split(const Genome& genome, const SplitOptions& options);

struct Window {
  Interval interval;
  bool reverse = false;  ///< read as its reverse complement
};

class WindowSampler {
 public:
  /// Windows of `length` bases (shorter only where an interval is shorter) drawn from `intervals`,
  /// each base equally likely to be covered up to interval ends.
  WindowSampler(std::vector<Interval> intervals, int64_t length, bool random_strand, uint64_t seed);
  Window draw(uint64_t index) const;

 private:
  std::vector<Interval> intervals_;
  std::vector<int64_t> cumulative_;
  int64_t length_;
  bool random_strand_;
  uint64_t seed_;
};

/// Intervals cut into consecutive windows of at most `length`, in order; each base once.
std::vector<Window> tile(const std::vector<Interval>& intervals, int64_t length);

}  // namespace gmamba
