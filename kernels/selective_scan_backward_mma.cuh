// SPDX-License-Identifier: Apache-2.0
/// The kernel of all gradients for bf16 activations (see selective_scan_backward.cuh for the
/// equations), with everything that is not a recurrence on the tensor cores.
/// Layout  a warp owns 16 channels x 16 states (d_state 8: 32 x 8), as two quads of results of a
///         16 x 8 product: lane 4g + q has channels 2g, 2g+1 and states 4q..4q+3. Per position:
///         - h <- a h + x B and dh <- C g + dh add outer products, x and g as two bf16 each;
///         - y = sum C h and s1 = sum B dh take the quads, packed to bf16, as left operands;
///         - dC = sum g h and dB = sum x dh take them turned over, g and x again as two bf16;
///         - s2 = sum A w is summed in the lane, then over q by a product.
///         No sum goes through shared memory but those over warps. Operands of a window of 4
///         positions lie in one register: lane q (or g / 2) holds position q, and a result is kept
///         where its lane and its position meet. States beyond 16 go to the other warps of a team.
///         8 states fill half of a sum's product, the other half is the next position's
/// Time    tiles of 16 positions, last first: activations and the state before the tile arrive a
///         tile ahead by asynchronous copies; then prepare (softplus, gate, splits), walk 12
///         positions for the states before windows, and per window walk and walk back, then finish
/// Waits   a team's warps share tiles, and wait for each other at both ends of one. With 8 states
///         and a copy unit each has brought what it needs, and they meet once a tile, where dB and
///         dC are added up
/// Launch  one team of 4 warps per (batch row, chunk, group of channels), channels fastest; a block
///         is of one team, or of all that share an SM (scan_grid.h)
/// Floor   issue: 23 slots per state update; exponential unit: 1.75 x 16 + 5 per channel-position
/// Limits  channels in multiples of 8, rows of activations on 16 bytes, d_state 8, 16, 32 or 64;
///         for the copy unit rows of B, C and saved states on 16 bytes, 2^31 positions
#pragma once

#include "kernels/cuda_bulk.cuh"
#include "kernels/selective_scan_backward_positions.cuh"

namespace gmamba::cuda::scan {

/// Two quads of a position as bf16, and turned over.
struct PackedQuads {
  uint32_t words[4], turned[4];

  __device__ void pack(const float (&quads)[2][4]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      words[2 * k] = narrow_pair(quads[k][0], quads[k][1]);
      words[2 * k + 1] = narrow_pair(quads[k][2], quads[k][3]);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) turned[k] = transposed(words[k]);
  }
};

/// Sums over states and over channels of a position's quads; `right` and `weights`: operands of the
/// window, see MmaOperands::row and ::weights.
__device__ inline void sum_quads(const PackedQuads& v, const uint32_t (&right)[2],
                                 const uint32_t (&weights)[1][2], float (&states)[4],
                                 float (&channels)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) states[j] = channels[j] = 0.0F;
  mma_k16(states, v.words[0], v.words[1], v.words[2], v.words[3], right);
  mma_k16(channels, v.turned[0], v.turned[2], v.turned[1], v.turned[3], weights[0]);
}

/// The same of two positions and 8 states. Sums over states are added to `states`, of either 16
/// channels: the halves of `right` are zero but for the columns of their position, so that each
/// lane is left with what is of its own. Sums over channels: rows g are the first position's, rows
/// g + 8 the second's.
__device__ inline void sum_quads(const PackedQuads& first, const PackedQuads& second,
                                 const uint32_t (&right)[2], const uint32_t (&weights)[2][2],
                                 float (&states)[2][4], float (&channels)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) channels[j] = 0.0F;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    mma_k16(channels, first.turned[2 * k], second.turned[2 * k], first.turned[2 * k + 1],
            second.turned[2 * k + 1], weights[k]);
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    mma_k16(states[k], first.words[2 * k], first.words[2 * k + 1], second.words[2 * k],
            second.words[2 * k + 1], right);
  }
}

/// Where the tiles lie that the copy unit brings.
struct BackwardMaps {
  TileMap u, delta, dy, z, B, C, saved;
};

