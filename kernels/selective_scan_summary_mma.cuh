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
/// Ends    a state is left when exp(A * sum of delta) is below 2^-20 (kForgotten), a warp
///         stops when it has left all. What is dropped is 2^-20 of what was there, the polynomials
///         are within 1e-5, and x is a sum of two bf16 (16 bits): less than a hundredth of what
///         rounding activations to bf16 costs
/// Layout  warp: 16 channels x all states of one chunk. Lane 4 g + q prepares positions 2q, 2q + 1,
///         2q + 8, 2q + 9 of channels g and g + 8, which makes its values operands of the products
///         as they lie, and keeps states 8 k + 2q, 8 k + 2q + 1 of these channels. Windows come
///         into shared memory of the warp by asynchronous copies, three ahead; no barriers
/// Launch  one warp per (batch row, chunk, group of channels), channels fastest, 4 warps per block
/// Floor   memory as for the other kernel; issue: 440 slots per window and warp, 55 per
///         channel-position, 0.9 ms for 2^20 positions of 512 channels if all of them are walked
#pragma once

#include "kernels/scan_mma.cuh"
#include "kernels/selective_scan_summary.cuh"

namespace gmamba::cuda::scan {

constexpr int kSummaryMmaWarps = 4;
/// Rate of a state that is left: nothing of it is seen across any delta.
constexpr float kDropped = -1e30F;

template <int kStates, bool kGradient>
struct SummaryMmaShape {
  static constexpr int kRows = 16;
  static constexpr int kWidth = 16;
  static constexpr int kStages = 4;
  static constexpr int kArrays = kGradient ? 3 : 2;
  static constexpr int kTile = kRows * kWidth * 2;     // bytes of x, delta or z
  static constexpr int kTokens = kRows * kStates * 2;  // of w
  static constexpr int kStage = kArrays * kTile + kTokens;
  static constexpr int kBytes = kStages * kStage;  // of a warp
  static constexpr int kPieces = kStates / 8;      // of 16 bytes in a row of w
};

/// Where piece `piece` (of kPieces in a row, 16 bytes each) of a row lies, so that eight rows of
/// one piece lie in different banks.
template <int kPieces>
__device__ inline int banked(int row, int piece) {
  return row * kPieces + (piece ^ (row / (8 / kPieces) % kPieces));
}

/// exp(z) for |z| <= kReach as 1 + y (1 + kRatio[2] y (1 + kRatio[3] y ...)), y = kScale z, within
/// a relative error of 6e-6. The terms below kWide need x to 16 bits of mantissa. For any z, where
/// the window lies kFar times its own sum of delta from the start of the walk, the error is within
/// 1e-5 of what a position at the start adds: it grows as |z|^kTerms, and exp(A S) falls as
/// exp(-(2 kFar + 1) |z|).
struct Smooth3 {
  static constexpr int kTerms = 3, kWide = 2;
  static constexpr float kReach = 0.05F, kFar = 16.0F;
  static constexpr float kScale = 1.00031046F;
  static constexpr float kRatio[kTerms] = {1.0F, 1.0F, 0.499998004F / (kScale * kScale)};
};
struct Smooth4 {
  static constexpr int kTerms = 4, kWide = 3;
  static constexpr float kReach = 0.17F, kFar = 6.0F;
  static constexpr float kScale = 1.00001148F;
  static constexpr float kRatio[kTerms] = {1.0F, 1.0F, 0.500996654F / (kScale * kScale),
                                           0.16630359F / (0.500996654F * kScale)};
};
struct Smooth6 {
  static constexpr int kTerms = 6, kWide = 4;
  static constexpr float kReach = 0.70F, kFar = 2.0F;
  static constexpr float kScale = 0.999980807F;
  static constexpr float kRatio[kTerms] = {1.0F,
                                           1.0F,
                                           0.499864752F / (kScale * kScale),
                                           0.166824014F / (0.499864752F * kScale),
                                           0.0425979419F / (0.166824014F * kScale),
                                           0.00816303005F / (0.0425979419F * kScale)};
};

/// Values of 2 channels x 4 positions as the left operand of a product over 16 positions: the
/// nearest bf16, and (kLow) what is left of each, likewise.
struct LeftOperand {
  uint32_t high[4], low[4];
};
template <bool kLow>
__device__ inline LeftOperand left_operand(const float (&v)[2][4]) {
  LeftOperand out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float even = v[i % 2][i / 2 * 2];
    const float odd = v[i % 2][i / 2 * 2 + 1];
    out.high[i] = narrow_pair(even, odd);
    if constexpr (kLow) {
      out.low[i] = narrow_pair(even - __uint_as_float(out.high[i] << 16),
                               odd - __uint_as_float(out.high[i] & 0xffff0000U));
    }
  }
  return out;
}

