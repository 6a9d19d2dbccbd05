// SPDX-License-Identifier: Apache-2.0
/// Sums over rows that give the same bits for any number of threads: the rows are cut into chunks
/// by shape alone, each chunk keeps its own fp64 partial sums, and these are added in order.
#pragma once

#include <algorithm>

#include "kernels/linear.h"
#include "libmamba/core/parallel.h"

namespace gmamba {

/// Rows per chunk: whole multiples of `tile`, at most `most` chunks over all rows.
inline int64_t chunk_rows(int64_t rows, int64_t tile, int64_t most) {
  return std::max<int64_t>(1, pieces(pieces(rows, tile), most)) * tile;
}

/// out[i] (+)= sum over chunks of partials[chunk, i], in order of chunks.
inline void add_partials(const Context& ctx, View<const double, 2> partials, float* out,
                         int64_t out_stride, int64_t columns, GradMode mode) {
  // the partials may form a table of rows of `columns`, written with a stride
  const int64_t rows = columns == 0 ? 0 : partials.extent[1] / columns;
  parallel_for(ctx, rows, [&](int64_t row) {
    float* const target = out + row * out_stride;
    for (int64_t column = 0; column < columns; ++column) {
      double sum = mode == GradMode::kAccumulate ? static_cast<double>(target[column]) : 0.0;
      for (int64_t chunk = 0; chunk < partials.extent[0]; ++chunk) {
        sum += *partials.at(chunk, row * columns + column);
      }
      target[column] = static_cast<float>(sum);
    }
  });
}

}  // namespace gmamba
