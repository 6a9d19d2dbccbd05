// SPDX-License-Identifier: Apache-2.0
/// Summaries of chunks of time (selective_scan_summary.cuh says which) for bf16 activations, on the
/// tensor cores.
/// Window  of 16 positions. With s(t) the sum of delta between position t and the middle of the
///         window (half of the window's sum away from either end) and S that between the middle and
///         the start of the walk, each state adds
///           exp(A S) * sum over t of exp(A s(t)) x(t) w(t)
///         Where |A s| is small, or exp(A S) so small that a poor exp(A s) does no harm, exp is a
///         polynomial in it, and
///           sum over t of s(t)^j x(t) w(t)
///         is a product of matrices: channels x positions times positions x states. So a state
///         costs one exponential per window instead of 16. The nearest two or three windows take
///         one exponential per position where states are fast, the outer product of x and w still
///         from the tensor cores
/// Pair    far from the start of the walk, two windows are taken as one of 32 positions where that
///         fits three terms or two, with one middle and one exponential (8 and 16 states: more
///         have no registers for it)
/// Ends    a state is left when exp(A * sum of delta) is below 2^-17 (kForgotten), a warp
///         stops when it has left all. What is dropped is 2^-17 of what was there, the polynomials
///         are within 2e-5, and x is a sum of two bf16 (16 bits): about a hundredth of what
///         rounding activations to bf16 costs
/// Layout  warp: 16 channels x all states of one chunk. Lane 4 g + q prepares positions 4q..4q + 3
///         (of a pair 8q .. 8q + 7) of channels g and g + 8, whose rows lie where that makes its
///         values operands of the products as they are, and keeps states 8 k + 2q, 8 k + 2q + 1 of
///         these channels. Windows come into shared memory of the warp by asynchronous copies, in
///         pairs, two pairs ahead
/// Memory  the four warps of a block read sectors of the same lines, so a copy asks for the whole
///         line to be brought into the second-level cache, and over long walks the warps wait for
///         each other now and then: lines that they read at times far apart would come twice
/// Launch  one turn of a warp per (batch row, chunk, group of channels), channels fastest within
///         each of a number of parts; a team of four warps takes those that follow on each other.
///         Blocks of one team, or of all that share an SM: then their first, second, third and last
///         warps take the block's turns as they come free
/// Floor   memory as for the other kernel; issue: 252 slots per window and warp far from the start
///         of the walk (16 states, pairs of two terms), 32 per channel-position, 0.51 ms for 2^20
///         positions of 512 channels if all of them are walked
#pragma once

#include <utility>

#include "kernels/scan_summary_walk.cuh"
#include "kernels/selective_scan_summary.cuh"

namespace gmamba::cuda::scan {

constexpr int kSummaryMmaWarps = kTeamWarps;
/// Windows from the start of a walk on which two terms may do; not asked before.
constexpr int kFarWindows = 48;
/// Windows from there on which two may be taken as one, and how long it is left after two were not.
constexpr int kPairWindows = 32;
constexpr int kPairRest = 16;

template <int kStates, bool kGradient>
struct SummaryMmaShape {
  static constexpr int kRows = 16;
  static constexpr int kWidth = 16;
  static constexpr int kStages = 6;  // windows, fetched in pairs
  static constexpr int kArrays = kGradient ? 3 : 2;
  static constexpr int kTile = kRows * kWidth * 2;     // bytes of x, delta or z
  static constexpr int kTokens = kRows * kStates * 2;  // of w
  static constexpr int kPieces = kStates / 8;          // of 16 bytes in a row of w
  // two windows may be taken as one: a load then reads half of the rows of each, and these lie in
  // different banks as windows do not begin on multiples of 128 bytes. The other halves follow
  static constexpr bool kPairs = kPieces <= 2;
  static constexpr int kHalf = 64;  // bytes between the halves
  // a warp may do several chunks, one after the other (more states have no registers for it)
  static constexpr bool kTurns = kPairs;
  static constexpr int kStage = kArrays * kTile + kTokens + (kPairs ? kHalf : 0);
  static constexpr int kBytes = kStages * kStage;  // of a warp
  // of a team, with a counter for each of its warps (the first team's are the block's) and places
  // for two numbers
  static constexpr int kTeamBytes = kSummaryMmaWarps * (kBytes + 12);
};

/// Where piece `piece` (of kPieces in a row, 16 bytes each) of a row lies, so that eight rows of
/// one piece lie in different banks. With one or two pieces, rows 2 and 3 of every four lie 64
/// bytes behind rows 0 and 1.
template <int kPieces>
__device__ inline int banked(int row, int piece) {
  if constexpr (kPieces == 1) return row / 8 * 8 + row / 2 % 2 * 4 + row / 4 % 2 * 2 + row % 2;
  return row * kPieces + (piece ^ (row / (8 / kPieces) % kPieces));
}

/// The row of a window's tiles in which a position lies: those of lane q are then 4q .. 4q + 3.
__device__ inline int row_of_position(int position) {
  return position % 4 / 2 * 8 + position / 4 * 2 + position % 2;
}

/// What a warp of a team summarises: a chunk of a batch row, and its channels from `first` on.
/// `team` counts them all, `warp` is that of the team.
template <int kWidth>
struct SummaryTask {
  int first;
  int64_t b = 0, chunk;

