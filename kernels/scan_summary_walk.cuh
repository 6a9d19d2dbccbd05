// SPDX-License-Identifier: Apache-2.0
/// How a warp of the summary on tensor cores adds a window of 16 positions to its states: the
/// polynomials that stand for exp, the operands of the products, and the walk from window to
/// window. selective_scan_summary_mma.cuh says what they are for and how lanes share the work.
#pragma once

#include "kernels/scan_mma.cuh"
#include "kernels/selective_scan_summary.cuh"

namespace gmamba::cuda::scan {

/// Rate of a state that is left: nothing of it is seen across any delta.
constexpr float kDropped = -1e30F;

/// exp(z) for |z| <= kReach as 1 + y (1 + kRatio[2] y (1 + kRatio[3] y ...)), y = kScale z, within
/// a relative error of 2e-5. The terms below kWide need x to 16 bits of mantissa. For any z, where
/// the window lies kFar times its own sum of delta from the start of the walk, the error is within
/// 2e-5 of what a position at the start adds: it grows as |z|^kTerms, and exp(A S) falls as
/// exp(-(2 kFar + 1) |z|). That is at the worst rate and distance.
/// Smooth2 is for windows that are Smooth3's too.
struct Smooth2 {
  static constexpr int kTerms = 2, kWide = 1;
  static constexpr float kReach = 0.006F, kFar = 58.0F;
  static constexpr float kScale = 1.0F;
  static constexpr float kRatio[kTerms] = {1.0F, 1.0F};
};
struct Smooth3 {
  static constexpr int kTerms = 3, kWide = 2;
  static constexpr float kReach = 0.06F, kFar = 10.5F;
  static constexpr float kScale = 1.00031046F;
  static constexpr float kRatio[kTerms] = {1.0F, 1.0F, 0.499998004F / (kScale * kScale)};
};
struct Smooth4 {
  static constexpr int kTerms = 4, kWide = 2;
  static constexpr float kReach = 0.19F, kFar = 4.5F;
  static constexpr float kScale = 1.00001148F;
  static constexpr float kRatio[kTerms] = {1.0F, 1.0F, 0.500996654F / (kScale * kScale),
                                           0.16630359F / (0.500996654F * kScale)};
};
struct Smooth6 {
  static constexpr int kTerms = 6, kWide = 4;
  static constexpr float kReach = 0.73F, kFar = 1.75F;
  static constexpr float kScale = 0.999980807F;
  static constexpr float kRatio[kTerms] = {1.0F,
                                           1.0F,
                                           0.499864752F / (kScale * kScale),
                                           0.166824014F / (0.499864752F * kScale),
                                           0.0425979419F / (0.166824014F * kScale),
                                           0.00816303005F / (0.0425979419F * kScale)};
};

struct Smooth8 {
  static constexpr int kTerms = 8, kWide = 5;
  static constexpr float kReach = 0.88F, kFar = 1.08F;
  static constexpr float kScale = 1.0F;
  static constexpr float kRatio[kTerms] = {1.0F,     1.0F,     1 / 2.0F, 1 / 3.0F,
                                           1 / 4.0F, 1 / 5.0F, 1 / 6.0F, 1 / 7.0F};
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
  static constexpr int kBlocks = kStates / 8;         // of states, as products give them
  static constexpr int kPair = kBlocks == 1 ? 1 : 2;  // blocks that are taken at once
  float A[2][2 * kBlocks];     // rate * log2 e of channel g + 8 c, state i / 2 * 8 + 2q + i % 2
  float rate[2][2 * kBlocks];  // the same, zero once the state is left
  float h[2][2 * kBlocks];
  float behind[2] = {0.0F, 0.0F};   // sum of delta between the window and the start of the walk
  float fastest[2] = {0.0F, 0.0F};  // largest |rate| of a channel's states here
  unsigned active = 0;              // a bit per block of states