/// The walk of one warp over one chunk: what it keeps from window to window.
template <int kStates>
struct SummaryWalk {
  static constexpr int kBlocks = kStates / 8;  // of states, as products give them
  float A[2][2 * kBlocks];     // rate * log2 e of channel g + 8 c, state i / 2 * 8 + 2q + i % 2
  float rate[2][2 * kBlocks];  // the same, zero once the state is left
  float h[2][2 * kBlocks];
  float behind[2] = {0.0F, 0.0F};   // sum of delta between the window and the start of the walk
  float fastest[2] = {0.0F, 0.0F};  // largest |rate| of a channel's states here
  unsigned active = 0;              // a bit per block of states

  /// Leaves the states whose decay over `gone` and what has been walked is small enough.
  __device__ void leave(const float (&gone)[2]) {
    active = 0;
    fastest[0] = fastest[1] = 0.0F;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      bool alive = false;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int i = 2 * k; i < 2 * k + 2; ++i) {
          if (A[c][i] * (gone[c] + behind[c]) < -kForgotten<bf16>) drop(c, i);
          // a rate that is NaN or infinite is no zero either
          alive |= !(rate[c][i] == 0.0F && A[c][i] == kDropped);
          fastest[c] = fmaxf(fastest[c], fabsf(rate[c][i]));
        }
      }
      active |= __any_sync(kFullWarp, alive) ? 1U << k : 0U;
    }
  }
  /// True when exp may be Smooth's polynomial for all channels of the warp over a window with sums
  /// of delta `total`.
  template <class Smooth>
  __device__ bool smooth(const float (&total)[2]) const {
    constexpr float kLargest = 1e4F;  // beyond, powers could leave the range of numbers
    bool fits = true;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      // the largest |A s| of the states that matter, at either end of the window
      const float reach = fastest[c] * total[c] * (0.5F * kLn2);
      const bool far = behind[c] >= Smooth::kFar * total[c] && reach <= kLargest;
      fits = fits && (reach <= Smooth::kReach || far);
    }
    return __all_sync(kFullWarp, fits);
  }
  __device__ void drop(int c, int i) { A[c][i] = kDropped, rate[c][i] = 0.0F; }

  /// Adds a window by a polynomial. `total` and `sum` are the sums of delta over it and between
  /// each position and where the walk enters it; w: the right operands of the window.
  template <class Smooth>
  __device__ void add_smooth(float (&x)[2][4], const float (&total)[2], const float (&sum)[2][4],
                             const uint32_t (&w)[kBlocks][2]) {
    constexpr float kUnit = kLn2 * Smooth::kScale;
    LeftOperand moments[Smooth::kTerms];
    moments[0] = left_operand<true>(x);
    float s[2][4];  // from the middle of the window
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[c][i] = fmaf(sum[c][i], kUnit, total[c] * (-0.5F * kUnit));
    }
    const auto next = [&]<int j>(std::integral_constant<int, j>) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[c][i] *= s[c][i];
      }
      moments[j] = left_operand<(j < Smooth::kWide)>(x);
    };
    [&]<int... j>(std::integer_sequence<int, j...>) {
      (next(std::integral_constant<int, j + 1>{}), ...);
    }
    (std::make_integer_sequence<int, Smooth::kTerms - 1>{});
    const float middle[2] = {fmaf(0.5F, total[0], behind[0]), fmaf(0.5F, total[1], behind[1])};
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      if (kBlocks > 1 && (active >> k & 1U) == 0) continue;
      float value[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      const auto add = [&]<int j>(std::integral_constant<int, j>) {
        const LeftOperand& m = moments[j];
        if constexpr (j < Smooth::kTerms - 1) {
          constexpr float kRatio = Smooth::kRatio[j + 1];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if constexpr (kRatio != 1.0F) value[i] *= kRatio;
            value[i] *= rate[i / 2][2 * k + i % 2];
          }
        }
        if constexpr (j < Smooth::kWide) {
          mma_k16(value, m.low[0], m.low[1], m.low[2], m.low[3], w[k]);
        }
        mma_k16(value, m.high[0], m.high[1], m.high[2], m.high[3], w[k]);
      };
      [&]<int... j>(std::integer_sequence<int, j...>) {
        (add(std::integral_constant<int, Smooth::kTerms - 1 - j>{}), ...);
      }
      (std::make_integer_sequence<int, Smooth::kTerms>{});
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& state = h[i / 2][2 * k + i % 2];
        state = fmaf(ex2(A[i / 2][2 * k + i % 2] * middle[i / 2]), value[i], state);
      }
    }
  }

  /// Adds a window position by position; `from` is the sum of delta between each and the start of
  /// the walk.
  __device__ void add_each(const float (&x)[2][4], const float (&from)[2][4],
                           const uint32_t (&w)[kBlocks][2], int q) {
    const LeftOperand parts = left_operand<true>(x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // positions 2q + i of the first half, 2q + i of the second
      const int at = i / 2 * 2;
      const uint32_t take = i % 2 == 0 ? 0x5410U : 0x7632U;
      const uint32_t left[2] = {__byte_perm(parts.high[at], parts.low[at], take),
                                __byte_perm(parts.high[at + 1], parts.low[at + 1], take)};
      uint32_t twice[kBlocks];
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) {
        twice[k] = __byte_perm(w[k][i / 2], 0, i % 2 == 0 ? 0x1010 : 0x3232);
      }
#pragma unroll
      for (int from_q = 0; from_q < 4; ++from_q) {
        const float sum[2] = {__shfl_sync(kFullWarp, from[0][i], from_q, 4),
                              __shfl_sync(kFullWarp, from[1][i], from_q, 4)};
#pragma unroll
        for (int k = 0; k < kBlocks; ++k) {
          float product[4];
          mma_k8(product, left, q == from_q ? twice[k] : 0U);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            float& state = h[n / 2][2 * k + n % 2];
            state = fmaf(ex2(A[n / 2][2 * k + n % 2] * sum[n / 2]), product[n], state);
          }
        }
      }
    }
  }
};

