// SPDX-License-Identifier: Apache-2.0
/// Counter-based random numbers (Philox 4x32-10): the n-th number of stream s of seed k is a pure
/// function of (k, s, n). Nothing has to be saved to resume, and threads cannot disturb each other.
/// Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <array>
#include <cstdint>

namespace gmamba {

/// One Philox 4x32-10 block.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Names what numbers are for, so that two uses never share a stream.
enum class RandomUse : uint32_t { kInit = 1, kSample, kShuffle, kAugment, kHead, kBaseline, kTest };

class Random {
 public:
  /// Stream `stream` of `use` under `seed`, starting at number 0.
  Random(uint64_t seed, RandomUse use, uint64_t stream = 0);

  uint32_t bits();
  uint64_t bits64();
  /// [0, 1) with 53 bits.
  double uniform();
  double uniform(double low, double high);
  /// Standard normal (Box-Muller).
  double normal();
  /// [0, bound), without bias; bound >= 1.
  uint64_t below(uint64_t bound);

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 4> block_{};
  int left_ = 0;
  bool has_normal_ = false;
  double normal_ = 0;
};

}  // namespace gmamba
