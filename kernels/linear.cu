// SPDX-License-Identifier: Apache-2.0
/// Dense projections through cuBLASLt.
/// Layout  row-major; rows may be strided; products of very many rows are cut, so that no library
///         kernel meets an index past 32 bits
/// Weights' gradients sum over all rows into a small matrix: the rows are cut into chunks by shape,
///         a batched product forms one partial per chunk, and the partials are added in order, so
///         that all multiprocessors work and two runs give the same bits
/// Floor   the bytes of x and y: 256 -> 1024 in bf16 over 2^20 rows, 2.7 GB, 0.9 ms at 3.0 TB/s
#include "kernels/linear.h"

#include <algorithm>

#include "kernels/convert.h"
#include "kernels/cublaslt.h"
#include "kernels/cuda_basic.h"
#include "kernels/cuda_reduce.cuh"

namespace gmamba::cuda {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 21;  // of one product
constexpr int kThreads = 256;

GemmMatrix matrix(const ConstTensorView& view) {
  return {view.data, view.dtype, view.dim(0) > 1 ? view.stride[0] : view.dim(1)};
}

__global__ void fill_rows_kernel(View<float, 2> y, const float* bias) {
  const int64_t columns = y.extent[1];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < y.extent[0] * columns) {
    *y.at(i / columns, i % columns) = bias == nullptr ? 0.0F : bias[i % columns];
  }
}

__global__ void fill_rows_kernel(View<bf16, 2> y, const float* bias) {
  const int64_t columns = y.extent[1];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < y.extent[0] * columns) {
    store_as(y.at(i / columns, i % columns), bias == nullptr ? 0.0F : bias[i % columns]);
  }
}

/// y = bias or zeros: a product without an inner extent.
void fill_rows(const Context& ctx, const TensorView& y, const float* bias) {
  over_activation(y.dtype, [&](auto type) {
    using T = decltype(type);
    const auto blocks = static_cast<unsigned>(ceil_div(y.size(), kThreads));
    fill_rows_kernel<<<blocks, kThreads, 0, stream_of(ctx)>>>(y.as<T, 2>(), bias);
    check_launch(ctx, "fill_rows", to_string(y.shape()));
  });
}

/// Calls body(first row, end row) for pieces of at most kMostRows.
template <class Body>
void over_rows(int64_t rows, Body&& body) {
  for (int64_t row = 0; row < rows; row += kMostRows) body(row, std::min(rows, row + kMostRows));
}

/// How the rows of a weight gradient are cut: enough pieces of work for all multiprocessors, by
/// shape alone.
struct Chunks {
  Chunks(int64_t rows, int64_t outputs, int64_t inputs) {
    constexpr int64_t kTile = 128;
    constexpr int64_t kLeastRows = 1024;
    constexpr int64_t kFewRows = 65536;  // up to these, adding the partials counts
    const int64_t enough_tiles = rows <= kFewRows ? 128 : 256;
    const int64_t tiles = ceil_div(outputs, kTile) * ceil_div(inputs, kTile);
    const int64_t most = std::max<int64_t>(1, rows / kLeastRows);
    const int64_t wanted = std::clamp<int64_t>(ceil_div(enough_tiles, tiles), 1, most);
    const int64_t least = ceil_div(rows, kMostRows);
    size = ceil_div(ceil_div(rows, std::max(wanted, least)), kTile) * kTile;
    whole = rows / size;
    rest = rows - whole * size;
  }
  int64_t size;   // rows of a chunk
  int64_t whole;  // chunks of that size
  int64_t rest;   // rows after them
  int64_t count() const { return whole + (rest > 0 ? 1 : 0); }
};

/// to (batch, N, K) = dy^T x for `batch` chunks of `rows` rows from `row` on.
void weight_product(Context& ctx, const ConstTensorView& dy, const ConstTensorView& x, int64_t row,
                    int64_t rows, int64_t batch, GemmMatrix to, bool accumulate) {
  const auto chunk = [&](const ConstTensorView& view) {
    GemmMatrix m = matrix(view);
    m.data = view.data + row * m.stride * size_of(view.dtype);
    m.batch_stride = batch > 1 ? rows * m.stride : 0;
    return m;
  };
  gemm(ctx, {.m = dy.dim(1),
             .n = x.dim(1),
             .k = rows,
             .batch = batch,
             .a_is_transposed = true,
             .a = chunk(dy),
             .b = chunk(x),
             .c = to,
             .accumulate = accumulate});
}

