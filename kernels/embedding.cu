// SPDX-License-Identifier: Apache-2.0
/// Rows of a table by token, and the sums of gradients by token.
/// Layout  row-major; table and rows in float
/// Launch  forward: a thread copies 4 elements (1 where rows aren't aligned). Backward: a warp
/// takes
///         a stretch of rows and some neighbouring columns and adds each row to its own table of
///         sums in shared memory; a column belongs to one lane, so nothing races. The block's
///         tables, then the blocks' partials, are added in order
/// Floor   4 D bytes per row each way: D = 256 over 2^20 rows 0.36 ms at 3.0 TB/s
#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cuda_basic.h"
#include "kernels/cuda_reduce.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = 4;  // of a backward block
constexpr int kAhead = 8;  // rows loaded before the first is added

template <int C>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(View<const uint8_t, 1> tokens, View<const float, 2> table, View<float, 2> y) {
  const int64_t per_row = y.extent[1] / C;
  const int64_t count = y.extent[0] * per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t m = i / per_row;
    const int64_t column = i % per_row * C;
    const int64_t token = *tokens.at(m);
    float row[C];
    if (token < table.extent[0]) {
      load_floats<C>(table.at(token, column), row);
    } else {
#pragma unroll
      for (int c = 0; c < C; ++c) row[c] = __int_as_float(0x7fffffff);  // NaN
    }
    store_floats<C>(y.at(m, column), row);
  }
}

/// partials (chunks, V, D). Launch  grid (column tiles of 32 C, chunks); shared (warps, V, 32 C)
template <int C>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(View<const uint8_t, 1> tokens, View<const float, 2> dy, int vocab,
                    int64_t rows_per_warp, float* partials) {
  extern __shared__ float tables[];
  constexpr int kColumns = kWarp * C;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int size = vocab * kColumns;
  const int64_t rows = dy.extent[0];
  const int64_t width = dy.extent[1];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + lane * C;
  float* const own = tables + warp * size + lane * C;
  for (int v = 0; v < vocab; ++v) {
#pragma unroll
    for (int c = 0; c < C; ++c) own[v * kColumns + c] = 0;
  }
  const int64_t begin = (static_cast<int64_t>(blockIdx.y) * kWarps + warp) * rows_per_warp;
  const int64_t end = column < width ? min(rows, begin + rows_per_warp) : begin;
  for (int64_t first = begin; first < end; first += kAhead) {
    float row[kAhead][C];
    int token[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      token[i] = vocab;
      if (first + i >= end) continue;
      token[i] = *tokens.at(first + i);
      load_floats<C>(dy.at(first + i, column), row[i]);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (token[i] >= vocab) continue;
      float sums[C];
      load_floats<C>(own + token[i] * kColumns, sums);
#pragma unroll
      for (int c = 0; c < C; ++c) sums[c] += row[i][c];
      store_floats<C>(own + token[i] * kColumns, sums);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < size; i += kWarps * kWarp) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += tables[w * size + i];
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kColumns + i % kColumns;
    if (at < width) {
      partials[(static_cast<int64_t>(blockIdx.y) * vocab + i / kColumns) * width + at] = sum;
    }
  }
}

template <int C>
void backward(Context& ctx, View<const uint8_t, 1> tokens, View<const float, 2> dy,
              View<float, 2> dtable, GradMode mode) {
  constexpr int64_t kLeastRows = 64;  // per warp
  const int64_t rows = dy.extent[0];
  const int64_t width = dtable.extent[1];
  const int64_t vocab = dtable.extent[0];
  const int64_t tiles = ceil_div(width, kWarp * C);
  const int64_t wanted = std::max<int64_t>(1, 528 / tiles);  // blocks along rows
  const int64_t chunks =
      std::clamp<int64_t>(ceil_div(rows, kWarps * kLeastRows), rows > 0 ? 1 : 0, wanted);
  const int64_t rows_per_warp = chunks == 0 ? 0 : ceil_div(rows, chunks * kWarps);
  const auto bytes = static_cast<int>(kWarps * vocab * kWarp * C * 4);
  const Arena::Scope scope(ctx.arena());
  float* const partials = ctx.arena().f32({chunks, vocab, width}).as<float, 3>().data;
  if (chunks > 0) {
    const cudaStream_t stream = stream_of(ctx);
    check(cudaFuncSetAttribute(backward_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               bytes),
          "embedding_backward: shared memory");
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks));
    backward_kernel<C><<<grid, kWarps * kWarp, static_cast<size_t>(bytes), stream>>>(
        tokens, dy, static_cast<int>(vocab), rows_per_warp, partials);
    check_launch(ctx, "embedding_backward", rows, " x ", width, ", ", vocab, " tokens");
  }
  add_partials(ctx, "embedding_backward", static_cast<const float*>(partials), chunks,
               vocab * width, width, dtable.data, dtable.extent[0] > 1 ? dtable.stride[0] : width,
               mode);
}

}  // namespace

void embedding_forward(Context& ctx, ConstTensorView tokens, ConstTensorView table, TensorView y) {
  if (y.size() == 0) return;
  const auto from = table.as<const float, 2>();
  const auto to = y.as<float, 2>();
  const bool vectors = to.extent[1] % 4 == 0 && aligned(from, 16) && aligned(to, 16);
  const int64_t items = y.size() / (vectors ? 4 : 1);
  const cudaStream_t stream = stream_of(ctx);
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(ceil_div(items, kThreads), int64_t{32} * multiprocessors(ctx)));
  const auto read = tokens.as<const uint8_t, 1>();
  if (vectors) {
    forward_kernel<4><<<blocks, kThreads, 0, stream>>>(read, from, to);
  } else {
    forward_kernel<1><<<blocks, kThreads, 0, stream>>>(read, from, to);
  }
  check_launch(ctx, "embedding_forward", to_string(y.shape()));
}

void embedding_backward(Context& ctx, ConstTensorView tokens, ConstTensorView dy, TensorView dtable,
                        GradMode mode) {
  constexpr int64_t kSmallVocabulary = 64;  // whose tables of 4 columns a lane fit shared memory
  if (dtable.size() == 0) return;
  const auto rows = dy.as<const float, 2>();
  const auto read = tokens.as<const uint8_t, 1>();
  const bool vectors =
      dtable.dim(0) <= kSmallVocabulary && dtable.dim(1) % 4 == 0 && aligned(rows, 16);
  require(dtable.dim(0) <= 256, ErrorKind::kUnsupported, "embedding_backward: a vocabulary of ",
          dtable.dim(0), "; tokens are bytes");
  vectors ? backward<4>(ctx, read, rows, dtable.as<float, 2>(), mode)
          : backward<1>(ctx, read, rows, dtable.as<float, 2>(), mode);
}

}  // namespace gmamba::cuda
