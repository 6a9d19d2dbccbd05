// SPDX-License-Identifier: Apache-2.0
/// Barriers in shared memory that threads reach at one place and wait for at another (mbarrier).
/// `barrier` is their address in the space of shared memory; each takes 8 bytes.
#pragma once

#include <cstdint>

namespace gmamba::cuda {

/// The address in the space of shared memory, of 32 bits.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// So many arrivals open the barrier, each time anew.
__device__ inline void begin_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void reach_barrier(uint32_t barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier)
               : "memory");
}
/// Waits until the barrier has opened an odd (parity 0) or even (1) number of times.
__device__ inline void wait_for_barrier(uint32_t barrier, uint32_t parity) {
  int open = 0;
  while (open == 0) {
#if __CUDA_ARCH__ >= 900
    // sleeps for a while in place of asking again and again
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.s32 %0, 1, 0, p;}"
        : "=r"(open)
        : "r"(barrier), "r"(parity)
        : "memory");
#else
    asm volatile(
        "{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.s32 %0, 1, 0, p;}"
        : "=r"(open)
        : "r"(barrier), "r"(parity)
        : "memory");
#endif
  }
}

/// Waits for all `threads` threads of team `team` of the block, at most 15.
__device__ inline void sync_team(int team, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(threads) : "memory");
}

}  // namespace gmamba::cuda