  /// Leaves the states whose decay over what has been walked is small enough.
  __device__ void leave() {
    active = 0;
    fastest[0] = fastest[1] = 0.0F;
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      bool alive = false;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int i = 2 * k; i < 2 * k + 2; ++i) {
          if (A[c][i] * behind[c] < -kForgotten<bf16>) drop(c, i);
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

  /// Adds a window, or kHalves of them as one, by a polynomial. `total` and `sum` are the sums of
  /// delta over it and between each position and where the walk enters it; w: the right operands of
  /// the window.
  template <class Smooth, int kHalves>
  __device__ void add_smooth(float (&x)[kHalves][2][4], const float (&total)[2],
                             const float (&sum)[kHalves][2][4],
                             const uint32_t (&w)[kHalves][kBlocks][2]) {
    constexpr float kUnit = kLn2 * Smooth::kScale;
    float s[kHalves][2][4];  // from the middle of the window
#pragma unroll
    for (int i = 0; i < kHalves * 8; ++i) {
      const int c = i / 4 % 2;
      s[i / 8][c][i % 4] = fmaf(sum[i / 8][c][i % 4], kUnit, total[c] * (-0.5F * kUnit));
    }
    const float middle[2] = {fmaf(0.5F, total[0], behind[0]), fmaf(0.5F, total[1], behind[1])};
    if constexpr (Smooth::kTerms > 6) {
      add_in_turn<Smooth>(x[0], s[0], middle, w[0]);
      return;
    }
    LeftOperand moments[Smooth::kTerms][kHalves];
    const auto next = [&]<int j>(std::integral_constant<int, j>) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        if constexpr (j > 0) raise(x[half], s[half]);
        moments[j][half] = left_operand<(j < Smooth::kWide)>(x[half]);
      }
    };
    [&]<int... j>(std::integer_sequence<int, j...>) {
      (next(std::integral_constant<int, j>{}), ...);
    }
    (std::make_integer_sequence<int, Smooth::kTerms>{});
#pragma unroll
    for (int k = 0; k < kBlocks; k += kPair) {
      const unsigned pair = active >> k & 3U;
      if (kBlocks > kPair && pair == 0) continue;
      if (kPair == 1 || pair == 1) {
        add_products<Smooth, 1>(moments, middle, w, k);
      } else {
        add_products<Smooth, kPair>(moments, middle, w, k);
      }
    }
  }
  __device__ static void raise(float (&x)[2][4], const float (&s)[2][4]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[c][i] *= s[c][i];
    }
  }
  /// The same for many terms, one after the other, which takes more instructions and fewer
  /// registers.
  template <class Smooth>
  __device__ void add_in_turn(float (&x)[2][4], const float (&s)[2][4], const float (&middle)[2],
                              const uint32_t (&w)[kBlocks][2]) {
    float value[kBlocks][4];
    float power[kBlocks][4];  // of the rates, over factorials
    const auto add = [&]<int j>(std::integral_constant<int, j>) {
      if constexpr (j > 0) raise(x, s);
      const LeftOperand m = left_operand<(j < Smooth::kWide)>(x);
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) {
        float product[4] = {0.0F, 0.0F, 0.0F, 0.0F};
        if constexpr (j < Smooth::kWide) {
          mma_k16(product, m.low[0], m.low[1], m.low[2], m.low[3], w[k]);
        }
        mma_k16(product, m.high[0], m.high[1], m.high[2], m.high[3], w[k]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float r = rate[i / 2][2 * k + i % 2];
          constexpr float kRatio = Smooth::kRatio[j];
          power[k][i] = j == 0 ? 1.0F : j == 1 ? r : power[k][i] * (r * kRatio);
          value[k][i] = j == 0 ? product[i] : fmaf(power[k][i], product[i], value[k][i]);
        }
      }
    };
    [&]<int... j>(std::integer_sequence<int, j...>) {
      (add(std::integral_constant<int, j>{}), ...);
    }
    (std::make_integer_sequence<int, Smooth::kTerms>{});
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) move_behind(middle, value[k], k);
  }
  /// Adds to a block of states what a window comes to, from its middle.
  __device__ void move_behind(const float (&middle)[2], const float (&value)[4], int k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& state = h[i / 2][2 * k + i % 2];
      state = fmaf(ex2(A[i / 2][2 * k + i % 2] * middle[i / 2]), value[i], state);
    }
  }
  /// Adds the polynomials of kCount blocks of states from `first` on. Each power of s has a product
  /// of its own, so that none waits for another.
  template <class Smooth, int kCount, int kHalves>
  __device__ void add_products(const LeftOperand (&moments)[Smooth::kTerms][kHalves],
                               const float (&middle)[2], const uint32_t (&w)[kHalves][kBlocks][2],
                               int first) {
    float value[kCount][4];
    const auto add = [&]<int j>(std::integral_constant<int, j>) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        float product[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const LeftOperand& m = moments[j][half];
          const uint32_t(&right)[2] = w[half][first + k];
          if constexpr (j < Smooth::kWide) {
            mma_k16(product, m.low[0], m.low[1], m.low[2], m.low[3], right);
          }
          mma_k16(product, m.high[0], m.high[1], m.high[2], m.high[3], right);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (j == Smooth::kTerms - 1) {
            value[k][i] = product[i];
          } else {
            constexpr float kRatio = Smooth::kRatio[j + 1];
            if constexpr (kRatio != 1.0F) value[k][i] *= kRatio;
            value[k][i] = fmaf(rate[i / 2][2 * (first + k) + i % 2], value[k][i], product[i]);
          }
        }
      }
    };
    [&]<int... j>(std::integer_sequence<int, j...>) {
      (add(std::integral_constant<int, Smooth::kTerms - 1 - j>{}), ...);
    }
    (std::make_integer_sequence<int, Smooth::kTerms>{});
