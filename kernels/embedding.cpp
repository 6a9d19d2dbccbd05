// SPDX-License-Identifier: Apache-2.0
/// CPU body: tokens are checked first, so that a bad one is named and nothing is written; the
/// backward pass adds rows into fp64 tables, one per chunk of rows, which are added in order.
#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"
#include "kernels/partials.h"

namespace gmamba {
namespace {

constexpr int64_t kRowTile = 512;
constexpr int64_t kMostTables = 16;

void check_tokens(const char* operation, View<const uint8_t, 1> tokens, int64_t vocab) {
  for (int64_t m = 0; m < tokens.extent[0]; ++m) {
    const int token = *tokens.at(m);
    require(token < vocab, ErrorKind::kInput, operation, ": token ", token, " at position ", m,
            " is not below the vocabulary's size ", vocab);
  }
}

void forward_cpu(const Context& ctx, View<const uint8_t, 1> tokens, View<const float, 2> table,
                 View<float, 2> y) {
  const int64_t rows = y.extent[0];
  parallel_for(ctx, pieces(rows, kRowTile), [&](int64_t tile) {
    const int64_t end = std::min(rows, (tile + 1) * kRowTile);
    for (int64_t m = tile * kRowTile; m < end; ++m) {
      std::copy_n(table.at(*tokens.at(m)), y.extent[1], y.at(m));
    }
  });
}

void backward_cpu(Context& ctx, View<const uint8_t, 1> tokens, View<const float, 2> dy,
                  View<float, 2> dtable, GradMode mode) {
  const int64_t rows = dy.extent[0];
  const int64_t vocab = dtable.extent[0];
  const int64_t width = dtable.extent[1];
  const int64_t step = chunk_rows(rows, kRowTile, kMostTables);
  const int64_t chunks = pieces(rows, step);
  const Arena::Scope scope(ctx.arena());
  const auto tables = ctx.arena().zeros(DType::kF64, {chunks, vocab * width}).as<double, 2>();
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    const int64_t end = std::min(rows, (chunk + 1) * step);
    for (int64_t m = chunk * step; m < end; ++m) {
      double* const sums = tables.at(chunk, *tokens.at(m) * width);
      const float* const row = dy.at(m);
      for (int64_t i = 0; i < width; ++i) {
        sums[i] += static_cast<double>(row[i]);
      }
    }
  });
  const View<const double, 2> sums{tables.data, {chunks, vocab * width}, {vocab * width, 1}};
  add_partials(ctx, sums, dtable.data, dtable.stride[0], width, mode);
}

}  // namespace

void embedding_forward(Context& ctx, ConstTensorView tokens, ConstTensorView table, TensorView y) {
  const Door door(ctx, "embedding_forward");
  door.first("tokens", tokens, DType::kU8, 1);
  door.first("table", table, DType::kF32, 2);
  door.expect("y", y, DType::kF32, {tokens.dim(0), table.dim(1)});
  if (!ctx.device().is_cpu()) {
    return cuda::embedding_forward(ctx, tokens, table, y);
  }
  if (tokens.dim(0) == 0) {
    return;
  }
  check_tokens("embedding_forward", tokens.as<const uint8_t, 1>(), table.dim(0));
  forward_cpu(ctx, tokens.as<const uint8_t, 1>(), table.as<const float, 2>(), y.as<float, 2>());
}

void embedding_backward(Context& ctx, ConstTensorView tokens, ConstTensorView dy, TensorView dtable,
                        GradMode mode) {
  const Door door(ctx, "embedding_backward");
  door.first("tokens", tokens, DType::kU8, 1);
  door.first("dtable", dtable, DType::kF32, 2);
  door.expect("dy", dy, DType::kF32, {tokens.dim(0), dtable.dim(1)});
  if (!ctx.device().is_cpu()) {
    return cuda::embedding_backward(ctx, tokens, dy, dtable, mode);
  }
  if (tokens.dim(0) > 0) {
    check_tokens("embedding_backward", tokens.as<const uint8_t, 1>(), dtable.dim(0));
  }
  if (dtable.size() > 0) {
    backward_cpu(ctx, tokens.as<const uint8_t, 1>(), dy.as<const float, 2>(), dtable.as<float, 2>(),
                 mode);
  }
}

}  // namespace gmamba