  __device__ SummaryTask(const SummaryArgs<bf16>& p, uint32_t team, int warp) {
    const int groups = (p.d_inner + kWidth - 1) / kWidth;
    uint32_t unit = team * kSummaryMmaWarps + warp;  // below 2^32, see start_summary_mma
    uint32_t group = unit % groups;
    unit /= groups;
    if (p.parts > 1) {
      const uint32_t wide = groups / (kSummaryMmaWarps * p.parts);  // teams of a part and chunk
      const uint32_t of_part = p.teams / p.parts;
      const uint32_t rest = team % of_part;
      group = (team / of_part * wide + rest % wide) * kSummaryMmaWarps + warp;
      unit = rest / wide;
    }
    first = static_cast<int>(group) * kWidth;
    int piece = 0;
    if (p.count > 1) {
      piece = static_cast<int>(unit % p.count);
      unit /= p.count;
    }
    if (const uint32_t stretches = p.stretches; unit >= stretches) {
      b = unit / stretches;
      unit %= stretches;
    }
    chunk = static_cast<int64_t>(unit + p.first_stretch) * p.stretch + p.from + piece;
  }
  __device__ bool exists(const SummaryArgs<bf16>& p) const {
    return b < p.batch && chunk < p.chunks;
  }
};

/// What the kernel does for one warp of team `team`, whose tiles begin at `tiles` and whose place
/// to keep two numbers at `note`, both in shared memory.
template <int kStates, bool kGradient, bool kGated, bool kReady, bool kPaired>
__device__ inline void summarise_chunk(const SummaryArgs<bf16>& p, uint32_t team,
                                       unsigned char* tiles, uint32_t note) {
  using S = SummaryMmaShape<kStates, kGradient>;
  using Walk = SummaryWalk<kStates>;
  using Task = SummaryTask<S::kWidth>;
  static_assert(S::kPairs || !kPaired);
  constexpr int kBlocks = Walk::kBlocks;
  // unsigned, for these are found again where registers are short
  const int lane = static_cast<int>(threadIdx.x % 32U);
  const int warp = static_cast<int>(threadIdx.x / 32U % kSummaryMmaWarps);
  const int g = static_cast<int>(threadIdx.x % 32U / 4U);
  const int q = static_cast<int>(threadIdx.x % 4U);
  const Task task(p, team, warp);
  if (!task.exists(p)) return;
  const int first = task.first;
  const int64_t b = task.b;
  if (S::kTurns && lane == 0) {  // for the end: they would take registers on the way
    store_word(note, static_cast<uint32_t>(b * p.chunks + task.chunk));
    store_word(note + 4, static_cast<uint32_t>(first));
  }
  const int64_t begin = chunk_begin(task.chunk, p.chunk_length, p.longer);
  const int steps = chunk_steps(task.chunk, p.chunk_length, p.longer, p.length);
  const int windows = (steps + S::kRows - 1) / S::kRows;

  Walk walk;
  float bias[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int e = min(first + g + 8 * c, p.d_inner - 1);
    const bool exists = first + g + 8 * c < p.d_inner;
    bias[c] = kReady || p.bias == nullptr ? 0.0F : kLog2e * p.bias[e];
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i) {
      const int n = i / 2 * 8 + 2 * q + i % 2;
      walk.h[c][i] = 0.0F;
      if (exists && n < p.d_state) {
        walk.A[c][i] = walk.rate[c][i] = p.A[e * p.A_stride + n] * (kReady ? kLog2e : 1.0F);
      } else {
        walk.drop(c, i);
      }
    }
  }

