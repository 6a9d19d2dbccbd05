// SPDX-License-Identifier: Apache-2.0
/// Arrays of the tests of operations along the sequence: owned copies of plain values, and arrays
/// over positions whose rows may lie apart.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "libmamba/core/context.h"

namespace gmamba::test {

/// An owned copy of values, or nothing when there are none.
inline Tensor owned(const Shape& shape, const std::vector<float>& values) {
  if (values.empty()) return {};
  Tensor tensor({}, DType::kF32, shape);
  std::copy(values.begin(), values.end(), tensor.host<float>().begin());
  return tensor;
}

/// (batch, length, width) with `gap` elements between rows, and NaN in whatever was not written.
class RowArray {
 public:
  RowArray() = default;
  RowArray(int64_t batch, int64_t length, int64_t width, int64_t gap)
      : owner_({}, DType::kF32, {batch, length, width + gap}),
        view_(owner_.view().slice(2, gap / 2, gap / 2 + width)) {
    for (float& x : owner_.host<float>()) x = std::numeric_limits<float>::quiet_NaN();
  }
  RowArray(int64_t batch, int64_t length, int64_t width, int64_t gap,
           const std::vector<float>& values)
      : RowArray(batch, length, width, gap) {
    const auto to = view_.as<float, 3>();
    for (int64_t i = 0; i < batch * length; ++i) {
      std::copy_n(values.data() + i * width, width, to.at(i / length, i % length));
    }
  }

  /// Positions [begin, end); a default array gives an empty view.
  TensorView part(int64_t begin, int64_t end) const {
    return view_.rank == 0 ? view_ : view_.slice(1, begin, end);
  }
  std::vector<float> values() const {
    std::vector<float> out;
    const auto view = view_.as<const float, 3>();
    for (int64_t b = 0; b < view.extent[0]; ++b) {
      for (int64_t l = 0; l < view.extent[1]; ++l) {
        out.insert(out.end(), view.at(b, l), view.at(b, l) + view.extent[2]);
      }
    }
    return out;
  }

 private:
  Tensor owner_;
  TensorView view_;
};

/// All elements of a tensor; none of an empty one.
inline std::vector<float> flat(const Tensor& tensor) {
  if (tensor.empty()) return {};
  const auto values = tensor.host<float>();
  return {values.begin(), values.end()};
}

}  // namespace gmamba::test
