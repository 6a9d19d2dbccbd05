// SPDX-License-Identifier: Apache-2.0
/// Which of the two kernels summarises long chunks of bf16 activations. The one of a channel per
/// thread deals the channels of a block out by their speed, so fast ones cost nothing, but reads on
/// for the slowest of 256; that on tensor cores takes 16 neighbours together, and each state costs
/// it little. So it depends on the order in which the channels lie, which only the device knows:
/// both are started, and the one that is not chosen returns at once. Rates and biases decide, so
/// the same weights always get the same kernel.
#pragma once

#include "kernels/selective_scan_summary.cuh"

namespace gmamba::cuda::scan {

struct ChoiceArgs {
  const float* A = nullptr;  // (E, N)
  int64_t A_stride = 0;
  const float* bias = nullptr;  // (E) or empty
  int64_t chunk_length = 0;
  int d_inner = 0, d_state = 0;
  int* mma = nullptr;  // out: 1 for the kernel on tensor cores
};

/// One block of kThreads threads, a channel per thread at a time.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) scan_summary_choice_kernel(const ChoiceArgs p) {
  static_assert(kThreads == kSummaryThreads, "channels of a block of the other kernel");
  __shared__ float blocks[kThreads / 32], groups[kThreads / 32], updates[kThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  // of the positions of a chunk, the share that must be walked: for the slowest of 256 channels,
  // for the slowest of 16, for each four states of a channel; summed over channels
  float of_blocks = 0.0F;
  float of_groups = 0.0F;
  float of_states = 0.0F;
  for (int first = 0; first < p.d_inner; first += kThreads) {
    const int e = first + thread;
    const bool exists = e < p.d_inner;
    float most = 0.0F;
    float sum = 0.0F;
    if (exists) {
      const float delta = softplus<float>(p.bias == nullptr ? 0.0F : p.bias[e]);
      const float scale = kForgotten<bf16> / (delta * kLog2e * static_cast<float>(p.chunk_length));
      for (int n = 0; n < p.d_state; n += 4) {
        float slowest = INFINITY;
        for (int k = n; k < min(n + 4, p.d_state); ++k) {
          slowest = fminf(slowest, -p.A[e * p.A_stride + k]);
        }
        const float share = slowest > 0.0F ? fminf(1.0F, scale / slowest) : 1.0F;
        most = fmaxf(most, share);
        sum += share;
      }
    }
    of_states += sum;
    for (int far = 1; far < 16; far *= 2) {
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, far));
    }
    of_groups += exists ? most : 0.0F;
    const float most32 = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 16));
    __syncthreads();
    if (lane == 0) blocks[thread / 32] = most32;
    __syncthreads();
    float most256 = 0.0F;
    for (const float value : blocks) most256 = fmaxf(most256, value);
    of_blocks += exists ? most256 : 0.0F;
  }
  const auto total = [&](float value, float* partial) {
    for (int far = 1; far < 32; far *= 2) value += __shfl_xor_sync(kFullWarp, value, far);
    __syncthreads();
    if (lane == 0) partial[thread / 32] = value;
    __syncthreads();
    float sum = 0.0F;
    for (int i = 0; i < kThreads / 32; ++i) sum += partial[i];
    return sum / static_cast<float>(p.d_inner);
  };
  const float block_share = total(of_blocks, blocks);
  const float group_share = total(of_groups, groups);
  const float state_share = total(of_states, updates) / static_cast<float>((p.d_state + 3) / 4);
  // milliseconds for 2^20 positions of 512 channels on an H100, as measured at the extremes
  const float per_thread = fmaxf(1.15F * block_share, 2.75F * state_share);
  const float on_tensor_cores = 0.1F + 1.35F * group_share;
  if (thread == 0) *p.mma = on_tensor_cores < per_thread ? 1 : 0;
}

}  // namespace gmamba::cuda::scan
