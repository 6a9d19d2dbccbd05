// SPDX-License-Identifier: Apache-2.0
#include "kernels/checks.h"

#include <algorithm>

namespace gmamba {

void Door::first(const char* name, const ConstTensorView& view, DType dtype, int rank) const {
  require(view.rank == rank, ErrorKind::kShape, operation_, ": ", name, ": expected ", rank,
          rank == 1 ? " axis" : " axes", ", found ",
          view.rank == 0 ? "none" : to_string(view.shape()));
  place_and_type(name, view, dtype);
  layout(name, view);
}

void Door::expect(const char* name, const ConstTensorView& view, DType dtype,
                  std::initializer_list<int64_t> shape) const {
  const bool same = view.rank == static_cast<int>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), view.extent.begin());
  require(same, ErrorKind::kShape, operation_, ": ", name, ": expected shape ",
          to_string(Shape(shape)), ", found ",
          view.empty() && view.rank == 0 ? "none" : to_string(view.shape()));
  place_and_type(name, view, dtype);
  layout(name, view);
}

void Door::optional(const char* name, const ConstTensorView& view, DType dtype,
                    std::initializer_list<int64_t> shape) const {
  if (!view.empty()) {
    expect(name, view, dtype, shape);
  }
}

DType Door::activation(const ConstTensorView& view) const {
  const bool bf16 = view.dtype == DType::kBF16 && !ctx_.device().is_cpu();
  return bf16 ? DType::kBF16 : DType::kF32;
}

void Door::flat(const char* name, const ConstTensorView& view, DType dtype) const {
  place_and_type(name, view, dtype);
  require(view.contiguous(), ErrorKind::kShape, operation_, ": ", name,
          ": expected one contiguous block, found strided ", to_string(view.shape()));
}

void Door::place_and_type(const char* name, const ConstTensorView& view, DType dtype) const {
  require(!view.empty() || view.size() == 0, ErrorKind::kInternal, operation_, ": ", name,
          " has shape ", to_string(view.shape()), " but no memory");
  require(view.device == ctx_.device(), ErrorKind::kInternal, operation_, ": ", name, " is on ",
          to_string(view.device), ", the context on ", to_string(ctx_.device()));
  if (view.dtype != dtype) {
    const bool narrow = view.dtype == DType::kBF16 || view.dtype == DType::kF16;
    fail(narrow ? ErrorKind::kUnsupported : ErrorKind::kInternal, operation_, ": ", name,
         ": expected ", to_string(dtype), " on ", to_string(ctx_.device()), ", found ",
         to_string(view.dtype));
  }
}

void Door::layout(const char* name, const ConstTensorView& view) const {
  if (view.size() == 0) {
    return;
  }
  int64_t inner = 1;  // elements that one step along the axis must leap over
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    const auto k = static_cast<size_t>(axis);
    const bool last = axis == view.rank - 1;
    const bool fits = last ? view.stride[k] == 1 : view.stride[k] >= inner;
    require(view.extent[k] <= 1 || fits, ErrorKind::kInternal, operation_, ": ", name, ": axis ",
            axis, " of ", to_string(view.shape()), " has stride ", view.stride[k],
            last ? ", expected 1" : ", its rows overlap");
    if (view.extent[k] > 1) {
      inner = view.stride[k] * view.extent[k];
    }
  }
}

}  // namespace gmamba
