// SPDX-License-Identifier: Apache-2.0
#include "kernels/convert.h"

#include <bit>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"

namespace gmamba {
namespace {

float element(float value) { return value; }
float element(bf16 value) { return to_float(value); }
void store(float value, float* to) { *to = value; }
void store(float value, bf16* to) { *to = to_bf16(value); }

/// Calls body(row of from, row of to, columns) for every row along the last axis.
template <class From, class To>
void convert_rows(const ConstTensorView& from, const TensorView& to, int axis, const From* in,
                  To* out) {
  const auto k = static_cast<size_t>(axis);
  if (axis == from.rank - 1) {
    for (int64_t i = 0; i < from.extent[k]; ++i) store(element(in[i]), out + i);
    return;
  }
  for (int64_t i = 0; i < from.extent[k]; ++i) {
    convert_rows(from, to, axis + 1, in + i * from.stride[k], out + i * to.stride[k]);
  }
}

template <class From>
void convert_from(const ConstTensorView& from, const TensorView& to) {
  const auto* const in = reinterpret_cast<const From*>(from.data);
  if (to.dtype == DType::kF32) {
    convert_rows(from, to, 0, in, reinterpret_cast<float*>(to.data));
  } else {
    convert_rows(from, to, 0, in, reinterpret_cast<bf16*>(to.data));
  }
}

}  // namespace

bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float to_float(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

void convert(Context& ctx, ConstTensorView from, TensorView to) {
  const Door door(ctx, "convert");
  const auto real = [](const ConstTensorView& view) {
    return view.dtype == DType::kF32 || view.dtype == DType::kBF16;
  };
  require(real(from) && real(to), ErrorKind::kUnsupported, "convert: from ", to_string(from.dtype),
          " to ", to_string(to.dtype), "; only f32 and bf16 are converted");
  require(from.shape() == to.shape(), ErrorKind::kShape, "convert: from ", to_string(from.shape()),
          " to ", to_string(to.shape()));
  door.first("from", from, from.dtype, from.rank);
  door.first("to", to, to.dtype, to.rank);
  if (from.rank == 0 || from.size() == 0) return;
  if (!ctx.device().is_cpu()) return cuda::convert(ctx, from, to);
  from.dtype == DType::kF32 ? convert_from<float>(from, to) : convert_from<bf16>(from, to);
}

}  // namespace gmamba