#pragma unroll
    for (int k = 0; k < kCount; ++k) move_behind(middle, value[k], first + k);
  }

  /// Adds a window position by position; `from` is the sum of delta between each and the start of
  /// the walk.
  __device__ void add_each(const float (&x)[2][4], const float (&from)[2][4],
                           const uint32_t (&w)[kBlocks][2], int q) {
    const LeftOperand parts = left_operand<true>(x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // positions 4q + i
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
/// with it for gradients. A lane has 4 kHalves positions that follow on each other.
template <bool kGradient, int kHalves>
__device__ inline void sum_deltas(const float (&d)[kHalves][2][4], int q, float (&total)[2],
                                  float (&sum)[kHalves][2][4]) {
  // of the lanes of a channel, those that the walk passes before this one
  const float other = (kGradient ? q % 2 == 1 : q % 2 == 0) ? 1.0F : 0.0F;
  const float others = (kGradient ? q >= 2 : q < 2) ? 1.0F : 0.0F;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float mine = (d[0][c][0] + d[0][c][1]) + (d[0][c][2] + d[0][c][3]);
#pragma unroll
    for (int half = 1; half < kHalves; ++half) {
      mine += (d[half][c][0] + d[half][c][1]) + (d[half][c][2] + d[half][c][3]);
    }
    const float beside = __shfl_xor_sync(kFullWarp, mine, 1);
    const float pair = mine + beside;
    const float far = __shfl_xor_sync(kFullWarp, pair, 2);
    total[c] = pair + far;
    float before = fmaf(other, beside, others * far);
#pragma unroll
    for (int i = 0; i < 4 * kHalves; ++i) {
      const int at = kGradient ? i : 4 * kHalves - 1 - i;
      if constexpr (kGradient) before += d[at / 4][c][at % 4];
      sum[at / 4][c][at % 4] = before;
      if constexpr (!kGradient) before += d[at / 4][c][at % 4];
    }
  }
}

}  // namespace gmamba::cuda::scan
