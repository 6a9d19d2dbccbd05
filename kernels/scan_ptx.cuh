// SPDX-License-Identifier: Apache-2.0
/// Instructions that the scan's kernels use and CUDA has no function for, one function each. What a
/// processor without them does in their place is in tests/emulation, which lets a CPU run the same
/// kernels. In products on the tensor cores lane = 4 g + q holds, of
///   a result (16 rows, 8 columns)   rows g and g + 8, columns 2q and 2q + 1: a "quad"
///                                   {g 2q, g 2q+1, g+8 2q, g+8 2q+1}
///   a left operand (16 rows, k)     rows g and g + 8, k = 2q and 2q + 1 (packed), then k + 8
///   a right operand (k, 8 columns)  column g, k = 2q and 2q + 1 (packed), then k + 8
#pragma once

#include <cstdint>

#include "kernels/cuda_barrier.cuh"

namespace gmamba::cuda::scan {

// ---- scalar math. Approximate instructions flush denormals, which costs nothing here; their
// relative error is 2^-22.

__device__ inline float ex2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ inline float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// ---- products and matrices

/// to = from + left (16 x 8) right (8 x 8), bf16.
__device__ inline void mma_k8(float (&to)[4], const float (&from)[4], const uint32_t (&left)[2],
                              uint32_t right) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%7,%8,%9,%10};"
      : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
      : "r"(left[0]), "r"(left[1]), "r"(right), "f"(from[0]), "f"(from[1]), "f"(from[2]),
        "f"(from[3]));
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
/// The 8 x 8 matrix whose row g lies in the lanes of g, two columns each, turned over.
__device__ inline uint32_t transposed(uint32_t pair) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
  return r;
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

// ---- asynchronous copies to shared memory

template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from),
                 "n"(kBytes)
                 : "memory");
  }
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of the groups committed last are still under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
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
  copy_async_or_zero<kBytes>(shared_address(to), from, there);
}

/// Starts copying 16 bytes if `there`, without a branch. The warps beside this one want the rest of
/// the 128 bytes in which they lie.
__device__ inline void copy_if(bool there, uint32_t to, const void* from) {
  asm volatile(
      "{.reg .pred p; setp.ne.s32 p, %2, 0;"
      " @p cp.async.cg.shared.global.L2::128B [%0], [%1], 16;}" ::"r"(to),
      "l"(from), "r"(static_cast<int>(there))
      : "memory");
}

/// Brings the line of memory at `from` into the second-level cache.
__device__ inline void bring_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// ---- turns of warps

__device__ inline void store_word(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline uint32_t load_word(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
/// How many turns were taken before this one.
__device__ inline uint32_t take_turn(uint32_t counter) {
  uint32_t before;
  asm volatile("atom.shared.add.u32 %0, [%1], 1;" : "=r"(before) : "r"(counter) : "memory");
  return before;
}

// ---- for the compiler

/// The same number, of which the compiler can keep nothing derived: what is cheap to find again
/// leaves its registers to the windows.
__device__ inline int again(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// Moves a pointer, in this place and in one piece: the compiler would keep several of each.
template <class T>
__device__ inline void move_bytes(const T*& pointer, int64_t bytes) {
  asm volatile("add.s64 %0, %0, %1;" : "+l"(pointer) : "l"(bytes));
}
/// Place of the warp on its multiprocessor; its scheduler is that modulo four.
__device__ inline uint32_t warp_slot() {
  uint32_t slot;
  asm volatile("mov.u32 %0, %%warpid;" : "=r"(slot));
  return slot;
}

}  // namespace gmamba::cuda::scan
