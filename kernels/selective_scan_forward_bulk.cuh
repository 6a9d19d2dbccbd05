// SPDX-License-Identifier: Apache-2.0
/// The kernel of the outputs for GPUs with a copy unit (sm_90 and newer; see
/// selective_scan_forward_walk.cuh for the equations): every warp walks one chunk of time for its
/// channels, and asks for its tiles as a whole.
/// Layout  2 channels a lane. 8 states leave registers for 4, which saves loads of B and C and part
///         of what lies between tiles, and takes half the warps: for long chunks
///         Per warp, in shared memory: three tiles of u, whose place y takes; two of delta, z, B,
///         C; B and C of one as fp32, read as 16-byte broadcasts; a barrier for each of two tiles
/// Time    while a tile is walked, the next one comes and y of the one before leaves. Rows are
///         walked four at a time and stored behind the last: the compiler cannot tell y from delta,
///         z, B and C, and would begin no row before the one ahead of it is stored
/// Launch  one warp per (batch row, chunk, group of channels), channels fastest; a block is of four
///         warps, or of all that share an SM (scan_grid.h)
/// Floor   exponential unit, d_state + 3 (f32: 4) per channel and position at 16 per clock and SM,
///         each of which also takes about three issue slots: 2.6 ms for 2^20 positions of 512
///         channels
/// Limits  rows of u, delta, z, y, B and C on 16 bytes; chunks of whole tiles, but for the last
#pragma once

#include "kernels/cuda_bulk.cuh"
#include "kernels/cuda_overlap.cuh"
#include "kernels/selective_scan_forward_walk.cuh"

namespace gmamba::cuda::scan {

/// Whether there are kernels for few states, of which four channels a lane (8 states) are here and
/// one is in selective_scan_forward_joint.cuh.
template <class T, int kStates>
constexpr bool kFewStates = kStates <= 16 && sizeof(T) == 2;

struct ForwardMaps {
  TileMap u, delta, z, y, B, C;
};

/// Where the arrays of a warp lie in shared memory, in bytes.
template <class T, int kStates, int kSplit, int kChannels>
struct ForwardBulkShape {
  using S = WalkShape<T, kStates, kSplit, kChannels>;
  static constexpr int kRowsBytes = S::kRowsBytes;
  static constexpr int kTokenBytes = S::kTokenBytes;
  static constexpr int kUs = 3;                                      // tiles of u
  static constexpr int kDeltas = kUs * S::kRowsBytes;                // [2] of delta, z
  static constexpr int kTokens = kDeltas + 4 * S::kRowsBytes;        // [2] of B, C
  static constexpr int kWide = kTokens + 4 * S::kTokenBytes;         // B, C as fp32
  static constexpr int kWideBytes = S::kRows * S::kColumns * 4;      // of one of them
  static constexpr int kBarriers = kWide + 2 * kWideBytes;           // [2]
  static constexpr int kBytes = (kBarriers + 16 + 127) / 128 * 128;  // tiles lie on 128 bytes
  static_assert(S::kRowsBytes % 128 == 0 && S::kTokenBytes % 128 == 0);
};

/// Asks, by one lane, for a tile of everything at position t of batch row b: u to one of the places
/// for u, the rest to stage 0 or 1, behind whose barrier it comes. Shape: where these lie.
template <class Shape>
__device__ inline void fetch_outputs(const ForwardMaps& maps, uint32_t here, bool gated, int first,
                                     int t, int b, int stage, int slot) {
  const uint32_t barrier = here + Shape::kBarriers + stage * 8;
  const uint32_t rows = here + Shape::kDeltas + stage * 2 * Shape::kRowsBytes;
  const uint32_t tokens = here + Shape::kTokens + stage * 2 * Shape::kTokenBytes;
  expect_bytes(barrier, (gated ? 3 : 2) * Shape::kRowsBytes + 2 * Shape::kTokenBytes);
  fetch_tile(here + slot * Shape::kRowsBytes, maps.u, first, t, b, barrier);
  fetch_tile(rows, maps.delta, first, t, b, barrier);
  if (gated) fetch_tile(rows + Shape::kRowsBytes, maps.z, first, t, b, barrier);
  fetch_tile(tokens, maps.B, 0, t, b, barrier);
  fetch_tile(tokens + Shape::kTokenBytes, maps.C, 0, t, b, barrier);
}

/// States that a warp leaves on its way through a chunk.
template <class T>
struct StatesOnTheWay {
  float* next = nullptr;
  int due;  // the position before which it is

