// SPDX-License-Identifier: Apache-2.0
/// Where the arrays of scan_backward_mma_kernel lie in shared memory, and which of their elements a
/// lane reads and writes in each phase of a tile.
#pragma once

#include "kernels/scan_mma.cuh"
#include "kernels/selective_scan_backward_args.cuh"

namespace gmamba::cuda::scan {

/// Where the arrays of a block lie in shared memory, in words of 4 bytes. kApart: warps that have
/// all they need brought for themselves, by the copy unit, and wait for each other only where they
/// add up dB and dC, a tile behind; for 8 states, with more of them there is no room for that.
template <int kStates, bool kApart = false>
struct MmaShape {
  static_assert(!kApart || kStates == 8);
  static constexpr int kTile = 16;                                 // positions
  static constexpr int kSubs = kStates == 8 ? 2 : 1;               // times 16 channels
  static constexpr int kSplit = kStates <= 16 ? 1 : kStates / 16;  // warps of a channel
  static constexpr int kGroups = kBackwardWarps / kSplit;
  static constexpr int kWidth = 16 * kSubs;  // channels of a warp
  static constexpr int kBlockWidth = kGroups * kWidth;
  static constexpr int kWarpStates = kStates / kSplit;
  static constexpr int kWindows = kTile / kWindow;
  static constexpr int kArray = kTile * kWidth;  // one value per position and channel

  // of a warp; what all warps of a group of channels share lies with the first of them
  static constexpr int kDelta = 0;
  static constexpr int kSig = kArray;    // sigmoid(z)
  static constexpr int kX = 2 * kArray;  // delta u, split
  static constexpr int kG = 3 * kArray;  // dy silu(z), split
  static constexpr int kY = 4 * kArray;  // sum C h
  // sum B dh, and sum A w with A times log2(e): behind a window, where x and g no longer are needed
  // unless other warps still read them
  static constexpr int kS1 = kSplit == 1 ? kX : 5 * kArray;
  static constexpr int kS2 = kSplit == 1 ? kG : 6 * kArray;
  static constexpr int kSlots = (kSplit == 1 ? 5 : 7) * kArray;  // states before windows 1.., 0, 0
  static constexpr int kSums = kSlots + (kWindows + 1) * 256;    // dB and dC of the warp
  static constexpr int kSumsWords = kTile * 2 * kWarpStates;
  static constexpr int kParameters =
      kSums + (kApart ? 2 : 1) * kSumsWords;               // dD, dbias: [2][32][4]
  static constexpr int kChannels = kParameters + 256;      // delta bias and D
  static constexpr int kOffsets = kChannels + 2 * kWidth;  // of a lane's saved states: [32][2]
  static constexpr int kWarpWords = kOffsets + 64;
  // for each of two stages, of the block or of every warp: u, delta, dy, z, then B and C
  static constexpr int kRawWidth = kApart ? kWidth : kBlockWidth;
  static constexpr int kRaw = kTile * kRawWidth / 2;
  static constexpr int kRawBC = kTile * kStates / 2;
  static constexpr int kPartWords = 4 * kRaw + 2 * kRawBC;
  static constexpr int kStageWords = (kApart ? kBackwardWarps : 1) * kPartWords;

  static constexpr int kStagesFrom = kBackwardWarps * kWarpWords;
  static constexpr int kBasesFrom = kStagesFrom + 2 * kStageWords;  // addresses of a chunk's rows
  static constexpr int kTurn = kBasesFrom + 30;  // where warps wait for each other: an mbarrier
  static constexpr int kCome = kBasesFrom + 32;  // and for either stage: [warps][2]
  static constexpr int kEnd = kApart ? kCome + 4 * kBackwardWarps : kCome;
  static constexpr int kBytes = (kEnd + 31) / 32 * 128;
  static_assert(!kApart || (kWarpWords % 32 == 0 && kPartWords % 32 == 0 && kRawBC % 32 == 0),
                "tiles lie on 128 bytes");

