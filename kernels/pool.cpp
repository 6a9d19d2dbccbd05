// SPDX-License-Identifier: Apache-2.0
/// CPU body: work is cut by sequence and by columns, never by rows, so that a column's rows are
/// taken in their order and any segmentation gives the same bits.
#include "kernels/pool.h"

#include <algorithm>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"
#include "libmamba/core/parallel.h"

namespace gmamba {
namespace {

constexpr int64_t kColumnTile = 64;
constexpr int64_t kRowTile = 256;

/// The columns [begin, end) of sequence b.
struct Columns {
  int64_t b;
  int64_t begin;
  int64_t end;
};

/// Runs body(columns) for every tile of the columns of every sequence.
template <class Body>
void for_columns(const Context& ctx, int64_t batch, int64_t width, Body&& body) {
  const int64_t tiles = pieces(width, kColumnTile);
  parallel_for(ctx, batch * tiles, [&](int64_t i) {
    const int64_t begin = i % tiles * kColumnTile;
    body(Columns{i / tiles, begin, std::min(width, begin + kColumnTile)});
  });
}

void add_rows(View<const float, 3> hidden, const Columns& c, int64_t rows,
              View<double, 2> accumulator) {
  double* const sums = accumulator.at(c.b);
  for (int64_t t = 0; t < rows; ++t) {
    const float* const row = hidden.at(c.b, t);
    for (int64_t i = c.begin; i < c.end; ++i) {
      sums[i] += static_cast<double>(row[i]);
    }
  }
}

void keep_row(View<const float, 3> hidden, const Columns& c, int64_t t,
              View<double, 2> accumulator) {
  for (int64_t i = c.begin; i < c.end; ++i) {
    *accumulator.at(c.b, i) = static_cast<double>(*hidden.at(c.b, t, i));
  }
}

/// A NaN is larger than any number and equal to another NaN, so that it isn't lost.
template <class Real>
bool beats(Real value, Real best) {
  return !(value <= best) & (best == best);
}

/// Largest values of the columns of up to kRowTile rows, and the rows where they first stand.
struct TileMax {
  float best[kColumnTile];
  int32_t row[kColumnTile];

