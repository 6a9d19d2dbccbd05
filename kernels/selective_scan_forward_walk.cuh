// SPDX-License-Identifier: Apache-2.0
/// What the kernels of the outputs share: their arguments, and a lane's channels and states.
///   delta = softplus(delta_raw + bias);  h <- exp(delta A) h + delta B u;  y = (C h + D u) silu(z)
/// Layout  a lane keeps 2 channels x kStates states in registers (or 4 channels x 8 states); kSplit
///         groups of lanes share the states of a channel, so a warp holds 64 / kSplit channels of
///         one chunk (or 128)
/// Units   delta in units of log(2), so that exp(delta A) is 2^(delta A); B comes times log(2).
///         Where delta comes ready, A is scaled instead
#pragma once

#include "kernels/scan_stage.cuh"

namespace gmamba::cuda::scan {

constexpr int kForwardWarps = kTeamWarps;

/// Teams of the outputs on an SM: 12 warps with 168 registers. A fourth finds the exponential unit
/// and the issue slots beside it as busy as they get.
constexpr int kForwardTeams = 3;
/// With one channel a lane: 16 warps with 128 registers.
constexpr int kJointTeams = 4;

template <class T>
struct ForwardArgs {
  Rows<const T> u, delta, z;  // (B, L, E); z empty: no gate
  Rows<const T> B, C;         // (B, L, N)
  const float* A = nullptr;   // (E, N)
  int64_t A_stride = 0;
  const float* D = nullptr;     // (E) or empty
  const float* bias = nullptr;  // (E) or empty
  bool ready = false;           // delta is behind bias and softplus
  Rows<const float> start;      // (B * start_per_row, E, N) or empty: zeros
  int64_t start_per_row = 0;    // at least as many as chunks
  // true where the kernels that this one may overlap with write `start` and nothing else it reads
  bool start_is_late = false;
  Rows<T> y;              // (B, L, E)
  Rows<float> state_out;  // (B, E, N) or empty
  Rows<float> saved;      // (B * saved_per_row, E, N) or empty: states on the way
  int64_t saved_per_row = 0;
  int64_t saved_every = 0;  // positions between two of them, a multiple of a tile
  int64_t batch = 0, length = 0;
  int64_t chunks = 1, chunk_length = 0;
  int64_t longer = 0;  // chunks that are a tile longer
  int d_inner = 0, d_state = 0;
  float open = 0.0F;  // added to a gate: 1 where there is none, for then z is 0
  Vectors vectors;
};

/// The warp's part of the work: one chunk of a batch row, and its channels from `first` on.
template <class T, int kStates, int kSplit, int kChannels = 2>
struct ForwardUnit {
  bool exists;
  int first;
  int64_t chunk, b, begin;
  int steps;

  __device__ ForwardUnit(const ForwardArgs<T>& p, int warp) {
    constexpr int kWidth = WalkShape<T, kStates, kSplit, kChannels>::kWidth;
    const int width = (p.d_inner + kWidth - 1) / kWidth;     // groups of channels
    uint32_t unit = blockIdx.x * (blockDim.x / 32U) + warp;  // below 2^32, see start_teams
    exists = unit < p.batch * p.chunks * width;
    first = static_cast<int>(unit % width) * kWidth;
    unit /= width;
    chunk = unit % static_cast<uint32_t>(p.chunks);
    b = unit / static_cast<uint32_t>(p.chunks);
    begin = chunk_begin(chunk, p.chunk_length, p.longer);
    steps = chunk_steps(chunk, p.chunk_length, p.longer, p.length);
  }
};

/// The channels of a lane and kStates of their states.
template <class T, int kStates, int kSplit, bool kReady, int kChannels = 2>
struct ForwardLane {
  using S = WalkShape<T, kStates, kSplit, kChannels>;
  using Elements = Packed<T, kChannels>;

  int local;             // first channel, of the warp's
  int e;                 // the same, of all
  int n0;                // first state
  int channels, states;  // that exist
  bool vector;           // states move in pieces of 16 bytes
  float A[kChannels][kStates];
  float h[kChannels][kStates];
  float skip[kChannels];
  float bias[kChannels];

  __device__ ForwardLane(const ForwardArgs<T>& p, int lane, int first)
      : local(lane % S::kGroups * kChannels),
        e(first + local),
        n0(lane / S::kGroups * kStates),
        channels(max(0, min(kChannels, p.d_inner - e))),
        states(max(0, min(kStates, p.d_state - n0))),
        vector(p.vectors.states) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int ei = min(e + i, p.d_inner - 1);
      load_states(p.A + ei * p.A_stride + n0, i < channels ? states : 0, vector, A[i]);
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        if constexpr (kReady) A[i][n] *= kLog2e;
      }
      // one of the lanes that share a channel adds D u
      skip[i] = p.D == nullptr || n0 != 0 ? 0.0F : p.D[ei];
      bias[i] = kReady || p.bias == nullptr ? 0.0F : kLog2e * p.bias[ei];
    }
  }
  /// The states before chunk `chunk` of batch row `b`.
  __device__ void start(const ForwardArgs<T>& p, int64_t b, int64_t chunk) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
#pragma unroll
      for (int n = 0; n < kStates; ++n) h[i][n] = 0.0F;
      if (!p.start.empty()) {
        load_states(p.start.at(b * p.start_per_row + chunk, min(e + i, p.d_inner - 1)) + n0,
                    i < channels ? states : 0, vector, h[i]);
      }
    }
  }
  /// Stores the states to `to`, which points to the warp's first channel.
  __device__ void store(float* to, int64_t stride) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      if (i < channels) store_states(to + (local + i) * stride + n0, states, vector, h[i]);
    }
  }
  /// One position: y of all channels. B and C are those of the position, from the lane's first
  /// state on; `open` is added to the gate.
  __device__ Elements step(const Elements& u_raw, const Elements& delta_raw, const Elements& z_raw,
                           const float* B, const float* C, float open) {
    float u[kChannels];
    float d[kChannels];
    float z[kChannels];
    u_raw.widen(u);
    delta_raw.widen(d);
    z_raw.widen(z);
    if constexpr (!kReady) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) d[i] = softplus2<T>(fmaf(d[i], kLog2e, bias[i]));
    }
    float x[kChannels];
    float y[kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) x[i] = d[i] * u[i], y[i] = skip[i] * u[i];
    // in this order of instructions, which the compiler keeps, twelve warps on an SM are 1.5%
    // faster than with y summed as the states come
    constexpr int kPair = kChannels == 1 ? 1 : 2;
#pragma unroll
    for (int pair = 0; pair < kChannels; pair += kPair) {
#pragma unroll
      for (int i = pair; i < pair + kPair; ++i) {
#pragma unroll
        for (int n = 0; n < kStates; n += 4) {
          float b[4];
          load_shared(B + n, b);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            h[i][n + k] = fmaf(decay(d[i], A[i][n + k]), h[i][n + k], x[i] * b[k]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kStates; n += 4) {
        float c[4];
        load_shared(C + n, c);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int i = pair; i < pair + kPair; ++i) y[i] = fmaf(c[k], h[i][n + k], y[i]);
        }
      }
    }
#pragma unroll
    for (int lanes = S::kGroups; lanes < 32; lanes *= 2) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) y[i] += __shfl_xor_sync(kFullWarp, y[i], lanes);
    }
#pragma unroll
    for (int i = 0; i < kChannels; ++i) y[i] *= fmaf(z[i], sigmoid(z[i]), open);
    return Elements::of(y);
  }
};

}  // namespace gmamba::cuda::scan
