// SPDX-License-Identifier: Apache-2.0
/// The kernel of all gradients in fp32, of f32 activations and of any alignment and d_state: every
/// block walks one chunk of time backwards for its channels.
/// With g = dy silu(z) and dh the gradient of the state behind a position:
///   dh <- C g + dh;  dC += g h;  dB += delta u dh;  s1 = sum_n B dh;  w = a dh h_before
///   s2 = sum_n A w;  dA += delta w;  dh <- a dh
///   du = delta s1 + D g;  ddelta = (u s1 + s2) sigmoid(raw);  dz = dy (y / silu(z)) silu'(z)
/// States come back from those that the forward pass saved every kSub positions: a first walk over
/// the sub-chunk leaves every fourth state in shared memory; then, last window first, four
/// positions are walked again with decays and states in registers, and walked back. Layout  a
/// thread owns kChannels channels x 4 states, kLanes neighbouring lanes the d_state of a
///         channel, a warp 32 / kLanes * kChannels channels; sums over states (y, s1, s2) and over
///         the channels of a warp (dB, dC) go through shared memory of the warp: each lane stores
///         what it has, then adds up one output; over the warps of a block once per sub-chunk; over
///         blocks by a second kernel. Every sum has one order, so the same bits come out each time
/// Launch  one block of 4 warps per (batch row, chunk, group of channels), channels fastest
/// Floor   issue and shared memory: about 31 slots per state update
#pragma once

#include "kernels/selective_scan_backward_args.cuh"

namespace gmamba::cuda::scan {

/// Where the arrays of a warp lie in shared memory, in floats.
template <int kLanes, int kChannels, int kSub, int kWarps = kBackwardWarps>
struct BackwardShape {
  static constexpr int kColumns = 4 * kLanes;         // states, padded
  static constexpr int kGroups = 32 / kLanes;         // groups of channels of a warp
  static constexpr int kWidth = kGroups * kChannels;  // channels of a warp
  static constexpr int kBlockWidth = kWarps * kWidth;
  static constexpr int kWindows = kSub / kWindow;
  static constexpr int kTile = kChannels * 128;            // one state of a warp
  static constexpr int kResults = kWindow * 2 * kColumns;  // dB and dC of a window
  static constexpr int kSlot = kTile > kResults ? kTile : kResults;
  // rows of 4 staged sums: padded so that the lanes of the reduction fall into different banks
  static constexpr int kStageStride = kColumns < 32 ? 128 + kColumns : 128;

  static constexpr int kDelta = 0;                               // [kSub][kWidth]
  static constexpr int kX = kDelta + kSub * kWidth;              // delta u, then s1
  static constexpr int kG = kX + kSub * kWidth;                  // dy silu(z)
  static constexpr int kY = kG + kSub * kWidth;                  // sum_n C h
  static constexpr int kS2 = kY + kSub * kWidth;                 // sum_n A w, A times log2(e)
  static constexpr int kStage = kS2 + kSub * kWidth;             // [kWindow][32][4]
  static constexpr int kSums = kStage + kWindow * kStageStride;  // [kWindow][32][2 kChannels]
  static constexpr int kParameters = kSums + kWindow * 64 * kChannels;  // [2][32][4]
  // slot k > 0: state before window k, then its dB and dC; slot 0: dB and dC of window 0
  static constexpr int kSlots = kParameters + 256;
  static constexpr int kWarpFloats = kSlots + kResults + (kWindows - 1) * kSlot;
  static constexpr int kTileBC = kSub * 2 * kColumns;
  static constexpr int kBytes = (kWarps * kWarpFloats + kTileBC) * 4;
  static __device__ int slot(int k) { return kSlots + (k == 0 ? 0 : kResults + (k - 1) * kSlot); }
};

/// B and C of `rows` positions side by side as fp32, zeros from there to kSub and from n on.
template <int kSub, int kColumns, bool kFast, int kThreads, class T>
__device__ inline void stage_positions(float* to, const T* B, int64_t B_stride, const T* C,
                                       int64_t C_stride, int rows, int n) {
  constexpr int kQuads = kColumns / 2;
#pragma unroll
  for (int k = 0; k < (kSub * kQuads + kThreads - 1) / kThreads; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    if (i >= kSub * kQuads) break;
    const int t = i / kQuads;
    const int column = i % (kQuads / 2) * 4;
    const bool second = i % kQuads >= kQuads / 2;
    const T* const from =
        (second ? C : B) + t * static_cast<int>(second ? C_stride : B_stride) + column;
    float v[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    if (t < rows) {
      if constexpr (kFast) {
        load_packed<4, true>(from, 4).widen(v);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j < n) v[j] = widen(from[j]);
        }
      }
    }
    store_shared(to + t * 2 * kColumns + (second ? kColumns : 0) + column, v);
  }
}

