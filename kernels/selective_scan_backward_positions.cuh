// SPDX-License-Identifier: Apache-2.0
/// What scan_backward_mma_kernel does per position and channel, before and behind the walks:
/// softplus and gate, gradients of the activations, and the sums of dB and dC over a block.
#pragma once

#include "kernels/selective_scan_backward_layout.cuh"

namespace gmamba::cuda::scan {

/// Addresses that a block keeps in shared memory: where rows of its chunk begin, and partial sums.
enum Base {
  kU,
  kDeltaRaw,
  kDy,
  kZ,
  kB,
  kC,
  kSaved,
  kDu,
  kDdelta,
  kDz,
  kYOut,
  kPartial,
  kDA,
  kDD,
  kBefore
};

/// delta, and delta u and g in two parts; zeros at positions outside, which change nothing.
template <int kStates, bool kApart, bool kGated, bool kReady>
__device__ inline void prepare_positions(uint32_t* words, const uint32_t* raw, int rows,
                                         int thread) {
  using S = MmaShape<kStates, kApart>;
  using Rounds = MmaRounds<kStates, kApart>;
  const Rounds r(thread);
  if (!r.active()) return;
  uint32_t* const of_group = r.region(words);
  float* const prepared = reinterpret_cast<float*>(of_group);
  float bias[4];
  load_shared(prepared + S::kChannels + r.quad, bias);
#pragma unroll
  for (int i = 0; i < Rounds::kCount; ++i) {
    const int t = r.first + i * Rounds::kAtOnce;
    float d[4];
    float x[4];
    float dy[4];
    r.raw(raw + S::kRaw, i, d);
    r.raw(raw, i, x);
    r.raw(raw + 2 * S::kRaw, i, dy);
#pragma unroll
    for (int k = 0; k < 4; ++k) d[k] = delta_of<bf16>(d[k], bias[k], kReady);
    if (t >= rows) d[0] = d[1] = d[2] = d[3] = 0.0F;
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] *= d[k];
    if constexpr (kGated) {
      float z[4];
      r.raw(raw + 3 * S::kRaw, i, z);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float sig = sigmoid(z[k]);
        dy[k] *= z[k] * sig;
        z[k] = sig;
      }
      store_shared(prepared + S::kSig + r.at + i * Rounds::kNext, z);
    }
    store_shared(prepared + S::kDelta + r.at + i * Rounds::kNext, d);
    const int at = r.turned_at + i * Rounds::kNext;
    *reinterpret_cast<uint4*>(of_group + S::kX + at) = split_pairs(x);
    *reinterpret_cast<uint4*>(of_group + S::kG + at) = split_pairs(dy);
  }
}