  // copies: a lane has one piece of 16 bytes of x, delta and z, and kPieces / 2 of w
  const auto shared = shared_address(tiles);
  const int copy_row = lane / 2;
  const int copy_column = lane % 2 * 8;
  // distances that the assembler would find again for every window, if it knew how
  const auto kept = [lane](uint32_t value) { return __shfl_sync(kFullWarp, value, lane); };
  const bool copies = kept(first + copy_column < p.d_inner ? 1 : 0) != 0;
  const uint32_t copy_at = kept(shared + banked<2>(row_of_position(copy_row), lane % 2) * 16);
  constexpr int kBatches = (S::kPieces + 1) / 2;
  const int w_row = lane / S::kPieces;
  const int w_column = lane % S::kPieces * 8;
  const bool copies_w = kept(w_row < S::kRows && w_column < p.d_state ? 1 : 0) != 0;
  const uint32_t w_at = shared + S::kArrays * S::kTile;
  uint32_t w_copy_at = w_at + banked<S::kPieces>(row_of_position(w_row), w_column / 8) * 16;
  if constexpr (kStates != 32) w_copy_at = kept(w_copy_at);  // spills with 32
  const int64_t head = begin + (kGradient ? 0 : (windows - 1) * S::kRows);
  const auto rows_at = [&](const Rows<const bf16>& from) {
    return from.empty() ? nullptr : from.at(b, head + copy_row) + first + copy_column;
  };
  const bf16* x_from = rows_at(p.x);
  const bf16* delta_from = rows_at(p.delta);
  const bf16* z_from = rows_at(p.z);
  const bf16* w_from = p.w.at(b, head + w_row) + w_column;
  const int ragged = steps % S::kRows == 0 ? -1
                     : kGradient           ? windows - 1
                                           : 0;  // a window cut short
  const auto advance = [&] {
    move_bytes(x_from, p.next_x);
    move_bytes(delta_from, p.next_delta);
    if constexpr (kGated) move_bytes(z_from, p.next_z);
    move_bytes(w_from, p.next_w);
  };
  // the next window, if it is there, to that distance in bytes
  const auto copy_whole = [&](uint32_t to, bool there) {
    copy_if(copies && there, copy_at + to, x_from);
    copy_if(copies && there, copy_at + to + S::kTile, delta_from);
    if constexpr (kGated) copy_if(copies && there, copy_at + to + 2 * S::kTile, z_from);
    copy_if(copies_w && there, w_copy_at + to, w_from);
#pragma unroll
    for (int j = 1; j < kBatches; ++j) {
      const int row = w_row + j * (32 / S::kPieces);
      copy_if(copies_w && there,
              w_at + to + banked<S::kPieces>(row_of_position(row), w_column / 8) * 16,
              w_from + (row - w_row) * static_cast<int>(p.w.inner));
    }
    advance();
  };
  const auto copy_any = [&](int i, uint32_t to) {
    const int rows = i == ragged ? steps % S::kRows : S::kRows;
    const bool there = copies && copy_row < rows;
    copy_async_or_zero<16>(copy_at + to, x_from, there);
    copy_async_or_zero<16>(copy_at + to + S::kTile, delta_from, there);
    if constexpr (kGated) copy_async_or_zero<16>(copy_at + to + 2 * S::kTile, z_from, there);
    const bf16* const tokens = w_from - (w_row * p.w.inner + w_column);
#pragma unroll 1
    for (int at = lane; at < S::kRows * S::kPieces * 2; at += 32) {  // pieces of 8 bytes
      const int row = at / (2 * S::kPieces);
      const int half = at % (2 * S::kPieces);
      copy_async_or_zero<8>(
          w_at + to + banked<S::kPieces>(row_of_position(row), half / 2) * 16 + half % 2 * 8,
          tokens + row * p.w.inner + half * 4, row < rows && half * 4 < p.d_state);
    }
    advance();
  };
  // pairs that begin before this window go the short way
  const int short_way = !p.vectors.wide_tokens     ? 0
                        : kGradient && ragged >= 0 ? windows - 2
                                                   : windows;
  const auto fetch = [&](int i, uint32_t to, bool cut = false) {  // windows i and i + 1
    if (!cut && i < short_way) {
      copy_whole(to, true);
      copy_whole(to + S::kStage, i + 1 < windows);
    } else {
#pragma unroll 1
      for (int j = i; j < min(i + 2, windows); ++j) copy_any(j, to + (j - i) * S::kStage);
    }
    commit_copies();
  };
  // what the short way never writes
  if (first + S::kWidth > p.d_inner || p.d_state < kStates) {
    for (int i = lane; i < S::kBytes / 16; i += 32) {
      reinterpret_cast<uint4*>(tiles)[i] = uint4{};
    }
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < S::kStages - 2; i += 2)
    fetch(i, i * S::kStage, !kGradient && i == 0 && ragged == 0);

