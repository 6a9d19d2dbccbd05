// SPDX-License-Identifier: Apache-2.0
/// The kernel that computes outputs: every warp walks one chunk of time for its channels.
///   delta = softplus(delta_raw + bias);  h <- exp(delta A) h + delta B u;  y = (C h + D u) silu(z)
/// Layout  a thread keeps 2 channels x kStates states in registers; kSplit groups of lanes share
///         the states of a channel, so a warp holds 64 / kSplit channels; B and C of a tile of time
///         lie as fp32 in shared memory of the warp and are read as 16-byte broadcasts; no barrier
///         beyond the warp, so warps run ahead of each other
/// Launch  one warp per (batch row, chunk, group of channels), channels fastest, 4 warps per block
/// Floor   exponential unit: d_state + 4 per channel and position at 16 per clock and SM
#pragma once

#include "kernels/scan_common.cuh"

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
};

/// Positions of a tile of B and C: 512 elements of each.
template <int kStates, int kSplit>
constexpr int forward_tile() {
  return kStates * kSplit <= 16 ? 32 : 512 / (kStates * kSplit);
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

template <class T, int kStates, int kSplit, bool kFast, int kSavedEvery, int kSub, int kPoly,
          int kBlocks>
__global__ void __launch_bounds__(kForwardWarps * 32, kBlocks)
    scan_forward_kernel(const ForwardArgs<T> p) {
  constexpr int kColumns = kStates * kSplit;
  constexpr int kTile = forward_tile<kStates, kSplit>();
  constexpr int kGroups = 32 / kSplit;
  __shared__ __align__(16) float tiles[kForwardWarps][kTile][2 * kColumns];

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int width = (p.d_inner + 2 * kGroups - 1) / (2 * kGroups);  // groups of channels
  int64_t unit = static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp;
  if (unit >= p.batch * p.chunks * width) return;
  const int first = static_cast<int>(unit % width) * 2 * kGroups + lane % kGroups * 2;
  unit /= width;
  const int64_t chunk = unit % p.chunks;
  const int64_t b = unit / p.chunks;
  const int quarter = lane / kGroups;  // which states of the channel
  const int n0 = quarter * kStates;
  const int channels = max(0, min(2, p.d_inner - first));
  const int e = channels == 0 ? p.d_inner - 1 : first;
  const int readable = max(channels, 1);
  const int states = kFast ? kStates : max(0, min(kStates, p.d_state - n0));

  float A[2][kStates];
  float h[2][kStates];
  float skip[2];
  float bias[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int ei = kFast ? e - (channels == 0) + i : e + min(i, readable - 1);
    load_state<kStates, kFast>(p.A + ei * p.A_stride + n0, states, A[i]);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      A[i][n] *= kLog2e;
      h[i][n] = 0.0F;
    }
    skip[i] = p.D == nullptr ? 0.0F : p.D[ei];
    bias[i] = p.bias == nullptr ? 0.0F : p.bias[ei];
    if (!p.start.empty()) {
      load_state<kStates, kFast>(p.start.at(b * p.chunks + chunk, ei) + n0, states, h[i]);
    }
  }

  const int64_t begin = chunk * p.chunk_length;
  const int steps = static_cast<int>(min(p.length - begin, p.chunk_length));
  const int offset = kFast && channels == 0 ? e - 1 : e;
  const T* const u = p.u.at(b, begin) + offset;
  const T* const delta = p.delta.at(b, begin) + offset;
  const T* const z = p.z.empty() ? nullptr : p.z.at(b, begin) + offset;
  T* const y = p.y.at(b, begin) + offset;
  const int u_stride = static_cast<int>(p.u.inner);
  const int delta_stride = static_cast<int>(p.delta.inner);
  const int z_stride = static_cast<int>(p.z.inner);
  const int y_stride = static_cast<int>(p.y.inner);

  using Pair = Packed<T, 2>;
  Pair u_next[kSub];
  Pair delta_next[kSub];
  Pair z_next[kSub];
  const auto fetch = [&](int t) {
#pragma unroll
    for (int i = 0; i < kSub; ++i) {
      const int64_t row = min(t + i, steps - 1);
      u_next[i] = load_packed<2, kFast>(u + row * u_stride, readable);
      delta_next[i] = load_packed<2, kFast>(delta + row * delta_stride, readable);
      if (z != nullptr) z_next[i] = load_packed<2, kFast>(z + row * z_stride, readable);
    }
  };
  if (steps > 0) fetch(0);
  for (int t0 = 0; t0 < steps; t0 += kTile) {
    __syncwarp();
    stage_tile<kTile, kColumns, 2 * kColumns, kFast>(tiles[warp][0], p.B.at(b, 0), p.B.inner,
                                                     begin + t0, p.length, p.d_state, lane, 32);
    stage_tile<kTile, kColumns, 2 * kColumns, kFast>(tiles[warp][0] + kColumns, p.C.at(b, 0),
                                                     p.C.inner, begin + t0, p.length, p.d_state,
                                                     lane, 32);
    __syncwarp();
    const int t1 = min(t0 + kTile, steps);
#pragma unroll 1
    for (int t = t0; t < t1; t += kSub) {
      if (t % kSavedEvery == 0 && !p.saved.empty()) {
        const int64_t tile = b * p.saved_per_row + (begin + t) / kSavedEvery;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i < channels) {
            store_state<kStates, kFast>(p.saved.at(tile, first + i) + n0, states, h[i]);
          }
        }
      }
      float d[kSub][2];
      float uf[kSub][2];
      Pair zs[kSub];
#pragma unroll
      for (int i = 0; i < kSub; ++i) {
        u_next[i].widen(uf[i]);
        delta_next[i].widen(d[i]);
        d[i][0] = softplus(d[i][0] + bias[0]);
        d[i][1] = softplus(d[i][1] + bias[1]);
        zs[i] = z_next[i];
      }
      if (t + kSub < steps) fetch(t + kSub);
#pragma unroll
      for (int i = 0; i < kSub; ++i) {
        if (t + i >= t1) break;
        const float x[2] = {d[i][0] * uf[i][0], d[i][1] * uf[i][1]};
        const float* const row = tiles[warp][t - t0 + i];
        float out[2];
        forward_step<kStates, kPoly>(d[i], x, row + n0, row + kColumns + n0, A, h, out);
#pragma unroll
        for (int lanes = kGroups; lanes < 32; lanes *= 2) {
          out[0] += __shfl_xor_sync(kFullWarp, out[0], lanes);
          out[1] += __shfl_xor_sync(kFullWarp, out[1], lanes);
        }
        out[0] = fmaf(skip[0], uf[i][0], out[0]);
        out[1] = fmaf(skip[1], uf[i][1], out[1]);
        if (z != nullptr) {
          float gate[2];
          zs[i].widen(gate);
          out[0] *= gate[0] * sigmoid(gate[0]);
          out[1] *= gate[1] * sigmoid(gate[1]);
        }
        if (channels > 0 && quarter == 0) {
          store_packed<2, kFast>(y + static_cast<int64_t>(t + i) * y_stride, channels, out);
        }
      }
    }
  }
  if (!p.state_out.empty() && chunk == p.chunks - 1) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < channels) {
        store_state<kStates, kFast>(p.state_out.at(b, first + i) + n0, states, h[i]);
      }
    }
  }
}

template <class T>
int64_t forward_units(const ForwardArgs<T>& p, int split) {
  const int64_t channels = 64 / split;
  return p.batch * p.chunks * ((p.d_inner + channels - 1) / channels);
}

}  // namespace gmamba::cuda::scan
