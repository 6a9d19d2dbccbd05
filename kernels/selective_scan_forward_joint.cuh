// SPDX-License-Identifier: Apache-2.0
/// The kernel of the outputs for bf16 and up to 16 states on GPUs with a copy unit (sm_90 and
/// newer; see selective_scan_forward_walk.cuh for the equations): four warps walk one chunk of time
/// together, on tiles that come whole.
/// Layout  one channel a lane, 128 channels a team of four warps, one warp for each scheduler. Half
///         as many channels in a warp as in the other kernels make chunks twice as long, which are
///         cheaper to summarise, and leave registers for 16 warps on an SM
///         Per team, in shared memory: three tiles of u, whose place y takes; two of delta, z, B
///         and C; B and C of two as fp32, read as 16-byte broadcasts; a barrier for each of two
///         tiles
/// Time    while a tile is walked, the next one comes and y of the one before leaves; the warps of
///         a team meet once a tile, when B and C are widened
/// Launch  one team per (batch row, chunk, 128 channels), channels fastest; a block of one team, or
///         of all that share an SM (scan_grid.h)
/// Floor   as for scan_forward_bulk_kernel
/// Limits  rows of u, delta, z, y, B and C on 16 bytes; chunks of whole tiles, but for the last
#pragma once

#include "kernels/selective_scan_forward_bulk.cuh"