  // where this lane's row of the operands lies
  const int operand_row = lane % 8 + lane / 16 * 8;
  const uint32_t x_operand = kept(banked<2>(operand_row, lane / 8 % 2) * 16);
  const uint32_t w_operand =
      kBlocks == 2 ? kept(S::kArrays * S::kTile + banked<2>(lane % 16, lane / 16) * 16)
                   : S::kArrays * S::kTile + (kBlocks == 1 ? banked<1>(lane % 16, 0) * 16 : 0);
  // and in two windows taken as one, where lane q has positions 8q .. 8q + 7: of the first four
  uint32_t x_pair = 0;
  uint32_t w_pair = 0;
  if constexpr (kPaired) {
    const int second = (lane % 8 / 4 == 1) == kGradient ? S::kStage : 0;
    const int row = lane % 4 / 2 * 4 + lane % 2;
    x_pair = kept(second + banked<2>(row + lane / 16 * 8, lane / 8 % 2) * 16);
    const int piece_at = kBlocks == 2
                             ? banked<2>(row + lane / 8 % 2 * 8, lane / 16) * 16
                             : banked<1>(row + lane / 8 % 2 * 8, 0) * 16 + lane / 16 * S::kHalf;
    w_pair = kept(second + S::kArrays * S::kTile + piece_at);
  }

