// SPDX-License-Identifier: Apache-2.0
/// For kernels/cuda_barrier.cuh where kernels are emulated.
#pragma once

#include "tests/emulation/warps.h"

namespace gmamba::cuda {

struct EmulatedBarrier {
  int arrivals = 0, come = 0;
  uint32_t opened = 0;
};
/// By address; those of earlier blocks are begun anew.
inline EmulatedBarrier& barrier_at(uint32_t barrier) {
  static std::map<uint32_t, EmulatedBarrier> all;
  return all[barrier];
}

inline uint32_t shared_address(const void* pointer) {
  return emulation::SharedMemory::address(pointer);
}
inline void begin_barrier(uint32_t barrier, int arrivals) {
  (void)emulation::SharedMemory::at(barrier, 8);
  barrier_at(barrier) = {arrivals};
}
inline void reach_barrier(uint32_t barrier) {
  EmulatedBarrier& at = barrier_at(barrier);
  if (at.arrivals == 0) throw std::logic_error("a barrier that was not begun");
  if (++at.come == at.arrivals) at.come = 0, ++at.opened;
  emulation::Block::now()->step();
}
inline void wait_for_barrier(uint32_t barrier, uint32_t parity) {
  emulation::Block::now()->wait_until([&] { return barrier_at(barrier).opened % 2 != parity; });
}

inline void sync_team(int team, int threads) {
  emulation::Block::now()->wait_for_team(team, threads);
}

}  // namespace gmamba::cuda