/// Sums the staged values over the channel groups of a warp: output i of this lane is number
/// lane * kOut + i of the window's kWindow * kColumns.
template <class S, int kOut>
__device__ inline void sum_over_groups(const float* stage, int lane, float (&out)[kOut]) {
  const int first = lane * kOut;
  const float* const from = stage + first / S::kColumns * S::kStageStride + first % S::kColumns;
  load_shared(from, out);
#pragma unroll
  for (int g = 1; g < S::kGroups; ++g) {
    float more[kOut];
    load_shared(from + g * S::kColumns, more);
#pragma unroll
    for (int i = 0; i < kOut; ++i) out[i] += more[i];
  }
}

/// Sums kCount staged values over the kLanes lanes of a channel group; one (position, group) pair
/// per lane and round. The order is rotated so that lanes read from different banks.
template <int kLanes, int kCount>
__device__ inline void sum_over_states(const float* sums, int position, int group,
                                       float (&out)[kCount]) {
  const float* const from = sums + (position * 32 + group * kLanes) * kCount;
  const int turn = kLanes <= 8 ? group * kLanes / 8 : group * 2;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = 0.0F;
#pragma unroll
  for (int q = 0; q < kLanes; ++q) {
    float more[kCount];
    load_shared(from + ((q + turn) % kLanes) * kCount, more);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] += more[i];
  }
}

template <class T, int kLanes, int kChannels, int kSub, bool kFast, int kBlocks,
          int kWarps = kBackwardWarps, bool kKeep = false>
