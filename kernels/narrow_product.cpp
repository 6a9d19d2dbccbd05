// SPDX-License-Identifier: Apache-2.0
/// A panel holds 32 columns: first their bias, then K rows of b, so that a group of rows of c reads
/// the packed matrix from front to end.
#include "kernels/narrow_product.h"

#include <algorithm>

#include "kernels/simd_targets.h"
#include "libmamba/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/narrow_product.cpp"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#ifndef GMAMBA_KERNELS_NARROW_PANEL
#define GMAMBA_KERNELS_NARROW_PANEL
namespace gmamba {
constexpr int64_t kPanel = 32;  // columns; two of the longest vectors
}  // namespace gmamba
#endif

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
constexpr int64_t kLanes = hn::MaxLanes(Tag());
static_assert(kPanel % (2 * kLanes) == 0);

/// Writes the first `columns` of two vectors to out, or adds them.
template <class V>
HWY_INLINE void write_pair(V low, V high, int64_t columns, bool accumulate,
                           float* HWY_RESTRICT out) {
  const Tag d;
  if (columns >= 2 * kLanes) {
    if (accumulate) {
      low = hn::Add(low, hn::LoadU(d, out));
      high = hn::Add(high, hn::LoadU(d, out + kLanes));
    }
    hn::StoreU(low, d, out);
    hn::StoreU(high, d, out + kLanes);
    return;
  }
  float edge[2 * kLanes];
  hn::StoreU(low, d, edge);
  hn::StoreU(high, d, edge + kLanes);
  for (int64_t i = 0; i < columns; ++i) out[i] = accumulate ? out[i] + edge[i] : edge[i];
}

/// 1 to 4 rows of c over all columns, two vectors at a time. The sums are named, not kept in
/// arrays, so that they stay in registers; rows that aren't there repeat the last one.
HWY_INLINE void product_rows(View<const float, 2> a, const float* HWY_RESTRICT panel,
                             View<float, 2> c, int64_t row, int64_t rows, bool accumulate) {
  const Tag d;
  const int64_t inner = a.extent[1];
  const float* HWY_RESTRICT a0 = a.at(row);
  const float* HWY_RESTRICT a1 = a.at(row + std::min<int64_t>(1, rows - 1));
  const float* HWY_RESTRICT a2 = a.at(row + std::min<int64_t>(2, rows - 1));
  const float* HWY_RESTRICT a3 = a.at(row + std::min<int64_t>(3, rows - 1));
  for (int64_t n = 0; n < c.extent[1]; n += 2 * kLanes) {
    const float* HWY_RESTRICT b = panel + n / kPanel * kPanel * (inner + 1) + n % kPanel;
    auto low0 = hn::LoadU(d, b);
    auto high0 = hn::LoadU(d, b + kLanes);
    auto low1 = low0, low2 = low0, low3 = low0;
    auto high1 = high0, high2 = high0, high3 = high0;
    for (int64_t k = 0; k < inner; ++k) {
      b += kPanel;
      const auto b_low = hn::LoadU(d, b);
      const auto b_high = hn::LoadU(d, b + kLanes);
      low0 = hn::MulAdd(hn::Set(d, a0[k]), b_low, low0);
      high0 = hn::MulAdd(hn::Set(d, a0[k]), b_high, high0);
      low1 = hn::MulAdd(hn::Set(d, a1[k]), b_low, low1);
      high1 = hn::MulAdd(hn::Set(d, a1[k]), b_high, high1);
      low2 = hn::MulAdd(hn::Set(d, a2[k]), b_low, low2);
      high2 = hn::MulAdd(hn::Set(d, a2[k]), b_high, high2);
      low3 = hn::MulAdd(hn::Set(d, a3[k]), b_low, low3);
      high3 = hn::MulAdd(hn::Set(d, a3[k]), b_high, high3);
    }
    const int64_t columns = c.extent[1] - n;
    write_pair(low0, high0, columns, accumulate, c.at(row, n));
    if (rows > 1) write_pair(low1, high1, columns, accumulate, c.at(row + 1, n));
    if (rows > 2) write_pair(low2, high2, columns, accumulate, c.at(row + 2, n));
    if (rows > 3) write_pair(low3, high3, columns, accumulate, c.at(row + 3, n));
  }
}

void narrow_rows(View<const float, 2> a, const float* packed, View<float, 2> c, bool accumulate) {
  constexpr int64_t kGroup = 4;
  for (int64_t row = 0; row < c.extent[0]; row += kGroup) {
    product_rows(a, packed, c, row, std::min(kGroup, c.extent[0] - row), accumulate);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {
namespace {
HWY_EXPORT(narrow_rows);
}  // namespace

int64_t narrow_packed_size(int64_t inner, int64_t columns) {
  return pieces(columns, kPanel) * kPanel * (inner + 1);
}

void pack_narrow(View<const float, 2> b, bool transposed, const float* bias, float* packed) {
  const int64_t inner = b.extent[transposed ? 1 : 0];
  const int64_t columns = b.extent[transposed ? 0 : 1];
  const int64_t next_k = b.stride[transposed ? 1 : 0];
  const int64_t next_n = b.stride[transposed ? 0 : 1];
  for (int64_t first = 0; first < columns; first += kPanel, packed += kPanel * (inner + 1)) {
    const int64_t width = std::min(kPanel, columns - first);
    std::fill_n(packed, kPanel * (inner + 1), 0.0F);
    if (bias != nullptr) std::copy_n(bias + first, width, packed);
    for (int64_t n = 0; n < width; ++n) {
      const float* const column = b.data + (first + n) * next_n;
      for (int64_t k = 0; k < inner; ++k) packed[(k + 1) * kPanel + n] = column[k * next_k];
    }
  }
}

void narrow_product(View<const float, 2> a, const float* packed, View<float, 2> c,
                    bool accumulate) {
  HWY_DYNAMIC_DISPATCH(narrow_rows)(a, packed, c, accumulate);
}

}  // namespace gmamba
#endif  // HWY_ONCE
