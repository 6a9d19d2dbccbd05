// SPDX-License-Identifier: Apache-2.0
/// Backward pass of convolution (4 taps), SiLU and projection in one kernel, bf16 rows: from dy and
/// dprojected to dx and to the gradients of taps, bias and matrix. The gradient of y is never
/// stored, and y itself is computed again from x.
/// Layout  a block walks 64 channels along a stretch of positions, 32 at a time; a warp has 16 of
///         the channels. A lane 4 g + t has positions 4 g .. 4 g + 3 and 4 channels. The gradient
///         of y comes from the tensor cores in just that layout, with dy as what they add to; what
///         the positions before need of the next comes from the neighbouring lanes, and from the
///         round before through shared memory.
///         A round completes dx for its positions less 3, so a stretch goes on for 3 positions that
///         belong to the next one.
/// Memory  x, dy and dprojected come in by asynchronous copies, three rounds ahead
/// Sums    those of a block's whole stretch stay in registers; partials of blocks added in order
/// Launch  128 threads, 3 blocks per multiprocessor (168 registers: with 128 they spill), as many
///         blocks as fill the device once
/// Floor   6 E + 2 P bytes per position: E = 512, P = 48 over 2^20 positions 1.11 ms at 3.0 TB/s
#include <algorithm>

#include "kernels/conv1d_math.cuh"
#include "kernels/conv_projection.h"
#include "kernels/conv_projection_rounds.cuh"
#include "kernels/cuda_reduce.cuh"
#include "kernels/cuda_sequence.h"

namespace gmamba::cuda {
namespace {

using namespace conv_backward;

__device__ inline void load_pairs(uint32_t from, uint32_t (&pairs)[2]) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
               : "=r"(pairs[0]), "=r"(pairs[1])
               : "r"(from)
               : "memory");
}

/// Gradient of y: dy + dprojected projection, of rows 2 j and 2 j + 1 and both pairs of channels.
template <int kOutputs>
__device__ void output_gradient(const Lane<kOutputs>& me, uint32_t stage, const char* shared,
                                float (&gradient)[2][2][4]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    uint32_t dy[2];
    load_pairs(stage + kDyPlace + me.wide_row(r), dy);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      float(&to)[4] = gradient[r / 2][pair];
      unpack_bf16(dy[pair], to[r % 2 * 2], to[r % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int s = 0; s < me.kSteps; ++s) {
      uint32_t a[4];
      tiles::load_matrices(me.projected_rows(stage, j, s), a);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint2 b = *reinterpret_cast<const uint2*>(shared + me.fragment(s, pair));
        tiles::multiply_add(gradient[j][pair], a, b.x, b.y);
      }
    }
  }
}

/// dprojection += dprojected^T y, from y as two neighbouring channels in a register.
template <int kOutputs>
__device__ void matrix_gradient(Lane<kOutputs>& me, uint32_t stage, const uint32_t (&y)[kRows][2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    uint32_t b[2][2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      b[pair][0] = tiles::transposed(y[2 * j][pair]);
      b[pair][1] = tiles::transposed(y[2 * j + 1][pair]);
    }
#pragma unroll
    for (int s = 0; s < me.kSteps; ++s) {
      uint32_t a[4];
      tiles::load_transposed(me.transposed_rows(stage, j, s), a);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        tiles::multiply_add(me.dprojection[s][pair], a, b[pair][0], b[pair][1]);
      }
    }
  }
}

/// What the tails add to dx and take from it: two channels of rows from position l on.
__device__ inline void exchange_with_tails(const Problem& p, int b, int l, int channel,
                                           float (&dx)[kRows][2]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int kept = l + r - (p.length - kBefore);
    if (kept >= 0 && kept < kBefore && !p.dtail_out.empty()) {
      float more[2];
      load_floats<2>(p.dtail_out.at(b, kept, channel), more);
      dx[r][0] += more[0];
      dx[r][1] += more[1];
    }
    if (l + r < 0 && !p.dtail_in.empty()) {
      store_floats<2>(p.dtail_in.at(b, l + r + kBefore, channel), dx[r]);
    }
  }
}

