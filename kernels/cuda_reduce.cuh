// SPDX-License-Identifier: Apache-2.0
/// Adds partial sums in fixed order: every sum over rows is cut into chunks by shape, each chunk
/// keeps its own partial, and these are added here, all arrays of an operation in one launch, so
/// that two runs give the same bits.
#pragma once

#include <bit>
#include <type_traits>

#include "kernels/cuda_overlap.cuh"
#include "kernels/cuda_tiles.cuh"
#include "kernels/linear.h"

namespace gmamba::cuda {

/// One array of sums: out[i / columns, i % columns] (+)= sum over chunks of
/// partials[chunk * stride + i], for i < count; columns do not matter where out is contiguous.
template <class Real>
struct PartialSums {
  const Real* partials = nullptr;
  int64_t chunks = 0, stride = 0, count = 0;
  float* out = nullptr;
  int64_t columns = 0, out_stride = 0;

  PartialSums() = default;
  /// Chunks that follow each other; `out` is null where the sums are not wanted.
  PartialSums(const Real* partials, int64_t chunks, int64_t count, float* out, int64_t columns,
              int64_t out_stride)
      : partials(partials),
        chunks(chunks),
        stride(count),
        count(out == nullptr ? 0 : count),
        out(out),
        columns(out_stride == columns ? count : columns),
        out_stride(out_stride) {}
};

constexpr int kSumThreads = 256;
constexpr int kSumAhead = 6;  // loads of a thread under way together

/// Arrays summed by one launch, their blocks one array after the other.
template <class Real, int kArrays>
struct SumsOfLaunch {
  struct Array {
    const Real* partials;
    float* out;
    int64_t stride, out_stride;
    uint32_t chunks, count, columns;
    int first_block;
    int slot_bits;  // 2^bits threads side by side; the block's groups of so many share the chunks
  };
  Array array[kArrays];
  bool accumulate = false;
};

/// A thread adds V neighbouring sums of every groups-th chunk; a block's groups of threads cover
/// all chunks, and what they found is added in order. What counts is latency: many chunks take many
/// groups, and the loads go through shared memory, or the compiler would wait for one before the
/// next.
template <class Real, int V, int kArrays>
__global__ void __launch_bounds__(kSumThreads)
    add_partials_kernel(const __grid_constant__ SumsOfLaunch<Real, kArrays> a) {
  after_previous_kernel();
  constexpr int kBytes = V * static_cast<int>(sizeof(Real));
  __shared__ __align__(16) Real found[kSumAhead][kSumThreads * V];
  const auto block = static_cast<int>(blockIdx.x);
  const unsigned thread = threadIdx.x;
  int index = 0;
#pragma unroll
  for (int i = 1; i < kArrays; ++i) index += block >= a.array[i].first_block ? 1 : 0;
  const auto& s = a.array[index];
  const unsigned slots = 1U << s.slot_bits;
  const unsigned groups = kSumThreads >> s.slot_bits;
  const unsigned begin = static_cast<unsigned>(block - s.first_block) * slots * V;
  // the sum that this thread completes, and what is there
  const unsigned item = begin + thread;
  const bool completes = thread < slots * V && item < s.count;
  float* target = s.out + item;
  if (completes && item >= s.columns) {
    target = s.out + item / s.columns * s.out_stride + item % s.columns;
  }
  Real total = completes && a.accumulate ? static_cast<Real>(*target) : Real(0);
  const unsigned i = begin + (thread & (slots - 1)) * V;
  Real* const mine = found[0] + thread * V;
  Real sum[V] = {};
#pragma unroll 1
  for (unsigned chunk = thread >> s.slot_bits; chunk < s.chunks; chunk += kSumAhead * groups) {
    const Real* from = s.partials + chunk * s.stride + i;
#pragma unroll
    for (unsigned k = 0; k < kSumAhead; ++k, from += groups * s.stride) {
      tiles::copy_or_zeros<kBytes>(tiles::shared_address(mine + k * kSumThreads * V), from,
                                   i < s.count && chunk + k * groups < s.chunks);
    }
    tiles::commit_copies();
    tiles::wait_for_copies<0>();
#pragma unroll
    for (unsigned k = 0; k < kSumAhead; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += mine[k * kSumThreads * V + v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) mine[v] = sum[v];
  __syncthreads();
  if (!completes) return;
#pragma unroll 4
  for (unsigned group = 0; group < groups; ++group) total += found[0][group * slots * V + thread];
  *target = static_cast<float>(total);
}

template <int V, class Real, int kArrays>
void launch_sums(const Context& ctx, const char* kernel, const PartialSums<Real> (&arrays)[kArrays],
                 GradMode mode) {
  constexpr int kLeastSlots = 16 / V;
  constexpr int64_t kFewChunks = 4;  // of a thread
  SumsOfLaunch<Real, kArrays> launch;
  launch.accumulate = mode == GradMode::kAccumulate;
  int64_t blocks = 0;
  for (int i = 0; i < kArrays; ++i) {
    const PartialSums<Real>& from = arrays[i];
    require(from.count <= INT32_MAX && from.chunks <= INT32_MAX, ErrorKind::kUnsupported, kernel,
            ": ", from.chunks, " partials of ", from.count, " sums at once");
    int slots = kSumThreads / V;  // at most, so that no thread completes two sums
    while (slots > kLeastSlots && ceil_div(from.chunks, kSumThreads / slots) > kFewChunks) {
      slots /= 2;
    }
    auto& to = launch.array[i];
    to.partials = from.partials;
    to.out = from.out;
    to.stride = from.stride;
    to.out_stride = from.out_stride;
    to.chunks = static_cast<uint32_t>(from.chunks);
    to.count = static_cast<uint32_t>(from.count);
    to.columns = static_cast<uint32_t>(from.columns);
    to.first_block = static_cast<int>(blocks);
    to.slot_bits = std::countr_zero(static_cast<unsigned>(slots));
    blocks += ceil_div(from.count, slots * V);
  }
  if (blocks == 0) return;
  start_overlapping(stream_of(ctx), add_partials_kernel<Real, V, kArrays>,
                    static_cast<unsigned>(blocks), kSumThreads, 0, launch);
  check_launch(ctx, kernel, arrays[0].chunks, " partials of ", arrays[0].count);
}

/// All arrays in one launch.
template <class Real, int kArrays>
void add_partials(const Context& ctx, const char* kernel,
                  const PartialSums<Real> (&arrays)[kArrays], GradMode mode) {
  if constexpr (std::is_same_v<Real, float>) {
    bool fits = true;
    for (const PartialSums<Real>& array : arrays) {
      fits = fits && array.count % 4 == 0 && array.stride % 4 == 0 &&
             reinterpret_cast<uintptr_t>(array.partials) % 16 == 0;
    }
    if (fits) return launch_sums<4>(ctx, kernel, arrays, mode);
  }
  launch_sums<1>(ctx, kernel, arrays, mode);
}

template <class Real>
void add_partials(const Context& ctx, const char* kernel, const Real* partials, int64_t chunks,
                  int64_t count, int64_t columns, float* out, int64_t out_stride, GradMode mode) {
  const PartialSums<Real> arrays[1] = {{partials, chunks, count, out, columns, out_stride}};
  add_partials(ctx, kernel, arrays, mode);
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
