// SPDX-License-Identifier: Apache-2.0
/// What both kernels of the scan's backward pass get, and the sums over groups of channels.
#pragma once

#include "kernels/cuda_overlap.cuh"
#include "kernels/scan_common.cuh"

namespace gmamba::cuda::scan {

constexpr int kBackwardWarps = kTeamWarps;
constexpr int kWindow = 4;  // positions whose decays and states are in registers together

template <class T>
struct BackwardArgs {
  Rows<const T> dy, u, delta, z;  // (B, L, E); z empty: no gate
  Rows<const T> B, C;             // (B, L, N)
  const float* A = nullptr;       // (E, N)
  int64_t A_stride = 0;
  const float* D = nullptr;     // (E) or empty
  const float* bias = nullptr;  // (E) or empty
  bool ready = false;           // delta is behind bias and softplus
  Rows<const float> saved;      // (B * saved states, E, N)
  int64_t saved_per_row = 0;    // saved states of a batch row
  // (B * end_per_row, E, N) or empty: gradient behind each end_per_chunk-th stretch of a chunk
  Rows<const float> dstate_end;
  int64_t end_per_row = 1, end_per_chunk = 1;
  // true where the kernels that this one may overlap with write those and nothing else it reads
  bool end_is_late = false;
  Rows<T> du, ddelta, dz, y;  // (B, L, E); dz and y may be empty
  Rows<float> dstate_in;      // (B, E, N) or empty
  float* dBC = nullptr;       // (groups, B, L, 2 * columns) partial sums
  float* dA = nullptr;        // (B * chunks, E, N) partial sums
  float* dD = nullptr;        // (B * chunks, 2, E) partial sums of dD and ddelta_bias
  int64_t batch = 0, length = 0;
  int64_t chunks = 1, chunk_length = 0;
  int d_inner = 0, d_state = 0;
};

template <class T>
struct PositionSums {
  const float* partial = nullptr;  // (groups, B, L, 2 * columns)
  Rows<T> dB, dC;                  // (B, L, N)
  int64_t groups = 0, batch = 0, length = 0;
  int d_state = 0, columns = 0;
};

/// dB and dC: the sums of all groups of channels, in order.
template <class T>
__global__ void __launch_bounds__(256) scan_position_sums_kernel(const PositionSums<T> p) {
  after_previous_kernel();
  const int quads = p.columns / 2;
  const int64_t rows = p.batch * p.length;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= rows * quads) return;
  const int64_t row = i / quads;
  const int column = static_cast<int>(i % quads) * 4;
  float sum[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 4
  for (int64_t g = 0; g < p.groups; ++g) {
    float more[4];
    load_shared(p.partial + (g * rows + row) * 2 * p.columns + column, more);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k] += more[k];
  }
  const bool second = column >= p.columns;
  const int n = second ? column - p.columns : column;
  T* const to = (second ? p.dC : p.dB).at(row / p.length, row % p.length) + n;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (n + k < p.d_state) to[k] = narrow<T>(sum[k]);
  }
}

}  // namespace gmamba::cuda::scan
