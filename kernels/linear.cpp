// SPDX-License-Identifier: Apache-2.0
/// CPU body: tiles of the output, each one call of a single-threaded BLAS, spread over our threads.
/// Products with a small inner extent, at which a BLAS is poor, go to kernels/narrow_product.h.
/// A tile of a few hundred rows reaches the rate of a whole matrix while it stays in cache, and the
/// tiles depend on the shapes only, so that results have the same bits on any number of threads.
#include "kernels/linear.h"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <mutex>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"
#include "kernels/narrow_product.h"
#include "kernels/partials.h"
#include "libmamba/core/parallel.h"

namespace gmamba {
namespace {

constexpr int64_t kRowTile = 256;     // rows that make packing the other matrix cheap
constexpr int64_t kLeastRows = 128;   // rows below which packing shows
constexpr int64_t kColumnTile = 128;  // columns that make packing the rows cheap
constexpr int64_t kEnoughTiles = 8;   // tiles that keep the cores of usual machines busy
constexpr int64_t kWorthSplitting = int64_t{1} << 20;  // multiply-adds
constexpr int64_t kAddedElements = 16384;              // of partial products, per piece

struct Tile {
  int64_t rows;
  int64_t columns;
};

int64_t round_up(int64_t value, int64_t step) { return pieces(value, step) * step; }

/// Tile of an output of `rows` x `columns` whose elements are sums of `inner` products. Rows are
/// cut first; columns only when the rows are too few for the cores and the work is large.
Tile output_tile(int64_t rows, int64_t columns, int64_t inner) {
  Tile tile{kRowTile, std::max<int64_t>(1, columns)};
  if (rows * columns * inner <= kWorthSplitting) {
    return tile;
  }
  tile.rows = std::clamp(round_up(pieces(rows, kEnoughTiles), kLeastRows), kLeastRows, kRowTile);
  const int64_t column_tiles = pieces(kEnoughTiles, pieces(rows, tile.rows));
  if (column_tiles > 1) {
    tile.columns = std::min(columns, round_up(pieces(columns, column_tiles), kColumnTile));
  }
  return tile;
}

/// Runs body(i) for i in [0, count) on the context's threads, for bodies that call BLAS. OpenBLAS
/// itself must stay on the calling thread, since the work is already spread; its OpenMP build keeps
/// that number per calling thread, the others keep one for the process. A sequential build of it
/// mixes up the buffers of concurrent calls, so there only one thread at a time may enter.
template <class Body>
void blas_for(const Context& ctx, int64_t count, Body&& body) {
  static thread_local const bool told = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(told);
  static const bool sequential = openblas_get_parallel() == OPENBLAS_SEQUENTIAL;
  if (!sequential) {
    return parallel_for(ctx, count, body);
  }
  static std::once_flag warned;
  std::call_once(warned, [&] {
    log_line(ctx.log(), LogLevel::kWarning,
             "the sequential OpenBLAS is installed, so matrix products use one thread; install "
             "libopenblas0-pthread for speed");
  });
  static std::mutex entered;
  const std::lock_guard<std::mutex> lock(entered);
  for (int64_t i = 0; i < count; ++i) body(i);
}

int blas_int(int64_t value) {
  require(value <= std::numeric_limits<int>::max(), ErrorKind::kUnsupported,
          "linear: an extent or row stride of ", value, " is beyond what BLAS can address");
  return static_cast<int>(value);
}

/// Distance between rows as BLAS wants it, also for single rows and empty matrices.
template <class T>
int leading(const View<T, 2>& matrix) {
  const int64_t least = std::max<int64_t>(1, matrix.extent[1]);
  return blas_int(matrix.extent[0] > 1 ? matrix.stride[0] : least);
}

/// Runs body(row, rows, column, columns) for every tile of an output.
template <class Body>
void for_tiles(const Context& ctx, int64_t rows, int64_t columns, Tile tile, Body&& body) {
  const int64_t column_tiles = pieces(columns, tile.columns);
  blas_for(ctx, pieces(rows, tile.rows) * column_tiles, [&](int64_t i) {
    const int64_t row = i / column_tiles * tile.rows;
    const int64_t column = i % column_tiles * tile.columns;
    body(row, std::min(tile.rows, rows - row), column, std::min(tile.columns, columns - column));
  });
}

/// Rows [begin, begin + rows) of a matrix.
template <class T>
View<T, 2> row_range(View<T, 2> matrix, int64_t begin, int64_t rows) {
  matrix.data = matrix.at(begin);
  matrix.extent[0] = rows;
  return matrix;
}

bool is_narrow(int64_t rows, int64_t inner) {
  return inner > 0 && inner <= kNarrowInner && rows >= kNarrowRows;
}

/// The narrow form of both products below: `matrix` is (columns, inner) when transposed.
void narrow_cpu(Context& ctx, View<const float, 2> a, View<const float, 2> matrix, bool transposed,
                const float* bias, View<float, 2> out, bool accumulate) {
  const Arena::Scope scope(ctx.arena());
  float* const packed =
      ctx.arena().f32({narrow_packed_size(a.extent[1], out.extent[1])}).as<float, 1>().data;
  pack_narrow(matrix, transposed, bias, packed);
  parallel_for(ctx, pieces(out.extent[0], kRowTile), [&](int64_t tile) {
    const int64_t begin = tile * kRowTile;
    const int64_t rows = std::min(kRowTile, out.extent[0] - begin);
    narrow_product(row_range(a, begin, rows), packed, row_range(out, begin, rows), accumulate);
  });
}

void forward_cpu(Context& ctx, View<const float, 2> x, View<const float, 2> weight,
                 const float* bias, View<float, 2> y) {
  const int64_t inner = x.extent[1];
  if (is_narrow(y.extent[0], inner)) {
    return narrow_cpu(ctx, x, weight, true, bias, y, false);
  }
  const Tile tile = output_tile(y.extent[0], y.extent[1], inner);
  for_tiles(ctx, y.extent[0], y.extent[1], tile,
            [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
              // BLAS adds to a tile that starts as the bias, so the bias costs no pass of its own
              for (int64_t i = 0; i < rows && bias != nullptr; ++i) {
                std::copy_n(bias + column, columns, y.at(row + i, column));
              }
              for (int64_t i = 0; i < rows && bias == nullptr && inner == 0; ++i) {
                std::fill_n(y.at(row + i, column), columns, 0.0F);
              }
              if (inner == 0) return;
              cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas_int(rows),
                          blas_int(columns), blas_int(inner), 1.0F, x.at(row), leading(x),
                          weight.at(column), leading(weight), bias != nullptr ? 1.0F : 0.0F,
                          y.at(row, column), leading(y));
            });
}

void backward_input_cpu(Context& ctx, View<const float, 2> dy, View<const float, 2> weight,
                        View<float, 2> dx, GradMode mode) {
  const int64_t inner = dy.extent[1];
  const bool add = mode == GradMode::kAccumulate;
  if (is_narrow(dx.extent[0], inner)) {
    return narrow_cpu(ctx, dy, weight, false, nullptr, dx, add);
  }
  const Tile tile = output_tile(dx.extent[0], dx.extent[1], inner);
  for_tiles(ctx, dx.extent[0], dx.extent[1], tile,
            [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
              for (int64_t i = 0; i < rows && inner == 0 && !add; ++i) {
                std::fill_n(dx.at(row + i, column), columns, 0.0F);
              }
              if (inner == 0) return;
              cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_int(rows),
                          blas_int(columns), blas_int(inner), 1.0F, dy.at(row), leading(dy),
                          weight.at(0, column), leading(weight), add ? 1.0F : 0.0F,
                          dx.at(row, column), leading(dx));
            });
}

