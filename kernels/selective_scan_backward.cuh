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
/// Launch  one team of 4 warps per (batch row, chunk, group of channels), channels fastest; a block
///         is of one team, or of all that share an SM (scan_grid.h)
/// Floor   issue and shared memory: about 31 slots per state update
#pragma once

#include "kernels/selective_scan_backward_layout.cuh"
#include "kernels/selective_scan_backward_staging.cuh"

namespace gmamba::cuda::scan {

template <class T, int kLanes, int kChannels, int kSub, bool kFast, int kTeams,
          int kWarps = kBackwardWarps, bool kKeep = false>
__global__ void __launch_bounds__(kTeams* kWarps * 32, 1)
    scan_backward_kernel(const BackwardArgs<T> p) {
  using S = BackwardShape<kLanes, kChannels, kSub, kWarps>;
  constexpr int kColumns = S::kColumns;
  constexpr int kWidth = S::kWidth;
  constexpr int kQuads = kWidth / 4;
  constexpr int kOut = kWindow * kColumns / 32;
  constexpr int kRounds = (kSub * kQuads + 31) / 32;
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(16) float block_shared[];
  after_previous_kernel();
  const auto meet = [] {  // all warps of the team
    sync_team(again(static_cast<int>(threadIdx.x)) / kThreads, kThreads);
  };
  // of the team, found again where registers are short
  const auto shared = [&] {
    return block_shared + again(static_cast<int>(threadIdx.x)) / kThreads * (S::kBytes / 4);
  };
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) % kThreads / 32;
  float* const mine = shared() + warp * S::kWarpFloats;
  const auto tokens_of_tile = [&] { return shared() + kWarps * S::kWarpFloats; };  // [kSub][B | C]