/// kReady: delta comes behind bias and softplus.
template <int kStates, bool kApart, bool kGated, bool kReady>
__device__ __forceinline__ void scan_backward_mma(const BackwardArgs<bf16>& p,
                                                  const BackwardMaps* maps) {
  using S = MmaShape<kStates, kApart>;
  using Operands = MmaOperands<kStates, kApart>;
  constexpr int kSubs = S::kSubs;
  constexpr int kParts = Operands::kParts;
  constexpr int kWidth = S::kWidth;
  constexpr int kTile = S::kTile;
  constexpr int kThreads = kBackwardWarps * 32;
  extern __shared__ __align__(128) uint32_t block_words[];
  let_next_kernel_begin();
  if (!p.end_is_late) wait_for_previous_kernel();
  // known to be the same in all lanes of a warp where one of them speaks to the copy unit
  const auto same = [](int value) { return kApart ? __shfl_sync(kFullWarp, value, 0) : value; };
  const int team = same(static_cast<int>(threadIdx.x) / kThreads);
  uint32_t* const words = block_words + team * (S::kBytes / 4);
  const auto meet = [] {  // all warps of the team
    sync_team(again(static_cast<int>(threadIdx.x)) / kThreads, kThreads);
  };
  // found again behind the windows, for want of registers
  const auto words_again = [&] {
    return block_words + again(static_cast<int>(threadIdx.x)) / kThreads * (S::kBytes / 4);
  };
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  // with more registers to spare where a warp has all states of its channels
  const auto found_again = [](int value) { return S::kSplit > 1 || kReady ? again(value) : value; };
  const int lane = thread % 32;
  const int warp = same(thread / 32);
  const int g = lane / 4;
  const int q = lane % 4;
  const int group = warp / S::kSplit;
  const int part = warp % S::kSplit;  // of the states
  uint32_t* const of_group = words + group * S::kSplit * S::kWarpWords;
  uint32_t* const of_warp = words + warp * S::kWarpWords;
  float* const mine = reinterpret_cast<float*>(of_warp);

  const int blocks = (p.d_inner + S::kBlockWidth - 1) / S::kBlockWidth;
  const uint32_t unit = blockIdx.x * (blockDim.x / kThreads) + team;
  const int block = static_cast<int>(unit % blocks);
  const int64_t chunk = unit / blocks % p.chunks;
  const int64_t b = unit / blocks / p.chunks;
  if (b >= p.batch) return;
  const int e_block = block * S::kBlockWidth;
  const int e_group = e_block + group * kWidth;
  // quad k, half i of it: two neighbouring states of one channel
  const auto channel_of = [&](int k, int i) {
    return min(e_group + (kStates == 8 ? k * 16 : 0) + 2 * g + i, p.d_inner - 1);
  };
  const auto state_of = [&](int k) { return kStates == 8 ? 2 * q : part * 16 + 4 * q + 2 * k; };
  // all bits for the position whose columns of a right operand this lane holds
  const auto mask_of = [g](int position) { return g >> 1 == position ? 0xffffffffU : 0U; };
  const uint32_t masks[kWindow] = {mask_of(0), mask_of(1), mask_of(2), mask_of(3)};
  const auto sub_of = [](int k) { return kSubs == 1 ? 0 : k; };
  const auto part_of = [](int k) { return kParts == 1 ? 0 : k; };

  float A[2][4];
  float dA[2][4];
  float carry[2][4];  // gradient of the state behind the current position
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = channel_of(k, i);
      float v[2];
      load_shared(p.A + e * p.A_stride + state_of(k), v);
      A[k][2 * i] = v[0] * kLog2e, A[k][2 * i + 1] = v[1] * kLog2e;
      dA[k][2 * i] = dA[k][2 * i + 1] = 0.0F;
    }
  }
  {
    const float zeros[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    store_shared(mine + S::kParameters + lane * 4, zeros);
    store_shared(mine + S::kParameters + 128 + lane * 4, zeros);
  }

  for (int i = lane; i < kWidth; i += 32) {  // by every warp of the group, all the same
    const int e = min(e_group + i, p.d_inner - 1);
    float* const to = reinterpret_cast<float*>(of_group) + S::kChannels + i;
    to[0] = p.bias != nullptr ? p.bias[e] : 0.0F;
    to[kWidth] = p.D != nullptr ? p.D[e] : 0.0F;
  }

  const int64_t begin = chunk * p.chunk_length;
  const int64_t end = min(p.length, begin + p.chunk_length);
  const int first_saved = static_cast<int>(b * p.saved_per_row + begin / kTile);
  const int steps = static_cast<int>(end - begin);

  // Where the chunk's rows begin; read from shared memory rather than kept or computed each time.
  // From there 32 bits of offset are enough.
  if (thread == 0) {
    // every thread reaches it for itself, though one of a warp could for all: so its accesses are
    // ordered for tools as well
    if constexpr (kApart) {
      begin_barrier(shared_address(words + S::kTurn), kBackwardWarps * 32);
      for (int i = 0; i < 2 * kBackwardWarps; ++i) {
        begin_barrier(shared_address(words + S::kCome + 2 * i), 1);
      }
      show_barriers();
    }
    const auto put = [&](Base which, const void* at) {
      reinterpret_cast<const void**>(words + S::kBasesFrom)[which] = at;
    };
    put(kU, p.u.at(b, begin));
    put(kDeltaRaw, p.delta.at(b, begin));
    put(kDy, p.dy.at(b, begin));
    put(kZ, p.z.at(b, begin));
    put(kB, p.B.at(b, begin));
    put(kC, p.C.at(b, begin));
    put(kSaved, p.saved.at(b * p.saved_per_row + begin / kTile, 0));
    put(kDu, p.du.at(b, begin));
    put(kDdelta, p.ddelta.at(b, begin));
    put(kDz, p.dz.at(b, begin));
    put(kYOut, p.y.at(b, begin));
    const int64_t row = b * p.chunks + chunk;
    put(kDA, p.dA + row * p.d_inner * kStates);
    put(kDD, p.dD + row * 2 * p.d_inner);
    put(kBefore, chunk == 0 && !p.dstate_in.empty() ? p.dstate_in.at(b, 0) : nullptr);
    put(kPartial, p.dBC + ((block * p.batch + b) * p.length + begin) * 2 * kStates);
  }
  meet();
  char* const* const bases = reinterpret_cast<char* const*>(words + S::kBasesFrom);
  const auto bases_again = [&] {
    return reinterpret_cast<char* const*>(words_again() + S::kBasesFrom);
  };
  // twice a row number of the chunk, twice a column
  const auto at_row = [&](Base which, const auto& rows, unsigned row2, unsigned column2) {
    return bases[which] + (row2 * static_cast<unsigned>(rows.inner) + column2);
  };
  uint2* const state_offsets = reinterpret_cast<uint2*>(of_warp + S::kOffsets) + lane;
  {  // of the lane's two channels (of the first 16), in bytes
    const auto stride = static_cast<unsigned>(p.saved.inner);
    *state_offsets = make_uint2((channel_of(0, 0) * stride + state_of(0)) * 4,
                                (channel_of(0, 1) * stride + state_of(0)) * 4);
  }

  // what barrier of a warp opens when its tile for a stage has come
  const auto come = [&](int stage) {
    return shared_address(words + S::kCome + 4 * warp + 2 * stage);
  };
  // everything that a warp needs for a tile, on its way to one of two stages
  const auto fetch_apart = [&](int first_row, int stage) {
    if (!elected()) return;
    const uint32_t barrier = come(stage);
    const uint32_t to =
        shared_address(words + S::kStagesFrom + stage * S::kStageWords + warp * S::kPartWords);
    const int row = static_cast<int>(begin) + first_row;
    const int outer = static_cast<int>(b);
    constexpr int kArray = S::kRaw * 4;
    constexpr int kTokens = S::kRawBC * 4;
    constexpr int kState = 256 * 4;
    expect_bytes(barrier, (kGated ? 4 : 3) * kArray + 2 * kTokens + kState);
    fetch_tile(to, maps->u, e_group, row, outer, barrier);
    fetch_tile(to + kArray, maps->delta, e_group, row, outer, barrier);
    fetch_tile(to + 2 * kArray, maps->dy, e_group, row, outer, barrier);
    if constexpr (kGated) fetch_tile(to + 3 * kArray, maps->z, e_group, row, outer, barrier);
    fetch_tile(to + 4 * kArray, maps->B, 0, row, outer, barrier);
    fetch_tile(to + 4 * kArray + kTokens, maps->C, 0, row, outer, barrier);
    fetch_tile(shared_address(mine + S::kSlots + (S::kWindows - 1 + stage) * 256), maps->saved, 0,
               e_group, first_saved + first_row / kTile, barrier);
  };
  // the same for all warps
  const auto fetch = [&](int first_row, int stage) {
    const int thread = found_again(static_cast<int>(threadIdx.x)) % kThreads;
    const int lane = thread % 32;
    uint32_t* const raw = words + S::kStagesFrom + stage * S::kStageWords;
    const int rows = min(steps - first_row, kTile);
    constexpr int kPieces = S::kBlockWidth / 8;
#pragma unroll
    for (int i = 0; i < (kTile * kPieces + kThreads - 1) / kThreads; ++i) {
      const int row = (thread + i * kThreads) / kPieces;
      const int piece = thread % kPieces;
      if (kTile * kPieces < kThreads && row >= kTile) break;
      const int e = e_block + piece * 8;
      const bool there = row < rows && e < p.d_inner;
      uint32_t* const to = raw + S::raw_piece(row, piece) * 4;
      const unsigned row2 = 2 * (first_row + row);
      // all addresses first: each copy behind a load from shared memory costs instructions
      const void* const from[4] = {
          at_row(kU, p.u, row2, 2 * e), at_row(kDeltaRaw, p.delta, row2, 2 * e),
          at_row(kDy, p.dy, row2, 2 * e), kGated ? at_row(kZ, p.z, row2, 2 * e) : nullptr};
#pragma unroll
      for (int array = 0; array < (kGated ? 4 : 3); ++array) {
        copy_async_or_zero<16>(to + array * S::kRaw, from[array], there);
      }
    }
    constexpr int kQuads = kStates / 4;
#pragma unroll
    for (int i = 0; i < (kTile * kQuads + kThreads - 1) / kThreads; ++i) {
      const int piece = thread + i * kThreads;
      if (kTile * kQuads < kThreads && piece >= kTile * kQuads) break;
      const int row = piece / kQuads;
      uint32_t* const to = raw + 4 * S::kRaw + piece * 2;
      const unsigned row2 = 2 * (first_row + row);
      const unsigned column2 = piece % kQuads * 8;
      const void* const B = at_row(kB, p.B, row2, column2);
      const void* const C = at_row(kC, p.C, row2, column2);
      copy_async_or_zero<8>(to, B, row < rows);
      copy_async_or_zero<8>(to + S::kRawBC, C, row < rows);
    }
    float* const slot = mine + S::kSlots + (S::kWindows - 1 + stage) * 256 + lane * 4;
    char* const states = bases[kSaved] + first_row / kTile * p.saved.outer * 4;
    const uint2 offsets = *state_offsets;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      char* const channel = states + (i == 0 ? offsets.x : offsets.y);
      if constexpr (kStates == 8) {  // a pair of states of either quad
        const unsigned far =
            (channel_of(1, i) - channel_of(0, i)) * static_cast<unsigned>(p.saved.inner) * 4;
        copy_async_or_zero<8>(slot + i * 128, channel, true);
        copy_async_or_zero<8>(slot + i * 128 + 2, channel + far, true);
      } else {
        copy_async_or_zero<16>(slot + i * 128, channel, true);
      }
    }
    commit_copies();
  };

  using Rounds = MmaRounds<kStates, kApart>;

  int stage = 0;
  uint32_t parity = 0;  // of the barrier of the stage
  // dB and dC of the tile from `row` on, once all warps have left theirs
  const auto add_up = [&](int row, int stage) {
    wait_for_barrier(shared_address(words + S::kTurn), stage);
    sum_channel_groups<kStates, kApart>(words, bases[kPartial], S::kSums + stage * S::kSumsWords,
                                        row, min(steps - row, kTile), thread);
  };
  int first_row = (steps - 1) / kTile * kTile;
  if (steps > 0) {
    if constexpr (kApart) {
      fetch_apart(first_row, stage);
    } else {
      fetch(first_row, stage);
    }
  }
  if (p.end_is_late) wait_for_previous_kernel();
  {
    const int64_t stretch = min((chunk + 1) * p.end_per_chunk, p.end_per_row) - 1;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float v[2] = {0.0F, 0.0F};
        if (!p.dstate_end.empty()) {
          load_shared(p.dstate_end.at(b * p.end_per_row + stretch, channel_of(k, i)) + state_of(k),
                      v);
        }
        carry[k][2 * i] = v[0], carry[k][2 * i + 1] = v[1];
      }
    }
  }
  for (; first_row >= 0 && steps > 0; first_row -= kTile, stage ^= 1) {
    const int rows = min(steps - first_row, kTile);
    const uint32_t* const raw = words + S::kStagesFrom + stage * S::kStageWords;
    const uint32_t* const B =
        raw + (kApart ? warp * S::kPartWords : 0) + 4 * S::kRaw + part * (S::kWarpStates / 2);
    const int sums_from = S::kSums + (kApart ? stage * S::kSumsWords : 0);
    if constexpr (kApart) {
      __syncwarp();
      if (first_row >= kTile) fetch_apart(first_row - kTile, stage ^ 1);
      wait_for_barrier(come(stage), parity);
      parity ^= static_cast<uint32_t>(stage);
    } else {
      wait_for_copies<0>();
      meet();
    }

    prepare_positions<kStates, kApart, kGated, kReady>(words, raw, rows, found_again(thread));
    if constexpr (!kApart) {
      if (first_row >= kTile) fetch(first_row - kTile, stage ^ 1);
    }
    if constexpr (S::kSplit > 1) {
      meet();
    } else {
      __syncwarp();
    }

    float* const before_tile = mine + S::kSlots + (S::kWindows - 1 + stage) * 256 + lane * 4;
    float* const slots = mine + S::kSlots + lane * 4 - 256;  // of windows 1..
    Operands operands(of_group, of_warp, B, sums_from, again(lane));
    {  // states before windows 1, 2, ...
      float h[2][4];
      if constexpr (kApart) {  // as it came, and from here on like those of the other windows
        load_quads_in_order(before_tile - lane * 4, again(lane), h);
        __syncwarp();
        store_quads(before_tile, h);
        show_tile();
      } else {
        load_quads(before_tile, h);
      }
#pragma unroll 1
      for (int w = 0; w + 1 < S::kWindows; ++w) {
        uint32_t x[kSubs][2];
        uint32_t b_column[kParts];
        operands.outer(S::kX, x);
        operands.column(0, b_column);
#pragma unroll
        for (int s = 0; s < kWindow; ++s) {
          float d[kSubs][2];
          operands.deltas(s, d);
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float input[4];
            mma_k8(input, x[sub_of(k)], q == s ? b_column[part_of(k)] : 0U);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              h[k][j] = fmaf(decay(d[sub_of(k)][j / 2], A[k][j]), h[k][j], input[j]);
            }
          }
        }
        store_quads(slots + (w + 1) * 256, h);
        operands.advance(1);
      }
    }

    if constexpr (kApart) {
      if (first_row + kTile < steps) add_up(first_row + kTile, stage ^ 1);
    }