/// The gradients of the pre-activation of the 3 rows before a lane's, through shared memory: from
/// the group of lanes before, or for the first group from the last one in the round before.
/// (Shuffles whose result some lanes discard make the compiler split the warp there, at twice the
/// time.)
__device__ inline void rows_before(char* exchange, const Round& round, int pair, int parity, int g,
                                   float (&dpre)[kBefore + kRows][2]) {
  constexpr int kSlot = kBefore * 4 * 8;
  const int carried = (kGroups - 1 + pair * 2 + parity) * kSlot;
  const int carried_on = (kGroups - 1 + pair * 2 + 1 - parity) * kSlot;
  float2* const to =
      reinterpret_cast<float2*>(exchange + (g < kGroups - 1 ? g * kSlot : carried_on));
  float2* const from = reinterpret_cast<float2*>(exchange + (g > 0 ? (g - 1) * kSlot : carried));
#pragma unroll
  for (int i = 0; i < kBefore; ++i) {
    to[i * 4] = make_float2(dpre[kRows + i][0], dpre[kRows + i][1]);
  }
  if (round.fresh && g == 0) {
#pragma unroll
    for (int i = 0; i < kBefore; ++i) from[i * 4] = float2{};
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kBefore; ++i) {
    const float2 before = from[i * 4];
    dpre[i][0] = before.x;
    dpre[i][1] = before.y;
  }
  __syncwarp();
}

/// One pair of channels of a round: y of its rows, and dx of the rows 3 before, both packed.
template <int kOutputs>
__device__ void convolve(const Problem& p, const Round& round, Lane<kOutputs>& me, int pair,
                         const uint32_t (&packed)[kRows + kBefore][2],
                         const float (&gradient)[2][2][4], bool at_tails, int parity, char* shared,
                         uint32_t (&y)[kRows][2], uint32_t (&dx)[kRows][2]) {
  const int channel = me.channel + 2 * pair;
  const bool there = channel < p.width;
  float weight[kTaps + 1][2];
#pragma unroll
  for (int k = 0; k <= kTaps; ++k) {
    load_floats<2>(reinterpret_cast<const float*>(shared + kTapsPlace) + k * kSlice +
                       me.warp * kWarpChannels + me.t * 4 + pair * 2,
                   weight[k]);
  }
  float x[kRows + kBefore][2];
#pragma unroll
  for (int i = 0; i < kRows + kBefore; ++i) unpack_bf16(packed[i][pair], x[i][0], x[i][1]);
  if (at_tails && round.l == 0 && !p.tail_in.empty() && me.g == 0 && there) {
#pragma unroll
    for (int i = 0; i < kBefore; ++i) load_floats<2>(p.tail_in.at(round.b, i, channel), x[i]);
  }
  float pre[kRows][2];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      pre[r][c] = weight[kTaps][c];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) pre[r][c] += weight[k][c] * x[r + k][c];
    }
  }
  float dpre[kBefore + kRows][2];  // from 3 positions before the lane's
  float s[kRows][2];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c) s[r][c] = sigmoid_for<bf16>(pre[r][c]);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float value[2] = {pre[r][0] * s[r][0], pre[r][1] * s[r][1]};
    y[r][pair] = pack_bf16(value[0], value[1]);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      dpre[kBefore + r][c] =
          gradient[r / 2][pair][r % 2 * 2 + c] * (s[r][c] + value[c] * (1.0F - s[r][c]));
    }
  }
  if (!round.extra) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float d = dpre[kBefore + r][c];
        me.dbias[pair][c] += d;
#pragma unroll
        for (int k = 0; k < kTaps; ++k) me.dweight[pair][k][c] += d * x[r + k][c];
      }
    }
  }
  rows_before(shared + kCarryPlace + me.warp * kCarryOfWarp + me.t * 8, round, pair, parity, me.g,
              dpre);
  float sum[kRows][2];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      sum[r][c] = weight[kTaps - 1][c] * dpre[r][c];
#pragma unroll
      for (int k = 1; k < kTaps; ++k) sum[r][c] += weight[kTaps - 1 - k][c] * dpre[r + k][c];
    }
  }
  if (at_tails && there) {
    exchange_with_tails(p, round.b, round.l + me.g * kRows - kBefore, channel, sum);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) dx[r][pair] = pack_bf16(sum[r][0], sum[r][1]);
}

