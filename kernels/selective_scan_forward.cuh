// SPDX-License-Identifier: Apache-2.0
/// The kernel of the outputs that any GPU runs and any alignment suits (see
/// selective_scan_forward_walk.cuh for the equations): every warp walks one chunk of time for its
/// channels.
/// Layout  tiles of u, delta, z, B and C come into shared memory of the warp by asynchronous
///         copies, a tile ahead; B and C are widened to fp32 there and read as 16-byte broadcasts;
///         y takes the place of u and leaves in 16-byte pieces. No barrier beyond the warp, so
///         warps run ahead of each other
/// Launch  one warp per (batch row, chunk, group of channels), channels fastest; a block is of four
///         warps, or of all that share an SM (scan_grid.h)
#pragma once

#include "kernels/cuda_overlap.cuh"
#include "kernels/selective_scan_forward_walk.cuh"

namespace gmamba::cuda::scan {

/// Where the chunk and the channels of a warp begin in every array; nothing where there is none.
/// Kept in shared memory and read once per tile: in registers it would cost the third warp of a
/// scheduler, and what spills leaves the first-level cache, small beside this much shared memory.
template <class T>
struct alignas(16) WarpArrays {
  const T *u, *delta, *z, *B, *C;
  T* y;
  float *saved, *last;  // the next state on the way, and the one behind the last chunk
  int next;             // the position of the chunk before which `saved` is due
};

template <class T, int kStates, int kSplit>
constexpr int forward_warp_bytes() {
  using S = WalkShape<T, kStates, kSplit>;
  return 2 * (3 * S::kRowsBytes + 2 * S::kTokenBytes) + S::kRows * 2 * S::kColumns * 4 +
         static_cast<int>(sizeof(WarpArrays<T>));
}

/// kReady: delta comes behind bias and softplus, in its own unit.
template <class T, int kStates, int kSplit, bool kReady = false>
__global__ void __launch_bounds__(kForwardTeams* kForwardWarps * 32, 1)
    scan_forward_kernel(const ForwardArgs<T> p) {
  using S = WalkShape<T, kStates, kSplit>;
  using Pair = Packed<T, 2>;
  constexpr int kColumns = S::kColumns;
  constexpr int kWidth = S::kWidth;
  constexpr int kRows = S::kRows;
  extern __shared__ __align__(16) unsigned char forward_shared[];
  let_next_kernel_begin();
  if (!p.start_is_late) wait_for_previous_kernel();

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const ForwardUnit<T, kStates, kSplit> unit(p, warp);
  if (!unit.exists) return;
  const int first = unit.first;
  const int64_t chunk = unit.chunk;
  const int64_t b = unit.b;
  const int64_t begin = unit.begin;
  const int steps = unit.steps;
  const bool gated = !p.z.empty();

  // per stage: u, delta, z [kRows][kWidth]; B, C [kRows][kColumns]. Behind them B and C as fp32.
  constexpr int kBytes = forward_warp_bytes<T, kStates, kSplit>();
  constexpr int kStageBytes = 3 * S::kRowsBytes + 2 * S::kTokenBytes;
  unsigned char* const mine = forward_shared + warp * kBytes;
  float* const B_tile = reinterpret_cast<float*>(mine + 2 * kStageBytes);
  float* const C_tile = B_tile + kRows * kColumns;
  auto* const arrays = reinterpret_cast<WarpArrays<T>*>(C_tile + kRows * kColumns);
  clear<2 * kStageBytes>(mine, lane);
  __syncwarp();

  ForwardLane<T, kStates, kSplit, kReady> walk(p, lane, first);

  const int valid = p.d_inner - first;  // channels that exist from the warp's first on
  // whole tiles take the short way, a tile that sticks out or lacks alignment the long one
  const RowPieces<T, kRows, kWidth> row_pieces(lane);
  const TokenPieces<T, kRows, kColumns> token_pieces(lane);
  const bool has_rows = row_pieces.any(valid);
  const bool has_tokens = token_pieces.any(p.d_state);
  if (lane == 0) {
    const auto start = [&](const auto& rows) {
      return rows.empty() ? nullptr : rows.at(b, begin) + first;
    };
    const bool ends = chunk == p.chunks - 1 && !p.state_out.empty();
    const int64_t passed = p.saved.empty() ? 0 : (begin + p.saved_every - 1) / p.saved_every;
    const int64_t ahead = passed * p.saved_every - begin;
    *arrays = {start(p.u),
               start(p.delta),
               start(p.z),
               p.B.at(b, begin),
               p.C.at(b, begin),
               start(p.y),
               p.saved.empty() ? nullptr : p.saved.at(b * p.saved_per_row + passed, first),
               ends ? p.state_out.at(b, first) : nullptr,
               p.saved.empty() || ahead >= steps ? steps : static_cast<int>(ahead)};
  }
  __syncwarp();
  const auto fetch = [&](int t, int stage) {
    const int rows = min(kRows, steps - t);
    T* const to = reinterpret_cast<T*>(mine + stage * kStageBytes);
    const auto get_rows = [&](T* place, T const* const& from, int stride) {
      if (p.vectors.rows && rows == kRows) {
        if (has_rows) row_pieces.fetch(place, kept(from) + row_pieces.column, stride, t);
      } else {
        fetch_rows<kRows, kWidth, 16>(place, kept(from) + static_cast<int64_t>(t) * stride, stride,
                                      rows, valid, p.vectors.rows, lane);
      }
    };
    const auto get_tokens = [&](T* place, T const* const& from, int stride) {
      if (p.vectors.tokens && rows == kRows) {
        if (has_tokens) token_pieces.fetch(place, kept(from) + token_pieces.column, stride, t);
      } else {
        fetch_rows<kRows, kColumns, 8>(place, kept(from) + static_cast<int64_t>(t) * stride, stride,
                                       rows, p.d_state, p.vectors.tokens, lane);
      }
    };
    get_rows(to, arrays->u, static_cast<int>(p.u.inner));
    get_rows(to + kRows * kWidth, arrays->delta, static_cast<int>(p.delta.inner));
    if (gated) get_rows(to + 2 * kRows * kWidth, arrays->z, static_cast<int>(p.z.inner));
    T* const B_to = to + 3 * kRows * kWidth;
    get_tokens(B_to, arrays->B, static_cast<int>(p.B.inner));
    get_tokens(B_to + kRows * kColumns, arrays->C, static_cast<int>(p.C.inner));
  };

  if (steps > 0) fetch(0, 0);
  commit_copies();
  if (p.start_is_late) wait_for_previous_kernel();
  walk.start(p, b, chunk);
  int stage = 0;
#pragma unroll 1
  for (int t = 0; t < steps; t += kRows, stage ^= 1) {
    if (t + kRows < steps) fetch(t + kRows, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncwarp();
    T* const u_tile = reinterpret_cast<T*>(mine + stage * kStageBytes);
    const T* const tokens = u_tile + 3 * kRows * kWidth;
    widen_tile<kRows * kColumns>(B_tile, tokens, lane, kReady ? 1.0F : kLn2);
    widen_tile<kRows * kColumns>(C_tile, tokens + kRows * kColumns, lane);
    __syncwarp();
    if (*const_cast<const volatile int*>(&arrays->next) == t) {
      walk.store(kept(arrays->saved), p.saved.inner);
      __syncwarp();
      if (lane == 0) {
        arrays->saved += p.saved.outer;
        arrays->next = p.saved_every < steps - t ? t + static_cast<int>(p.saved_every) : steps;
      }
    }
    const auto step = [&](int row) {
      auto* const at = reinterpret_cast<Pair*>(u_tile + row * kWidth + walk.local);
      const Pair y =
          walk.step(at[0], at[kRows * kWidth / 2], at[kRows * kWidth],
                    B_tile + row * kColumns + walk.n0, C_tile + row * kColumns + walk.n0, p.open);
      // behind every read of u, by the lane itself or by those that share its channels
      if constexpr (kSplit > 1) __syncwarp();
      if (kSplit == 1 || lane < S::kGroups) *at = y;
    };
    const int rows = min(kRows, steps - t);
    if (rows == kRows) {
#pragma unroll 1
      for (int row = 0; row < kRows; row += 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) step(row + i);
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < rows; ++row) step(row);
    }
    __syncwarp();
    T* const y = kept(arrays->y);
    const int stride = static_cast<int>(p.y.inner);
    if (p.vectors.rows && rows == kRows) {
      if (has_rows) row_pieces.store(y + row_pieces.column, u_tile, stride, t);
    } else {
      store_rows<kRows, kWidth>(y + static_cast<int64_t>(t) * stride, u_tile, stride, rows, valid,
                                p.vectors.rows, lane);
    }
    __syncwarp();
  }
  if (float* const to = kept(arrays->last)) walk.store(to, p.state_out.inner);
}

}  // namespace gmamba::cuda::scan
