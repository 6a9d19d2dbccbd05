// SPDX-License-Identifier: Apache-2.0
/// Pooling over the positions of sequences that arrive in segments.
/// Layout  hidden (B, L, D), T in float or bf16, rows strided; sums in fp64
/// Launch  rows are cut into chunks by shape; a block does 32 columns of a chunk with 8 rows side
/// by
///         side and leaves one partial (sum, or largest value and its row); the chunks' partials
///         are joined in order by a thread per column
/// Floor   sizeof(T) bytes per element
#include "kernels/pool.h"

#include <algorithm>

#include "kernels/cuda_basic.h"
#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kSide = 8;  // rows side by side
constexpr int kThreads = kWarp * kSide;

/// A NaN is larger than any number and equal to another NaN, so that it isn't lost.
template <class Real>
__device__ bool beats(Real value, Real best) {
  return !(value <= best) && best == best;
}

/// A value and the row where it stands; row -1: none yet.
struct Largest {
  float value = 0;
  int64_t row = -1;

  /// Joins another; of equals the first row stays.
  __device__ void join(float other, int64_t where) {
    if (where < 0) return;
    const bool same = !beats(other, value) && !beats(value, other);
    if (row < 0 || beats(other, value) || (same && where < row)) {
      value = other;
      row = where;
    }
  }
};

template <class T>
struct Update {
  View<const T, 3> hidden;       // (B, L, D)
  View<const int64_t, 1> valid;  // (B)
  int64_t chunks, chunk_rows;
  int64_t offset;
  View<double, 2> accumulator;  // (B, D)
  View<int64_t, 2> position;    // (B, D), kMax only
  double* sums;                 // (B, chunks, D)
  int64_t* rows;                // (B, chunks, D), kMax only

  __device__ int64_t rows_of(int64_t b) const {
    return max(int64_t{0}, min(*valid.at(b), hidden.extent[1]));
  }
};

/// Launch  grid (column tiles, chunks, ...) folded into x: tile + tiles * (chunk + chunks * b)
template <bool kMaximum, class T>
__global__ void __launch_bounds__(kThreads) partials_kernel(Update<T> a, int64_t tiles) {
  __shared__ double sums[kSide][kWarp];
  __shared__ int64_t rows[kSide][kWarp];
  const int64_t width = a.hidden.extent[2];
  const int64_t column = static_cast<int64_t>(blockIdx.x) % tiles * kWarp + threadIdx.x;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) / tiles % a.chunks;
  const int64_t b = static_cast<int64_t>(blockIdx.x) / tiles / a.chunks;
  const int64_t end = min(a.rows_of(b), (chunk + 1) * a.chunk_rows);
  double sum = 0;
  Largest largest;
  if (column < width) {
#pragma unroll 4
    for (int64_t t = chunk * a.chunk_rows + threadIdx.y; t < end; t += kSide) {
      const float value = as_float(*a.hidden.at(b, t, column));
      if constexpr (kMaximum) {
        largest.join(value, t);
      } else {
        sum += static_cast<double>(value);
      }
    }
  }
  sums[threadIdx.y][threadIdx.x] = kMaximum ? static_cast<double>(largest.value) : sum;
  rows[threadIdx.y][threadIdx.x] = largest.row;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  const int64_t to = (b * a.chunks + chunk) * width + column;
  for (int i = 1; i < kSide; ++i) {
    if constexpr (kMaximum) {
      largest.join(static_cast<float>(sums[i][threadIdx.x]), rows[i][threadIdx.x]);
    } else {
      sum += sums[i][threadIdx.x];
    }
  }
  a.sums[to] = kMaximum ? static_cast<double>(largest.value) : sum;
  if constexpr (kMaximum) a.rows[to] = largest.row;
}

/// Adds the chunks' partials to what the segments before have left.
template <class T>
__global__ void __launch_bounds__(kThreads) join_kernel(Update<T> a, PoolMode mode) {
  const int64_t width = a.hidden.extent[2];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.hidden.extent[0] * width) return;
  const int64_t b = i / width;
  const int64_t column = i % width;
  double* const to = a.accumulator.at(b, column);
  if (mode == PoolMode::kLast) {
    const int64_t rows = a.rows_of(b);
    if (rows > 0) *to = static_cast<double>(as_float(*a.hidden.at(b, rows - 1, column)));
    return;
  }
  const int64_t first = b * a.chunks * width + column;
  if (mode == PoolMode::kMean) {
    double sum = *to;
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) sum += a.sums[first + chunk * width];
    *to = sum;
    return;
  }
  Largest largest;
  if (a.offset > 0) {
    largest.value = static_cast<float>(*to);
    largest.row = *a.position.at(b, column);
  }
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    const int64_t row = a.rows[first + chunk * width];
    largest.join(static_cast<float>(a.sums[first + chunk * width]), row < 0 ? row : a.offset + row);
  }
  *to = static_cast<double>(largest.value);
  *a.position.at(b, column) = largest.row;
}