/// How dweight is cut: its larger side into blocks, and where these are few, very many rows into
/// chunks whose products are formed apart and added in order.
struct WeightPieces {
  WeightPieces(int64_t rows, int64_t outputs, int64_t inputs) : cut_outputs(outputs >= inputs) {
    const int64_t larger = std::max(outputs, inputs);
    columns = round_up(pieces(larger, kEnoughTiles), kColumnTile);
    blocks = pieces(larger, columns);
    const int64_t most = std::max<int64_t>(1, rows / kLeastChunk);
    chunks = std::clamp<int64_t>(pieces(2 * kEnoughTiles, blocks), 1, most);
    chunk_rows = pieces(rows, chunks);
  }

  static constexpr int64_t kLeastChunk = 4096;  // rows that are worth a partial product
  bool cut_outputs;                             // cut N, else K
  int64_t columns;                              // of a block
  int64_t blocks;
  int64_t chunks;
  int64_t chunk_rows;
};

/// to (+)= dy[rows]^T x[rows] on one block of dweight.
void weight_block(View<const float, 2> dy, View<const float, 2> x, int64_t row, int64_t rows,
                  const WeightPieces& cut, int64_t block, View<float, 2> to, float beta) {
  const int64_t begin = block * cut.columns;
  const int64_t output = cut.cut_outputs ? begin : 0;
  const int64_t input = cut.cut_outputs ? 0 : begin;
  const int64_t outputs =
      std::min(cut.cut_outputs ? cut.columns : to.extent[0], to.extent[0] - output);
  const int64_t inputs =
      std::min(cut.cut_outputs ? to.extent[1] : cut.columns, to.extent[1] - input);
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas_int(outputs), blas_int(inputs),
              blas_int(rows), 1.0F, dy.at(row, output), leading(dy), x.at(row, input), leading(x),
              beta, to.at(output, input), leading(to));
}

