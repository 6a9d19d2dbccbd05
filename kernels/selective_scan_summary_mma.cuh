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

#include "kernels/scan_summary_walk.cuh"
#include "kernels/selective_scan_summary.cuh"

namespace gmamba::cuda::scan {

constexpr int kSummaryMmaWarps = 4;

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

/// kReady: delta comes behind bias and softplus.
template <int kStates, bool kGradient, bool kGated, bool kReady, int kBlocksPerSm>
__global__ void __launch_bounds__(kSummaryMmaWarps * 32, kBlocksPerSm)
    scan_summary_mma_kernel(const SummaryArgs<bf16> p) {
  using S = SummaryMmaShape<kStates, kGradient>;
  using Walk = SummaryWalk<kStates>;
  constexpr int kBlocks = Walk::kBlocks;
  extern __shared__ __align__(16) unsigned char summary_shared[];

  after_previous_kernel();
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
      for (int j = 0; j < 4; ++j) d[c][j] = delta_of<bf16>(d[c][j], bias[c], kReady);
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
      } else if (!kGradient && walk.template smooth<Smooth8>(total)) {
        // gradients' chunks are long, so that the near windows count for less, and registers short
        walk.template add_smooth<Smooth8>(x, total, sum, w);
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
