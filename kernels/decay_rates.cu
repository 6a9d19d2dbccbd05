// SPDX-License-Identifier: Apache-2.0
/// A = -exp(A_log) and dA_log += dA * A over E x N elements: a few kilobytes, one launch each.
#include "kernels/decay_rates.h"

#include "kernels/cuda_basic.h"
#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void decay_rates_forward_kernel(const float* A_log, float* A, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) A[i] = -expf(A_log[i]);
}

__global__ void decay_rates_backward_kernel(const float* dA, const float* A, float* dA_log,
                                            int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) dA_log[i] += dA[i] * A[i];
}

unsigned blocks_for(int64_t count) { return static_cast<unsigned>(ceil_div(count, kThreads)); }

}  // namespace

void decay_rates_forward(Context& ctx, ConstTensorView A_log, TensorView A) {
  const auto in = A_log.flat<const float>();
  const auto count = static_cast<int64_t>(in.size());
  if (count == 0) return;
  decay_rates_forward_kernel<<<blocks_for(count), kThreads, 0, stream_of(ctx)>>>(
      in.data(), A.flat<float>().data(), count);
  check_launch(ctx, "decay_rates_forward", to_string(A.shape()));
}

void decay_rates_backward(Context& ctx, ConstTensorView dA, ConstTensorView A, TensorView dA_log) {
  const auto rate = A.flat<const float>();
  const auto count = static_cast<int64_t>(rate.size());
  if (count == 0) return;
  decay_rates_backward_kernel<<<blocks_for(count), kThreads, 0, stream_of(ctx)>>>(
      dA.flat<const float>().data(), rate.data(), dA_log.flat<float>().data(), count);
  check_launch(ctx, "decay_rates_backward", to_string(A.shape()));
}

}  // namespace gmamba::cuda
