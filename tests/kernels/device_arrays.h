// SPDX-License-Identifier: Apache-2.0
/// Arrays of tests that run on a GPU: given and read back as plain floats, held there in fp32 or
/// bf16, with rows that may lie apart and garbage in whatever was not written.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/convert.h"
#include "libmamba/core/context.h"
#include "libmamba/core/random.h"

namespace gmamba::test {

/// Skips the test that calls it when there is no GPU, saying why.
#define GMAMBA_NEEDS_GPU()                                                   \
  if (backend_for(DeviceKind::kCuda).device_count() == 0) {                  \
    GTEST_SKIP() << "no GPU: " << backend_for(DeviceKind::kCuda).why_none(); \
  }                                                                          \
  static_assert(true)

constexpr Device kGpu{DeviceKind::kCuda, 0};

/// The value that an element of `dtype` keeps.
inline float kept(float value, DType dtype) {
  return dtype == DType::kBF16 ? to_float(to_bf16(value)) : value;
}

inline std::vector<float> kept(std::vector<float> values, DType dtype) {
  for (float& value : values) value = kept(value, dtype);
  return values;
}

inline std::vector<double> wide(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

/// Normal numbers times `scale` that `dtype` holds exactly.
inline std::vector<float> random_values(int64_t count, uint64_t seed, DType dtype,
                                        double scale = 1) {
  Random random(seed, RandomUse::kTest);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& value : out) value = kept(static_cast<float>(scale * random.normal()), dtype);
  return out;
}

/// An array on a GPU whose rows (along the last axis) have `gap` elements between them.
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Context& ctx, const Shape& shape, DType dtype, int64_t gap = 0) : ctx_(&ctx) {
    Shape padded = shape;
    padded.back() += gap;
    owner_ = ctx.make(dtype, padded);
    const int axis = static_cast<int>(shape.size()) - 1;
    view_ = owner_.view().slice(axis, gap / 2, gap / 2 + shape.back());
    put(std::vector<float>(static_cast<size_t>(view_.size()), -12345.0F), true);
  }
  DeviceArray(Context& ctx, const Shape& shape, DType dtype, const std::vector<float>& values,
              int64_t gap = 0)
      : DeviceArray(ctx, shape, dtype, gap) {
    put(values, false);
  }

  TensorView view() const { return view_; }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }

  std::vector<float> values() const {
    std::vector<float> all(static_cast<size_t>(owner_.size()));
    if (owner_.dtype() == DType::kF32) {
      ctx_->download(owner_, host_view(all.data(), owner_.shape()));
    } else {
      std::vector<bf16> narrow(all.size());
      ctx_->download(owner_, host_view(narrow.data(), owner_.shape()));
      for (size_t i = 0; i < all.size(); ++i) all[i] = to_float(narrow[i]);
    }
    std::vector<float> out;
    for (size_t row = 0; row < rows(); ++row) {
      const auto from = all.begin() + static_cast<int64_t>(row) * padded() + first();
      out.insert(out.end(), from, from + view_.dim(-1));
    }
    return out;
  }

 private:
  int64_t padded() const { return owner_.shape().back(); }
  int64_t first() const { return (padded() - view_.dim(-1)) / 2; }
  size_t rows() const { return padded() == 0 ? 0 : static_cast<size_t>(owner_.size() / padded()); }

  void put(const std::vector<float>& values, bool everywhere) {
    std::vector<float> all(static_cast<size_t>(owner_.size()), -12345.0F);
    for (size_t row = 0; row < rows() && !everywhere; ++row) {
      std::copy_n(values.begin() + static_cast<int64_t>(row) * view_.dim(-1), view_.dim(-1),
                  all.begin() + static_cast<int64_t>(row) * padded() + first());
    }
    if (owner_.dtype() == DType::kF32) {
      ctx_->upload(host_view(std::as_const(all).data(), owner_.shape()), owner_);
      return;
    }
    std::vector<bf16> narrow;
    for (const float value : all) narrow.push_back(to_bf16(value));
    ctx_->upload(host_view(std::as_const(narrow).data(), owner_.shape()), owner_);
  }

  Context* ctx_ = nullptr;
  Tensor owner_;
  TensorView view_;
};

/// Plain elements (tokens, targets, lengths) on a GPU.
template <class T>
Tensor on_gpu(Context& ctx, const Shape& shape, const std::vector<T>& values) {
  Tensor tensor = ctx.make(DTypeOf<T>::value, shape);
  ctx.upload(host_view(values.data(), shape), tensor);
  return tensor;
}

template <class T>
std::vector<T> from_gpu(Context& ctx, const Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.size()));
  ctx.download(tensor, host_view(values.data(), tensor.shape()));
  return values;
}

inline std::string type_name(const testing::TestParamInfo<DType>& info) {
  return std::string(to_string(info.param));
}

}  // namespace gmamba::test