/// `to` is where the first of the lane's rows of dx goes, 3 before its first of x.
template <int kOutputs>
__device__ void compute(const Problem& p, const Round& round, Lane<kOutputs>& me, uint32_t stage,
                        int parity, char* shared, char* to) {
  const bool at_tails = round.l == 0 || round.l + kTile > p.length - kBefore;
  float gradient[2][2][4];
  output_gradient(me, stage, shared, gradient);
  uint32_t packed[kRows + kBefore][2];
#pragma unroll
  for (int i = 0; i < kRows + kBefore; ++i) load_pairs(stage + me.wide_row(i), packed[i]);
  uint32_t y[kRows][2];
  uint32_t dx[kRows][2];
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    convolve(p, round, me, pair, packed, gradient, at_tails, parity, shared, y, dx);
  }
  if (!round.extra) matrix_gradient(me, stage, y);
  if (me.channel >= p.width) return;
  const int row = Steps(p.dx).row;
  const auto store = [&](int r) {
    *reinterpret_cast<uint2*>(to + static_cast<int64_t>(r) * row) = make_uint2(dx[r][0], dx[r][1]);
  };
  if (!round.fresh && !round.extra && round.l + kTile <= p.length) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) store(r);
    return;
  }
  const int rows = round.end(p.length) - (round.l + me.g * kRows - kBefore);
  const bool first = round.fresh && me.g == 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r < rows && (r == kBefore || !first)) store(r);
  }
}

/// The block's sums: those of taps and bias lie with all g, those of the matrix with their lanes.
template <int kOutputs>
__device__ void store_partials(const Problem& p, Lane<kOutputs>& me) {
  const auto over_groups = [](float& value) {
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      value += __shfl_xor_sync(kAllLanes, value, offset);
    }
  };
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      over_groups(me.dbias[pair][c]);
#pragma unroll
      for (int k = 0; k < kTaps; ++k) over_groups(me.dweight[pair][k][c]);
    }
  }
  const int64_t width = p.width;
  if (me.channel >= width) return;
  const int64_t worker = blockIdx.y;
  if (me.g == 0) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t e = worker * width + me.channel + c;
      p.dbias[e] = me.dbias[c / 2][c % 2];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) p.dweight[e * kTaps + k] = me.dweight[c / 2][k][c % 2];
    }
  }
  const int64_t outputs = p.outputs;
#pragma unroll
  for (int s = 0; s < me.kSteps; ++s) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int output = s * 16 + high * 8 + me.g;
      if (output >= outputs) continue;
      *reinterpret_cast<float4*>(p.dprojection + (worker * outputs + output) * width + me.channel) =
          make_float4(me.dprojection[s][0][high * 2], me.dprojection[s][0][high * 2 + 1],
                      me.dprojection[s][1][high * 2], me.dprojection[s][1][high * 2 + 1]);
    }
  }
}

template <int kOutputs>
__global__ void __launch_bounds__(kThreads, 3) backward_kernel(const Problem p) {
  after_previous_kernel();
  extern __shared__ __align__(16) char shared[];
  const uint32_t stages = tiles::shared_address(shared);
  Round round(p);
  Fetch ahead(p);
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) {
    ahead.next(p, stages + stage * kStage);
    tiles::commit_copies();
  }
  float* const taps = reinterpret_cast<float*>(shared + kTapsPlace);
  for (int i = static_cast<int>(threadIdx.x); i < kSlice; i += kThreads) {
    const int e = static_cast<int>(blockIdx.x) * kSlice + i;
    const bool there = e < p.width;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) taps[k * kSlice + i] = there ? p.weight[e * kTaps + k] : 0.0F;
    taps[kTaps * kSlice + i] = there && p.bias != nullptr ? p.bias[e] : 0.0F;
  }
  Lane<kOutputs> me;
  me.keep_matrix(p, shared);
  const Steps steps(p.dx);
  const auto place = [&] {
    return reinterpret_cast<char*>(p.dx.data + me.channel) +
           steps.to(round.b, round.l + me.g * kRows - kBefore);
  };
  char* to = place();
  for (unsigned stage = 0; round.exists(); stage = (stage + 1) % kStages) {
    tiles::wait_for_copies<kStages - 2>();
    __syncthreads();  // this round has come in, and all are done with the one before
    ahead.next(p, stages + (stage + kStages - 1) % kStages * kStage);
    tiles::commit_copies();
    __syncwarp();  // or the compiler lets lanes that copied less go on alone
    compute(p, round, me, stages + stage * kStage, static_cast<int>(stage % 2), shared, to);
    round.advance(p.length);
    to = round.fresh ? place() : to + static_cast<int64_t>(kTile) * steps.row;
  }
  store_partials(p, me);
}

