// SPDX-License-Identifier: Apache-2.0
/// Copies elements from one floating type to another: fp32 to bf16 rounds to nearest even.
/// Shapes  from, to of the same shape, rows may be strided  Types  f32, bf16, in any combination
#pragma once

#include "libmamba/core/context.h"

namespace gmamba {

void convert(Context& ctx, ConstTensorView from, TensorView to);

/// The nearest bf16 (ties to even; NaN stays NaN) and the value of one.
bf16 to_bf16(float value);
float to_float(bf16 value);

}  // namespace gmamba
