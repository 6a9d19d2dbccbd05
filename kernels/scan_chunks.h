// SPDX-License-Identifier: Apache-2.0
/// How the scan's kernels cut time into chunks that are walked side by side.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gmamba::cuda::scan {

/// Positions that kernels walk between two copies. Also those between two saved states.
constexpr int64_t kChunkTile = 16;
constexpr int64_t kShortestChunk = 64;

struct Chunks {
  int64_t count = 1;
  int64_t length = 0;
  int64_t longer = 0;       // of the first this many,
  int64_t by = kChunkTile;  // so many positions more

  /// The first position of chunk i.
  constexpr int64_t begin(int64_t i) const { return i * length + (i < longer ? i : longer) * by; }
  /// The position behind its last, of `total` in all.
  constexpr int64_t end(int64_t i, int64_t total) const {
    const int64_t next = begin(i + 1);
    return next < total ? next : total;
  }
};

/// One chunk when `units` of work (warps or blocks of one chunk) fill the machine, which holds
/// `capacity` of them; else as many as fill it once. Splitting costs a summary of every chunk,
/// which is cheaper the longer the chunk, so no more than that. They are whole tiles each.
inline Chunks cut_time(int64_t length, int64_t units, int64_t capacity) {
  if (length <= kShortestChunk || units * 2 >= capacity) return {1, length};
  const int64_t wanted = std::max<int64_t>(1, capacity / units);
  const int64_t whole = wanted * kChunkTile;
  const int64_t chunk = std::max(kShortestChunk, (length + whole - 1) / whole * kChunkTile);
  return {(length + chunk - 1) / chunk, chunk};
}

/// The same in parts as equal as whole tiles can be, so that none but the last chunk ends within
/// one.
inline Chunks cut_evenly(int64_t length, int64_t units, int64_t capacity) {
  if (length <= kShortestChunk || units * 2 >= capacity) return {1, length};
  const int64_t tiles = (length + kChunkTile - 1) / kChunkTile;
  const int64_t count = std::min(capacity / units, tiles * kChunkTile / kShortestChunk);
  return {count, tiles / count * kChunkTile, tiles % count};
}

/// The same chunks with what some have more than others dealt out in smaller pieces, to `most` of
/// them at most, where that is possible: what is done last is then sooner done.
inline Chunks deal_out(const Chunks& chunks, int64_t length, int64_t most) {
  const int64_t rest = length - chunks.count * chunks.length;
  for (int64_t by = 2; rest > 0 && by < kChunkTile; by *= 2) {
    const int64_t longer = (rest + by - 1) / by;
    if (longer <= std::min(most, chunks.count)) return {chunks.count, chunks.length, longer, by};
  }
  return chunks;
}

}  // namespace gmamba::cuda::scan
