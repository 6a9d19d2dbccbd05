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

/// Chunks of a run whose summaries a thread keeps for its second walk.
constexpr int kCombineKept = 9;

/// Replaces each chunk's summary by the state before it. A thread owns one state and one of kRuns
/// runs of chunks: it composes its run, takes what the runs before it compose to, and walks again.
/// Reversed, for gradients, time runs from the last chunk to the first.
/// Launch  kLanes x kRuns threads, a block for as many states of a batch row
template <bool kReversed, int kRuns, int kLanes>
__global__ void __launch_bounds__(kLanes* kRuns, 1024 / (kLanes * kRuns))
    scan_combine_kernel(const CombineArgs p) {
  after_previous_kernel();
  __shared__ float decays[kRuns][kLanes];
  __shared__ float locals[kRuns][kLanes];
  __shared__ float sums[kRuns][kLanes];
  const int lane = static_cast<int>(threadIdx.x);
  const int run = static_cast<int>(threadIdx.y);
  const int width = p.d_inner * p.d_state;
  const int per_row = (width + kLanes - 1) / kLanes;
  const int64_t b = blockIdx.x / per_row;
  const int index = static_cast<int>(blockIdx.x % per_row) * kLanes + lane;
  const int en = min(index, width - 1);
  const int e = en / p.d_state;
  const int n = en % p.d_state;
  const float A = p.A[e * p.A_stride + n] * kLog2e;
  float* const state = p.state + b * p.chunks * width + en;
  const float* const delta_sum = p.delta_sum + b * p.chunks * p.d_inner + e;
  const int64_t begin = p.chunks * run / kRuns;
  const int64_t end = p.chunks * (run + 1) / kRuns;
  const auto at = [&](int64_t i) { return kReversed ? p.chunks - 1 - i : i; };

  constexpr int kKept = kCombineKept;
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
  decays[run][lane] = decay;
  locals[run][lane] = local;
  sums[run][lane] = sum;
  __syncthreads();
  float h = p.from.empty() ? 0.0F : p.from.at(b, e)[n];
  for (int s = 0; s < run; ++s) h = fmaf(decays[s][lane], h, locals[s][lane]);
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
    if (run == kRuns - 1) {
      if (!p.last.empty()) p.last.at(b, e)[n] = h;
      if (!p.total.empty() && n == 0) {
        float total = 0.0F;
        for (int s = 0; s < kRuns; ++s) total += sums[s][lane];
        p.total.at(b, 0)[e] = total;
      }
    }
  }
}

/// Calls body with a kernel, its blocks and their threads, for what `p` says: runs as short as
/// their threads can keep, so that many short sequences take no threads that have nothing to do.
template <bool kReversed, class Body>
void with_combine_kernel(const CombineArgs& p, Body&& body) {
  const auto with = [&]<int kRuns, int kLanes>() {
    const int64_t width = static_cast<int64_t>(p.d_inner) * p.d_state;
    body(scan_combine_kernel<kReversed, kRuns, kLanes>, p.batch * ((width + kLanes - 1) / kLanes),
         dim3(kLanes, kRuns));
  };
  if (p.chunks <= kCombineKept) {
    with.template operator()<1, 128>();
  } else if (p.chunks <= 4 * kCombineKept) {
    with.template operator()<4, 32>();
  } else {
    with.template operator()<16, 32>();
  }
}

}  // namespace gmamba::cuda::scan