/// du, ddelta, dz and y of the tile; dD and the gradient of the delta bias gather in the warp's
/// region.
template <int kStates, bool kApart, bool kGated, bool kReady>
__device__ inline void finish_positions(const BackwardArgs<bf16>& p, char* const* bases,
                                        uint32_t* words, const uint32_t* raw, int first_row,
                                        int rows, int e_block, int thread) {
  using S = MmaShape<kStates, kApart>;
  using Rounds = MmaRounds<kStates, kApart>;
  constexpr int kWidth = S::kWidth;
  const int lane = thread % 32;
  const Rounds r(thread);
  if (!r.active()) return;
  const float* const prepared = reinterpret_cast<const float*>(r.region(words));
  float* const mine = reinterpret_cast<float*>(words) + thread / 32 * S::kWarpWords;
  // what a cut to 10 bits of mantissa takes away on average is given back to s2
  constexpr float kS2Scale = kLn2 * (1.0F + 0.72F / 2048.0F);
  float skip[4];
  load_shared(prepared + S::kChannels + kWidth + r.quad, skip);
  Packed<bf16, 4> results[Rounds::kCount][4];
  float dD[4];
  float dbias[4];
  load_shared(mine + S::kParameters + lane * 4, dD);
  load_shared(mine + S::kParameters + 128 + lane * 4, dbias);
#pragma unroll
  for (int i = 0; i < Rounds::kCount; ++i) {
    float u[4];
    float dy[4];
    float d[4];
    float out[4];
    float s1[4];
    float s2[4];
    r.raw(raw, i, u);
    r.raw(raw + 2 * S::kRaw, i, dy);
    if constexpr (kReady) {
      r.raw(raw + S::kRaw, i, d);
    } else {
      load_shared(prepared + S::kDelta + r.at + i * Rounds::kNext, d);
    }
    const float* from = prepared + r.turned_at + i * Rounds::kNext;
    load_shared(from + S::kY, out);
    load_shared(from + S::kS1, s1);
    load_shared(from + S::kS2, s2);
#pragma unroll
    for (int j = 1; j < S::kSplit; ++j) {
      from += S::kWarpWords;
      float v[3][4];
      load_shared(from + S::kY, v[0]);
      load_shared(from + S::kS1, v[1]);
      load_shared(from + S::kS2, v[2]);
#pragma unroll
      for (int k = 0; k < 4; ++k) out[k] += v[0][k], s1[k] += v[1][k], s2[k] += v[2][k];
    }
    float du[4];
    float ddelta[4];
    float dz[4];
    float silu[4];
    float z[4] = {};
    float sig[4] = {1.0F, 1.0F, 1.0F, 1.0F};
    if constexpr (kGated) {
      r.raw(raw + 3 * S::kRaw, i, z);
      load_shared(prepared + S::kSig + r.at + i * Rounds::kNext, sig);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      silu[k] = kGated ? z[k] * sig[k] : 1.0F;
      out[k] = fmaf(skip[k], u[k], out[k]);
      dz[k] = dy[k] * out[k] * fmaf(silu[k], 1.0F - sig[k], sig[k]);
      const float gradient = dy[k] * silu[k];
      du[k] = fmaf(d[k], s1[k], skip[k] * gradient);
      // the sigmoid of what softplus took
      ddelta[k] = fmaf(u[k], s1[k], kS2Scale * s2[k]) * about_one_minus_exp(d[k]);
      dbias[k] += ddelta[k];  // zero outside, where d is
      dD[k] = fmaf(gradient, u[k], dD[k]);
    }
    results[i][0] = Packed<bf16, 4>::of(du);
    results[i][1] = Packed<bf16, 4>::of(ddelta);
    results[i][2] = Packed<bf16, 4>::of(dz);
    if (!p.y.empty()) {
#pragma unroll
      for (int k = 0; k < 4; ++k) out[k] *= silu[k];
      results[i][3] = Packed<bf16, 4>::of(out);
    }
  }
  const int e4 = e_block + r.group * kWidth + r.quad;
  const auto put = [&](Base which, const Rows<bf16>& to, int result) {
    char* const column = bases[which] + 2 * e4;
    const auto stride = 2 * static_cast<unsigned>(to.inner);
    const unsigned first = (first_row + r.first) * stride;
#pragma unroll
    for (int i = 0; i < Rounds::kCount; ++i) {
      if (r.first + i * Rounds::kAtOnce < rows) {
        __stcs(reinterpret_cast<uint2*>(column + (first + i * Rounds::kAtOnce * stride)),
               results[i][result].raw);
      }
    }
  };
  if (e4 < p.d_inner) {
    put(kDu, p.du, 0);
    put(kDdelta, p.ddelta, 1);
    if (kGated && !p.dz.empty()) put(kDz, p.dz, 2);
    if (!p.y.empty()) put(kYOut, p.y, 3);
  }
  store_shared(mine + S::kParameters + lane * 4, dD);
  store_shared(mine + S::kParameters + 128 + lane * 4, dbias);
}

/// dB and dC over the groups of channels of the block; `sums_from`: where warps have left theirs.
template <int kStates, bool kApart>
__device__ inline void sum_channel_groups(const uint32_t* words, char* partial, int sums_from,
                                          int first_row, int rows, int thread) {
  using S = MmaShape<kStates, kApart>;
  constexpr int kTile = S::kTile;
  constexpr int kThreads = kBackwardWarps * 32;
  constexpr int kItems = kTile * kStates / 2;
#pragma unroll
  for (int round = 0; round < (kItems + kThreads - 1) / kThreads; ++round) {
    const int i = thread + round * kThreads;
    const int t = i / (kStates / 2);
    if ((kItems < kThreads && t >= kTile) || t >= rows) break;
    const int column = i % (kStates / 2) * 4;  // of dB, then dC
    const int state = column % kStates;
    const int c = column / kStates * S::kWarpStates + state % S::kWarpStates;
    const float* const from = reinterpret_cast<const float*>(words) + sums_from +
                              state / S::kWarpStates * S::kWarpWords +
                              S::template at<2 * S::kWarpStates>(t, c);
    float sum[4];
    load_shared(from, sum);
#pragma unroll
    for (int other = 1; other < S::kGroups; ++other) {
      float more[4];
      load_shared(from + other * (S::kSplit * S::kWarpWords), more);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += more[j];
    }
    // a lane keeps columns g of both quads side by side: states 0 2 1 3 of four
    const float4 in_order = kStates == 8 ? make_float4(sum[0], sum[1], sum[2], sum[3])
                                         : make_float4(sum[0], sum[2], sum[1], sum[3]);
    // rows follow each other as the threads do
    __stcs(reinterpret_cast<float4*>(partial + first_row * (8U * kStates) + i * 16U), in_order);
  }
}

}  // namespace gmamba::cuda::scan
