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
  __device__ explicit Steps(const View<T, 3>& view)
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
  bool fresh = true;  // nothing of the sequence came before in this block; else l grew by kTile

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
    if (!extra && left > 1 && l + kTile < length) {
      left -= 1;
      l += kTile;
      fresh = false;
      return;
    }
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

/// Copies the rows of one round after the other into stages. Rows of x and dy lie as pieces of 32
/// bytes (the channels of a warp), rows of dprojected as pieces of 16, exchanged by row so that the
/// rows which a warp reads at once are in different banks. Rows and channels that do not exist
/// become zeros; their addresses are formed but not read. A thread has the same piece of every 16th
/// row; its addresses go along with the rounds, since finding them anew would take a fifth of all
/// instructions.
class Fetch {
 public:
  __device__ explicit Fetch(const Problem& p)
      : round_(p),
        row_(static_cast<int>(threadIdx.x) / kPieces),
        piece_(static_cast<int>(threadIdx.x) % kPieces) {
    place(p);
  }

  /// Starts copying the next round, if there is one, into the stage at that address.
  __device__ void next(const Problem& p, uint32_t stage) {
    if (!round_.exists()) return;
    if (round_.l > 0 && !round_.extra && round_.l + kTile <= p.length) {
      copy<true>(p, stage);
    } else {
      copy<false>(p, stage);
    }
    round_.advance(p.length);
    if (round_.fresh) {
      place(p);
    } else {
      x_ += static_cast<int64_t>(kTile) * Steps(p.x).row;
      dy_ += static_cast<int64_t>(kTile) * Steps(p.dy).row;
      dprojected_ += static_cast<int64_t>(kTile) * projected_row(p);
    }
  }

 private:
  static constexpr int kPieces = kWide / 16;
  static constexpr int kStep = kThreads / kPieces;  // rows that the block copies at a time
  static_assert(kWide == kNarrow && kTile == 2 * kStep && kStep == 16);

  __device__ static int projected_row(const Problem& p) {
    return static_cast<int>(p.dprojected.stride[0]) * 2;
  }
  __device__ int channel() const { return static_cast<int>(blockIdx.x) * kSlice + piece_ * 8; }
  __device__ void place(const Problem& p) {
    const int l = round_.l + row_;
    x_ = reinterpret_cast<const char*>(p.x.data + channel()) + Steps(p.x).to(round_.b, l - kBefore);
    dy_ = reinterpret_cast<const char*>(p.dy.data + channel()) + Steps(p.dy).to(round_.b, l);
    dprojected_ = reinterpret_cast<const char*>(p.dprojected.data + piece_ * 8) +
                  (static_cast<int64_t>(round_.b) * p.length + l) * projected_row(p);
  }

  /// kWhole: all rows exist.
  template <bool kWhole>
  __device__ void copy(const Problem& p, uint32_t stage) const {
    const int limit = min(p.length, round_.end(p.length) + kBefore);
    const auto inside = [&](int row) {
      return kWhole || (round_.l + row >= 0 && round_.l + row < limit);
    };
    const bool there = channel() < p.width;
    const uint32_t wide = stage + row_ * kWide + ((piece_ ^ (row_ / 4 * 2)) * 16);
#pragma unroll
    for (int i = 0; i < kTile + kBefore; i += kStep) {
      if (i >= kTile && row_ >= kBefore) continue;
      tiles::copy_16_or_zeros(wide + i * kWide, x_ + static_cast<int64_t>(i) * Steps(p.x).row,
                              there && inside(row_ + i - kBefore));
    }
#pragma unroll
    for (int i = 0; i < kTile; i += kStep) {
      tiles::copy_16_or_zeros(wide + kDyPlace + i * kWide,
                              dy_ + static_cast<int64_t>(i) * Steps(p.dy).row,
                              there && inside(row_ + i));
    }
    const uint32_t narrow = stage + kProjectedPlace + row_ * kNarrow;
#pragma unroll
    for (int i = 0; i < kTile; i += kStep) {
      tiles::copy_16_or_zeros(narrow + i * kNarrow + ((piece_ ^ (row_ / 4 + i / 4)) * 16),
                              dprojected_ + static_cast<int64_t>(i) * projected_row(p),
                              piece_ * 8 < p.outputs && inside(row_ + i));
    }
  }

  Round round_;
  int row_, piece_;
  const char *x_, *dy_, *dprojected_;
};

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

  /// Writes the fragments B of dprojected times the matrix; only this lane reads them again. Two
  /// neighbouring bf16 of a fragment are of rows p and p + 1, in the order of the summed index.
  __device__ void keep_matrix(const Problem& p, char* shared) const {
    const int first = channel - 4 * t + g / 2 * 4;  // of 4 channels, two of which are the lane's
    const auto channels = [&](int row) {
      return first < p.width && row < p.outputs
                 ? *reinterpret_cast<const uint2*>(p.projection.at(row, first))
                 : uint2{};
    };
    const uint32_t halves = g % 2 == 0 ? 0x5410 : 0x7632;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int row = s * 16 + 2 * t;
      const uint2 a = channels(row), b = channels(row + 1);
      const uint2 c = channels(row + 8), d = channels(row + 9);
      *reinterpret_cast<uint2*>(shared + fragment(s, 0)) =
          make_uint2(__byte_perm(a.x, b.x, halves), __byte_perm(c.x, d.x, halves));
      *reinterpret_cast<uint2*>(shared + fragment(s, 1)) =
          make_uint2(__byte_perm(a.y, b.y, halves), __byte_perm(c.y, d.y, halves));
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