__global__ void __launch_bounds__(kWarps * 32, kBlocks)
    scan_backward_kernel(const BackwardArgs<T> p) {
  using S = BackwardShape<kLanes, kChannels, kSub, kWarps>;
  constexpr int kColumns = S::kColumns;
  constexpr int kWidth = S::kWidth;
  constexpr int kQuads = kWidth / 4;
  constexpr int kOut = kWindow * kColumns / 32;
  extern __shared__ __align__(16) float shared[];
  after_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* const mine = shared + warp * S::kWarpFloats;
  float* const bc = shared + kWarps * S::kWarpFloats;  // [kSub][B | C]

  const int blocks = (p.d_inner + S::kBlockWidth - 1) / S::kBlockWidth;
  const int block = static_cast<int>(blockIdx.x % blocks);
  const int64_t chunk = blockIdx.x / blocks % p.chunks;
  const int64_t b = blockIdx.x / blocks / p.chunks;
  const int e_warp = block * S::kBlockWidth + warp * kWidth;
  // as owner of states: channels e0 + 0..kChannels, states n0..n0 + 4
  const int group = lane / kLanes;
  const int local = group * kChannels;
  const int e0 = e_warp + local;
  const int n0 = lane % kLanes * 4;
  const int states = kFast ? 4 : max(0, min(4, p.d_state - n0));
  // as one that prepares and finishes positions: channels e4 + 0..4
  const int quad = lane % kQuads * 4;
  const int e4 = e_warp + quad;
  const int valid4 = max(0, min(4, p.d_inner - e4));
  const int from4 = kFast ? min(e4, p.d_inner - 4) : min(e4, p.d_inner - 1);  // where it reads
  const int readable = max(valid4, 1);
  const int row4 = lane / kQuads;

  float A[kChannels][4];
  float dA[kChannels][4];
  float carry[kChannels][4];  // gradient of the state behind the current position
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int e = min(e0 + c, p.d_inner - 1);
    load_state<4, kFast>(p.A + e * p.A_stride + n0, states, A[c]);
#pragma unroll
    for (int j = 0; j < 4; ++j) A[c][j] *= kLog2e, dA[c][j] = carry[c][j] = 0.0F;
    if (!p.dstate_end.empty()) {
      const int64_t stretch = min((chunk + 1) * p.end_per_chunk, p.end_per_row) - 1;
      load_state<4, kFast>(p.dstate_end.at(b * p.end_per_row + stretch, e) + n0, states, carry[c]);
    }
  }
  {
    const float zeros[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    store_shared(mine + S::kParameters + lane * 4, zeros);
    store_shared(mine + S::kParameters + 128 + lane * 4, zeros);
  }

  const int64_t begin = chunk * p.chunk_length;
  const int64_t end = min(p.length, begin + p.chunk_length);
  const int steps = static_cast<int>(end - begin);
  // rows of the chunk; a row number within it times a stride is one 32 by 32 bit product
  const auto row_of = [](auto* base, int row, int stride) {
    return base + static_cast<int64_t>(row) * stride;
  };
  const bool gated = !p.z.empty();
  const T* const B_chunk = p.B.at(b, begin);
  const T* const C_chunk = p.C.at(b, begin);
  const T* const u_chunk = p.u.at(b, begin);
  const T* const delta_chunk = p.delta.at(b, begin);
  const T* const dy_chunk = p.dy.at(b, begin);
  const T* const z_chunk = gated ? p.z.at(b, begin) : dy_chunk;
  const int u_stride = static_cast<int>(p.u.inner);
  const int delta_stride = static_cast<int>(p.delta.inner);
  const int dy_stride = static_cast<int>(p.dy.inner);
  const int z_stride = gated ? static_cast<int>(p.z.inner) : dy_stride;
  for (int first_row = (steps - 1) / kSub * kSub; first_row >= 0 && steps > 0; first_row -= kSub) {
    const int64_t t0 = begin + first_row;
    const int64_t tile = b * p.saved_per_row + t0 / kSub;
    const auto load_start = [&](float(&h)[kChannels][4]) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int e = min(e0 + c, p.d_inner - 1);
        load_state<4, kFast>(p.saved.at(tile, e) + n0, states, h[c]);
      }
    };
    const int rows = min(steps - first_row, kSub);
    stage_positions<kSub, kColumns, kFast, kWarps * 32>(
        bc, row_of(B_chunk, first_row, static_cast<int>(p.B.inner)), p.B.inner,
        row_of(C_chunk, first_row, static_cast<int>(p.C.inner)), p.C.inner, rows, p.d_state);
    // delta, delta u and g of the sub-chunk; zeros outside, which change nothing
    {
      float bias4[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      if (p.bias != nullptr) load_packed<4, kFast>(p.bias + from4, readable).widen(bias4);
#pragma unroll
      for (int i = 0; i < (kSub * kQuads + 31) / 32; ++i) {
        const int t = row4 + i * (32 / kQuads);
        if (kSub * kQuads < 32 && t >= kSub) break;
        const int row = first_row + min(t, rows - 1);
        float d[4];
        float x[4];
        float g[4];
        float gate[4];
        load_packed<4, kFast>(row_of(delta_chunk, row, delta_stride) + from4, readable).widen(d);
        load_packed<4, kFast>(row_of(u_chunk, row, u_stride) + from4, readable).widen(x);
        load_packed<4, kFast>(row_of(dy_chunk, row, dy_stride) + from4, readable).widen(g);
        load_packed<4, kFast>(row_of(z_chunk, row, z_stride) + from4, readable).widen(gate);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float silu = gate[k] * sigmoid(gate[k]);
          g[k] *= gated ? silu : 1.0F;
          d[k] = delta_of<T>(d[k], bias4[k], p.ready);
          x[k] *= d[k];
        }
        if (t >= rows || valid4 < 4) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (t >= rows || k >= valid4) d[k] = x[k] = g[k] = 0.0F;
          }
        }
        store_shared(mine + S::kDelta + t * kWidth + quad, d);
        store_shared(mine + S::kX + t * kWidth + quad, x);
        store_shared(mine + S::kG + t * kWidth + quad, g);
      }
    }
    __syncthreads();

    {  // states before windows 1, 2, ...
      float h[kChannels][4];
      load_start(h);
#pragma unroll 1
      for (int k = 1; k < S::kWindows; ++k) {
#pragma unroll
        for (int s = 0; s < kWindow; ++s) {
          const int t = (k - 1) * kWindow + s;
          float d[kChannels];
          float x[kChannels];
          float B[4];
          load_shared(mine + S::kDelta + t * kWidth + local, d);
          load_shared(mine + S::kX + t * kWidth + local, x);
          load_shared(bc + t * 2 * kColumns + n0, B);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              h[c][j] = fmaf(ex2(d[c] * A[c][j]), h[c][j], x[c] * B[j]);
            }
          }
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          store_shared(mine + S::slot(k) + c * 128 + lane * 4, h[c]);
        }
      }
    }

