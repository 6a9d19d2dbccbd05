// SPDX-License-Identifier: Apache-2.0
/// Summaries of chunks of time and their combination, for the state and for its gradient.
///   state     sum over t of exp(A * sum of delta behind t) delta B u: what a chunk that starts
///   from
///             zero ends in; walked backwards in time
///   gradient  sum over t of exp(A * sum of delta up to and with t) C dy silu(z): the gradient of
///             the incoming state when that of the outgoing one is zero; walked forwards
/// Either walk starts where the decay is 1 and ends where it is smallest, so a group of four states
/// stops once exp(A * sum) is below 2^-30 for all channels of the warp: exact to fp32 rounding, and
/// most of the work where the memory is shorter than a chunk. The sum of delta that is kept is then
/// that of the positions walked, unless the exact one is asked for.
/// Layout  as the outputs' kernel: 2 channels x kStates states per thread, warps on their own
/// Launch  one warp per (batch row, chunk, group of channels), 4 warps per block
/// Floor   exponential unit: d_state + 2 per channel and position
#pragma once

#include "kernels/scan_common.cuh"

namespace gmamba::cuda::scan {

constexpr int kSummaryWarps = 4;
/// log2 of the decay below which nothing is left in fp32.
constexpr float kForgotten = 30.0F;

template <class T>
struct SummaryArgs {
  Rows<const T> x, delta, z;  // (B, L, E): u, or dy with its gate z or without
  Rows<const T> w;            // (B, L, N): B, or C
  const float* A = nullptr;   // (E, N)
  int64_t A_stride = 0;
  const float* bias = nullptr;  // (E) or empty
  Rows<float> state;            // (B * chunks, E, N)
  float* delta_sum = nullptr;   // (B * chunks, E)
  bool exact_sum = false;       // delta_sum over all positions, wherever the states stopped
  int64_t batch = 0, length = 0;
  int64_t chunks = 1, chunk_length = 0;
  int d_inner = 0, d_state = 0;
};

template <class T, int kStates, int kSplit, bool kFast, bool kGradient, int kSub>
__global__ void __launch_bounds__(kSummaryWarps * 32, 4)
    scan_summary_kernel(const SummaryArgs<T> p) {
  constexpr int kColumns = kStates * kSplit;
  constexpr int kTile = kColumns <= 16 ? 32 : 512 / kColumns;
  constexpr int kGroups = 32 / kSplit;
  constexpr int kQuads = kStates / 4;
  __shared__ __align__(16) float tiles[kSummaryWarps][kTile][kColumns];

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int width = (p.d_inner + 2 * kGroups - 1) / (2 * kGroups);
  int64_t unit = static_cast<int64_t>(blockIdx.x) * kSummaryWarps + warp;
  if (unit >= p.batch * p.chunks * width) return;
  const int first = static_cast<int>(unit % width) * 2 * kGroups + lane % kGroups * 2;
  unit /= width;
  const int64_t chunk = unit % p.chunks;
  const int64_t b = unit / p.chunks;
  const int n0 = lane / kGroups * kStates;
  const int channels = max(0, min(2, p.d_inner - first));
  const int e = channels == 0 ? p.d_inner - 1 : first;
  const int readable = max(channels, 1);
  const int states = kFast ? kStates : max(0, min(kStates, p.d_state - n0));

  float A[2][kStates];
  float h[2][kStates];
  float slowest[kQuads];  // smallest -A of four states, infinite where there are none
  float bias[2];
#pragma unroll
  for (int g = 0; g < kQuads; ++g) slowest[g] = INFINITY;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int ei = kFast ? e - (channels == 0) + i : e + min(i, readable - 1);
    load_state<kStates, kFast>(p.A + ei * p.A_stride + n0, states, A[i]);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      A[i][n] *= kLog2e;
      h[i][n] = 0.0F;
      if (n < states) slowest[n / 4] = fminf(slowest[n / 4], -A[i][n]);
    }
    bias[i] = p.bias == nullptr ? 0.0F : p.bias[ei];
  }

  const int64_t begin = chunk * p.chunk_length;
  const int steps = static_cast<int>(min(p.length - begin, p.chunk_length));
  const int offset = kFast && channels == 0 ? e - 1 : e;
  const T* const x = p.x.at(b, begin) + offset;
  const T* const delta = p.delta.at(b, begin) + offset;
  const T* const z = p.z.empty() ? nullptr : p.z.at(b, begin) + offset;
  const int x_stride = static_cast<int>(p.x.inner);
  const int delta_stride = static_cast<int>(p.delta.inner);
  const int z_stride = static_cast<int>(p.z.inner);

  using Pair = Packed<T, 2>;
  Pair x_next[kSub];
  Pair delta_next[kSub];
  Pair z_next[kSub];
  // walked positions i, i + 1, ... of the chunk; the gradient counts from its start, the state from
  // its end
  const auto place = [&](int i) { return kGradient ? i : steps - 1 - i; };
  const auto fetch = [&](int walked) {
#pragma unroll
    for (int i = 0; i < kSub; ++i) {
      const int64_t row = place(min(walked + i, steps - 1));
      x_next[i] = load_packed<2, kFast>(x + row * x_stride, readable);
      delta_next[i] = load_packed<2, kFast>(delta + row * delta_stride, readable);
      if (kGradient && z != nullptr) {
        z_next[i] = load_packed<2, kFast>(z + row * z_stride, readable);
      }
    }
  };
  float sum[2] = {0.0F, 0.0F};
  if (steps > 0) fetch(0);
  for (int t0 = 0; t0 < steps; t0 += kTile) {
    unsigned active = 0;
#pragma unroll
    for (int g = 0; g < kQuads; ++g) {
      // written so that NaN keeps a group active
      const bool mine = !(slowest[g] * sum[0] >= kForgotten && slowest[g] * sum[1] >= kForgotten);
      active |= __any_sync(kFullWarp, mine) ? 1U << g : 0U;
    }
    if (active == 0 && !p.exact_sum) break;
    const int64_t lowest = begin + (kGradient ? t0 : steps - t0 - kTile);
    __syncwarp();
    stage_tile<kTile, kColumns, kColumns, kFast>(tiles[warp][0], p.w.at(b, 0), p.w.inner, lowest,
                                                 p.length, p.d_state, lane, 32);
    __syncwarp();
#pragma unroll 1
    for (int t = t0; t < min(t0 + kTile, steps); t += kSub) {
      float before[kSub][2];  // sum of delta between the step and the walk's start
      float value[kSub][2];
#pragma unroll
      for (int i = 0; i < kSub; ++i) {
        float d[2];
        float v[2];
        delta_next[i].widen(d);
        x_next[i].widen(v);
        if (kGradient && z != nullptr) {
          float gate[2];
          z_next[i].widen(gate);
          v[0] *= gate[0] * sigmoid(gate[0]);
          v[1] *= gate[1] * sigmoid(gate[1]);
        }
        const bool inside = t + i < steps;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          d[k] = inside ? softplus(d[k] + bias[k]) : 0.0F;
          if constexpr (kGradient) {
            sum[k] += d[k];
            before[i][k] = sum[k];
            value[i][k] = inside ? v[k] : 0.0F;
          } else {
            before[i][k] = sum[k];
            sum[k] += d[k];
            value[i][k] = inside ? v[k] * d[k] : 0.0F;
          }
        }
      }
      if (t + kSub < steps) fetch(t + kSub);
#pragma unroll
      for (int g = 0; g < kQuads; ++g) {
        if ((active >> g & 1U) == 0) continue;
#pragma unroll
        for (int i = 0; i < kSub; ++i) {
          const int row = kGradient ? t - t0 + i : kTile - 1 - (t - t0) - i;
          float w[4];
          load_shared(tiles[warp][row] + n0 + g * 4, w);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int n = g * 4 + k;
            h[0][n] = fmaf(ex2(before[i][0] * A[0][n]), value[i][0] * w[k], h[0][n]);
            h[1][n] = fmaf(ex2(before[i][1] * A[1][n]), value[i][1] * w[k], h[1][n]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i >= channels) continue;
    const int64_t row = b * p.chunks + chunk;
    store_state<kStates, kFast>(p.state.at(row, first + i) + n0, states, h[i]);
    if (n0 == 0) p.delta_sum[row * p.d_inner + first + i] = sum[i];
  }
}

struct CombineArgs {
  const float* A = nullptr;  // (E, N)
  int64_t A_stride = 0;
  float* state = nullptr;            // (B, chunks, E, N): summaries in, true starts out
  const float* delta_sum = nullptr;  // (B, chunks, E)
  Rows<const float> from;            // (B, E, N) or empty: before the first chunk walked
  Rows<float> last;                  // (B, E, N) or empty: behind the last chunk walked
  Rows<float> total;                 // (B, 1, E) or empty: sum of delta over all chunks
  int64_t batch = 0, chunks = 1;
  int d_inner = 0, d_state = 0;
};

constexpr int kCombineLanes = 32;
constexpr int kCombineSegments = 16;

/// Replaces each chunk's summary by the state before it. A thread owns one state and one of 16 runs
/// of chunks: it composes its run, takes what the runs before it compose to, and walks again.
/// Reversed, for gradients, time runs from the last chunk to the first.
template <bool kReversed>
__global__ void __launch_bounds__(kCombineLanes* kCombineSegments)
    scan_combine_kernel(const CombineArgs p) {
  __shared__ float decays[kCombineSegments][kCombineLanes];
  __shared__ float locals[kCombineSegments][kCombineLanes];
  __shared__ float sums[kCombineSegments][kCombineLanes];
  const int lane = static_cast<int>(threadIdx.x);
  const int segment = static_cast<int>(threadIdx.y);
  const int width = p.d_inner * p.d_state;
  const int per_row = (width + kCombineLanes - 1) / kCombineLanes;
  const int64_t b = blockIdx.x / per_row;
  const int index = static_cast<int>(blockIdx.x % per_row) * kCombineLanes + lane;
  const int en = min(index, width - 1);
  const int e = en / p.d_state;
  const int n = en % p.d_state;
  const float A = p.A[e * p.A_stride + n] * kLog2e;
  float* const state = p.state + b * p.chunks * width + en;
  const float* const delta_sum = p.delta_sum + b * p.chunks * p.d_inner + e;
  const int64_t begin = p.chunks * segment / kCombineSegments;
  const int64_t end = p.chunks * (segment + 1) / kCombineSegments;
  const auto at = [&](int64_t i) { return kReversed ? p.chunks - 1 - i : i; };

  float decay = 1.0F;
  float local = 0.0F;
  float sum = 0.0F;
#pragma unroll 8
  for (int64_t i = begin; i < end; ++i) {
    const float step = delta_sum[at(i) * p.d_inner];
    const float a = ex2(A * step);
    local = fmaf(a, local, state[at(i) * width]);
    decay *= a;
    sum += step;
  }
  decays[segment][lane] = decay;
  locals[segment][lane] = local;
  sums[segment][lane] = sum;
  __syncthreads();
  float h = p.from.empty() ? 0.0F : p.from.at(b, e)[n];
  for (int s = 0; s < segment; ++s) h = fmaf(decays[s][lane], h, locals[s][lane]);
  if (index < width) {
#pragma unroll 8
    for (int64_t i = begin; i < end; ++i) {
      const float a = ex2(A * delta_sum[at(i) * p.d_inner]);
      float& slot = state[at(i) * width];
      const float next = fmaf(a, h, slot);
      slot = h;
      h = next;
    }
    if (segment == kCombineSegments - 1) {
      if (!p.last.empty()) p.last.at(b, e)[n] = h;
      if (!p.total.empty() && n == 0) {
        float total = 0.0F;
        for (int s = 0; s < kCombineSegments; ++s) total += sums[s][lane];
        p.total.at(b, 0)[e] = total;
      }
    }
  }
}

inline int64_t combine_blocks(const CombineArgs& p) {
  const int64_t width = static_cast<int64_t>(p.d_inner) * p.d_state;
  return p.batch * ((width + kCombineLanes - 1) / kCombineLanes);
}

}  // namespace gmamba::cuda::scan