/// dweight (+)= sum of the chunks' products, in order.
void add_chunks(const Context& ctx, View<const float, 3> partials, View<float, 2> dweight,
                GradMode mode) {
  const int64_t inputs = dweight.extent[1];
  const int64_t step = pieces(kAddedElements, inputs);
  parallel_for(ctx, pieces(dweight.extent[0], step), [&](int64_t piece) {
    const int64_t end = std::min(dweight.extent[0], (piece + 1) * step);
    for (int64_t n = piece * step; n < end; ++n) {
      float* const out = dweight.at(n);
      if (mode == GradMode::kOverwrite) std::fill_n(out, inputs, 0.0F);
      for (int64_t chunk = 0; chunk < partials.extent[0]; ++chunk) {
        const float* const part = partials.at(chunk, n);
        for (int64_t k = 0; k < inputs; ++k) out[k] += part[k];
      }
    }
  });
}

void backward_weight_cpu(Context& ctx, View<const float, 2> dy, View<const float, 2> x,
                         View<float, 2> dweight, GradMode mode) {
  const int64_t rows = dy.extent[0];
  const int64_t outputs = dweight.extent[0];
  const int64_t inputs = dweight.extent[1];
  if (rows == 0) {
    for (int64_t n = 0; mode == GradMode::kOverwrite && n < outputs; ++n) {
      std::fill_n(dweight.at(n), inputs, 0.0F);
    }
    return;
  }
  const WeightPieces cut(rows, outputs, inputs);
  if (cut.chunks == 1) {
    const float beta = mode == GradMode::kAccumulate ? 1.0F : 0.0F;
    blas_for(ctx, cut.blocks,
             [&](int64_t block) { weight_block(dy, x, 0, rows, cut, block, dweight, beta); });
    return;
  }
  const Arena::Scope scope(ctx.arena());
  const auto scratch = ctx.arena().f32({cut.chunks, outputs, inputs});
  const auto partials = scratch.as<float, 3>();
  blas_for(ctx, cut.blocks * cut.chunks, [&](int64_t i) {
    const int64_t chunk = i / cut.blocks;
    const int64_t row = chunk * cut.chunk_rows;
    const View<float, 2> to{partials.at(chunk), {outputs, inputs}, {inputs, 1}};
    weight_block(dy, x, row, std::min(cut.chunk_rows, rows - row), cut, i % cut.blocks, to, 0.0F);
  });
  add_chunks(ctx, ConstTensorView(scratch).as<const float, 3>(), dweight, mode);
}

