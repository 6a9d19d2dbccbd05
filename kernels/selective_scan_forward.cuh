// SPDX-License-Identifier: Apache-2.0
/// The kernel that computes outputs: every warp walks one chunk of time for its channels.
///   delta = softplus(delta_raw + bias);  h <- exp(delta A) h + delta B u;  y = (C h + D u) silu(z)
/// Layout  a thread keeps 2 channels x kStates states in registers; kSplit groups of lanes share
///         the states of a channel, so a warp holds 64 / kSplit channels. Tiles of u, delta, z, B
///         and C come into shared memory of the warp by asynchronous copies, a tile ahead; B and C
///         are widened to fp32 there and read as 16-byte broadcasts; y takes the place of u and
///         leaves in 16-byte pieces. No barrier beyond the warp, so warps run ahead of each other
/// Launch  one warp per (batch row, chunk, group of channels), channels fastest, 4 warps per block
/// Units   delta in units of log(2), so that exp(delta A) is 2^(delta A); B is widened times
/// log(2).
///         Where delta comes ready, A is scaled instead
/// Floor   exponential unit, d_state + 3 (f32: 4) per channel and position at 16 per clock and SM,
///         each of which also takes about three issue slots: 2.6 ms for 2^20 positions of 512
///         channels
#pragma once

#include "kernels/cuda_overlap.cuh"
#include "kernels/scan_stage.cuh"

namespace gmamba::cuda::scan {

constexpr int kForwardWarps = 4;

template <class T>
struct ForwardArgs {
  Rows<const T> u, delta, z;  // (B, L, E); z empty: no gate
  Rows<const T> B, C;         // (B, L, N)
  const float* A = nullptr;   // (E, N)
  int64_t A_stride = 0;
  const float* D = nullptr;     // (E) or empty
  const float* bias = nullptr;  // (E) or empty
  bool ready = false;           // delta is behind bias and softplus
  Rows<const float> start;      // (B * start_per_row, E, N) or empty: zeros
  int64_t start_per_row = 0;    // at least as many as chunks
  // true where the kernels that this one may overlap with write `start` and nothing else it reads
  bool start_is_late = false;
  Rows<T> y;              // (B, L, E)
  Rows<float> state_out;  // (B, E, N) or empty
  Rows<float> saved;      // (B * saved_per_row, E, N) or empty: states on the way
  int64_t saved_per_row = 0;
  int64_t saved_every = 0;  // positions between two of them, a multiple of a tile
  int64_t batch = 0, length = 0;
  int64_t chunks = 1, chunk_length = 0;
  int64_t longer = 0;  // chunks that are a tile longer
  int d_inner = 0, d_state = 0;
  float open = 0.0F;  // added to a gate: 1 where there is none, for then z is 0
  Vectors vectors;
};

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

/// One position of two channels; adds to y. kApart: states channel by channel, and outputs behind
/// all states: the same sums, which the compiler puts in a better order with twelve warps on an SM,
/// the other way with eight.
template <int kStates, bool kApart>
__device__ inline void forward_step(const float (&d)[2], const float (&x)[2], const float* B,
                                    const float* C, const float (&A)[2][kStates],
                                    float (&h)[2][kStates], float (&y)[2]) {
  const auto move = [&](int i, int n, float b) {
    h[i][n] = fmaf(ex2(d[i] * A[i][n]), h[i][n], x[i] * b);
  };
  if constexpr (kApart) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < kStates; n += 4) {
        float b[4];
        load_shared(B + n, b);
#pragma unroll
        for (int k = 0; k < 4; ++k) move(i, n + k, b[k]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kStates; n += 4) {
    float b[4];
    float c[4];
    if constexpr (!kApart) load_shared(B + n, b);
    load_shared(C + n, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (!kApart) move(i, n + k, b[k]);
        y[i] = fmaf(c[k], h[i][n + k], y[i]);
      }
    }
  }
}

