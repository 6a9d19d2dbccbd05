// SPDX-License-Identifier: Apache-2.0
/// Dense projections: y = x W^T + b, its input gradient and its weight gradient.
/// Shapes  x (M, K)  weight (N, K)  bias (N)  y (M, N); rows may be strided (a half of a
/// projection) Types   x, dy and weight in the activation type; y and dx in the activation type or
/// fp32; bias
///         and gradients of parameters fp32
/// Limits  any M, N, K >= 0; every last axis contiguous
#pragma once

#include "libmamba/core/context.h"

namespace gmamba {

/// What a backward pass does with what a gradient of parameters already holds.
enum class GradMode { kOverwrite, kAccumulate };

/// y = x W^T (+ bias when not empty).
void linear_forward(Context& ctx, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                    TensorView y);

/// dx (+)= dy W.
void linear_backward_input(Context& ctx, ConstTensorView dy, ConstTensorView weight, TensorView dx,
                           GradMode mode = GradMode::kOverwrite);

/// dweight (+)= dy^T x and, when dbias is not empty, dbias (+)= column sums of dy.
void linear_backward_weight(Context& ctx, ConstTensorView dy, ConstTensorView x, TensorView dweight,
                            TensorView dbias, GradMode mode);

}  // namespace gmamba