  const int last_pair = windows - (kGradient && ragged >= 0 ? 2 : 1);
  int pairs_from = kPairWindows;  // from this window on two are tried as one, before last_pair
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, kPaired ? 2 : 1>;
  // adds what begins at `at`: window i, or it and the next as one, unless they can't be (false)
  const auto add = [&]<int kHalves>(std::integral_constant<int, kHalves>, int i, uint32_t at) {
    constexpr bool kPair = kHalves == 2;
    const uint32_t x_at = at + (kPair ? x_pair : x_operand);
    uint32_t raw[4];
    const auto load = [&](float(&to)[kHalves][2][4], int array) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        load_matrices(raw, x_at + array * S::kTile + half * S::kHalf);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          to[half][j % 2][j / 2 * 2] = __uint_as_float(raw[j] << 16);
          to[half][j % 2][j / 2 * 2 + 1] = __uint_as_float(raw[j] & 0xffff0000U);
        }
      }
    };
    float d[kHalves][2][4];
    load(d, 1);
    if constexpr (!kReady) {
#pragma unroll
      for (int j = 0; j < kHalves * 8; ++j) {
        const int c = j / 4 % 2;
        float& value = d[j / 8][c][j % 4];
        value = softplus2<bf16>(fmaf(value, kLog2e, bias[c]));
      }
    }
    if (!kPair && i == ragged) {  // positions that don't exist take no time
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (4 * q + j >= steps % S::kRows) d[0][0][j] = d[0][1][j] = 0.0F;
      }
    }
    float total[2];
    float sum[kHalves][2][4];
    sum_deltas<kGradient>(d, q, total, sum);
    if (walk.active != 0) {
      float x[kHalves][2][4];
      load(x, 0);
      if constexpr (kGated) {
        float z[kHalves][2][4];
        load(z, 2);
#pragma unroll
        for (int j = 0; j < kHalves * 8; ++j) {
          const float gate = z[j / 8][j / 4 % 2][j % 4];
          x[j / 8][j / 4 % 2][j % 4] *= gate * sigmoid(gate);
        }
      }
      if constexpr (!kGradient) {
#pragma unroll
        for (int j = 0; j < kHalves * 8; ++j) {
          x[j / 8][j / 4 % 2][j % 4] *= d[j / 8][j / 4 % 2][j % 4];
        }
      }
      uint32_t w[kHalves][kBlocks][2];
      if constexpr (kPair && kBlocks == 1) {
        load_matrices(raw, at + w_pair);
        w[0][0][0] = raw[0], w[0][0][1] = raw[1], w[1][0][0] = raw[2], w[1][0][1] = raw[3];
      } else if constexpr (kBlocks == 1) {
        load_matrices(w[0][0], at + w_operand);
      } else {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int k = 0; k < kBlocks; k += 2) {
            const int other = kBlocks == 2 ? 0 : banked<S::kPieces>(lane % 16, k + lane / 16) * 16;
            load_matrices(raw, at + (kPair ? w_pair + half * S::kHalf : w_operand + other));
            w[half][k][0] = raw[0], w[half][k][1] = raw[1];
            w[half][k + 1][0] = raw[2], w[half][k + 1][1] = raw[3];
          }
        }
      }
      if constexpr (kPair) {
        if (i >= 2 * kFarWindows && walk.template smooth<Smooth2>(total)) {
          walk.template add_smooth<Smooth2>(x, total, sum, w);
        } else if (walk.template smooth<Smooth3>(total)) {
          walk.template add_smooth<Smooth3>(x, total, sum, w);
        } else {
          return false;
        }
      } else if (walk.template smooth<Smooth3>(total)) {
        if (i >= kFarWindows && walk.template smooth<Smooth2>(total)) {
          walk.template add_smooth<Smooth2>(x, total, sum, w);
        } else {
          walk.template add_smooth<Smooth3>(x, total, sum, w);
        }
      } else if (walk.template smooth<Smooth4>(total)) {
        walk.template add_smooth<Smooth4>(x, total, sum, w);
      } else if (walk.template smooth<Smooth6>(total)) {
        walk.template add_smooth<Smooth6>(x, total, sum, w);
      } else if (!kGradient && kStates < 64 && walk.template smooth<Smooth8>(total)) {
        // gradients' chunks are long, so that the near windows count for less, and registers short
        walk.template add_smooth<Smooth8>(x, total, sum, w);
      } else {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[0][c][j] += walk.behind[c];
        }
        walk.add_each(x[0], sum[0], w[0], q);
      }
    }
    walk.behind[0] += total[0];
    walk.behind[1] += total[1];
    return true;
  };

  uint32_t stage = 0;  // of window i, in bytes
