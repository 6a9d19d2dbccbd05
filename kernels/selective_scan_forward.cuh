// SPDX-License-Identifier: Apache-2.0
/// The kernel that computes outputs: every warp walks one chunk of time for its channels.
///   delta = softplus(delta_raw + bias);  h <- exp(delta A) h + delta B u;  y = (C h + D u) silu(z)
/// Layout  a thread keeps 2 channels x kStates states in registers; kSplit groups of lanes share
///         the states of a channel, so a warp holds 64 / kSplit channels. Tiles of u, delta, z, B
///         and C come into shared memory of the warp by asynchronous copies, a tile ahead; B and C
///         are widened to fp32 there and read as 16-byte broadcasts; y takes the place of u and
///         leaves in 16-byte pieces. No barrier beyond the warp, so warps run ahead of each other
/// Launch  one warp per (batch row, chunk, group of channels), channels fastest, 4 warps per block
/// Floor   exponential unit: d_state + 4 per channel and position at 16 per clock and SM
#pragma once

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
  Rows<const float> start;      // (B * chunks, E, N) or empty: zeros
  Rows<T> y;                    // (B, L, E)
  Rows<float> state_out;        // (B, E, N) or empty
  Rows<float> saved;            // (B * saved states, E, N) or empty
  int64_t saved_per_row = 0;    // saved states of a batch row
  int64_t batch = 0, length = 0;
  int64_t chunks = 1, chunk_length = 0;
  int d_inner = 0, d_state = 0;
  Vectors vectors;
};

template <class T, int kStates, int kSplit>
constexpr int forward_warp_bytes() {
  using S = WalkShape<T, kStates, kSplit>;
  return 2 * (3 * S::kRowsBytes + 2 * S::kTokenBytes) + S::kRows * 2 * S::kColumns * 4;
}

/// One position of two channels. Of the exponentials, every kStates / kPoly-th is computed by the
/// FMA pipe.
template <int kStates, int kPoly>
__device__ inline void forward_step(const float (&d)[2], const float (&x)[2], const float* B,
                                    const float* C, const float (&A)[2][kStates],
                                    float (&h)[2][kStates], float (&y)[2]) {
  float even[2] = {0.0F, 0.0F};
  float odd[2] = {0.0F, 0.0F};
#pragma unroll
  for (int n = 0; n < kStates; n += 4) {
    float b[4];
    float c[4];
    load_shared(B + n, b);
    load_shared(C + n, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float exponent = d[i] * A[i][n + k];
        bool poly = false;
        if constexpr (kPoly > 0) poly = (n + k) % (kStates / kPoly) == 0;
        const float a = poly ? ex2_polynomial(exponent) : ex2(exponent);
        h[i][n + k] = fmaf(a, h[i][n + k], x[i] * b[k]);
        float& sum = k % 2 == 0 ? even[i] : odd[i];
        sum = fmaf(c[k], h[i][n + k], sum);
      }
    }
  }
  y[0] = even[0] + odd[0];
  y[1] = even[1] + odd[1];
}