/// The sums of delta of two channels over a window: of all of it, and between each position and the
/// end of the window where the walk enters, without the position for states (which walk backwards),
/// with it for gradients.
template <bool kGradient>
__device__ inline void sum_deltas(const float (&d)[2][4], int q, float (&total)[2],
                                  float (&sum)[2][4]) {
  // of the lanes of a channel, those that the walk passes before this one
  const float other = (kGradient ? q % 2 == 1 : q % 2 == 0) ? 1.0F : 0.0F;
  const float others = (kGradient ? q >= 2 : q < 2) ? 1.0F : 0.0F;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float all[2];     // of eight positions
    float before[2];  // of those that other lanes have and the walk passes before
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float pair = d[c][2 * i] + d[c][2 * i + 1];
      const float beside = __shfl_xor_sync(kFullWarp, pair, 1);
      const float four = pair + beside;
      const float far = __shfl_xor_sync(kFullWarp, four, 2);
      all[i] = four + far;
      before[i] = fmaf(other, beside, others * far);
    }
    total[c] = all[0] + all[1];
    if constexpr (kGradient) {
      before[1] += all[0];
      sum[c][0] = before[0] + d[c][0];
      sum[c][1] = sum[c][0] + d[c][1];
      sum[c][2] = before[1] + d[c][2];
      sum[c][3] = sum[c][2] + d[c][3];
    } else {
      before[0] += all[1];
      sum[c][1] = before[0];
      sum[c][0] = before[0] + d[c][1];
      sum[c][3] = before[1];
      sum[c][2] = before[1] + d[c][3];
    }
  }
}

