// SPDX-License-Identifier: Apache-2.0
/// What scan_backward_kernel keeps in shared memory, how B and C come there, and the sums that go
/// through it.
#pragma once

#include "kernels/selective_scan_backward_args.cuh"

namespace gmamba::cuda::scan {

/// Where the arrays of a warp lie in shared memory, in floats.
template <int kLanes, int kChannels, int kSub, int kWarps = kBackwardWarps>
struct BackwardShape {
  static constexpr int kColumns = 4 * kLanes;         // states, padded
  static constexpr int kGroups = 32 / kLanes;         // groups of channels of a warp
  static constexpr int kWidth = kGroups * kChannels;  // channels of a warp
  static constexpr int kBlockWidth = kWarps * kWidth;
  static constexpr int kWindows = kSub / kWindow;
  static constexpr int kTile = kChannels * 128;            // one state of a warp
  static constexpr int kResults = kWindow * 2 * kColumns;  // dB and dC of a window
  static constexpr int kSlot = kTile > kResults ? kTile : kResults;
  // rows of 4 staged sums: padded so that the lanes of the reduction fall into different banks
  static constexpr int kStageStride = kColumns < 32 ? 128 + kColumns : 128;

  static constexpr int kDelta = 0;                               // [kSub][kWidth]
  static constexpr int kX = kDelta + kSub * kWidth;              // delta u, then s1
  static constexpr int kG = kX + kSub * kWidth;                  // dy silu(z)
  static constexpr int kY = kG + kSub * kWidth;                  // sum_n C h
  static constexpr int kS2 = kY + kSub * kWidth;                 // sum_n A w, A times log2(e)
  static constexpr int kStage = kS2 + kSub * kWidth;             // [kWindow][32][4]
  static constexpr int kSums = kStage + kWindow * kStageStride;  // [kWindow][32][2 kChannels]
  static constexpr int kParameters = kSums + kWindow * 64 * kChannels;  // [2][32][4]
  static constexpr int kSlots = kParameters + 256;  // state before a window, then its dB and dC
  static constexpr int kWarpFloats = kSlots + kWindows * kSlot;
  static constexpr int kTileBC = kSub * 2 * kColumns;
  static constexpr int kBytes = (kWarps * kWarpFloats + kTileBC) * 4;
  static __device__ int slot(int k) { return kSlots + k * kSlot; }
};

/// B and C of positions side by side as fp32, by kThreads threads: read first and stored later, so
/// that other loads may be on their way meanwhile.
template <int kSub, int kColumns, bool kFast, int kThreads, class T>
struct StagedPositions {
  static constexpr int kQuads = kColumns / 2;  // of a position
  static constexpr int kRounds = (kSub * kQuads + kThreads - 1) / kThreads;
  float values[kRounds][4];

  static __device__ int item(int round) {
    return static_cast<int>(threadIdx.x) % kThreads + round * kThreads;
  }
  static __device__ bool there(int round) {
    return kSub * kQuads % kThreads == 0 || item(round) < kSub * kQuads;
  }
  /// The first `rows` positions; zeros behind them and in columns from n on.
  __device__ void load(const T* B, int64_t B_stride, const T* C, int64_t C_stride, int rows,
                       int n) {
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
      const int t = item(k) / kQuads;
      const int column = item(k) % (kQuads / 2) * 4;
      const bool second = item(k) % kQuads >= kQuads / 2;
      const T* const from =
          (second ? C : B) + t * static_cast<int>(second ? C_stride : B_stride) + column;
#pragma unroll
      for (int j = 0; j < 4; ++j) values[k][j] = 0.0F;
      if (!there(k) || t >= rows) continue;
      if constexpr (kFast) {
        load_packed<4, true>(from, 4).widen(values[k]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j < n) values[k][j] = widen(from[j]);
        }
      }
    }
  }
  __device__ void store(float* to) const {
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
      if (there(k)) store_shared(to + item(k) * 4, values[k]);
    }
  }
};

/// Sums the staged values over the channel groups of a warp: output i of this lane is number
/// lane * kOut + i of the window's kWindow * kColumns.
template <class S, int kOut>
__device__ inline void sum_over_groups(const float* stage, int lane, float (&out)[kOut]) {
  const int first = lane * kOut;
  const float* const from = stage + first / S::kColumns * S::kStageStride + first % S::kColumns;
  load_shared(from, out);
#pragma unroll
  for (int g = 1; g < S::kGroups; ++g) {
    float more[kOut];
    load_shared(from + g * S::kColumns, more);
#pragma unroll
    for (int i = 0; i < kOut; ++i) out[i] += more[i];
  }
}

/// Sums kCount staged values over the kLanes lanes of a channel group; one (position, group) pair
/// per lane and round. The order is rotated so that lanes read from different banks.
template <int kLanes, int kCount>
__device__ inline void sum_over_states(const float* sums, int position, int group,
                                       float (&out)[kCount]) {
  const float* const from = sums + (position * 32 + group * kLanes) * kCount;
  const int turn = kLanes <= 8 ? group * kLanes / 8 : group * 2;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = 0.0F;
#pragma unroll
  for (int q = 0; q < kLanes; ++q) {
    float more[kCount];
    load_shared(from + ((q + turn) % kLanes) * kCount, more);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] += more[i];
  }
}

}  // namespace gmamba::cuda::scan