namespace gmamba::cuda::scan {

/// Where the arrays of a team lie in shared memory, in bytes.
template <int kStates>
struct ForwardJointShape {
  static constexpr int kThreads = kForwardWarps * 32;
  static constexpr int kRows = 16;
  static constexpr int kWidth = kThreads;                // channels
  static constexpr int kRowsBytes = kRows * kWidth * 2;  // u, delta, z or y
  static constexpr int kTokenBytes = kRows * kStates * 2;
  static constexpr int kWideBytes = kRows * kStates * 4;
  static constexpr int kUs = 3;                                      // tiles of u
  static constexpr int kDeltas = kUs * kRowsBytes;                   // [2] of delta, z
  static constexpr int kTokens = kDeltas + 4 * kRowsBytes;           // [2] of B, C
  static constexpr int kWide = kTokens + 4 * kTokenBytes;            // the same as fp32
  static constexpr int kBarriers = kWide + 4 * kWideBytes;           // [2]
  static constexpr int kBytes = (kBarriers + 16 + 127) / 128 * 128;  // tiles lie on 128 bytes
};

/// kReady: delta comes behind bias and softplus, in its own unit.
template <int kStates, bool kReady>
__global__ void __launch_bounds__(kJointTeams* kForwardWarps * 32, 1)
    scan_forward_joint_kernel(const ForwardArgs<bf16> p, const __grid_constant__ ForwardMaps maps) {
#if __CUDA_ARCH__ >= 900
  using S = ForwardJointShape<kStates>;
  using Element = Packed<bf16, 1>;
  constexpr int kThreads = S::kThreads;
  constexpr int kWidth = S::kWidth;
  constexpr int kRows = S::kRows;
  constexpr int kUnroll = 4;
  extern __shared__ __align__(128) unsigned char forward_tiles[];
  let_next_kernel_begin();
  if (!p.start_is_late) wait_for_previous_kernel();

  // known to be the same in all lanes of a warp, and so is what is found from them
  const int team = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kThreads, 0);
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) % kThreads / 32, 0);
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const auto meet = [&] { sync_team(team, kThreads); };
  const uint32_t groups = (p.d_inner + kWidth - 1) / kWidth;
  // below 2^32, see start_teams; chunks that are a tile longer lie on as many SMs as there are
  uint32_t unit = team * gridDim.x + blockIdx.x;
  const int group = static_cast<int>(unit % groups) * kWidth;
  unit /= groups;
  const int64_t chunk = unit % static_cast<uint32_t>(p.chunks);
  const int b = static_cast<int>(unit / static_cast<uint32_t>(p.chunks));
  if (b >= p.batch) return;
  const int begin = static_cast<int>(chunk_begin(chunk, p.chunk_length, p.longer));
  const int end = begin + chunk_steps(chunk, p.chunk_length, p.longer, p.length);
  if (end <= begin) return;
  // where channels end within a group, the schedulers that have nothing to do differ between teams
  const uint32_t turn = team + (blockIdx.x * 0x9e3779b1U >> 30);
  const int first = group + static_cast<int>((warp + turn) % kForwardWarps) * 32;
  const bool walks = first < p.d_inner;
  const int local = first - group + thread % 32;  // the lane's channel, of the tile's

  const bool gated = !p.z.empty();
  unsigned char* const mine = forward_tiles + team * S::kBytes;
  const uint32_t here = shared_address(mine);
  if (thread == 0) {
    begin_barrier(here + S::kBarriers, 1);
    begin_barrier(here + S::kBarriers + 8, 1);
    show_barriers();
  }
  meet();
  const auto fetch = [&](int t, int stage, int slot) {
    fetch_outputs<S>(maps, here, gated, group, t, b, stage, slot);
  };
  if (warp == 0 && elected()) fetch(begin, 0, 0);

  ForwardLane<bf16, kStates, 1, kReady, 1> walk(p, thread % 32, first);
  if (!gated) {
    unsigned char* const z = mine + S::kDeltas + S::kRowsBytes;
    clear<S::kRowsBytes, kThreads>(z, thread);
    clear<S::kRowsBytes, kThreads>(z + 2 * S::kRowsBytes, thread);
  }
  StatesOnTheWay<bf16> saved(p, b, begin, end, first);
  if (p.start_is_late) wait_for_previous_kernel();
  walk.start(p, b, chunk);

  int stage = 0;
  int slot = 0;
  int last_slot = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int t = begin; t < end; t += kRows) {
    const int next_slot = slot == S::kUs - 1 ? 0 : slot + 1;
    wait_for_barrier(here + S::kBarriers + stage * 8, parity);
    float* const B_tile = reinterpret_cast<float*>(mine + S::kWide + stage * 2 * S::kWideBytes);
    const float* const C_tile = B_tile + kRows * kStates;
    {
      constexpr int kEach = 2 * kRows * kStates / kThreads;  // values of a thread, of B and then C
      const auto* const tokens = reinterpret_cast<const Packed<bf16, kEach>*>(
          mine + S::kTokens + stage * 2 * S::kTokenBytes);
      const float unit_of = !kReady && thread < kThreads / 2 ? kLn2 : 1.0F;
      float v[kEach];
      tokens[thread].widen(v);
#pragma unroll
      for (float& value : v) value *= unit_of;
      store_shared(B_tile + thread * kEach, v);
    }
    meet();  // all have left the tile before
    if (warp == 0 && elected()) {
      if (t > begin) store_tile(here + last_slot * S::kRowsBytes, maps.y, group, t - kRows, b);
      if (t + kRows < end) {
        wait_for_stored_reads<1>();  // of the tile whose place the next u takes
        fetch(t + kRows, stage ^ 1, next_slot);
      }
    }
    if (walks) {
      saved.pass(p, walk, t, end);
      bf16* const u = reinterpret_cast<bf16*>(mine + slot * S::kRowsBytes) + local;
      const bf16* const delta =
          reinterpret_cast<const bf16*>(mine + S::kDeltas + stage * 2 * S::kRowsBytes) + local;
      const auto element = [&](const bf16* array, int row) {
        return *reinterpret_cast<const Element*>(array + row * kWidth);
      };
      const auto step = [&](int row) {
        return walk.step(element(u, row), element(delta, row), element(delta + kRows * kWidth, row),
                         B_tile + row * kStates, C_tile + row * kStates, p.open);
      };
      const auto put = [&](int row, Element y) {
        *reinterpret_cast<Element*>(u + row * kWidth) = y;
      };
      const int rows = min(kRows, end - t);
      if (rows == kRows) {
#pragma unroll 1
        for (int row = 0; row < kRows; row += kUnroll) {
          Element y[kUnroll];
#pragma unroll
          for (int i = 0; i < kUnroll; ++i) y[i] = step(row + i);
#pragma unroll
          for (int i = 0; i < kUnroll; ++i) put(row + i, y[i]);
        }
      } else {
#pragma unroll 1
        for (int row = 0; row < rows; ++row) put(row, step(row));
      }
      show_tile();
    }
    last_slot = slot;
    slot = next_slot;
    parity ^= static_cast<uint32_t>(stage);
    stage ^= 1;
  }
  if (walks && chunk == p.chunks - 1 && !p.state_out.empty()) {
    walk.store(p.state_out.at(b, first), p.state_out.inner);
  }
  meet();
  if (warp == 0 && elected()) {
    const int last = begin + (end - 1 - begin) / kRows * kRows;
    store_tile(here + last_slot * S::kRowsBytes, maps.y, group, last, b);
    wait_for_stored_tiles();
  }
#endif
}

}  // namespace gmamba::cuda::scan