void backward_weight(Context& ctx, const ConstTensorView& dy, const ConstTensorView& x,
                     const TensorView& dweight, GradMode mode) {
  const int64_t rows = dy.dim(0);
  const int64_t outputs = dy.dim(1);
  const int64_t inputs = x.dim(1);
  if (rows == 0) {
    if (mode == GradMode::kOverwrite) fill_rows(ctx, dweight, nullptr);
    return;
  }
  const Chunks cut(rows, outputs, inputs);
  if (cut.count() == 1) {
    return weight_product(ctx, dy, x, 0, rows, 1, matrix(dweight), mode == GradMode::kAccumulate);
  }
  const Arena::Scope scope(ctx.arena());
  const int64_t size = outputs * inputs;
  float* const partials = ctx.arena().f32({cut.count(), size}).as<float, 2>().data;
  weight_product(ctx, dy, x, 0, cut.size, cut.whole, {partials, DType::kF32, inputs, size}, false);
  if (cut.rest > 0) {
    weight_product(ctx, dy, x, cut.whole * cut.size, cut.rest, 1,
                   {partials + cut.whole * size, DType::kF32, inputs, size}, false);
  }
  add_partials(ctx, "linear_backward_weight", static_cast<const float*>(partials), cut.count(),
               size, inputs, dweight.as<float, 2>().data, matrix(dweight).stride, mode);
}

template <class T>
struct RowTerm {
  View<const T, 2> values;
  __device__ float operator()(int64_t row, int64_t column) const {
    return as_float(*values.at(row, column));
  }
};

}  // namespace

void linear_forward(Context& ctx, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                    TensorView y) {
  if (y.size() == 0) return;
  const auto* const bias_f32 = bias.empty() ? nullptr : bias.flat<const float>().data();
  if (x.dim(1) == 0) return fill_rows(ctx, y, bias_f32);
  const Arena::Scope scope(ctx.arena());
  ConstTensorView typed_bias = bias;
  if (!bias.empty() && y.dtype != DType::kF32) {
    const TensorView narrow = ctx.arena().tensor(y.dtype, {bias.dim(0)});
    cuda::convert(ctx, bias, narrow);
    typed_bias = narrow;
  }
  over_rows(y.dim(0), [&](int64_t row, int64_t end) {
    gemm(ctx, {.m = end - row,
               .n = y.dim(1),
               .k = x.dim(1),
               .b_is_transposed = true,
               .a = matrix(x.slice(0, row, end)),
               .b = matrix(weight),
               .c = matrix(y.slice(0, row, end)),
               .bias = typed_bias.data});
  });
}

void linear_backward_input(Context& ctx, ConstTensorView dy, ConstTensorView weight, TensorView dx,
                           GradMode mode) {
  if (dx.size() == 0) return;
  const bool accumulate = mode == GradMode::kAccumulate;
  if (dy.dim(1) == 0) {
    if (!accumulate) fill_rows(ctx, dx, nullptr);
    return;
  }
  over_rows(dx.dim(0), [&](int64_t row, int64_t end) {
    gemm(ctx, {.m = end - row,
               .n = dx.dim(1),
               .k = dy.dim(1),
               .a = matrix(dy.slice(0, row, end)),
               .b = matrix(weight),
               .c = matrix(dx.slice(0, row, end)),
               .accumulate = accumulate});
  });
}

void linear_backward_weight(Context& ctx, ConstTensorView dy, ConstTensorView x, TensorView dweight,
                            TensorView dbias, GradMode mode) {
  if (dweight.size() > 0) backward_weight(ctx, dy, x, dweight, mode);
  if (dbias.empty() || dbias.size() == 0) return;
  over_activation(dy.dtype, [&](auto type) {
    using T = decltype(type);
    column_sums(ctx, "linear_backward_bias", RowTerm<T>{dy.as<const T, 2>()}, dy.dim(0), dy.dim(1),
                dbias.flat<float>().data(), mode);
  });
}

}  // namespace gmamba::cuda
