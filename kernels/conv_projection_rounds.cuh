// SPDX-License-Identifier: Apache-2.0
/// What the backward kernel of convolution and projection walks over: its rounds, what they bring
/// to shared memory and where it lies there, and what a lane keeps from round to round.
#pragma once

#include "kernels/cuda_tiles.cuh"

namespace gmamba::cuda::conv_backward {

constexpr int kTaps = 4;
constexpr int kBefore = kTaps - 1;
constexpr int kTile = 32;  // positions of a round
constexpr int kRows = 4;   // of them of a lane
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kWarpChannels = 16;
constexpr int kSlice = kWarps * kWarpChannels;  // channels of a block
constexpr int kMostOutputs = 64;

// A stage, in bytes: rows of x, rows of dy, rows of dprojected.
constexpr int kWide = kSlice * 2;
constexpr int kNarrow = kMostOutputs * 2;
constexpr int kDyPlace = (kTile + kBefore) * kWide;
constexpr int kProjectedPlace = kDyPlace + kTile * kWide;
constexpr int kStage = kProjectedPlace + kTile * kNarrow;
constexpr int kStages = 4;
// after the stages: taps and bias by channel, and gradients that lanes hand to others
constexpr int kTapsPlace = kStages * kStage;
constexpr int kCarryPlace = kTapsPlace + (kTaps + 1) * kSlice * 4;
constexpr int kGroups = 8;  // of lanes: the values of g
// (one of 7 groups, or the carried ones of two pairs and two rounds; row; t) of two floats
constexpr int kCarryOfWarp = (kGroups - 1 + 4) * kBefore * 4 * 8;
// and the matrix as fragments: (warp, 16 outputs, pair of channels, lane) of two registers
constexpr int kMatrixPlace = kCarryPlace + kWarps * kCarryOfWarp;
constexpr int kFragment = kWarp * 8;
constexpr int kSharedBytes = kMatrixPlace + kWarps * kMostOutputs / 16 * 2 * kFragment;

struct Problem {
  View<const bf16, 3> x;           // (B, L, E)
  View<const bf16, 3> dy;          // (B, L, E)
  View<const bf16, 2> dprojected;  // (B L, P)
  View<const bf16, 2> projection;  // (P, E)
  View<const float, 3> tail_in;    // (B, 3, E) or empty
  View<const float, 3> dtail_out;  // (B, 3, E) or empty
  const float* weight;             // (E, 4)
  const float* bias;               // (E) or null
  View<bf16, 3> dx;                // (B, L, E)
  View<float, 3> dtail_in;         // (B, 3, E) or empty
  float* dweight;                  // (workers, E, 4) partials
  float* dbias;                    // (workers, E) partials
  float* dprojection;              // (workers, P, E) partials
  int length, width, outputs;      // L, E, P
  int tiles;                       // in all
  int tiles_of_sequence;
};

/// Bytes from sequence to sequence and from row to row.
struct Steps {
  int64_t sequence;
  int row;

  template <class T>
  __device__ Steps(const View<T, 3>& view)
      : sequence(view.stride[0] * static_cast<int64_t>(sizeof(T))),
        row(static_cast<int>(view.stride[1]) * static_cast<int>(sizeof(T))) {}
  __device__ int64_t to(int b, int l) const { return b * sequence + static_cast<int64_t>(l) * row; }
};

/// The rounds of a block, one after the other: its tiles, and after the last one of a sequence or
/// of the block an extra round where dx is not yet complete. A round stands for positions [l, l +
/// 32) of sequence b. Positions of a sequence fit 32 bits here.
struct Round {
  int b, l;
  int left;  // tiles of the block that begin at l or later
  bool extra = false;
  bool fresh = true;  // nothing of the sequence came before in this block