/// Blocks along the positions, by shape alone: as many as fill 132 multiprocessors once, each with
/// enough rounds to be worth its partials.
int64_t workers_for(int64_t tiles, int64_t slices) {
  constexpr int64_t kBlocks = 396;
  constexpr int64_t kLeastTiles = 8;
  return std::clamp<int64_t>(kBlocks / slices, 1, ceil_div(tiles, kLeastTiles));
}

template <int kOutputs>
void launch(Context& ctx, const Problem& p, int64_t slices, int64_t workers) {
  check(cudaFuncSetAttribute(backward_kernel<kOutputs>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kSharedBytes),
        "shared memory of conv_projection_backward");
  const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(workers));
  start_overlapping(stream_of(ctx), backward_kernel<kOutputs>, grid, kThreads, kSharedBytes, p);
  check_launch(ctx, "conv_projection_backward", p.x.extent[0], " x ", p.length, " x ", p.width,
               ", ", p.outputs, " outputs");
}

int64_t row_stride(const TensorView& view) {
  return view.dim(0) > 1 ? view.stride[0] : view.dim(1);
}

}  // namespace

bool conv_projection_backward(Context& ctx, const ConvProjectionBackward& args) {
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  constexpr int64_t kMostExtent = int64_t{1} << 29;
  const int64_t width = args.x.dim(2);
  const int64_t outputs = args.projection.dim(0);
  if (args.x.dtype != DType::kBF16 || args.weight.dim(1) != kTaps || args.x.size() == 0 ||
      outputs == 0) {
    return false;
  }
  Problem p{};
  p.x = args.x.as<const bf16, 3>();
  p.dy = ConstTensorView(args.dy).as<const bf16, 3>();
  p.dprojected = args.dprojected.as<const bf16, 2>();
  p.projection = args.projection.as<const bf16, 2>();
  p.tail_in = args.tail_in.as<const float, 3>();
  p.dtail_out = args.dtail_out.as<const float, 3>();
  p.dx = args.dx.as<bf16, 3>();
  p.dtail_in = args.dtail_in.as<float, 3>();
  const int64_t tiles_of_sequence = ceil_div(args.x.dim(1), kTile);
  const int64_t all = args.x.dim(0) * tiles_of_sequence;
  const bool fits = width % 8 == 0 && outputs % 8 == 0 && outputs <= kMostOutputs &&
                    all <= kMostTiles && args.x.dim(1) <= kMostExtent && width <= kMostExtent &&
                    p.x.stride[1] <= kMostExtent && p.dy.stride[1] <= kMostExtent &&
                    p.dx.stride[1] <= kMostExtent && p.dprojected.stride[0] <= kMostExtent &&
                    args.weight.contiguous() && aligned(p.x, 16) && aligned(p.dy, 16) &&
                    aligned(p.dprojected, 16) && aligned(p.tail_in, 16) &&
                    aligned(p.dtail_out, 16) && aligned(p.dx, 16) && aligned(p.dtail_in, 16);
  if (!fits) return false;
  p.weight = args.weight.flat<const float>().data();
  p.bias = args.bias.flat<const float>().data();
  p.length = static_cast<int>(args.x.dim(1));
  p.width = static_cast<int>(width);
  p.outputs = static_cast<int>(outputs);
  p.tiles_of_sequence = static_cast<int>(tiles_of_sequence);
  p.tiles = static_cast<int>(all);
  const int64_t slices = ceil_div(width, kSlice);
  const int64_t workers = workers_for(all, slices);
  const Arena::Scope scope(ctx.arena());
  p.dweight = ctx.arena().f32({workers, width, kTaps}).as<float, 3>().data;
  p.dbias = ctx.arena().f32({workers, width}).as<float, 2>().data;
  p.dprojection = ctx.arena().f32({workers, outputs, width}).as<float, 3>().data;
  outputs <= 48 ? launch<48>(ctx, p, slices, workers)
                : launch<kMostOutputs>(ctx, p, slices, workers);
  const auto dprojection = args.dprojection.as<float, 2>();
  const auto dweight = args.dweight.as<float, 2>();
  const PartialSums<float> sums[3] = {
      {p.dprojection, workers, outputs * width, dprojection.data, width,
       row_stride(args.dprojection)},
      {p.dweight, workers, width * kTaps, dweight.data, kTaps, row_stride(args.dweight)},
      {p.dbias, workers, width, args.dbias.flat<float>().data(), width, width}};
  add_partials(ctx, "conv_projection_backward", sums, args.mode);
  return true;
}

}  // namespace gmamba::cuda
