// SPDX-License-Identifier: Apache-2.0
/// A = -exp(A_log) and dA_log += dA * A: some ten thousand elements of all layers, one launch each.
#include "kernels/decay_rates.h"

#include "kernels/cuda_basic.h"
#include "kernels/cuda_overlap.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 128;

using Out = View<float, 2>;
using In = View<const float, 2>;

/// Calls body(row, column) for the element of this thread.
template <class Body>
__device__ inline void over_element(const In& like, Body&& body) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = i / like.extent[1];
  if (row < like.extent[0]) body(row, i - row * like.extent[1]);
}

__global__ void decay_rates_forward_kernel(const In A_log, const Out A) {
  after_previous_kernel();
  over_element(A_log, [&](int64_t m, int64_t i) { *A.at(m, i) = -expf(*A_log.at(m, i)); });
}

__global__ void decay_rates_backward_kernel(const In dA, const In A, const Out dA_log) {
  after_previous_kernel();
  over_element(dA, [&](int64_t m, int64_t i) { *dA_log.at(m, i) += *dA.at(m, i) * *A.at(m, i); });
}

template <class Kernel, class... Views>
void over_all(Context& ctx, const char* name, Kernel kernel, const Shape& shape,
              const Views&... views) {
  const int64_t count = shape[0] * shape[1];
  if (count == 0) return;
  start_overlapping(stream_of(ctx), kernel, static_cast<unsigned>(ceil_div(count, kThreads)),
                    kThreads, 0, views...);
  check_launch(ctx, name, to_string(shape));
}

}  // namespace

void decay_rates_forward(Context& ctx, ConstTensorView A_log, TensorView A) {
  over_all(ctx, "decay_rates_forward", decay_rates_forward_kernel, A.shape(),
           A_log.as<const float, 2>(), A.as<float, 2>());
}

void decay_rates_backward(Context& ctx, ConstTensorView dA, ConstTensorView A, TensorView dA_log) {
  over_all(ctx, "decay_rates_backward", decay_rates_backward_kernel, A.shape(),
           dA.as<const float, 2>(), A.as<const float, 2>(), dA_log.as<float, 2>());
}

}  // namespace gmamba::cuda