#pragma unroll 1
    for (int k = S::kWindows - 1; k >= 0; --k) {
      const auto load_before = [&](float(&h)[kChannels][4]) {
        if (k == 0) {
          load_start(h);
        } else {
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            load_shared(mine + S::slot(k) + c * 128 + lane * 4, h[c]);
          }
        }
      };
      float a[kWindow][kChannels][4];
      float h[kWindow][kChannels][4];  // before each position
      float B_kept[kKeep ? kWindow : 1][4];
      float C_kept[kKeep ? kWindow : 1][4];
      load_before(h[0]);
#pragma unroll
      for (int s = 0; s < kWindow; ++s) {
        const int t = k * kWindow + s;
        float d[kChannels];
        float x[kChannels];
        float g[kChannels];
        float B[4];
        float C[4];
        float v[4] = {0.0F, 0.0F, 0.0F, 0.0F};
        float y[kChannels];
        load_shared(mine + S::kDelta + t * kWidth + local, d);
        load_shared(mine + S::kX + t * kWidth + local, x);
        load_shared(mine + S::kG + t * kWidth + local, g);
        load_shared(bc + t * 2 * kColumns + n0, B);
        load_shared(bc + t * 2 * kColumns + kColumns + n0, C);
        if constexpr (kKeep) {
#pragma unroll
          for (int k4 = 0; k4 < 4; ++k4) B_kept[s][k4] = B[k4], C_kept[s][k4] = C[k4];
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          y[c] = 0.0F;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            a[s][c][j] = ex2(d[c] * A[c][j]);
            const float after = fmaf(a[s][c][j], h[s][c][j], x[c] * B[j]);
            y[c] = fmaf(C[j], after, y[c]);
            v[j] = fmaf(g[c], after, v[j]);
            if (s + 1 < kWindow) h[s + 1][c][j] = after;
          }
        }
        store_shared(mine + S::kStage + s * S::kStageStride + lane * 4, v);
        store_shared(mine + S::kSums + (s * 32 + lane) * kChannels, y);
      }
      __syncwarp();
      float dC[kOut];
      sum_over_groups<S>(mine + S::kStage, lane, dC);