#pragma unroll 1
    for (int w = S::kWindows - 1; w >= 0; --w) {
      const float* const before = w == 0 ? before_tile : slots + w * 256;
      float a[kWindow][2][4];
      float left[kWindow][2][4];  // of the state before each position: a h
      {
        uint32_t x[kSubs][2];
        uint32_t b_column[kParts];
        uint32_t c_row[kParts];
        uint32_t weights[kSubs][2];
        operands.outer(S::kX, x);
        operands.column(0, b_column);
        operands.row(S::kRawBC, c_row);
        operands.weights(S::kG, weights);
        float y[kSubs][2];
        float dC[2];
        PackedQuads packed[2];
        float sums[kSubs][4] = {};
        float h[2][4];
        load_quads(before, h);
#pragma unroll
        for (int s = 0; s < kWindow; ++s) {
          float d[kSubs][2];
          operands.deltas(s, d);
#pragma unroll
          for (int k = 0; k < 2; ++k) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              a[s][k][j] = decay(d[sub_of(k)][j / 2], A[k][j]);
              left[s][k][j] = a[s][k][j] * h[k][j];
            }
            mma_k8(h[k], left[s][k], x[sub_of(k)], q == s ? b_column[part_of(k)] : 0U);
          }
          packed[s % 2].pack(h);
          float channels[4];
          if constexpr (kStates != 8) {
            sum_quads(packed[s % 2], c_row, weights, sums[0], channels);
            if (s == 0 || q == s) {  // kept where nothing later takes its place
              y[0][0] = sums[0][0], y[0][1] = sums[0][2];
              dC[0] = channels[0] + channels[1];
              dC[1] = channels[2] + channels[3];
            }
          } else if (s % 2 == 1) {
            sum_quads(packed[0], packed[1], {c_row[0] & masks[s - 1], c_row[0] & masks[s]}, weights,
                      sums, channels);
            const float first = channels[0] + channels[1];
            const float second = channels[2] + channels[3];
            const float either = q % 2 == 0 ? first : second;
            dC[0] = s == 1 || q >= 2 ? either : dC[0];
          }
        }
        if constexpr (kStates == 8) {
#pragma unroll
          for (int i = 0; i < kSubs; ++i) y[i][0] = sums[i][0], y[i][1] = sums[i][2];
        }
        operands.store(S::kY, y);
        operands.store_sums(1, dC);
      }
      {
        uint32_t gs[kSubs][2];
        uint32_t c_column[kParts];
        uint32_t b_row[kParts];
        uint32_t weights[kSubs][2];
        operands.outer(S::kG, gs);
        operands.column(S::kRawBC, c_column);
        operands.row(0, b_row);
        operands.weights(S::kX, weights);
        float s1[kSubs][2];
        float s2[kSubs][2];
        float dB[2];
        PackedQuads packed[2];
        float partials[2][kSubs][2];
        float sums[kSubs][4] = {};
        float weighed[kSubs][4] = {};
        float dh[2][4];
#pragma unroll
        for (int s = kWindow - 1; s >= 0; --s) {
          float d[kSubs][2];
          operands.deltas(s, d);
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const uint32_t c = q == s ? c_column[part_of(k)] : 0U;
            if (s == kWindow - 1) {
              mma_k8(dh[k], carry[k], gs[sub_of(k)], c);
            } else {
              float input[4];
              mma_k8(input, gs[sub_of(k)], c);
#pragma unroll
              for (int j = 0; j < 4; ++j) dh[k][j] = fmaf(a[s + 1][k][j], dh[k][j], input[j]);
            }
          }
          packed[s % 2].pack(dh);
          float channels[4];
          if constexpr (kStates != 8) {
            sum_quads(packed[s % 2], b_row, weights, sums[0], channels);
          } else if (s % 2 == 0) {
            sum_quads(packed[0], packed[1], {b_row[0] & masks[s], b_row[0] & masks[s + 1]}, weights,
                      sums, channels);
            const float first = channels[0] + channels[1];
            const float second = channels[2] + channels[3];
            const float either = q % 2 == 0 ? first : second;
            dB[0] = s == 2 || q < 2 ? either : dB[0];
          }
          float(&partial)[kSubs][2] = partials[s % 2];
#pragma unroll
          for (int i = 0; i < kSubs; ++i) partial[i][0] = partial[i][1] = 0.0F;
#pragma unroll
          for (int k = 0; k < 2; ++k) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float product = dh[k][j] * left[s][k][j];
              dA[k][j] = fmaf(d[sub_of(k)][j / 2], product, dA[k][j]);
              partial[sub_of(k)][j / 2] = fmaf(A[k][j], product, partial[sub_of(k)][j / 2]);
            }
          }
          if constexpr (kStates != 8) {
            mma_sum(weighed[0], partial[0][0], partial[0][1]);
            if (s == kWindow - 1 || q == s) {
              s1[0][0] = sums[0][0], s1[0][1] = sums[0][2];
              s2[0][0] = weighed[0][0], s2[0][1] = weighed[0][2];
              dB[0] = channels[0] + channels[1];
              dB[1] = channels[2] + channels[3];
            }
          } else if (s % 2 == 0) {
#pragma unroll
            for (int i = 0; i < kSubs; ++i) {
              mma_two_sums(weighed[i], partials[0][i], partials[1][i], masks[s] & 0x3f800000U,
                           masks[s + 1] & 0x3f800000U);
            }
          }
        }
        if constexpr (kStates == 8) {
#pragma unroll
          for (int i = 0; i < kSubs; ++i) {
            s1[i][0] = sums[i][0], s1[i][1] = sums[i][2];
            s2[i][0] = weighed[i][0], s2[i][1] = weighed[i][2];
          }
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
          for (int j = 0; j < 4; ++j) carry[k][j] = a[0][k][j] * dh[k][j];
        }
        __syncwarp();  // x and g of the window are behind all lanes
        operands.store(S::kS1, s1);
        operands.store(S::kS2, s2);
        operands.store_sums(0, dB);
        operands.advance(-1);
      }
    }
    if constexpr (kApart) {
      reach_barrier(shared_address(words + S::kTurn));
      __syncwarp();
    } else {
      meet();
    }

    finish_positions<kStates, kApart, kGated, kReady>(
        p, bases_again(), words_again(), words_again() + S::kStagesFrom + stage * S::kStageWords,
        first_row, rows, e_block, found_again(thread));
    if constexpr (!kApart) {
      sum_channel_groups<kStates, kApart>(words_again(), bases_again()[kPartial], sums_from,
                                          first_row, rows, found_again(thread));
    }
  }
  if constexpr (kApart) {
    if (steps > 0) add_up(0, stage ^ 1);
  }

