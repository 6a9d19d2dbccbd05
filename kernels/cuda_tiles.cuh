// SPDX-License-Identifier: Apache-2.0
/// Tiles in shared memory and products of bf16 tiles on the tensor cores, as one warp sees them.
/// Fragments (lane = 4 g + t; g = 0..7, t = 0..3; two bf16 per register, the lower index in the low
/// half):
///   A (16 x 16)  a[0] row g, a[1] row g + 8: columns 2t, 2t+1;  a[2], a[3]: columns 2t+8, 2t+9
///   B (16 x 8)   b0 rows 2t, 2t+1, b1 rows 2t+8, 2t+9: column g
///   C (16 x 8)   c[0], c[1] row g, c[2], c[3] row g + 8: columns 2t, 2t+1, in fp32
/// Rows, columns and the summed index may stand for anything in any order, as long as both operands
/// agree: the kernels here let a row stand for the position that a thread holds anyway.
#pragma once

#include "kernels/cuda_barrier.cuh"
#include "kernels/cuda_common.cuh"

namespace gmamba::cuda::tiles {

using cuda::shared_address;

/// Starts copying 4, 8 or 16 bytes to shared memory, or writes zeros there without reading `from`.
template <int kBytes>
__device__ inline void copy_or_zeros(uint32_t to, const void* from, bool there) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(there ? kBytes : 0)
                 : "memory");
  }
}
__device__ inline void copy_16_or_zeros(uint32_t to, const void* from, bool there) {
  copy_or_zeros<16>(to, from, there);
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of the groups committed last are still under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// c += a b
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 matrices of bf16: lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrices(uint32_t row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}
/// The same, each matrix transposed.
__device__ inline void load_transposed(uint32_t row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}
/// The transpose of one 8 x 8 matrix that the warp holds.
__device__ inline uint32_t transposed(uint32_t m) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(m));
  return out;
}

}  // namespace gmamba::cuda::tiles
