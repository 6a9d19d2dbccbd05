// SPDX-License-Identifier: Apache-2.0
/// Tensors own memory on a device; views borrow it. Everything is row-major, the last extent
/// contiguous; outer strides are free, so that the halves of a projection are views and not copies.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "libmamba/core/device.h"
#include "libmamba/core/dtype.h"
#include "libmamba/core/error.h"

namespace gmamba {

constexpr int kMaxRank = 4;

/// A typed, trivially copyable window onto memory, passed to kernels by value. Its functions are
/// constexpr so that device code may call them.
template <class T, int Rank>
struct View {
  T* data = nullptr;
  int64_t extent[Rank] = {};
  int64_t stride[Rank] = {};  ///< in elements; stride[Rank - 1] is 1

  constexpr bool empty() const { return data == nullptr; }
  constexpr int64_t size() const {
    int64_t count = 1;
    for (int i = 0; i < Rank; ++i) count *= extent[i];
    return count;
  }
  template <class... Index>
  constexpr T* at(Index... index) const {
    static_assert(sizeof...(Index) <= Rank);
    const int64_t position[] = {static_cast<int64_t>(index)...};
    int64_t offset = 0;
    for (size_t i = 0; i < sizeof...(Index); ++i) offset += position[i] * stride[i];
    return data + offset;
  }
};

using Shape = std::vector<int64_t>;
std::string to_string(const Shape& shape);

/// A view whose element type is known at run time; `Byte` is std::byte or const std::byte.
template <class Byte>
struct BasicTensorView {
  Byte* data = nullptr;
  DType dtype = DType::kF32;
  Device device;
  int rank = 0;
  std::array<int64_t, kMaxRank> extent{};
  std::array<int64_t, kMaxRank> stride{};  ///< in elements

  bool empty() const { return data == nullptr; }
  int64_t size() const {
    int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= extent[static_cast<size_t>(i)];
    return count;
  }
  int64_t dim(int i) const { return extent[static_cast<size_t>(i < 0 ? rank + i : i)]; }
  Shape shape() const { return Shape(extent.begin(), extent.begin() + rank); }
  bool contiguous() const {
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
      const auto k = static_cast<size_t>(i);
      if (extent[k] != 1 && stride[k] != expected) return false;
      expected *= extent[k];
    }
    return true;
  }

  /// Typed view; throws kInternal when dtype or rank differ. An empty view gives an empty view.
  template <class T, int Rank>
  View<T, Rank> as() const {
    static_assert(std::is_const_v<T> || !std::is_const_v<Byte>, "a const view has const elements");
    View<T, Rank> view;
    if (empty()) return view;
    require(dtype == DTypeOf<std::remove_const_t<T>>::value && rank == Rank, ErrorKind::kInternal,
            "tensor view: expected ", to_string(DTypeOf<std::remove_const_t<T>>::value),
            " of rank ", Rank, ", found ", to_string(dtype), " of rank ", rank);
    view.data = reinterpret_cast<T*>(data);
    for (int i = 0; i < Rank; ++i) {
      view.extent[i] = extent[static_cast<size_t>(i)];
      view.stride[i] = stride[static_cast<size_t>(i)];
    }
    return view;
  }
  /// All elements of a contiguous view.
  template <class T>
  std::span<T> flat() const {
    if (empty()) return {};
    require(contiguous() && dtype == DTypeOf<std::remove_const_t<T>>::value, ErrorKind::kInternal,
            "tensor view: expected contiguous ", to_string(DTypeOf<std::remove_const_t<T>>::value),
            ", found ", to_string(dtype), " ", to_string(shape()));
    return {reinterpret_cast<T*>(data), static_cast<size_t>(size())};
  }

  /// Elements [begin, end) of axis `axis`, sharing memory.
  BasicTensorView slice(int axis, int64_t begin, int64_t end) const {
    require(axis >= 0 && axis < rank && begin >= 0 && begin <= end && end <= dim(axis),
            ErrorKind::kInternal, "slice [", begin, ", ", end, ") of axis ", axis, " of ",
            to_string(shape()));
    BasicTensorView view = *this;
    const auto k = static_cast<size_t>(axis);
    view.extent[k] = end - begin;
    if (data != nullptr) view.data = data + begin * stride[k] * size_of(dtype);
    return view;
  }
  /// The same elements of a contiguous view under another shape.
  BasicTensorView reshape(const Shape& shape) const;

  /// A mutable view serves where a const one is asked for.
  operator BasicTensorView<const std::byte>() const requires(!std::is_const_v<Byte>) {
    return {data, dtype, device, rank, extent, stride};
  }
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

/// A contiguous view of `shape` over `data`.
TensorView make_view(void* data, DType dtype, Device device, const Shape& shape);
ConstTensorView make_view(const void* data, DType dtype, Device device, const Shape& shape);

/// Views over host memory of element type T, for tests and small helpers.
template <class T>
auto host_view(T* data, const Shape& shape) {
  return make_view(data, DTypeOf<std::remove_const_t<T>>::value, Device{}, shape);
}

template <class Byte>
BasicTensorView<Byte> BasicTensorView<Byte>::reshape(const Shape& shape) const {
  require(contiguous(), ErrorKind::kInternal, "reshape of a strided view ",
          to_string(this->shape()));
  auto view = make_view(data, dtype, device, shape);
  require(view.size() == size(), ErrorKind::kInternal, "reshape of ", to_string(this->shape()),
          " to ", to_string(shape));
  return view;
}

/// Owns a contiguous block of one device, freed with it. Move-only; `clone` is the named copy.
class Tensor {
 public:
  Tensor() = default;
  /// Zero-filled. Throws when memory is short.
  Tensor(Device device, DType dtype, const Shape& shape);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor();

  bool empty() const { return view_.empty(); }
  const Shape& shape() const { return shape_; }
  int64_t size() const { return empty() ? 0 : view_.size(); }
  int64_t bytes() const { return size() * size_of(view_.dtype); }
  DType dtype() const { return view_.dtype; }
  Device device() const { return view_.device; }
  TensorView view() { return view_; }
  ConstTensorView view() const { return view_; }
  operator TensorView() { return view_; }
  operator ConstTensorView() const { return view_; }
  /// All elements; the tensor must be on the CPU.
  template <class T>
  std::span<T> host() {
    require(device().is_cpu(), ErrorKind::kInternal, "host access to a tensor on ",
            to_string(device()));
    return view_.flat<T>();
  }
  template <class T>
  std::span<const T> host() const {
    require(device().is_cpu(), ErrorKind::kInternal, "host access to a tensor on ",
            to_string(device()));
    return ConstTensorView(view_).flat<const T>();
  }

  Tensor clone() const;
  void fill_zero();

 private:
  Shape shape_;
  TensorView view_;
};

}  // namespace gmamba
