// SPDX-License-Identifier: Apache-2.0
/// What every kernel of the convolution computes per element: its activation and the gradient of
/// it.
#pragma once

#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {

/// Sigmoid as exact as the type asks for.
template <class T>
__device__ inline float sigmoid_for(float v) {
  if constexpr (sizeof(T) == 2) {
    float e, s;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(v * -1.44269504F));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.0F + e));
    return s;
  } else {
    return 1.0F / (1.0F + expf(-v));
  }
}

/// Gradient of the pre-activation, from that of the output.
template <class T, int C>
__device__ inline void activation_gradient(const float (&pre)[C], const float (&dy)[C],
                                           float (&dpre)[C]) {
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float s = sigmoid_for<T>(pre[c]);
    dpre[c] = dy[c] * s * (1.0F + pre[c] * (1.0F - s));
  }
}

}  // namespace gmamba::cuda