#pragma unroll
      for (int i = lane; i < kWindow * S::kGroups; i += 32) {
        float y[kChannels];
        const int s = i / S::kGroups;
        const int g = i % S::kGroups;
        sum_over_states<kLanes>(mine + S::kSums, s, g, y);
        store_shared(mine + S::kY + (k * kWindow + s) * kWidth + g * kChannels, y);
      }
      __syncwarp();
      // the state before the window was needed once more: it is read again rather than kept
#pragma unroll
      for (int s = kWindow - 1; s >= 0; --s) {
        const int t = k * kWindow + s;
        float d[kChannels];
        float x[kChannels];
        float g[kChannels];
        float B[4];
        float C[4];
        float v[4] = {0.0F, 0.0F, 0.0F, 0.0F};
        float sums[2 * kChannels];
        load_shared(mine + S::kDelta + t * kWidth + local, d);
        load_shared(mine + S::kX + t * kWidth + local, x);
        load_shared(mine + S::kG + t * kWidth + local, g);
        if constexpr (kKeep) {
#pragma unroll
          for (int k4 = 0; k4 < 4; ++k4) B[k4] = B_kept[s][k4], C[k4] = C_kept[s][k4];
        } else {
          load_shared(bc + t * 2 * kColumns + n0, B);
          load_shared(bc + t * 2 * kColumns + kColumns + n0, C);
        }
        float before[kChannels][4];
        if (s == 0) load_before(before);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          float s1 = 0.0F;
          float s2 = 0.0F;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float dh = fmaf(C[j], g[c], carry[c][j]);
            v[j] = fmaf(x[c], dh, v[j]);
            s1 = fmaf(B[j], dh, s1);
            carry[c][j] = a[s][c][j] * dh;
            const float w = carry[c][j] * (s == 0 ? before[c][j] : h[s][c][j]);
            s2 = fmaf(A[c][j], w, s2);
            dA[c][j] = fmaf(d[c], w, dA[c][j]);
          }
          sums[c] = s1;
          sums[kChannels + c] = s2;
        }
        store_shared(mine + S::kStage + s * S::kStageStride + lane * 4, v);
        store_shared(mine + S::kSums + (s * 32 + lane) * 2 * kChannels, sums);
      }
      __syncwarp();
      float dB[kOut];
      sum_over_groups<S>(mine + S::kStage, lane, dB);