template <class T>
void update(Context& ctx, const PoolUpdate& args) {
  constexpr int64_t kEnoughBlocks = 1056;
  constexpr int64_t kLeastRows = 64;
  const int64_t batch = args.hidden.dim(0);
  const int64_t length = args.hidden.dim(1);
  const int64_t width = args.hidden.dim(2);
  const bool largest = args.mode == PoolMode::kMax;
  const int64_t tiles = ceil_div(width, kWarp);
  Update<T> a{};
  a.hidden = args.hidden.as<const T, 3>();
  a.valid = args.valid.as<const int64_t, 1>();
  a.offset = args.offset;
  a.accumulator = args.accumulator.as<double, 2>();
  a.position = args.position.as<int64_t, 2>();
  a.chunks = std::clamp<int64_t>(ceil_div(length, kLeastRows), 1,
                                 std::max<int64_t>(1, kEnoughBlocks / (tiles * batch)));
  a.chunk_rows = ceil_div(length, a.chunks);
  const Arena::Scope scope(ctx.arena());
  const cudaStream_t stream = stream_of(ctx);
  if (args.mode != PoolMode::kLast) {
    const Shape shape = {batch, a.chunks, width};
    a.sums = ctx.arena().tensor(DType::kF64, shape).template as<double, 3>().data;
    if (largest) a.rows = ctx.arena().tensor(DType::kI64, shape).template as<int64_t, 3>().data;
    const auto blocks = static_cast<unsigned>(tiles * a.chunks * batch);
    const dim3 threads(kWarp, kSide);
    if (largest) {
      partials_kernel<true><<<blocks, threads, 0, stream>>>(a, tiles);
    } else {
      partials_kernel<false><<<blocks, threads, 0, stream>>>(a, tiles);
    }
    check_launch(ctx, "pool_update", to_string(args.hidden.shape()));
  }
  join_kernel<<<static_cast<unsigned>(ceil_div(batch * width, kThreads)), kThreads, 0, stream>>>(
      a, args.mode);
  check_launch(ctx, "pool_update", to_string(args.hidden.shape()));
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(View<const double, 2> sums, View<const int64_t, 1> lengths, bool mean,
                  View<float, 2> pooled) {
  const int64_t width = sums.extent[1];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= sums.extent[0] * width) return;
  const int64_t count = *lengths.at(i / width);
  const double divisor = mean && count > 0 ? static_cast<double>(count) : 1.0;
  *pooled.at(i / width, i % width) = static_cast<float>(*sums.at(i / width, i % width) / divisor);
}

template <class T>
struct Backward {
  View<const float, 2> dpooled;
  View<const int64_t, 1> lengths;
  View<const int64_t, 2> position;
  int64_t offset;
  View<T, 3> dhidden;
  PoolMode mode;
};

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Backward<T> a) {
  const int64_t width = a.dhidden.extent[2];
  const int64_t length = a.dhidden.extent[1];
  const int64_t count = a.dhidden.extent[0] * length * width;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t column = i % width;
    const int64_t t = i / width % length;
    const int64_t b = i / width / length;
    const int64_t whole = *a.lengths.at(b);
    const int64_t left = whole - (a.offset + t);  // rows of the sequence from here on
    float value = 0;
    if (a.mode == PoolMode::kMean) {
      if (left > 0) value = *a.dpooled.at(b, column) * (1.0F / static_cast<float>(whole));
    } else if (a.mode == PoolMode::kLast) {
      if (left == 1) value = *a.dpooled.at(b, column);
    } else if (left > 0 && *a.position.at(b, column) == a.offset + t) {
      value = *a.dpooled.at(b, column);
    }
    store_as(a.dhidden.at(b, t, column), value);
  }
}

}  // namespace

void pool_update(Context& ctx, const PoolUpdate& args) {
  if (args.accumulator.size() == 0) return;
  over_activation(args.hidden.dtype, [&](auto type) { update<decltype(type)>(ctx, args); });
}

void pool_finish(Context& ctx, PoolMode mode, ConstTensorView accumulator, ConstTensorView lengths,
                 TensorView pooled) {
  if (pooled.size() == 0) return;
  finish_kernel<<<static_cast<unsigned>(ceil_div(pooled.size(), kThreads)), kThreads, 0,
                  stream_of(ctx)>>>(accumulator.as<const double, 2>(),
                                    lengths.as<const int64_t, 1>(), mode == PoolMode::kMean,
                                    pooled.as<float, 2>());
  check_launch(ctx, "pool_finish", to_string(pooled.shape()));
}

void pool_backward(Context& ctx, const PoolBackward& args) {
  if (args.dhidden.size() == 0) return;
  over_activation(args.dhidden.dtype, [&](auto type) {
    using T = decltype(type);
    const Backward<T> a{args.dpooled.as<const float, 2>(),
                        args.lengths.as<const int64_t, 1>(),
                        args.position.as<const int64_t, 2>(),
                        args.offset,
                        args.dhidden.as<T, 3>(),
                        args.mode};
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(
        ceil_div(args.dhidden.size(), kThreads), int64_t{32} * multiprocessors(ctx)));
    backward_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(a);
    check_launch(ctx, "pool_backward", to_string(args.dhidden.shape()));
  });
}

}  // namespace gmamba::cuda