#pragma unroll 1
  for (int i = 0; i < windows;) {
    if ((i & 1) == 0) {
      if ((i & (i < 16 ? 3 : 15)) == 0) {
        walk.leave();
        if (walk.active == 0 && !p.exact_sum) break;
        if (p.together && (i & 7) == 0) __syncthreads();
      }
      wait_for_copies<S::kStages / 2 - 2>();
      __syncwarp();
      fetch(i + S::kStages - 2, stage == 0 ? (S::kStages - 2) * S::kStage : stage - 2 * S::kStage);
      if (kPaired && i >= pairs_from && i < last_pair) {
        if (add(Two{}, i, shared + stage)) {
          stage = stage == (S::kStages - 2) * S::kStage ? 0 : stage + 2 * S::kStage;
          i += 2;
          continue;
        }
        pairs_from = i + kPairRest;
      }
    }
    add(One{}, i, shared + stage);
    stage = stage == (S::kStages - 1) * S::kStage ? 0 : stage + S::kStage;
    ++i;
  }
  wait_for_copies<0>();
  // what these were is kept in shared memory, or found again from the number of the team
  const auto [row, group] = [&]() -> std::pair<int64_t, int> {
    if constexpr (S::kTurns) return {load_word(note), static_cast<int>(load_word(note + 4))};
    const Task done(p, team, warp);
    return {done.b * p.chunks + done.chunk, done.first};
  }();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int e = group + g + 8 * c;
    if (e >= p.d_inner) continue;
    float* const to = p.state.at(row, e) + 2 * q;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      if (k * 8 + 2 * q >= p.d_state) continue;
      constexpr float kUnit = kGradient || kReady ? 1.0F : kLn2;  // of delta in x
      const float pair[2] = {kUnit * walk.h[c][2 * k], kUnit * walk.h[c][2 * k + 1]};
      store_shared(to + k * 8, pair);
    }
    if (q == 0) p.delta_sum[row * p.d_inner + e] = (kReady ? 1.0F : kLn2) * walk.behind[c];
  }
}

/// kReady: delta comes behind bias and softplus. kPaired: chunks have windows that may be taken as
/// one with the next; short ones are spared the choice. kTeams: on an SM at most.
template <int kStates, bool kGradient, bool kGated, bool kReady, bool kPaired, int kTeams>
__global__ void __launch_bounds__(kTeams* kSummaryMmaWarps * 32, 1)
    scan_summary_mma_kernel(const SummaryArgs<bf16> p) {
  using S = SummaryMmaShape<kStates, kGradient>;
  extern __shared__ __align__(16) unsigned char summary_shared[];
  const uint32_t warp = threadIdx.x / 32U;
  unsigned char* const tiles = summary_shared + warp * S::kBytes;
  const auto summarise = [&](uint32_t turn, uint32_t note) {
    summarise_chunk<kStates, kGradient, kGated, kReady, kPaired>(p, turn * gridDim.x + blockIdx.x,
                                                                 tiles, note);
  };
  if constexpr (!S::kTurns) {
    wait_for_previous_kernel();
    let_next_kernel_begin();  // in this order for those who read ahead behind the combination
    summarise(warp / kSummaryMmaWarps, 0);
  } else {
    const uint32_t warps = blockDim.x / 32U;
    // how many turns have been taken by the first, second, third and last warps of teams, and two
    // numbers of each warp
    const uint32_t counters = shared_address(summary_shared + warps * S::kBytes);
    const uint32_t taken = counters + warp % kSummaryMmaWarps * 4;
    const uint32_t note = counters + kSummaryMmaWarps * 4 + warp * 8;
    const bool turns = gridDim.x * (warps / kSummaryMmaWarps) < p.teams;
    if (turns) {
      if (warp < kSummaryMmaWarps && threadIdx.x % 32U == 0) {
        store_word(taken, warps / kSummaryMmaWarps);
      }
      __syncthreads();
    }
    wait_for_previous_kernel();
    let_next_kernel_begin();
    uint32_t turn = warp / kSummaryMmaWarps;
#pragma unroll 1
    while (turn * gridDim.x + blockIdx.x < p.teams) {
      summarise(turn, note);
      if (!turns) break;
      if (threadIdx.x % 32U == 0) turn = take_turn(taken);
      turn = __shfl_sync(kFullWarp, turn, 0);  // all have left the tiles
    }
  }
}

}  // namespace gmamba::cuda::scan
