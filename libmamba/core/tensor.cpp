// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/tensor.h"

#include <utility>

#include "libmamba/core/checked.h"

namespace gmamba {
namespace {

template <class Byte, class Void>
BasicTensorView<Byte> build_view(Void* data, DType dtype, Device device, const Shape& shape) {
  require(shape.size() <= kMaxRank, ErrorKind::kInternal, "a tensor of rank ", shape.size(),
          "; at most ", kMaxRank);
  BasicTensorView<Byte> view;
  view.data = static_cast<Byte*>(data);
  view.dtype = dtype;
  view.device = device;
  view.rank = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    view.extent[i] = shape[i];
    view.stride[i] = stride;
    stride *= shape[i];
  }
  return view;
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + ")";
}

TensorView make_view(void* data, DType dtype, Device device, const Shape& shape) {
  return build_view<std::byte>(data, dtype, device, shape);
}

ConstTensorView make_view(const void* data, DType dtype, Device device, const Shape& shape) {
  return build_view<const std::byte>(data, dtype, device, shape);
}

Tensor::Tensor(Device device, DType dtype, const Shape& shape) : shape_(shape) {
  const int64_t bytes = checked_mul(checked_product(shape, "tensor"), size_of(dtype), "tensor");
  Backend& backend = backend_for(device.kind);
  view_ = make_view(backend.allocate(device.index, bytes), dtype, device, shape);
  fill_zero();
}

Tensor::Tensor(Tensor&& other) noexcept
    : shape_(std::move(other.shape_)), view_(std::exchange(other.view_, {})) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(shape_, other.shape_);
  std::swap(view_, other.view_);
  return *this;
}

Tensor::~Tensor() {
  if (!view_.empty()) {
    backend_for(view_.device.kind).release(view_.device.index, view_.data);
  }
}

Tensor Tensor::clone() const {
  if (empty()) {
    return {};
  }
  Tensor copy(device(), dtype(), shape_);
  Backend& backend = backend_for(device().kind);
  backend.copy_within(device().index, nullptr, copy.view_.data, view_.data, bytes());
  backend.synchronize(device().index, nullptr);
  return copy;
}

void Tensor::fill_zero() {
  if (!empty()) {
    Backend& backend = backend_for(device().kind);
    backend.fill_zero(device().index, nullptr, view_.data, bytes());
    backend.synchronize(device().index, nullptr);
  }
}

}  // namespace gmamba
