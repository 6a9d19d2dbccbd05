// SPDX-License-Identifier: Apache-2.0
/// softplus(x W^T + bias) for bf16 rows.
/// Layout  a warp keeps the weights of 64 channels (rank over 16: 32) in registers as right
/// operands of products on
///         the tensor cores and takes tiles of 16 rows in turn. Channels are dealt to the columns
///         of four products so that a lane's results of a row are eight neighbours: 16 bytes
/// Launch  warps of all channels side by side, then rows; as many blocks as fill the machine twice
/// Floor   memory: 2 E + 2 R bytes per row, 0.37 ms for 2^20 rows of 512 channels at 3.0 TB/s;
/// issue:
///         about 15 slots per channel and row, 0.25 ms
#include "kernels/delta_projection.h"

#include <algorithm>

#include "kernels/cuda_overlap.cuh"
#include "kernels/cuda_sequence.h"
#include "kernels/scan_mma.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 2;
/// Channels of a warp, whose weights fit its registers.
template <int kSteps>
constexpr int kWarpChannels = kSteps == 1 ? 64 : 32;
constexpr int kTile = 16;  // rows

struct Problem {
  View<const bf16, 2> x;       // (M, R)
  View<const bf16, 2> weight;  // (E, R)
  const float* bias;           // (E) or null
  View<bf16, 2> delta;         // (M, E)
};

/// The channel that column `column` of product j of a warp's group of 32 stands for.
__device__ inline int channel_of(int j, int column) { return column / 2 * 8 + 2 * j + column % 2; }

/// Two neighbouring elements of a row, or zeros where the row or they don't exist.
__device__ inline uint32_t load_pair(const bf16* row, int at, int width, bool exists) {
  return exists && at < width ? *reinterpret_cast<const uint32_t*>(row + at) : 0U;
}

template <int kSteps>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    delta_projection_kernel(const Problem p, int groups, int64_t warps_per_group) {
  using scan::kLog2e;
  constexpr int kBlocks = kWarpChannels<kSteps> / 8;
  after_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4;
  const int q = lane % 4;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int first = static_cast<int>(warp % groups) * kWarpChannels<kSteps>;
  const int rank = static_cast<int>(p.x.extent[1]);
  const int d_inner = static_cast<int>(p.delta.extent[1]);
  const int64_t rows = p.delta.extent[0];

  uint32_t weight[kBlocks][kSteps][2];
  float bias[kBlocks][2];  // in units of log(2), as are the sums
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    const int base = first + k / 4 * 32;
    const int e = base + channel_of(k % 4, g);
    const bf16* const row = p.weight.at(min(e, d_inner - 1), 0);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      weight[k][s][0] = load_pair(row, s * 16 + 2 * q, rank, e < d_inner);
      weight[k][s][1] = load_pair(row, s * 16 + 2 * q + 8, rank, e < d_inner);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int mine = base + channel_of(k % 4, 2 * q + i);
      bias[k][i] = p.bias == nullptr || mine >= d_inner ? 0.0F : kLog2e * p.bias[mine];
    }
  }

  uint32_t left[kSteps][4];
  const auto fetch = [&](int64_t row) {
    const bf16* const from = p.x.at(row + g, 0);
    const bf16* const below = from + 8 * p.x.stride[0];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      left[s][0] = load_pair(from, s * 16 + 2 * q, rank, row + g < rows);
      left[s][1] = load_pair(below, s * 16 + 2 * q, rank, row + g + 8 < rows);
      left[s][2] = load_pair(from, s * 16 + 2 * q + 8, rank, row + g < rows);
      left[s][3] = load_pair(below, s * 16 + 2 * q + 8, rank, row + g + 8 < rows);
    }
  };
  const int64_t stride = warps_per_group * kTile;
  int64_t row = warp / groups * kTile;
  if (warp / groups >= warps_per_group || row >= rows) return;
  fetch(row);
#pragma unroll 1
  for (; row < rows; row += stride) {
    float sums[kBlocks][4] = {};
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        scan::mma_k16(sums[k], left[s][0], left[s][1], left[s][2], left[s][3], weight[k][s]);
      }
    }
    fetch(row + stride);
#pragma unroll
    for (int half = 0; half < kBlocks / 4; ++half) {
      const int e = first + half * 32 + q * 8;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int k = half * 4 + j;
          float d[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float v = fmaf(sums[k][2 * i + c], kLog2e, bias[k][c]);
            // in units of 1 again
            d[c] = scan::softplus_of<bf16>(v * scan::kLn2, scan::ex2(-fabsf(v)), 1.0F);
          }
          packed[j] = scan::narrow_pair(d[0], d[1]);
        }
        const int64_t at = row + g + 8 * i;
        if (at < rows && e < d_inner) {
          *reinterpret_cast<uint4*>(p.delta.at(at, e)) =
              make_uint4(packed[0], packed[1], packed[2], packed[3]);
        }
      }
    }
  }
}

template <int kSteps>
void launch(Context& ctx, const Problem& p) {
  const int64_t rows = p.delta.extent[0];
  const auto groups = static_cast<int>(ceil_div(p.delta.extent[1], kWarpChannels<kSteps>));
  const int64_t wanted = ceil_div(rows, kTile) * groups;  // warps with one tile each
  const int64_t most = int64_t{multiprocessors(ctx)} * kBlocksPerSm * (kThreads / kWarp);
  const int64_t per_group = ceil_div(std::min(wanted, std::max<int64_t>(most, groups)), groups);
  const int64_t blocks = ceil_div(per_group * groups, kThreads / kWarp);
  start_overlapping(stream_of(ctx), delta_projection_kernel<kSteps>, static_cast<unsigned>(blocks),
                    kThreads, 0, p, groups, per_group);
  check_launch(ctx, "delta_projection", rows, " x ", p.delta.extent[1], ", rank ", p.x.extent[1]);
}

}  // namespace

void delta_projection(Context& ctx, const DeltaProjection& args) {
  Problem p{};
  p.x = args.x.as<const bf16, 2>();
  p.weight = args.weight.as<const bf16, 2>();
  p.bias = args.bias.as<const float, 1>().data;
  p.delta = args.delta.as<bf16, 2>();
  if (p.delta.extent[0] == 0 || p.delta.extent[1] == 0) return;
  require(
      aligned(p.delta, 16) && aligned(p.x, 4) && aligned(p.weight, 4), ErrorKind::kUnsupported,
      "delta_projection: rows of delta must lie on multiples of 16 bytes, of x and weight of 4");
  const int64_t rank = p.x.extent[1];
  if (rank <= 16) {
    launch<1>(ctx, p);
  } else if (rank <= 32) {
    launch<2>(ctx, p);
  } else {
    launch<4>(ctx, p);
  }
}

}  // namespace gmamba::cuda