template <class T, int kStates, int kSplit, int kSavedEvery, int kPoly, int kUnroll, int kBlocks>
__global__ void __launch_bounds__(kForwardWarps * 32, kBlocks)
    scan_forward_kernel(const ForwardArgs<T> p) {
  using S = WalkShape<T, kStates, kSplit>;
  using Pair = Packed<T, 2>;
  constexpr int kColumns = S::kColumns;
  constexpr int kWidth = S::kWidth;
  constexpr int kRows = S::kRows;
  extern __shared__ __align__(16) unsigned char forward_shared[];

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
    for (int n = 0; n < kStates; ++n) A[i][n] *= kLog2e, h[i][n] = 0.0F;
    skip[i] = p.D == nullptr ? 0.0F : p.D[ei];
    bias[i] = p.bias == nullptr ? 0.0F : p.bias[ei];
    if (!p.start.empty()) {
      load_states(p.start.at(b * p.chunks + chunk, ei) + n0, count, p.vectors.states, h[i]);
    }
  }

  const int64_t begin = chunk * p.chunk_length;
  const int steps = static_cast<int>(min(p.length - begin, p.chunk_length));
  const int valid = p.d_inner - first;  // channels that exist from the warp's first on
  const auto fetch = [&](int t, int stage) {
    const int rows = min(kRows, steps - t);
    T* to = reinterpret_cast<T*>(mine + stage * kStageBytes);
    const auto get = [&](const Rows<const T>& from) {
      fetch_rows<kRows, kWidth, 16>(to, from.at(b, begin + t) + first, static_cast<int>(from.inner),
                                    rows, valid, p.vectors.rows, lane);
    };
    get(p.u);
    to += kRows * kWidth;
    get(p.delta);
    to += kRows * kWidth;
    if (gated) get(p.z);
    to += kRows * kWidth;
    fetch_rows<kRows, kColumns, 8>(to, p.B.at(b, begin + t), static_cast<int>(p.B.inner), rows,
                                   p.d_state, p.vectors.tokens, lane);
    to += kRows * kColumns;
    fetch_rows<kRows, kColumns, 8>(to, p.C.at(b, begin + t), static_cast<int>(p.C.inner), rows,
                                   p.d_state, p.vectors.tokens, lane);
  };

  if (steps > 0) fetch(0, 0);
  commit_copies();
  int stage = 0;
#pragma unroll 1
  for (int t = 0; t < steps; t += kRows, stage ^= 1) {
    if (t + kRows < steps) fetch(t + kRows, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncwarp();
    T* const u_tile = reinterpret_cast<T*>(mine + stage * kStageBytes);
    widen_tile<2 * kRows * kColumns>(B_tile, u_tile + 3 * kRows * kWidth, lane);
    __syncwarp();
    if (t % kSavedEvery == 0 && !p.saved.empty()) {
      const int64_t tile = b * p.saved_per_row + (begin + t) / kSavedEvery;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (i < channels) {
          store_states(p.saved.at(tile, e + i) + n0, states, p.vectors.states, h[i]);
        }
      }
    }
    const auto step = [&](int row) {
      Pair* const place = reinterpret_cast<Pair*>(u_tile + row * kWidth + local);
      float u[2];
      float d[2];
      float gate[2];
      place->widen(u);
      reinterpret_cast<const Pair*>(u_tile + (kRows + row) * kWidth + local)->widen(d);
      reinterpret_cast<const Pair*>(u_tile + (2 * kRows + row) * kWidth + local)->widen(gate);
      d[0] = softplus(d[0] + bias[0]);
      d[1] = softplus(d[1] + bias[1]);
      const float x[2] = {d[0] * u[0], d[1] * u[1]};
      float y[2];
      forward_step<kStates, kPoly>(d, x, B_tile + row * kColumns + n0, C_tile + row * kColumns + n0,
                                   A, h, y);
#pragma unroll
      for (int lanes = S::kGroups; lanes < 32; lanes *= 2) {
        y[0] += __shfl_xor_sync(kFullWarp, y[0], lanes);
        y[1] += __shfl_xor_sync(kFullWarp, y[1], lanes);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float silu = gate[i] * sigmoid(gate[i]);
        y[i] = fmaf(skip[i], u[i], y[i]) * (gated ? silu : 1.0F);
      }
      // the shuffle, or the lane's own order, puts this behind every read of u
      if (kSplit == 1 || lane < S::kGroups) *place = Pair::of(y);
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
    store_rows<kRows, kWidth>(p.y.at(b, begin + t) + first, u_tile, static_cast<int>(p.y.inner),
                              rows, valid, p.vectors.rows, lane);
    __syncwarp();
  }
  if (!p.state_out.empty() && chunk == p.chunks - 1) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < channels) {
        store_states(p.state_out.at(b, e + i) + n0, states, p.vectors.states, h[i]);
      }
    }
  }
}

}  // namespace gmamba::cuda::scan