#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = e_group + (kStates == 8 ? k * 16 : 0) + 2 * g + i;
      if (e >= p.d_inner) continue;
      const float sum[2] = {dA[k][2 * i], dA[k][2 * i + 1]};
      store_shared(reinterpret_cast<float*>(bases_again()[kDA]) + e * kStates + state_of(k), sum);
      if (bases_again()[kBefore] != nullptr) {
        const float left[2] = {carry[k][2 * i], carry[k][2 * i + 1]};
        store_shared(
            reinterpret_cast<float*>(bases_again()[kBefore]) + e * p.dstate_in.inner + state_of(k),
            left);
      }
    }
  }
  meet();
  for (int i = thread % (32 * S::kSplit); i < 2 * kWidth; i += 32 * S::kSplit) {
    const int which = i / kWidth;
    const int channel = i % kWidth;
    float sum = 0.0F;
    for (int l = channel / 4; l < 32 * S::kSplit; l += Rounds::kQuads) {
      sum += reinterpret_cast<const float*>(
          words_again())[(group * S::kSplit + l / 32) * S::kWarpWords + S::kParameters +
                         which * 128 + l % 32 * 4 + channel % 4];
    }
    if (e_group + channel < p.d_inner) {
      reinterpret_cast<float*>(bases_again()[kDD])[which * p.d_inner + e_group + channel] = sum;
    }
  }
}

/// kTeams: of kBackwardWarps warps, at most so many in a block.
template <int kStates, bool kGated, bool kReady, int kTeams>
__global__ void __launch_bounds__(kTeams* kBackwardWarps * 32, 1)
    scan_backward_mma_kernel(const BackwardArgs<bf16> p) {
  scan_backward_mma<kStates, false, kGated, kReady>(p, nullptr);
}
/// With tiles brought by the copy unit (sm_90 and newer), for 8 states.
template <bool kGated, bool kReady, int kTeams>
__global__ void __launch_bounds__(kTeams* kBackwardWarps * 32, 1)
    scan_backward_bulk_kernel(const BackwardArgs<bf16> p,
                              const __grid_constant__ BackwardMaps maps) {
#if __CUDA_ARCH__ >= 900
  scan_backward_mma<8, true, kGated, kReady>(p, &maps);
#endif
}

}  // namespace gmamba::cuda::scan