  __device__ StatesOnTheWay(const ForwardArgs<T>& p, int b, int begin, int end, int first)
      : due(end) {
    if (p.saved.empty()) return;
    const int64_t passed = (begin + p.saved_every - 1) / p.saved_every;
    next = p.saved.at(b * p.saved_per_row + passed, first);
    due = static_cast<int>(min(static_cast<int64_t>(end), passed * p.saved_every));
  }
  /// Before position t, the first of a tile.
  template <class Lane>
  __device__ void pass(const ForwardArgs<T>& p, const Lane& walk, int t, int end) {
    if (due != t) return;
    walk.store(next, p.saved.inner);
    next += p.saved.outer;
    due = static_cast<int>(min(static_cast<int64_t>(end), t + p.saved_every));
  }
};

/// kReady: delta comes behind bias and softplus, in its own unit.
template <class T, int kStates, int kSplit, int kChannels, int kTeams, bool kReady = false>
__global__ void __launch_bounds__(kTeams* kForwardWarps * 32, 1)
    scan_forward_bulk_kernel(const ForwardArgs<T> p, const __grid_constant__ ForwardMaps maps) {
#if __CUDA_ARCH__ >= 900
  using S = WalkShape<T, kStates, kSplit, kChannels>;
  using M = ForwardBulkShape<T, kStates, kSplit, kChannels>;
  using Elements = Packed<T, kChannels>;
  constexpr int kColumns = S::kColumns;
  constexpr int kWidth = S::kWidth;
  constexpr int kRows = S::kRows;
  constexpr int kUnroll = 4;
  extern __shared__ __align__(128) unsigned char forward_tiles[];
  let_next_kernel_begin();
  if (!p.start_is_late) wait_for_previous_kernel();

  const int lane = static_cast<int>(threadIdx.x) % 32;
  // known to be the same in all lanes, and so is what is found from it
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / 32, 0);
  const ForwardUnit<T, kStates, kSplit, kChannels> unit(p, warp);
  if (!unit.exists || unit.steps <= 0) return;
  const int first = unit.first;
  const int b = static_cast<int>(unit.b);
  const int begin = static_cast<int>(unit.begin);
  const int end = begin + unit.steps;
  const bool gated = !p.z.empty();
  unsigned char* const mine = forward_tiles + warp * M::kBytes;
  float* const B_tile = reinterpret_cast<float*>(mine + M::kWide);
  float* const C_tile = reinterpret_cast<float*>(mine + M::kWide + M::kWideBytes);
  const uint32_t here = shared_address(mine);
  if (lane == 0) {
    begin_barrier(here + M::kBarriers, 1);
    begin_barrier(here + M::kBarriers + 8, 1);
    show_barriers();
  }
  __syncwarp();
  const auto fetch = [&](int t, int stage, int slot) {
    fetch_outputs<M>(maps, here, gated, first, t, b, stage, slot);
  };
  if (elected()) fetch(begin, 0, 0);

  ForwardLane<T, kStates, kSplit, kReady, kChannels> walk(p, lane, first);
  if (!gated) {
    clear<S::kRowsBytes>(mine + M::kDeltas + S::kRowsBytes, lane);
    clear<S::kRowsBytes>(mine + M::kDeltas + 3 * S::kRowsBytes, lane);
  }
  StatesOnTheWay<T> saved(p, b, begin, end, first);
  if (p.start_is_late) wait_for_previous_kernel();
  walk.start(p, b, unit.chunk);

  int stage = 0;
  int slot = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int t = begin; t < end; t += kRows) {
    const int next_slot = slot == M::kUs - 1 ? 0 : slot + 1;
    if (t + kRows < end && elected()) {
      wait_for_stored_reads<1>();  // of the tile whose place the next u takes
      fetch(t + kRows, stage ^ 1, next_slot);
    }
    wait_for_barrier(here + M::kBarriers + stage * 8, parity);
    const T* const tokens =
        reinterpret_cast<const T*>(mine + M::kTokens + stage * 2 * S::kTokenBytes);
    widen_tile<kRows * kColumns>(B_tile, tokens, lane, kReady ? 1.0F : kLn2);
    widen_tile<kRows * kColumns>(C_tile, tokens + kRows * kColumns, lane);
    __syncwarp();
    saved.pass(p, walk, t, end);
    T* const u = reinterpret_cast<T*>(mine + slot * S::kRowsBytes) + walk.local;
    const T* const delta =
        reinterpret_cast<const T*>(mine + M::kDeltas + stage * 2 * S::kRowsBytes) + walk.local;
    const auto elements = [&](const T* array, int row) {
      return *reinterpret_cast<const Elements*>(array + row * kWidth);
    };
    const auto step = [&](int row) {
      return walk.step(elements(u, row), elements(delta, row),
                       elements(delta + kRows * kWidth, row), B_tile + row * kColumns + walk.n0,
                       C_tile + row * kColumns + walk.n0, p.open);
    };
    const auto put = [&](int row, Elements y) {
      if (kSplit == 1 || lane < S::kGroups) *reinterpret_cast<Elements*>(u + row * kWidth) = y;
    };
    const int rows = min(kRows, end - t);
    if (rows == kRows) {
#pragma unroll 1
      for (int row = 0; row < kRows; row += kUnroll) {
        Elements y[kUnroll];
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) y[i] = step(row + i);
        // behind every read of u by those that share its channels
        if constexpr (kSplit > 1) __syncwarp();
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) put(row + i, y[i]);
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < rows; ++row) {
        const Elements y = step(row);
        if constexpr (kSplit > 1) __syncwarp();
        put(row, y);
      }
    }
    show_tile();
    __syncwarp();
    if (elected()) store_tile(here + slot * S::kRowsBytes, maps.y, first, t, b);
    slot = next_slot;
    parity ^= static_cast<uint32_t>(stage);
    stage ^= 1;
  }
  if (unit.chunk == p.chunks - 1 && !p.state_out.empty()) {
    walk.store(p.state_out.at(b, first), p.state_out.inner);
  }
  if (elected()) wait_for_stored_tiles();
#endif
}

}  // namespace gmamba::cuda::scan