/// kReady: delta comes behind bias and softplus, in its own unit.
template <class T, int kStates, int kSplit, int kUnroll, int kBlocks, bool kReady = false>
__global__ void __launch_bounds__(kForwardWarps * 32, kBlocks)
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
  const int width = (p.d_inner + kWidth - 1) / kWidth;  // groups of channels
  int64_t unit = static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp;
  if (unit >= p.batch * p.chunks * width) return;
  const int first = static_cast<int>(unit % width) * kWidth;  // channel of the warp
  unit /= width;
  const int64_t chunk = unit % p.chunks;
  const int64_t b = unit / p.chunks;
  const int local = lane % S::kGroups * 2;
  const int e = first + local;
  const int n0 = lane / S::kGroups * kStates;
  const int channels = max(0, min(2, p.d_inner - e));  // of this thread
  const int states = max(0, min(kStates, p.d_state - n0));
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

  float A[2][kStates];
  float h[2][kStates];
  float skip[2];
  float bias[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int ei = min(e + i, p.d_inner - 1);
    const int count = i < channels ? states : 0;
    load_states(p.A + ei * p.A_stride + n0, count, p.vectors.states, A[i]);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      if constexpr (kReady) A[i][n] *= kLog2e;
    }
    // one of the lanes that share a channel adds D u
    skip[i] = p.D == nullptr || n0 != 0 ? 0.0F : p.D[ei];
    bias[i] = kReady || p.bias == nullptr ? 0.0F : kLog2e * p.bias[ei];
  }

  const int64_t begin = chunk_begin(chunk, p.chunk_length, p.longer);
  const int steps = chunk_steps(chunk, p.chunk_length, p.longer, p.length);
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

  const auto store_channels = [&](float* to, int64_t stride) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < channels) {
        store_states(to + (local + i) * stride + n0, states, p.vectors.states, h[i]);
      }
    }
  };

  if (steps > 0) fetch(0, 0);
  commit_copies();
  if (p.start_is_late) wait_for_previous_kernel();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < kStates; ++n) h[i][n] = 0.0F;
    if (!p.start.empty()) {
      load_states(p.start.at(b * p.start_per_row + chunk, min(e + i, p.d_inner - 1)) + n0,
                  i < channels ? states : 0, p.vectors.states, h[i]);
    }
  }
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
      store_channels(kept(arrays->saved), p.saved.inner);
      __syncwarp();
      if (lane == 0) {
        arrays->saved += p.saved.outer;
        arrays->next = p.saved_every < steps - t ? t + static_cast<int>(p.saved_every) : steps;
      }
    }
    const auto step = [&](int row) {
      T* const at = u_tile + row * kWidth + local;
      float u[2];
      float d[2];
      float z[2];
      reinterpret_cast<const Pair*>(at)->widen(u);
      reinterpret_cast<const Pair*>(at + kRows * kWidth)->widen(d);
      reinterpret_cast<const Pair*>(at + 2 * kRows * kWidth)->widen(z);
      if constexpr (!kReady) {
#pragma unroll
        for (int i = 0; i < 2; ++i) d[i] = softplus2<T>(fmaf(d[i], kLog2e, bias[i]));
      }
      const float x[2] = {d[0] * u[0], d[1] * u[1]};
      float y[2] = {skip[0] * u[0], skip[1] * u[1]};
      forward_step<kStates, (kBlocks > 2)>(d, x, B_tile + row * kColumns + n0,
                                           C_tile + row * kColumns + n0, A, h, y);
#pragma unroll
      for (int lanes = S::kGroups; lanes < 32; lanes *= 2) {
        y[0] += __shfl_xor_sync(kFullWarp, y[0], lanes);
        y[1] += __shfl_xor_sync(kFullWarp, y[1], lanes);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        y[i] *= fmaf(z[i], sigmoid(z[i]), p.open);
      }
      // behind every read of u, by the lane itself or by those that share its channels
      if constexpr (kSplit > 1) __syncwarp();
      if (kSplit == 1 || lane < S::kGroups) *reinterpret_cast<Pair*>(at) = Pair::of(y);
    };
    const int rows = min(kRows, steps - t);
    if (rows == kRows) {
#pragma unroll 1
      for (int row = 0; row < kRows; row += kUnroll) {
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) step(row + i);
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
  if (float* const to = kept(arrays->last)) store_channels(to, p.state_out.inner);
}

}  // namespace gmamba::cuda::scan