template <int kStates, bool kGradient, bool kGated, int kBlocksPerSm>
__global__ void __launch_bounds__(kSummaryMmaWarps * 32, kBlocksPerSm)
    scan_summary_mma_kernel(const SummaryArgs<bf16> p) {
  using S = SummaryMmaShape<kStates, kGradient>;
  using Walk = SummaryWalk<kStates>;
  constexpr int kBlocks = Walk::kBlocks;
  extern __shared__ __align__(16) unsigned char summary_shared[];

  if (p.mma != nullptr && *p.mma == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const int groups = (p.d_inner + S::kWidth - 1) / S::kWidth;
  int64_t unit = static_cast<int64_t>(blockIdx.x) * kSummaryMmaWarps + warp;
  const int first = static_cast<int>(unit % groups) * S::kWidth;
  unit /= groups;
  const int piece = static_cast<int>(unit % p.count);
  unit /= p.count;
  const int64_t chunk = (unit % p.stretches + p.first_stretch) * p.stretch + p.from + piece;
  const int64_t b = unit / p.stretches;
  if (b >= p.batch || chunk >= p.chunks) return;
  const int64_t row = b * p.chunks + chunk;
  const int64_t begin = chunk * p.chunk_length;
  const int steps = static_cast<int>(min(p.length - begin, p.chunk_length));
  const int windows = (steps + S::kRows - 1) / S::kRows;

  Walk walk;
  float bias[2];
  float gone[2] = {0.0F, 0.0F};  // sum of delta over the pieces before this one
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int e = min(first + g + 8 * c, p.d_inner - 1);
    const bool exists = first + g + 8 * c < p.d_inner;
    bias[c] = p.bias == nullptr ? 0.0F : p.bias[e];
    for (int i = 0; i < p.from; ++i) {
      gone[c] += p.delta_sum[(row - piece - p.from + i) * p.d_inner + e];
    }
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i) {
      const int n = i / 2 * 8 + 2 * q + i % 2;
      walk.h[c][i] = 0.0F;
      if (exists && n < p.d_state) {
        walk.A[c][i] = walk.rate[c][i] = p.A[e * p.A_stride + n] * kLog2e;
      } else {
        walk.drop(c, i);
      }
    }
  }

  // copies: a lane has one piece of 16 bytes of x, delta and z, and kPieces / 2 of w
  const auto shared = shared_address(summary_shared + warp * S::kBytes);
  const int copy_row = lane / 2;
  const int copy_column = lane % 2 * 8;
  const bool copies = first + copy_column < p.d_inner;
  const uint32_t copy_at = shared + banked<2>(copy_row, lane % 2) * 16;
  constexpr int kBatches = (S::kPieces + 1) / 2;
  const int w_row = lane / S::kPieces;
  const int w_column = lane % S::kPieces * 8;
  const bool copies_w = w_row < S::kRows && w_column < p.d_state;
  const uint32_t w_at = shared + S::kArrays * S::kTile;
  const int64_t head = begin + (kGradient ? 0 : (windows - 1) * S::kRows);
  const auto rows_at = [&](const Rows<const bf16>& from) {
    return from.empty() ? nullptr : from.at(b, head + copy_row) + first + copy_column;
  };
  constexpr int64_t kStep = kGradient ? S::kRows : -S::kRows;
  const bf16* x_from = rows_at(p.x);
  const bf16* delta_from = rows_at(p.delta);
  const bf16* z_from = rows_at(p.z);
  const bf16* w_from = p.w.at(b, head);
  const int ragged = steps % S::kRows == 0 ? -1
                     : kGradient           ? windows - 1
                                           : 0;  // a window cut short
  int fetched = 0;
  uint32_t copy_stage = 0;  // in bytes
  const auto fetch = [&] {
    if (fetched < windows) {
      if (fetched != ragged && p.vectors.wide_tokens) {
        if (copies) {
          copy_async_or_zero<16>(copy_at + copy_stage, x_from, true);
          copy_async_or_zero<16>(copy_at + copy_stage + S::kTile, delta_from, true);
          if constexpr (kGated) {
            copy_async_or_zero<16>(copy_at + copy_stage + 2 * S::kTile, z_from, true);
          }
        }
        if (copies_w) {
#pragma unroll
          for (int i = 0; i < kBatches; ++i) {
            const int row = w_row + i * (32 / S::kPieces);
            copy_async_or_zero<16>(w_at + copy_stage + banked<S::kPieces>(row, w_column / 8) * 16,
                                   w_from + row * static_cast<int>(p.w.inner) + w_column, true);
          }
        }
      } else {
        const int rows = fetched == ragged ? steps % S::kRows : S::kRows;
        const bool there = copies && copy_row < rows;
        copy_async_or_zero<16>(copy_at + copy_stage, x_from, there);
        copy_async_or_zero<16>(copy_at + copy_stage + S::kTile, delta_from, there);
        if constexpr (kGated) {
          copy_async_or_zero<16>(copy_at + copy_stage + 2 * S::kTile, z_from, there);
        }
#pragma unroll 1
        for (int at = lane; at < S::kRows * S::kPieces * 2; at += 32) {  // pieces of 8 bytes
          const int row = at / (2 * S::kPieces);
          const int half = at % (2 * S::kPieces);
          copy_async_or_zero<8>(
              w_at + copy_stage + banked<S::kPieces>(row, half / 2) * 16 + half % 2 * 8,
              w_from + row * p.w.inner + half * 4, row < rows && half * 4 < p.d_state);
        }
      }
      x_from += kStep * p.x.inner;
      delta_from += kStep * p.delta.inner;
      if constexpr (kGated) z_from += kStep * p.z.inner;
      w_from += kStep * p.w.inner;
      copy_stage = copy_stage == (S::kStages - 1) * S::kStage ? 0 : copy_stage + S::kStage;
      ++fetched;
    }
    commit_copies();
  };
  // what the short way never writes
  for (int i = lane; i < S::kBytes / 16; i += 32) {
    reinterpret_cast<uint4*>(summary_shared + warp * S::kBytes)[i] = uint4{};
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) fetch();

  // where this lane's row of the operands lies
  const int operand_row = lane % 8 + lane / 16 * 8;
  const uint32_t x_operand = banked<2>(operand_row, lane / 8 % 2) * 16;

  uint32_t stage = shared;
