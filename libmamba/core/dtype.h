// SPDX-License-Identifier: Apache-2.0
/// Element types of tensors and files.
#pragma once

#include <cstdint>
#include <string_view>

namespace gmamba {

/// bfloat16 as it is stored: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

enum class DType { kF32, kBF16, kF16, kF64, kI64, kI32, kU8 };

/// Bytes of one element.
int64_t size_of(DType dtype);
/// "f32", "bf16", ...
std::string_view to_string(DType dtype);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kU8;
};

}  // namespace gmamba
