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

#include "kernels/scan_stage.cuh"

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
  Vectors vectors;
};

template <class T, int kStates, int kSplit>
constexpr int summary_warp_bytes() {
  using S = WalkShape<T, kStates, kSplit>;
  return 2 * (3 * S::kRowsBytes + S::kTokenBytes) + S::kRows * S::kColumns * 4;
}

/// Walks a chunk; kSub positions of a group of states are computed together.
template <class T, int kStates, int kSplit, bool kGradient, int kSub, int kBlocks>
__global__ void __launch_bounds__(kSummaryWarps * 32, kBlocks)
    scan_summary_kernel(const SummaryArgs<T> p) {
  using S = WalkShape<T, kStates, kSplit>;
  using Pair = Packed<T, 2>;
  constexpr int kColumns = S::kColumns;
  constexpr int kWidth = S::kWidth;
  constexpr int kRows = S::kRows;
  constexpr int kQuads = kStates / 4;
  static_assert(kRows % kSub == 0);
  extern __shared__ __align__(16) unsigned char summary_shared[];

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int width = (p.d_inner + kWidth - 1) / kWidth;
  int64_t unit = static_cast<int64_t>(blockIdx.x) * kSummaryWarps + warp;
  if (unit >= p.batch * p.chunks * width) return;
  const int first = static_cast<int>(unit % width) * kWidth;
  unit /= width;
  const int64_t chunk = unit % p.chunks;
  const int64_t b = unit / p.chunks;
  const int local = lane % S::kGroups * 2;
  const int e = first + local;
  const int n0 = lane / S::kGroups * kStates;
  const int channels = max(0, min(2, p.d_inner - e));
  const int states = max(0, min(kStates, p.d_state - n0));
  const bool gated = kGradient && !p.z.empty();

  constexpr int kBytes = summary_warp_bytes<T, kStates, kSplit>();
  constexpr int kStageBytes = 3 * S::kRowsBytes + S::kTokenBytes;
  unsigned char* const mine = summary_shared + warp * kBytes;
  float* const w_tile = reinterpret_cast<float*>(mine + 2 * kStageBytes);
  clear<2 * kStageBytes>(mine, lane);
  __syncwarp();

  float A[2][kStates];
  float h[2][kStates];
  float slowest[kQuads];  // smallest -A of four states, infinite where there are none
  float bias[2];
#pragma unroll
  for (int g = 0; g < kQuads; ++g) slowest[g] = INFINITY;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int ei = min(e + i, p.d_inner - 1);
    const int count = i < channels ? states : 0;
    load_states(p.A + ei * p.A_stride + n0, count, p.vectors.states, A[i]);
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      A[i][n] *= kLog2e;
      h[i][n] = 0.0F;
      if (n < count) slowest[n / 4] = fminf(slowest[n / 4], -A[i][n]);
    }
    bias[i] = p.bias == nullptr ? 0.0F : p.bias[ei];
  }

  const int64_t begin = chunk * p.chunk_length;
  const int steps = static_cast<int>(min(p.length - begin, p.chunk_length));
  const int valid = p.d_inner - first;
  // tile i of the walk: the gradient counts tiles from the start of the chunk, the state from its
  // end; a tile that sticks out lies at the end of the chunk either way
  const int tiles = (steps + kRows - 1) / kRows;
  const auto place = [&](int i) { return (kGradient ? i : tiles - 1 - i) * kRows; };
  const auto fetch = [&](int t, int stage) {
    const int rows = min(kRows, steps - t);
    T* to = reinterpret_cast<T*>(mine + stage * kStageBytes);
    const auto get = [&](const Rows<const T>& from) {
      fetch_rows<kRows, kWidth, 16>(to, from.at(b, begin + t) + first, static_cast<int>(from.inner),
                                    rows, valid, p.vectors.rows, lane);
    };
    get(p.x);
    to += kRows * kWidth;
    get(p.delta);
    to += kRows * kWidth;
    if (gated) get(p.z);
    to += kRows * kWidth;
    fetch_rows<kRows, kColumns, 8>(to, p.w.at(b, begin + t), static_cast<int>(p.w.inner), rows,
                                   p.d_state, p.vectors.tokens, lane);
  };

  float sum[2] = {0.0F, 0.0F};
  if (tiles > 0) fetch(place(0), 0);
  commit_copies();
  int stage = 0;
#pragma unroll 1
  for (int i = 0; i < tiles; ++i, stage ^= 1) {
    unsigned active = 0;
#pragma unroll
    for (int g = 0; g < kQuads; ++g) {
      // written so that NaN keeps a group active
      const bool mine_active =
          !(slowest[g] * sum[0] >= kForgotten && slowest[g] * sum[1] >= kForgotten);
      active |= __any_sync(kFullWarp, mine_active) ? 1U << g : 0U;
    }
    if (active == 0 && !p.exact_sum) break;
    if (i + 1 < tiles) fetch(place(i + 1), stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncwarp();
    const T* const x_tile = reinterpret_cast<const T*>(mine + stage * kStageBytes);
    widen_tile<kRows * kColumns>(w_tile, x_tile + 3 * kRows * kWidth, lane);
    __syncwarp();
    const int rows = min(kRows, steps - place(i));
#pragma unroll 1
    for (int s = 0; s < kRows; s += kSub) {
      float before[kSub][2];  // sum of delta between the step and the walk's start
      float value[kSub][2];
#pragma unroll
      for (int j = 0; j < kSub; ++j) {
        const int row = kGradient ? s + j : kRows - 1 - s - j;
        float d[2];
        float v[2];
        float gate[2];
        reinterpret_cast<const Pair*>(x_tile + row * kWidth + local)->widen(v);
        reinterpret_cast<const Pair*>(x_tile + (kRows + row) * kWidth + local)->widen(d);
        if constexpr (kGradient) {
          reinterpret_cast<const Pair*>(x_tile + (2 * kRows + row) * kWidth + local)->widen(gate);
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          d[k] = row < rows ? softplus(d[k] + bias[k]) : 0.0F;
          if constexpr (kGradient) {
            const float silu = gate[k] * sigmoid(gate[k]);
            sum[k] += d[k];
            before[j][k] = sum[k];
            value[j][k] = row < rows ? v[k] * (gated ? silu : 1.0F) : 0.0F;
          } else {
            before[j][k] = sum[k];
            sum[k] += d[k];
            value[j][k] = v[k] * d[k];
          }
        }
      }
#pragma unroll
      for (int g = 0; g < kQuads; ++g) {
        if ((active >> g & 1U) == 0) continue;
#pragma unroll
        for (int j = 0; j < kSub; ++j) {
          const int row = kGradient ? s + j : kRows - 1 - s - j;
          float w[4];
          load_shared(w_tile + row * kColumns + n0 + g * 4, w);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int n = g * 4 + k;
            h[0][n] = fmaf(ex2(before[j][0] * A[0][n]), value[j][0] * w[k], h[0][n]);
            h[1][n] = fmaf(ex2(before[j][1] * A[1][n]), value[j][1] * w[k], h[1][n]);
          }
        }
      }
    }
    __syncwarp();
  }
  wait_for_copies<0>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i >= channels) continue;
    const int64_t row = b * p.chunks + chunk;
    store_states(p.state.at(row, e + i) + n0, states, p.vectors.states, h[i]);
    if (n0 == 0) p.delta_sum[row * p.d_inner + e + i] = sum[i];
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