  const int blocks = (p.d_inner + S::kBlockWidth - 1) / S::kBlockWidth;
  const auto place = [&] {  // of the team
    return again(static_cast<int>(blockIdx.x * (blockDim.x / kThreads) + threadIdx.x / kThreads));
  };
  const int unit = place() / blocks;
  const int block = place() % blocks;
  const int chunk = unit % static_cast<int>(p.chunks);
  const int b = unit / static_cast<int>(p.chunks);
  if (b >= p.batch) return;
  const int e_warp = block * S::kBlockWidth + warp * kWidth;
  // as owner of states: channels e0 + 0..kChannels, states n0..n0 + 4
  const int group = lane / kLanes;
  const int local = group * kChannels;
  const int e0 = e_warp + local;
  const int n0 = lane % kLanes * 4;
  const int states = kFast ? 4 : max(0, min(4, p.d_state - n0));
  // as one that prepares and finishes positions, found again each time
  struct Quad {
    int first, row;  // four channels of the warp from `first`, of that position and every few more
    int e;           // the first channel
    int valid;       // how many of them exist
    int from, readable;  // where to read, and how many there
  };
  const auto find_quad = [&] {
    const int thread = again(static_cast<int>(threadIdx.x)) % kThreads;
    Quad v;
    v.first = thread % kQuads * 4;
    v.row = thread % 32 / kQuads;
    v.e = block * S::kBlockWidth + thread / 32 * kWidth + v.first;
    v.valid = max(0, min(4, p.d_inner - v.e));
    v.from = min(v.e, p.d_inner - (kFast ? 4 : 1));
    v.readable = max(v.valid, 1);
    return v;
  };

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
      const int64_t stretch = min((int64_t{chunk} + 1) * p.end_per_chunk, p.end_per_row) - 1;
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
  // A tile ahead of its use, on its way from memory to the second-level cache, whence it arrives in
  // a third of the time: each warp asks for the lines of one array, and for its channels' states.
  const auto bring_tile = [&](int first_row) {
    static_assert(kWarps == 4);
    const int thread = again(static_cast<int>(threadIdx.x)) % kThreads;
    const int lane = thread % 32;
    const int warp = thread / 32;
    constexpr int kLine = 128 / static_cast<int>(sizeof(T));  // elements
    constexpr int kLines = (S::kBlockWidth + kLine - 1) / kLine;
    const T* const from = warp == 0   ? u_chunk
                          : warp == 1 ? delta_chunk
                          : warp == 2 ? dy_chunk
                                      : z_chunk;
    const int stride = warp == 0   ? u_stride
                       : warp == 1 ? delta_stride
                       : warp == 2 ? dy_stride
                                   : z_stride;
#pragma unroll
    for (int i = 0; i < (kSub * kLines + 31) / 32; ++i) {
      const int line = lane + i * 32;
      const int e = block * S::kBlockWidth + line % kLines * kLine;
      if (line < kSub * kLines && e < p.d_inner) {
        bring_line(row_of(from, first_row + line / kLines, stride) + e);
      }
    }
    constexpr int kStep = 32 / kColumns > 0 ? 32 / kColumns : 1;  // channels of a line
    if (lane < kWidth / kStep) {
      const int e = min(block * S::kBlockWidth + warp * kWidth + lane * kStep, p.d_inner - 1);
      bring_line(p.saved.at(b * p.saved_per_row + (begin + first_row) / kSub, e));
    }
  };
  for (int first_row = (steps - 1) / kSub * kSub; first_row >= 0 && steps > 0; first_row -= kSub) {
    const int64_t t0 = begin + first_row;
    const int64_t tile = b * p.saved_per_row + t0 / kSub;
    const int rows = min(steps - first_row, kSub);
    // everything the tile needs is asked for before anything is waited for
    StagedPositions<kSub, kColumns, kFast, kWarps * 32, T> tokens;
    tokens.load(row_of(B_chunk, first_row, static_cast<int>(p.B.inner)), p.B.inner,
                row_of(C_chunk, first_row, static_cast<int>(p.C.inner)), p.C.inner, rows,
                p.d_state);
    float start[kChannels][4];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int e = min(again(e0) + c, p.d_inner - 1);
      load_state<4, kFast>(p.saved.at(tile, e) + n0, states, start[c]);
    }
    // delta, delta u and g of the sub-chunk; zeros outside, which change nothing
    {
      const Quad at4 = find_quad();
      float bias4[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      if (p.bias != nullptr) load_packed<4, kFast>(p.bias + at4.from, at4.readable).widen(bias4);
      Packed<T, 4> raw[kRounds][4];
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int row = first_row + min(at4.row + i * (32 / kQuads), rows - 1);
        raw[i][0] =
            load_packed<4, kFast>(row_of(delta_chunk, row, delta_stride) + at4.from, at4.readable);
        raw[i][1] = load_packed<4, kFast>(row_of(u_chunk, row, u_stride) + at4.from, at4.readable);
        raw[i][2] =
            load_packed<4, kFast>(row_of(dy_chunk, row, dy_stride) + at4.from, at4.readable);
        raw[i][3] = load_packed<4, kFast>(row_of(z_chunk, row, z_stride) + at4.from, at4.readable);
      }
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int t = at4.row + i * (32 / kQuads);
        if (kSub * kQuads < 32 && t >= kSub) break;
        float d[4];
        float x[4];
        float g[4];
        float gate[4];
        raw[i][0].widen(d);
        raw[i][1].widen(x);
        raw[i][2].widen(g);
        raw[i][3].widen(gate);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float silu = gate[k] * sigmoid(gate[k]);
          g[k] *= gated ? silu : 1.0F;
          d[k] = delta_of<T>(d[k], bias4[k], p.ready);
          x[k] *= d[k];
        }
        if (t >= rows || at4.valid < 4) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (t >= rows || k >= at4.valid) d[k] = x[k] = g[k] = 0.0F;
          }
        }
        store_shared(mine + S::kDelta + t * kWidth + at4.first, d);
        store_shared(mine + S::kX + t * kWidth + at4.first, x);
        store_shared(mine + S::kG + t * kWidth + at4.first, g);
      }
    }
    tokens.store(tokens_of_tile());
    meet();
    if (kFast && first_row > 0) bring_tile(first_row - kSub);

    const auto slot_of = [&](int k, int c) { return mine + S::slot(k) + c * 128 + lane * 4; };
    {  // states before windows
      float(&h)[kChannels][4] = start;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) store_shared(slot_of(0, c), h[c]);
      const float* const bc = tokens_of_tile();
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
              h[c][j] = fmaf(decay(d[c], A[c][j]), h[c][j], x[c] * B[j]);
            }
          }
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) store_shared(slot_of(k, c), h[c]);
      }
    }

    const float* const bc = tokens_of_tile();