#pragma unroll 1
  for (int i = 0; i < windows; ++i) {
    if (i % (i < 16 ? 4 : 16) == 0) {
      walk.leave(gone);
      if (walk.active == 0 && !p.exact_sum) break;
    }
    wait_for_copies<S::kStages - 2>();
    __syncwarp();
    fetch();
    const uint32_t at = stage;
    stage = stage == shared + (S::kStages - 1) * S::kStage ? shared : stage + S::kStage;
    uint32_t raw[4];
    load_matrices(raw, at + S::kTile + x_operand);
    float d[2][4];
    const auto widen = [&](const uint32_t(&from)[4], float(&to)[2][4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[j % 2][j / 2 * 2] = __uint_as_float(from[j] << 16);
        to[j % 2][j / 2 * 2 + 1] = __uint_as_float(from[j] & 0xffff0000U);
      }
    };
    widen(raw, d);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) d[c][j] = softplus<bf16>(d[c][j] + bias[c]);
    }
    if (i == ragged) {  // positions that don't exist take no time
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (2 * q + j % 2 + j / 2 * 8 >= steps % S::kRows) d[0][j] = d[1][j] = 0.0F;
      }
    }
    float total[2];
    float sum[2][4];
    sum_deltas<kGradient>(d, q, total, sum);
    if (walk.active != 0) {
      float x[2][4];
      load_matrices(raw, at + x_operand);
      widen(raw, x);
      if constexpr (kGated) {
        float z[2][4];
        load_matrices(raw, at + 2 * S::kTile + x_operand);
        widen(raw, z);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) x[c][j] *= z[c][j] * sigmoid(z[c][j]);
        }
      }
      if constexpr (!kGradient) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) x[c][j] *= d[c][j];
        }
      }
      uint32_t w[kBlocks][2];
      const uint32_t tokens = at + S::kArrays * S::kTile;
      if constexpr (kBlocks == 1) {
        load_matrices(w[0], tokens + banked<1>(lane % 16, 0) * 16);
      } else {
#pragma unroll
        for (int k = 0; k < kBlocks; k += 2) {
          load_matrices(raw, tokens + banked<S::kPieces>(operand_row, k + lane / 8 % 2) * 16);
          w[k][0] = raw[0], w[k + 1][0] = raw[1], w[k][1] = raw[2], w[k + 1][1] = raw[3];
        }
      }
      if (walk.template smooth<Smooth3>(total)) {
        walk.template add_smooth<Smooth3>(x, total, sum, w);
      } else if (walk.template smooth<Smooth4>(total)) {
        walk.template add_smooth<Smooth4>(x, total, sum, w);
      } else if (walk.template smooth<Smooth6>(total)) {
        walk.template add_smooth<Smooth6>(x, total, sum, w);
      } else {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[c][j] += walk.behind[c];
        }
        walk.add_each(x, sum, w, q);
      }
    }
    walk.behind[0] += total[0];
    walk.behind[1] += total[1];
  }
  wait_for_copies<0>();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int e = first + g + 8 * c;
    if (e >= p.d_inner) continue;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      const int n = k * 8 + 2 * q;
      if (n >= p.d_state) continue;
      const float pair[2] = {walk.h[c][2 * k], walk.h[c][2 * k + 1]};
      store_shared(p.state.at(row, e) + n, pair);
    }
    if (q == 0) p.delta_sum[row * p.d_inner + e] = walk.behind[c];
  }
}

}  // namespace gmamba::cuda::scan
