// SPDX-License-Identifier: Apache-2.0
/// Products on the tensor cores as the scan uses them. In all of them lane = 4 g + q holds, of
///   a result (16 rows, 8 columns)   rows g and g + 8, columns 2q and 2q + 1: {g 2q, g 2q+1, g+8
///   2q,
///                                   g+8 2q+1}, here a "quad"
///   a left operand (16 rows, k)     rows g and g + 8, k = 2q and 2q + 1 (packed), then k + 8
///   a right operand (k, 8 columns)  column g, k = 2q and 2q + 1 (packed), then k + 8
#pragma once

#include "kernels/scan_common.cuh"

namespace gmamba::cuda::scan {

/// to = from + left (16 x 8) right (8 x 8), bf16.
__device__ inline void mma_k8(float (&to)[4], const float (&from)[4], const uint32_t (&left)[2],
                              uint32_t right) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%7,%8,%9,%10};"
      : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
      : "r"(left[0]), "r"(left[1]), "r"(right), "f"(from[0]), "f"(from[1]), "f"(from[2]),
        "f"(from[3]));
}
/// to = left (16 x 8) right (8 x 8), bf16.
__device__ inline void mma_k8(float (&to)[4], const uint32_t (&left)[2], uint32_t right) {
  constexpr float kZeros[4] = {};
  mma_k8(to, kZeros, left, right);
}
/// to += left (16 x 16) right (16 x 8), bf16.
__device__ inline void mma_k16(float (&to)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                               const uint32_t (&right)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(right[0]), "r"(right[1]));
}
/// Sums over q: to = x of rows g (0, 1) and y of rows g + 8 (2, 3), cut to 10 bits of mantissa.
__device__ inline void mma_sum(float (&to)[4], float x, float y) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%7,%7,%7,%7};"
      : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
      : "r"(__float_as_uint(x)), "r"(__float_as_uint(y)), "r"(__float_as_uint(1.0F)), "f"(0.0F));
}
/// The same of two positions at once, added to `to`: of columns for which `one` is 1 and not 0 the
/// first, of those for which `other` is the second.
__device__ inline void mma_two_sums(float (&to)[4], const float (&first)[2],
                                    const float (&second)[2], uint32_t one, uint32_t other) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(to[0]), "+f"(to[1]), "+f"(to[2]), "+f"(to[3])
      : "r"(__float_as_uint(first[0])), "r"(__float_as_uint(first[1])),
        "r"(__float_as_uint(second[0])), "r"(__float_as_uint(second[1])), "r"(one), "r"(other));
}
/// Whatever a register holds: for rows of an operand whose results nobody looks at.
__device__ inline uint32_t any_word() {
  uint32_t r;
  asm volatile("" : "=r"(r));
  return r;
}
/// The 8 x 8 matrix whose row g lies in the lanes of g, two columns each, turned over.
__device__ inline uint32_t transposed(uint32_t pair) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
  return r;
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

/// 8 x 8 matrices of 16 bits in shared memory, turned over: lane l gives the address of row l % 8
/// of matrix l / 8 and gets elements (2q, g) and (2q + 1, g) of each.
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
__device__ inline void load_matrices(uint32_t (&to)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(row)
               : "memory");
}

/// Copies kBytes to an address of shared memory asynchronously, or writes zeros where there is
/// nothing to copy.
template <int kBytes>
__device__ inline void copy_async_or_zero(uint32_t address, const void* from, bool there) {
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}
template <int kBytes>
__device__ inline void copy_async_or_zero(void* to, const void* from, bool there) {
  copy_async_or_zero<kBytes>(static_cast<uint32_t>(__cvta_generic_to_shared(to)), from, there);
}

}  // namespace gmamba::cuda::scan