/// dbias (+)= column sums of dy.
void backward_bias_cpu(Context& ctx, View<const float, 2> dy, View<float, 1> dbias, GradMode mode) {
  constexpr int64_t kMostChunks = 64;
  const int64_t rows = dy.extent[0];
  const int64_t columns = dbias.extent[0];
  const int64_t step = chunk_rows(rows, kRowTile, kMostChunks);
  const Arena::Scope scope(ctx.arena());
  const auto partials =
      ctx.arena().zeros(DType::kF64, {pieces(rows, step), columns}).as<double, 2>();
  parallel_for(ctx, partials.extent[0], [&](int64_t chunk) {
    double* const sums = partials.at(chunk);
    const int64_t end = std::min(rows, (chunk + 1) * step);
    for (int64_t m = chunk * step; m < end; ++m) {
      const float* const row = dy.at(m);
      for (int64_t n = 0; n < columns; ++n) {
        sums[n] += static_cast<double>(row[n]);
      }
    }
  });
  const View<const double, 2> sums{partials.data, {partials.extent[0], columns}, {columns, 1}};
  add_partials(ctx, sums, dbias.data, columns, columns, mode);
}

}  // namespace

void linear_forward(Context& ctx, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                    TensorView y) {
  const Door door(ctx, "linear_forward");
  const DType type = door.activation(x);
  door.first("x", x, type, 2);
  door.first("weight", weight, type, 2);
  const int64_t outputs = weight.dim(0);
  door.expect("weight", weight, type, {outputs, x.dim(1)});
  door.optional("bias", bias, DType::kF32, {outputs});
  door.expect("y", y, y.dtype == type ? type : DType::kF32, {x.dim(0), outputs});
  if (!ctx.device().is_cpu()) {
    return cuda::linear_forward(ctx, x, weight, bias, y);
  }
  if (y.size() == 0) {
    return;
  }
  forward_cpu(ctx, x.as<const float, 2>(), weight.as<const float, 2>(),
              bias.as<const float, 1>().data, y.as<float, 2>());
}

void linear_backward_input(Context& ctx, ConstTensorView dy, ConstTensorView weight, TensorView dx,
                           GradMode mode) {
  const Door door(ctx, "linear_backward_input");
  const DType type = door.activation(dy);
  door.first("dy", dy, type, 2);
  door.first("weight", weight, type, 2);
  door.expect("weight", weight, type, {dy.dim(1), weight.dim(1)});
  door.expect("dx", dx, dx.dtype == type ? type : DType::kF32, {dy.dim(0), weight.dim(1)});
  if (!ctx.device().is_cpu()) {
    return cuda::linear_backward_input(ctx, dy, weight, dx, mode);
  }
  if (dx.size() == 0) {
    return;
  }
  backward_input_cpu(ctx, dy.as<const float, 2>(), weight.as<const float, 2>(), dx.as<float, 2>(),
                     mode);
}

void linear_backward_weight(Context& ctx, ConstTensorView dy, ConstTensorView x, TensorView dweight,
                            TensorView dbias, GradMode mode) {
  const Door door(ctx, "linear_backward_weight");
  const DType type = door.activation(dy);
  door.first("dy", dy, type, 2);
  door.first("x", x, type, 2);
  door.expect("x", x, type, {dy.dim(0), x.dim(1)});
  door.expect("dweight", dweight, DType::kF32, {dy.dim(1), x.dim(1)});
  door.optional("dbias", dbias, DType::kF32, {dy.dim(1)});
  if (!ctx.device().is_cpu()) {
    return cuda::linear_backward_weight(ctx, dy, x, dweight, dbias, mode);
  }
  if (dweight.size() > 0) {
    backward_weight_cpu(ctx, dy.as<const float, 2>(), x.as<const float, 2>(),
                        dweight.as<float, 2>(), mode);
  }
  if (!dbias.empty() && dbias.size() > 0) {
    backward_bias_cpu(ctx, dy.as<const float, 2>(), dbias.as<float, 1>(), mode);
  }
}

}  // namespace gmamba
