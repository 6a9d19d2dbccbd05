// SPDX-License-Identifier: Apache-2.0
/// Products on the tensor cores as the scan uses them; scan_ptx.cuh says which lane holds what.
#pragma once

#include "kernels/scan_common.cuh"

namespace gmamba::cuda::scan {

/// to = left (16 x 8) right (8 x 8), bf16.
__device__ inline void mma_k8(float (&to)[4], const uint32_t (&left)[2], uint32_t right) {
  constexpr float kZeros[4] = {};
  mma_k8(to, kZeros, left, right);
}

/// v = high + low with 16 bits of mantissa in all, as high | low << 16, of four values.
__device__ inline uint4 split_pairs(const float (&v)[4]) {
  uint4 out;
  uint32_t* const word = &out.x;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t high = narrow_pair(v[i], v[i + 1]);
    const uint32_t low = narrow_pair(v[i] - __uint_as_float(high << 16),
                                     v[i + 1] - __uint_as_float(high & 0xffff0000U));
    word[i] = __byte_perm(high, low, 0x5410);
    word[i + 1] = __byte_perm(high, low, 0x7632);
  }
  return out;
}

}  // namespace gmamba::cuda::scan