  __device__ Round(const Problem& p) {
    const int blocks = static_cast<int>(gridDim.y);
    const int block = static_cast<int>(blockIdx.y);
    const int more = p.tiles % blocks;  // so many blocks have one tile more than the others
    const int first = p.tiles / blocks * block + min(block, more);
    left = p.tiles / blocks + (block < more ? 1 : 0);
    b = first / p.tiles_of_sequence;
    l = (first - b * p.tiles_of_sequence) * kTile;
  }
  __device__ bool exists() const { return left > 0 || extra; }
  /// End of the block's part of the sequence: dx before it is the block's.
  __device__ int end(int length) const { return min(length, l + (extra ? 0 : left * kTile)); }
  __device__ void advance(int length) {
    const bool last = left == 1 || l + kTile >= length;
    const bool continues = !extra && last && end(length) - l > kTile - kBefore;
    left -= extra ? 0 : 1;
    l += extra ? 0 : kTile;
    extra = continues;
    fresh = !extra && l >= length;
    if (fresh) {
      b += 1;
      l = 0;
    }
  }
};

/// Starts copying the rows of a round into a stage. Rows of x and dy lie as pieces of 32 bytes
/// (the channels of a warp), rows of dprojected as pieces of 16, exchanged by row so that the rows
/// which a warp reads at once are in different banks. Rows and channels that do not exist become
/// zeros; their addresses are formed but not read.
__device__ inline void fetch(const Problem& p, const Round& round, uint32_t stage) {
  constexpr int kPieces = kWide / 16;
  constexpr int kStep = kThreads / kPieces;  // rows that the block copies at a time
  const int limit = min(p.length, round.end(p.length) + kBefore);
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kPieces;
  const int piece = thread % kPieces;
  const int channel = static_cast<int>(blockIdx.x) * kSlice + piece * 8;
  const bool there = channel < p.width;
  const uint32_t to = stage + row * kWide + ((piece ^ (row / 4 % 4 * 2)) * 16);
  const int l = round.l + row;
  const Steps x_steps(p.x);
  const char* const x =
      reinterpret_cast<const char*>(p.x.data + channel) + x_steps.to(round.b, l - kBefore);
#pragma unroll
  for (int i = 0; i < kTile + kBefore; i += kStep) {
    const int at = l - kBefore + i;
    if (row + i < kTile + kBefore) {
      tiles::copy_16_or_zeros(to + i * kWide, x + static_cast<int64_t>(i) * x_steps.row,
                              there && at >= 0 && at < limit);
    }
  }
  const Steps dy_steps(p.dy);
  const char* const dy =
      reinterpret_cast<const char*>(p.dy.data + channel) + dy_steps.to(round.b, l);
#pragma unroll
  for (int i = 0; i < kTile; i += kStep) {
    tiles::copy_16_or_zeros(to + kDyPlace + i * kWide, dy + static_cast<int64_t>(i) * dy_steps.row,
                            there && l + i < limit);
  }
  constexpr int kNarrowStep = kThreads * 16 / kNarrow;
  static_assert(kTile % kNarrowStep == 0 && kStep % 16 == 0);
  const int output = thread % (kNarrow / 16) * 8;
#pragma unroll
  for (int i = thread / (kNarrow / 16); i < kTile; i += kNarrowStep) {
    const int64_t at = static_cast<int64_t>(round.b) * p.length + round.l + i;
    tiles::copy_16_or_zeros(
        stage + kProjectedPlace + i * kNarrow + ((output / 8 ^ (i / 4 % 8)) * 16),
        p.dprojected.data + at * p.dprojected.stride[0] + output,
        round.l + i < limit && output < p.outputs);
  }
}

/// Two neighbouring bf16 in the order of the summed index, from rows p and p + 1 of the matrix.
__device__ inline uint32_t matrix_pair(const Problem& p, int row, int channel) {
  const bool there = channel < p.width;
  const auto value = [&](int i) -> uint32_t {
    return there && i < p.outputs ? p.projection.at(i, channel)->bits : 0;
  };
  return value(row) | value(row + 1) << 16;
}

/// What a lane keeps over all rounds. Its channels come in two pairs.
template <int kOutputs>
struct Lane {
  static constexpr int kSteps = kOutputs / 16;  // of the products along the outputs
  int lane, warp, g, t;
  int channel;  // the first of 4
  float dprojection[kSteps][2][4] = {};
  float dweight[2][kTaps][2] = {};
  float dbias[2][2] = {};

  __device__ Lane()
      : lane(static_cast<int>(threadIdx.x) % kWarp),
        warp(static_cast<int>(threadIdx.x) / kWarp),
        g(lane / 4),
        t(lane % 4) {
    channel = static_cast<int>(blockIdx.x) * kSlice + warp * kWarpChannels + 4 * t;
  }

  /// Writes the fragments B of dprojected times the matrix; only this lane reads them again.
  __device__ void keep_matrix(const Problem& p, char* shared) const {
    const int first = channel - 4 * t + g / 2 * 4 + g % 2;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        *reinterpret_cast<uint2*>(shared + fragment(s, pair)) =
            make_uint2(matrix_pair(p, s * 16 + 2 * t, first + pair * 2),
                       matrix_pair(p, s * 16 + 2 * t + 8, first + pair * 2));
      }
    }
  }
  __device__ int fragment(int step, int pair) const {
    return kMatrixPlace + ((warp * kSteps + step) * 2 + pair) * kFragment + lane * 8;
  }

  /// Address of this lane's row of the four matrices that hold 16 outputs of rows 2 j (first and
  /// third matrix) and 2 j + 1 of all g.
  __device__ uint32_t projected_rows(uint32_t stage, int j, int step) const {
    const int row = lane % 8 * 4 + lane / 8 % 2 + 2 * j;
    const int piece = (step * 2 + lane / 16) ^ (lane % 8);
    return stage + kProjectedPlace + row * kNarrow + piece * 16;
  }
  /// The same for their transposes, the second matrix exchanged with the third.
  __device__ uint32_t transposed_rows(uint32_t stage, int j, int step) const {
    const int row = lane % 8 * 4 + lane / 16 + 2 * j;
    const int piece = (step * 2 + lane / 8 % 2) ^ (lane % 8);
    return stage + kProjectedPlace + row * kNarrow + piece * 16;
  }
  /// Bytes from the start of x or dy to this lane's 4 channels of row 4 g + i.
  __device__ uint32_t wide_row(int i) const {
    return (g * kRows + i) * kWide + ((warp ^ (g + i / 4) % 4) * 32) + t * 8;
  }
};

}  // namespace gmamba::cuda::conv_backward