  /// Column `c` of row `t` of an array of kColumns words, turned so that four rows are read without
  /// conflicts of banks, 8 words of each.
  template <int kColumns>
  static __device__ int at(int t, int c) {
    return t * kColumns + (c ^ (kColumns == 16 ? (t & 2) * 4 : (t & 3) * 8));
  }
  /// The same for pieces of 16 bytes of raw rows, of which a warp reads kWidth / 8 neighbours.
  static __device__ int raw_piece(int t, int piece) {
    if constexpr (kApart) return t * (kWidth / 8) + piece % (kWidth / 8);
    constexpr int kPieces = kBlockWidth / 8;
    constexpr int kRowsPerLine = kPieces < 8 ? 8 / kPieces : 1;
    constexpr int kTurns = (kPieces < 8 ? kPieces : 8) / (kWidth / 8);
    return t * kPieces + (piece ^ (t / kRowsPerLine % kTurns * (kWidth / 8)));
  }
};

template <int kCount>
__device__ inline void load_words(const uint32_t* from, uint32_t (&to)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  if constexpr (kCount == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else if constexpr (kCount == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = v.x, to[1] = v.y;
  } else {
    to[0] = *from;
  }
}

/// Where a lane reads the operands of a window and leaves results; windows follow each other by
/// constants.
template <int kStates, bool kApart>
struct MmaOperands {
  using S = MmaShape<kStates, kApart>;
  static constexpr int kParts = S::kSubs == 1 ? 2 : 1;  // quads that differ in their states
  static constexpr int kRows = kWindow * kStates / 2;   // from window to window of B and C
  static constexpr int kNext = kWindow * S::kWidth;     // of arrays over channels

  const uint32_t* of_group;   // channels 2g, 2g+1 of position q
  float* of_warp;             // the same
  const uint32_t* channels4;  // channels 4q..4q+3 of position g / 2
  const float* delta;         // channels 2g, 2g+1 of the first position
  const uint32_t* states;     // of position q: those of column g
  const uint32_t* states4;    // of position g / 2: those of q
  float* sums;                // of position q: those of column g
  int half_q, half_g;         // to the other half of a row, turned for position q or g / 2
  unsigned twice, halves;     // how bytes are picked

  __device__ MmaOperands(uint32_t* group_words, uint32_t* warp_words, const uint32_t* B,
                         int sums_from, int lane) {
    const int g = lane / 4;
    const int q = lane % 4;
    const int outer = S::template at<S::kWidth>(q, 2 * g);
    of_group = group_words + outer;
    of_warp = reinterpret_cast<float*>(warp_words) + outer;
    channels4 = group_words + S::template at<S::kWidth>(g >> 1, 4 * q);
    delta = reinterpret_cast<const float*>(group_words + S::kDelta) + 2 * g;
    states = B + q * (kStates / 2) + (g >> 1) * kParts;
    states4 = B + (g >> 1) * (kStates / 2) + q * kParts;
    sums = reinterpret_cast<float*>(warp_words + sums_from) +
           S::template at<2 * S::kWarpStates>(q, kStates == 8 ? g : 2 * g);
    half_q = q < 2 ? 16 : -16;
    half_g = g < 4 ? 16 : -16;
    twice = (g & 1) != 0 ? 0x3232 : 0x1010;
    halves = (g & 1) != 0 ? 0x7632 : 0x5410;
  }
  __device__ void advance(int windows) {
    of_group += windows * kNext;
    of_warp += windows * kNext;
    channels4 += windows * kNext;
    delta += windows * kNext;
    states += windows * kRows;
    states4 += windows * kRows;
    sums += windows * kWindow * 2 * S::kWarpStates;
  }

  /// Left operand of an outer product: x or g of channels 2g, 2g+1 of position q.
  __device__ void outer(int array, uint32_t (&to)[S::kSubs][2]) const {
#pragma unroll
    for (int i = 0; i < S::kSubs; ++i) load_words(of_group + array + i * half_q, to[i]);
  }
  /// Right operand of an outer product: column g of B or C of position q, twice.
  __device__ void column(int array, uint32_t (&to)[kParts]) const {
    uint32_t v[kParts];
    load_words(states + array, v);
#pragma unroll
    for (int i = 0; i < kParts; ++i) to[i] = __byte_perm(v[i], 0, twice);
  }
  /// Right operand of a sum over states: B or C of position g / 2.
  __device__ void row(int array, uint32_t (&to)[kParts]) const { load_words(states4 + array, to); }
  /// Right operand of a sum over channels: x or g of position g / 2, high parts in even columns and
  /// low parts in odd ones.
  __device__ void weights(int array, uint32_t (&to)[S::kSubs][2]) const {
#pragma unroll
    for (int i = 0; i < S::kSubs; ++i) {
      uint32_t v[4];
      load_words(channels4 + array + i * half_g, v);
      to[i][0] = __byte_perm(v[0], v[2], halves);
      to[i][1] = __byte_perm(v[1], v[3], halves);
    }
  }
  __device__ void deltas(int position, float (&to)[S::kSubs][2]) const {
#pragma unroll
    for (int i = 0; i < S::kSubs; ++i) load_shared(delta + position * S::kWidth + i * 16, to[i]);
  }
  __device__ void store(int array, const float (&values)[S::kSubs][2]) const {
#pragma unroll
    for (int i = 0; i < S::kSubs; ++i) store_shared(of_warp + array + i * half_q, values[i]);
  }
  /// Sums over channels: dB (0) or dC (1).
  __device__ void store_sums(int which, const float (&values)[2]) const {
    if constexpr (kStates == 8) {
      sums[which * half_q / 2] = values[0];
    } else {
      store_shared(sums + which * half_q, values);
    }
  }
};

/// Quads of a lane in shared memory: 4 words of the first channels of both, then of the second.
__device__ inline void load_quads(const float* from, float (&to)[2][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float v[4];
    load_shared(from + i * 128, v);
    to[0][2 * i] = v[0], to[0][2 * i + 1] = v[1], to[1][2 * i] = v[2], to[1][2 * i + 1] = v[3];
  }
}
/// The same from the states of 32 channels in order, 8 of each.
__device__ inline void load_quads_in_order(const float* from, int lane, float (&to)[2][4]) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float v[2];
      load_shared(from + (k * 16 + lane / 4 * 2 + i) * 8 + lane % 4 * 2, v);
      to[k][2 * i] = v[0], to[k][2 * i + 1] = v[1];
    }
  }
}
__device__ inline void store_quads(float* to, const float (&from)[2][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float v[4] = {from[0][2 * i], from[0][2 * i + 1], from[1][2 * i], from[1][2 * i + 1]};
    store_shared(to + i * 128, v);
  }
}

