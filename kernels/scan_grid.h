// SPDX-License-Identifier: Apache-2.0
/// How the teams of warps of the scan's kernels are put into blocks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gmamba::cuda::scan {

/// Shared memory to ask for so that at most `blocks` blocks of a kernel that needs `bytes` share an
/// SM, as far as the `most_bytes` that a block may have allow. The hardware puts new blocks where
/// others already are as long as they fit, and would leave SMs idle when a grid is meant to fill
/// the machine exactly once.
inline int spread(int bytes, int blocks, int most_bytes) {
  constexpr int kPerSm = 227 * 1024;
  return std::max(bytes, std::min((kPerSm / (blocks + 1) + 1024) / 1024 * 1024, most_bytes));
}

struct TeamGrid {
  int teams = 1;     // on an SM
  int of_block = 1;  // in a block
  int bytes = 0;     // of shared memory of a block
  int64_t blocks = 0;
};
/// For `units` teams that need `bytes` each, of which `most` share one of `sms` SMs.
///   A scheduler issues from the oldest block that has something ready: of three blocks with equal
/// work side by side the first is done after 0.63 of the time, the second after 0.76, and the last
/// is alone for the rest. Warps of one block get equal turns. So where the teams fill the machine
/// just once, all of an SM are one block, if a block may have memory for them. Such a block waits
/// for an SM that is empty: where blocks follow on each other, or are few, each is one team.
inline TeamGrid team_grid(int64_t units, int64_t sms, int most, int bytes, int most_bytes) {
  TeamGrid grid;
  // a grid that doesn't fill the machine is spread over all of it
  grid.teams = static_cast<int>(std::clamp<int64_t>((units + sms - 1) / sms, 1, most));
  if (grid.teams == most && units <= sms * most && most * bytes <= most_bytes) grid.of_block = most;
  grid.bytes = spread(grid.of_block * bytes, grid.teams / grid.of_block, most_bytes);
  grid.blocks = (units + grid.of_block - 1) / grid.of_block;
  return grid;
}

/// The same for teams that need nothing of each other but in memory, so that those of a block may
/// be any number and take turns: where `share`, all of an SM are one block, if it may have memory
/// for them, and there are no more blocks than SMs.
inline TeamGrid turns_grid(int64_t units, int64_t sms, int most, int bytes, int most_bytes,
                           bool share) {
  TeamGrid grid;
  grid.blocks = units;
  if (share) {
    grid.teams = static_cast<int>(std::clamp<int64_t>((units + sms - 1) / sms, 1, most));
    if (grid.teams * bytes <= most_bytes) {
      grid.of_block = grid.teams;
      grid.blocks = std::min(units, sms);
      grid.bytes = spread(grid.of_block * bytes, 1, most_bytes);
      return grid;
    }
  }
  grid.teams = most;
  grid.bytes = spread(bytes, most, most_bytes);
  return grid;
}

}  // namespace gmamba::cuda::scan