#pragma unroll 1
    for (int k = S::kWindows - 1; k >= 0; --k) {
      const auto load_before = [&](float(&h)[kChannels][4]) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) load_shared(slot_of(k, c), h[c]);
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
            a[s][c][j] = decay(d[c], A[c][j]);
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
      for (int round = 0; round < (kWindow * S::kGroups + 31) / 32; ++round) {
        const int i = lane + round * 32;
        if (kWindow * S::kGroups < 32 && i >= kWindow * S::kGroups) break;
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
      for (int round = 0; round < (kWindow * S::kGroups + 31) / 32; ++round) {
        const int i = lane + round * 32;
        if (kWindow * S::kGroups < 32 && i >= kWindow * S::kGroups) break;
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
      const Quad at4 = find_quad();
      float skip[4] = {0.0F, 0.0F, 0.0F, 0.0F};
      if (p.D != nullptr) load_packed<4, kFast>(p.D + at4.from, at4.readable).widen(skip);
      float dD[4];
      float dbias[4];
      load_shared(mine + S::kParameters + lane * 4, dD);
      load_shared(mine + S::kParameters + 128 + lane * 4, dbias);
      // all that is read before anything is stored, behind which a load may not pass
      Packed<T, 4> raw[kRounds][3];
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int row = first_row + min(at4.row + i * (32 / kQuads), rows - 1);
        raw[i][0] = load_packed<4, kFast>(row_of(u_chunk, row, u_stride) + at4.from, at4.readable);
        raw[i][1] =
            load_packed<4, kFast>(row_of(dy_chunk, row, dy_stride) + at4.from, at4.readable);
        raw[i][2] = load_packed<4, kFast>(row_of(z_chunk, row, z_stride) + at4.from, at4.readable);
      }
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int t = at4.row + i * (32 / kQuads);
        if (kSub * kQuads < 32 && t >= kSub) break;
        const bool stored = t < rows && at4.valid > 0;
        const int row = first_row + t;
        float u[4];
        float dy[4];
        float z[4];
        float d[4];
        float s1[4];
        float s2[4];
        float g[4];
        float out[4];
        raw[i][0].widen(u);
        raw[i][1].widen(dy);
        raw[i][2].widen(z);
        load_shared(mine + S::kDelta + t * kWidth + at4.first, d);
        load_shared(mine + S::kX + t * kWidth + at4.first, s1);
        load_shared(mine + S::kS2 + t * kWidth + at4.first, s2);
        load_shared(mine + S::kG + t * kWidth + at4.first, g);
        load_shared(mine + S::kY + t * kWidth + at4.first, out);
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
            store_packed<4, kFast>(row_of(to.at(b, begin), row, static_cast<int>(to.inner)) + at4.e,
                                   at4.valid, values);
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

    meet();
    // dB and dC over the warps; what the next sub-chunk overwrites is behind its barrier
    float* const partial = p.dBC + ((block * p.batch + b) * p.length + t0) * 2 * kColumns;
    for (int i = static_cast<int>(threadIdx.x) % kThreads; i < kSub * 2 * kColumns / 4;
         i += kThreads) {
      const int t = i / (kColumns / 2);
      if (t0 + t >= end) break;
      const float* const from =
          shared() + S::slot(t / kWindow) + t % kWindow * 2 * kColumns + i % (kColumns / 2) * 4;
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

  const int row = place() / blocks;
  const bool first_chunk = row % static_cast<int>(p.chunks) == 0;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int e = e0 + c;
    if (e >= p.d_inner) continue;
    store_state<4, kFast>(p.dA + (int64_t{row} * p.d_inner + e) * p.d_state + n0, states, dA[c]);
    if (first_chunk && !p.dstate_in.empty()) {
      store_state<4, kFast>(p.dstate_in.at(row / static_cast<int>(p.chunks), e) + n0, states,
                            carry[c]);
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
      p.dD[(int64_t{row} * 2 + which) * p.d_inner + e_warp + channel] = sum;
    }
  }
}

}  // namespace gmamba::cuda::scan
