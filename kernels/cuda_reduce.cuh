// SPDX-License-Identifier: Apache-2.0
/// Adds partial sums in fixed order: every sum over rows is cut into chunks by shape, each chunk
/// keeps its own partial, and these are added here, so that two runs give the same bits.
#pragma once

#include <type_traits>

#include "kernels/cuda_common.cuh"
#include "kernels/linear.h"

namespace gmamba::cuda {

constexpr int kReduceGroups = 8;

/// out[i / columns, i % columns] (+)= sum over chunks of partials[chunk, i].
/// A block does 32 sums; its 8 warps take every eighth chunk each and are added in order.
template <class Real>
__global__ void add_partials_kernel(const Real* partials, int64_t chunks, int64_t count,
                                    int64_t columns, float* out, int64_t out_stride,
                                    bool accumulate) {
  __shared__ Real sums[kReduceGroups][kWarp];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  Real sum = 0;
  if (i < count) {
#pragma unroll 8
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += kReduceGroups) {
      sum += partials[chunk * count + i];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= count) return;
  float* const target = out + i / columns * out_stride + i % columns;
  Real total = accumulate ? static_cast<Real>(*target) : Real(0);
#pragma unroll
  for (int group = 0; group < kReduceGroups; ++group) total += sums[group][threadIdx.x];
  *target = static_cast<float>(total);
}

/// The same for many sums of few chunks: a thread adds four neighbouring sums, chunk after chunk.
static __global__ void __launch_bounds__(128)
    add_wide_partials_kernel(const float4* partials, int chunks, int64_t quads, int row_quads,
                             float* out, int64_t out_stride, bool accumulate) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (i >= quads) return;
  float4 sum = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 16
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const float4 more = partials[chunk * quads + i];
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
  }
  float* const target = out + i / row_quads * out_stride + i % row_quads * 4;
  const float total[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) target[k] = accumulate ? target[k] + total[k] : total[k];
}

template <class Real>
void add_partials(const Context& ctx, const char* kernel, const Real* partials, int64_t chunks,
                  int64_t count, int64_t columns, float* out, int64_t out_stride, GradMode mode) {
  if (count == 0) return;
  constexpr int64_t kMany = 16384;
  if constexpr (std::is_same_v<Real, float>) {
    if (count >= kMany && chunks <= 64 && columns % 4 == 0) {
      const int64_t quads = count / 4;
      add_wide_partials_kernel<<<static_cast<unsigned>(ceil_div(quads, 128)), 128, 0,
                                 stream_of(ctx)>>>(
          reinterpret_cast<const float4*>(partials), static_cast<int>(chunks), quads,
          static_cast<int>(columns / 4), out, out_stride, mode == GradMode::kAccumulate);
      check_launch(ctx, kernel, chunks, " partials of ", count);
      return;
    }
  }
  add_partials_kernel<<<static_cast<unsigned>(ceil_div(count, kWarp)), dim3(kWarp, kReduceGroups),
                        0, stream_of(ctx)>>>(partials, chunks, count, columns, out, out_stride,
                                             mode == GradMode::kAccumulate);
  check_launch(ctx, kernel, chunks, " partials of ", count);
}

constexpr int kColumnRows = 8;  // rows of a column block that run side by side

/// partials[chunk, column] = sum over the chunk's rows of term(row, column), summed in fp64.
/// Launch  grid (ceil(columns / 32), chunks), 32 x 8 threads
template <class Term>
__global__ void column_partials_kernel(Term term, int64_t rows, int64_t columns, int64_t chunk_rows,
                                       double* partials) {
  __shared__ double sums[kColumnRows][kWarp];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * chunk_rows;
  const int64_t end = min(rows, first + chunk_rows);
  double sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = first + threadIdx.y; row < end; row += kColumnRows) {
      sum += static_cast<double>(term(row, column));
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  double total = 0;
#pragma unroll
  for (int i = 0; i < kColumnRows; ++i) total += sums[i][threadIdx.x];
  partials[static_cast<int64_t>(blockIdx.y) * columns + column] = total;
}

/// out[column] (+)= sum over rows of term(row, column).
template <class Term>
void column_sums(Context& ctx, const char* kernel, Term term, int64_t rows, int64_t columns,
                 float* out, GradMode mode) {
  constexpr int64_t kMostChunks = 1024;
  constexpr int64_t kLeastRows = 128;
  if (columns == 0) return;
  const int64_t chunks = rows == 0 ? 1 : min(kMostChunks, ceil_div(rows, kLeastRows));
  const int64_t chunk_rows = ceil_div(rows, chunks);
  const Arena::Scope scope(ctx.arena());
  double* const partials =
      ctx.arena().tensor(DType::kF64, {chunks, columns}).template as<double, 2>().data;
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kWarp)), static_cast<unsigned>(chunks));
  column_partials_kernel<<<grid, dim3(kWarp, kColumnRows), 0, stream_of(ctx)>>>(
      term, rows, columns, chunk_rows, partials);
  check_launch(ctx, kernel, rows, " x ", columns);
  add_partials(ctx, kernel, static_cast<const double*>(partials), chunks, columns, columns, out,
               columns, mode);
}

}  // namespace gmamba::cuda