  TileMax(View<const float, 3> hidden, const Columns& c, int64_t first, int64_t end) {
    const int64_t width = c.end - c.begin;
    std::copy_n(hidden.at(c.b, first, c.begin), width, best);
    std::fill_n(row, width, 0);
    for (int64_t t = first + 1; t < end; ++t) {
      const float* const values = hidden.at(c.b, t, c.begin);
      const auto here = static_cast<int32_t>(t - first);
      for (int64_t i = 0; i < width; ++i) {
        const bool more = beats(values[i], best[i]);
        best[i] = more ? values[i] : best[i];
        row[i] = more ? here : row[i];
      }
    }
  }
};

void keep_largest(View<const float, 3> hidden, const Columns& c, int64_t rows, int64_t offset,
                  View<double, 2> accumulator, View<int64_t, 2> position) {
  double* const best = accumulator.at(c.b);
  int64_t* const where = position.at(c.b);
  if (offset == 0) {
    std::fill(best + c.begin, best + c.end, 0.0);
    std::fill(where + c.begin, where + c.end, int64_t{-1});
  }
  for (int64_t first = 0; first < rows; first += kRowTile) {
    const TileMax tile(hidden, c, first, std::min(rows, first + kRowTile));
    for (int64_t i = c.begin; i < c.end; ++i) {
      const auto value = static_cast<double>(tile.best[i - c.begin]);
      if (where[i] < 0 || beats(value, best[i])) {
        best[i] = value;
        where[i] = offset + first + tile.row[i - c.begin];
      }
    }
  }
}

void update_cpu(const Context& ctx, const PoolUpdate& args) {
  const auto hidden = args.hidden.as<const float, 3>();
  const auto valid = args.valid.as<const int64_t, 1>();
  const auto accumulator = args.accumulator.as<double, 2>();
  const auto position = args.position.as<int64_t, 2>();
  for (int64_t b = 0; b < args.hidden.dim(0); ++b) {
    require(*valid.at(b) >= 0 && *valid.at(b) <= args.hidden.dim(1), ErrorKind::kInternal,
            "pool_update: valid rows of sequence ", b, ": ", *valid.at(b), ", outside of 0 to ",
            args.hidden.dim(1));
  }
  for_columns(ctx, args.hidden.dim(0), args.hidden.dim(2), [&](const Columns& c) {
    const int64_t rows = *valid.at(c.b);
    switch (args.mode) {
      case PoolMode::kMean:
        return add_rows(hidden, c, rows, accumulator);
      case PoolMode::kLast:
        return rows > 0 ? keep_row(hidden, c, rows - 1, accumulator) : void();
      case PoolMode::kMax:
        return keep_largest(hidden, c, rows, args.offset, accumulator, position);
    }
  });
}

void check_lengths(const char* operation, View<const int64_t, 1> lengths) {
  for (int64_t b = 0; b < lengths.extent[0]; ++b) {
    require(*lengths.at(b) >= 0, ErrorKind::kInternal, operation, ": length of sequence ", b, ": ",
            *lengths.at(b));
  }
}

/// The gradient of rows [begin, end) of sequence b.
void backward_rows(const PoolBackward& args, int64_t b, int64_t begin, int64_t end) {
  const float* const dpooled = args.dpooled.as<const float, 2>().at(b);
  const auto dhidden = args.dhidden.as<float, 3>();
  const int64_t length = *args.lengths.as<const int64_t, 1>().at(b);
  const int64_t width = args.dhidden.dim(2);
  const bool mean = args.mode == PoolMode::kMean;
  const float share = mean && length > 0 ? 1.0F / static_cast<float>(length) : 1.0F;
  for (int64_t t = begin; t < end; ++t) {
    float* const out = dhidden.at(b, t);
    const int64_t left = length - (args.offset + t);  // rows of the sequence from here on
    if (mean ? left > 0 : args.mode == PoolMode::kLast && left == 1) {
      for (int64_t i = 0; i < width; ++i) out[i] = dpooled[i] * share;
    } else {
      std::fill_n(out, width, 0.0F);
    }
  }
  if (args.mode != PoolMode::kMax) {
    return;
  }
  const int64_t* const position = args.position.as<const int64_t, 2>().at(b);
  for (int64_t i = 0; i < width; ++i) {
    const int64_t t = position[i] - args.offset;
    if (t >= begin && t < end && position[i] < length) {
      *dhidden.at(b, t, i) = dpooled[i];
    }
  }
}

}  // namespace

void pool_update(Context& ctx, const PoolUpdate& args) {
  const Door door(ctx, "pool_update");
  door.first("hidden", args.hidden, door.activation(args.hidden), 3);
  const int64_t batch = args.hidden.dim(0);
  const int64_t width = args.hidden.dim(2);
  door.expect("valid", args.valid, DType::kI64, {batch});
  door.expect("accumulator", args.accumulator, DType::kF64, {batch, width});
  if (args.mode == PoolMode::kMax) {
    door.expect("position", args.position, DType::kI64, {batch, width});
  }
  require(args.offset >= 0, ErrorKind::kInternal, "pool_update: offset ", args.offset);
  if (!ctx.device().is_cpu()) {
    return cuda::pool_update(ctx, args);
  }
  update_cpu(ctx, args);
}

void pool_finish(Context& ctx, PoolMode mode, ConstTensorView accumulator, ConstTensorView lengths,
                 TensorView pooled) {
  const Door door(ctx, "pool_finish");
  door.first("accumulator", accumulator, DType::kF64, 2);
  const int64_t batch = accumulator.dim(0);
  const int64_t width = accumulator.dim(1);
  door.expect("lengths", lengths, DType::kI64, {batch});
  door.expect("pooled", pooled, DType::kF32, {batch, width});
  if (!ctx.device().is_cpu()) {
    return cuda::pool_finish(ctx, mode, accumulator, lengths, pooled);
  }
  const auto sums = accumulator.as<const double, 2>();
  const auto out = pooled.as<float, 2>();
  const auto counts = lengths.as<const int64_t, 1>();
  check_lengths("pool_finish", counts);
  for_columns(ctx, batch, width, [&](const Columns& c) {
    const bool divide = mode == PoolMode::kMean && *counts.at(c.b) > 0;
    const double divisor = divide ? static_cast<double>(*counts.at(c.b)) : 1.0;
    for (int64_t i = c.begin; i < c.end; ++i) {
      *out.at(c.b, i) = static_cast<float>(*sums.at(c.b, i) / divisor);
    }
  });
}

void pool_backward(Context& ctx, const PoolBackward& args) {
  const Door door(ctx, "pool_backward");
  door.first("dhidden", args.dhidden, door.activation(args.dhidden), 3);
  const int64_t batch = args.dhidden.dim(0);
  const int64_t rows = args.dhidden.dim(1);
  const int64_t width = args.dhidden.dim(2);
  door.expect("dpooled", args.dpooled, DType::kF32, {batch, width});
  door.expect("lengths", args.lengths, DType::kI64, {batch});
  if (args.mode == PoolMode::kMax) {
    door.expect("position", args.position, DType::kI64, {batch, width});
  }
  require(args.offset >= 0, ErrorKind::kInternal, "pool_backward: offset ", args.offset);
  if (!ctx.device().is_cpu()) {
    return cuda::pool_backward(ctx, args);
  }
  check_lengths("pool_backward", args.lengths.as<const int64_t, 1>());
  const int64_t tiles = pieces(rows, kRowTile);
  parallel_for(ctx, batch * tiles, [&](int64_t i) {
    const int64_t begin = i % tiles * kRowTile;
    backward_rows(args, i / tiles, begin, std::min(rows, begin + kRowTile));
  });
}

}  // namespace gmamba