/// Where a lane prepares and finishes positions: four channels from `quad` of its group's, of
/// position `first` and of those kAtOnce further on.
template <int kStates, bool kApart>
struct MmaRounds {
  using S = MmaShape<kStates, kApart>;
  static constexpr int kQuads = S::kWidth / 4;
  static constexpr int kAtOnce = 32 * S::kSplit / kQuads;
  static constexpr int kCount = kAtOnce < S::kTile ? S::kTile / kAtOnce : 1;
  // from round to round in words; turns repeat within the rows of a round
  static constexpr int kNext = kAtOnce * S::kWidth;
  static constexpr int kNextRaw = kAtOnce * S::kRawWidth / 2;

  int group, first, quad, at, turned_at, raw_at;

  __device__ explicit MmaRounds(int thread) {
    const int in_group = thread % (32 * S::kSplit);
    group = thread / (32 * S::kSplit);
    quad = in_group % kQuads * 4;
    first = in_group / kQuads;
    at = first * S::kWidth + quad;
    turned_at = S::template at<S::kWidth>(first, quad);
    raw_at = (kApart ? group * S::kPartWords : 0) +
             S::raw_piece(first, (group * S::kWidth + quad) / 8) * 4 + quad % 8 / 2;
  }
  /// The group's region of a block's words.
  __device__ uint32_t* region(uint32_t* words) const {
    return words + group * S::kSplit * S::kWarpWords;
  }
  __device__ bool active() const { return kAtOnce <= S::kTile || first < S::kTile; }
  __device__ void raw(const uint32_t* array, int round, float (&to)[4]) const {
    const uint32_t* const from = array + raw_at + round * kNextRaw;
    reinterpret_cast<const Packed<bf16, 4>*>(from)->widen(to);
  }
};

}  // namespace gmamba::cuda::scan