#pragma unroll
      for (int i = lane; i < kWindow * S::kGroups; i += 32) {
        float sums[2 * kChannels];
        const int s = i / S::kGroups;
        const int g = i % S::kGroups;
        sum_over_states<kLanes>(mine + S::kSums, s, g, sums);
        float s1[kChannels];
        float s2[kChannels];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) s1[c] = sums[c], s2[c] = sums[kChannels + c];
        store_shared(mine + S::kX + (k * kWindow + s) * kWidth + g * kChannels, s1);
        store_shared(mine + S::kS2 + (k * kWindow + s) * kWidth + g * kChannels, s2);
      }
      const int first = lane * kOut;
      float* const result = mine + S::slot(k) + first / kColumns * 2 * kColumns + first % kColumns;
      store_shared(result, dB);
      store_shared(result + kColumns, dC);
      __syncwarp();
    }

    {  // du, ddelta, dz and y
      float skip[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      if (p.D != nullptr) load_packed<4, kFast>(p.D + from4, readable).widen(skip);
      float dD[4];
      float dbias[4];
      load_shared(mine + S::kParameters + lane * 4, dD);
      load_shared(mine + S::kParameters + 128 + lane * 4, dbias);
#pragma unroll
      for (int i = 0; i < (kSub * kQuads + 31) / 32; ++i) {
        const int t = row4 + i * (32 / kQuads);
        if (kSub * kQuads < 32 && t >= kSub) break;
        const bool stored = t < rows && valid4 > 0;
        const int row = first_row + min(t, rows - 1);
        float u[4];
        float dy[4];
        float z[4];
        float d[4];
        float s1[4];
        float s2[4];
        float g[4];
        float out[4];
        load_packed<4, kFast>(row_of(u_chunk, row, u_stride) + from4, readable).widen(u);
        load_packed<4, kFast>(row_of(dy_chunk, row, dy_stride) + from4, readable).widen(dy);
        load_packed<4, kFast>(row_of(z_chunk, row, z_stride) + from4, readable).widen(z);
        load_shared(mine + S::kDelta + t * kWidth + quad, d);
        load_shared(mine + S::kX + t * kWidth + quad, s1);
        load_shared(mine + S::kS2 + t * kWidth + quad, s2);
        load_shared(mine + S::kG + t * kWidth + quad, g);
        load_shared(mine + S::kY + t * kWidth + quad, out);
        float du[4];
        float ddelta[4];
        float dz[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          du[k] = fmaf(d[k], s1[k], skip[k] * g[k]);
          ddelta[k] = fmaf(u[k], s1[k], kLn2 * s2[k]) * one_minus_exp(d[k]);
          // g and ddelta are zero at positions outside
          dD[k] = fmaf(g[k], u[k], dD[k]);
          dbias[k] += ddelta[k];
          out[k] = fmaf(skip[k], u[k], out[k]);
          const float sig = sigmoid(z[k]);
          dz[k] = dy[k] * out[k] * sig * fmaf(z[k], 1.0F - sig, 1.0F);
          out[k] *= gated ? z[k] * sig : 1.0F;
        }
        if (stored) {
          const auto put = [&](const Rows<T>& to, const float(&values)[4]) {
            store_packed<4, kFast>(row_of(to.at(b, begin), row, static_cast<int>(to.inner)) + e4,
                                   valid4, values);
          };
          put(p.du, du);
          put(p.ddelta, ddelta);
          if (!p.dz.empty()) put(p.dz, dz);
          if (!p.y.empty()) put(p.y, out);
        }
      }
      store_shared(mine + S::kParameters + lane * 4, dD);
      store_shared(mine + S::kParameters + 128 + lane * 4, dbias);
    }

    __syncthreads();
    // dB and dC over the warps; what the next sub-chunk overwrites is behind its barrier
    float* const partial = p.dBC + ((block * p.batch + b) * p.length + t0) * 2 * kColumns;
    for (int i = static_cast<int>(threadIdx.x); i < kSub * 2 * kColumns / 4; i += kWarps * 32) {
      const int t = i / (kColumns / 2);
      if (t0 + t >= end) break;
      const float* const from =
          shared + S::slot(t / kWindow) + t % kWindow * 2 * kColumns + i % (kColumns / 2) * 4;
      float sum[4];
      load_shared(from, sum);
#pragma unroll
      for (int w = 1; w < kWarps; ++w) {
        float more[4];
        load_shared(from + w * S::kWarpFloats, more);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += more[j];
      }
      store_shared(partial + i * 4, sum);
    }
  }

  const int64_t row = b * p.chunks + chunk;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int e = e0 + c;
    if (e >= p.d_inner) continue;
    store_state<4, kFast>(p.dA + (row * p.d_inner + e) * p.d_state + n0, states, dA[c]);
    if (chunk == 0 && !p.dstate_in.empty()) {
      store_state<4, kFast>(p.dstate_in.at(b, e) + n0, states, carry[c]);
    }
  }
  __syncwarp();
  for (int i = lane; i < 2 * kWidth; i += 32) {
    const int which = i / kWidth;
    const int channel = i % kWidth;
    const float* const from = mine + S::kParameters + which * 128 + channel / 4 * 4 + channel % 4;
    float sum = 0.0F;
#pragma unroll 4
    for (int l = 0; l < 32; l += kQuads) sum += from[l * 4];
    if (e_warp + channel < p.d_inner) {
      p.dD[(row * 2 + which) * p.d_inner + e_warp + channel] = sum;
    }
  }
}

}  // namespace gmamba::cuda::scan
