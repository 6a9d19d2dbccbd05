// SPDX-License-Identifier: Apache-2.0
/// Views cut out of views, for bodies that hand parts of a sequence to units of work.
#pragma once

#include <algorithm>

#include "libmamba/core/tensor.h"

namespace gmamba {

template <class T, int Rank>
View<const T, Rank> as_const(const View<T, Rank>& view) {
  View<const T, Rank> out;
  out.data = view.data;
  std::copy_n(view.extent, Rank, out.extent);
  std::copy_n(view.stride, Rank, out.stride);
  return out;
}

/// Elements [begin, end) of an axis; an empty view stays empty.
template <int Axis, class T, int Rank>
View<T, Rank> slice_axis(View<T, Rank> view, int64_t begin, int64_t end) {
  if (view.empty()) return view;
  view.data += begin * view.stride[Axis];
  view.extent[Axis] = end - begin;
  return view;
}

/// Element i of an axis, without that axis.
template <int Axis, class T, int Rank>
View<T, Rank - 1> at_axis(const View<T, Rank>& view, int64_t i) {
  View<T, Rank - 1> out;
  if (view.empty()) return out;
  out.data = view.data + i * view.stride[Axis];
  for (int axis = 0; axis < Rank - 1; ++axis) {
    out.extent[axis] = view.extent[axis < Axis ? axis : axis + 1];
    out.stride[axis] = view.stride[axis < Axis ? axis : axis + 1];
  }
  return out;
}

}  // namespace gmamba
