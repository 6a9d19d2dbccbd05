// SPDX-License-Identifier: Apache-2.0
/// Combination of the summaries of chunks: each chunk's summary is replaced by the state before it.
#pragma once

#include "kernels/cuda_overlap.cuh"
#include "kernels/scan_common.cuh"

namespace gmamba::cuda::scan {

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
__global__ void __launch_bounds__(kCombineLanes* kCombineSegments, 2)
    scan_combine_kernel(const CombineArgs p) {
  after_previous_kernel();
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

  // what a short run read is kept for its second walk: up to 144 chunks
  constexpr int kKept = 9;
  const bool kept = end - begin <= kKept;
  float summaries[kKept];
  float factors[kKept];
  float decay = 1.0F;
  float local = 0.0F;
  float sum = 0.0F;
  const auto compose = [&](float summary, float step, float a) {
    local = fmaf(a, local, summary);
    decay *= a;
    sum += step;
  };
  if (kept) {
    float steps[kKept];
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const bool there = begin + k < end;
      steps[k] = there ? delta_sum[at(begin + k) * p.d_inner] : 0.0F;
      summaries[k] = there ? state[at(begin + k) * width] : 0.0F;
    }
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      factors[k] = ex2(A * steps[k]);
      if (begin + k < end) compose(summaries[k], steps[k], factors[k]);
    }
  } else {
#pragma unroll 8
    for (int64_t i = begin; i < end; ++i) {
      const float step = delta_sum[at(i) * p.d_inner];
      compose(state[at(i) * width], step, ex2(A * step));
    }
  }
  decays[segment][lane] = decay;
  locals[segment][lane] = local;
  sums[segment][lane] = sum;
  __syncthreads();
  float h = p.from.empty() ? 0.0F : p.from.at(b, e)[n];
  for (int s = 0; s < segment; ++s) h = fmaf(decays[s][lane], h, locals[s][lane]);
  if (index < width) {
    if (kept) {
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        if (begin + k >= end) break;
        state[at(begin + k) * width] = h;
        h = fmaf(factors[k], h, summaries[k]);
      }
    } else {
#pragma unroll 8
      for (int64_t i = begin; i < end; ++i) {
        const float a = ex2(A * delta_sum[at(i) * p.d_inner]);
        float& slot = state[at(i) * width];
        const float next = fmaf(a, h, slot);
        slot = h;
        h = next;
      }
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
