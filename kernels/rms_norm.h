// SPDX-License-Identifier: Apache-2.0
/// Residual add and root-mean-square norm:
///   h <- h + branch (when branch is given);  y = weight * h / sqrt(mean(h^2) + epsilon)
/// Shapes  residual, branch, y (M, D)  weight (D)  rstd (M)
/// Types   residual, rstd, weight and their gradients fp32; branch, dy and dbranch in the
/// activation
///         type; y in the activation type or fp32
/// Source  Zhang and Sennrich 2019; the block order of Gu and Dao 2023
#pragma once

#include "kernels/linear.h"

namespace gmamba {

struct RmsNormForward {
  TensorView residual;     // (M, D) fp32, updated in place when branch is given and there is no
                           // residual_out
  ConstTensorView branch;  // (M, D) or empty
  ConstTensorView weight;  // (D)
  float epsilon = 1e-5F;
  TensorView y;     // (M, D)
  TensorView rstd;  // (M) fp32, or empty: 1 / sqrt(mean + epsilon), kept for the backward pass
  TensorView residual_out;  // (M, D) fp32 gets the sum and leaves residual as it is, or empty
};
void rms_norm_forward(Context& ctx, const RmsNormForward& args);

struct RmsNormBackward {
  ConstTensorView dy;        // (M, D)
  ConstTensorView residual;  // (M, D) the normalised value h, after the add
  ConstTensorView rstd;      // (M)
  ConstTensorView weight;    // (D)
  TensorView dresidual;  // (M, D) fp32, the gradient of h is ADDED here (it already holds that of
                         // the stream above); it is the gradient of branch as well
  TensorView dweight;    // (D) fp32
  GradMode mode = GradMode::kAccumulate;           // of dweight
  GradMode residual_mode = GradMode::kAccumulate;  // kOverwrite: nothing lies above this norm
  TensorView dbranch;  // (M, D) a copy of dresidual in the activation type, or empty
};
void rms_norm_backward(Context& ctx, const RmsNormBackward& args);

}  // namespace gmamba
