// SPDX-License-Identifier: Apache-2.0
/// Residual add and root-mean-square norm:
///   h <- h + branch (when branch is given);  y = weight * h / sqrt(mean(h^2) + epsilon)
/// The backward pass needs y, not h: y / weight is what it works on, so that the fp32 stream need
/// not be kept. To make that so for all weights, one nearer to zero than 2^-64 counts as 2^-64.
/// Shapes  residual, branch, y (M, D)  weight (D)  rstd (M)
/// Types   residual, rstd, weight and their gradients fp32; branch, dy and dbranch in the
///         activation type; y in the activation type or fp32, to the backward pass in that of dy
/// Source  Zhang and Sennrich 2019; the block order of Gu and Dao 2023
#pragma once

#include <cmath>

#include "kernels/linear.h"

namespace gmamba {

/// The factor that a weight stands for.
constexpr float kLeastNormScale = 0x1p-64F;
inline float norm_scale(float weight) {
  return std::fabs(weight) < kLeastNormScale ? std::copysign(kLeastNormScale, weight) : weight;
}

struct RmsNormForward {
  TensorView residual;     // (M, D) fp32, updated in place when branch is given
  ConstTensorView branch;  // (M, D) or empty
  ConstTensorView weight;  // (D)
  float epsilon = 1e-5F;
  TensorView y;     // (M, D)
  TensorView rstd;  // (M) fp32, or empty: 1 / sqrt(mean + epsilon), kept for the backward pass
};
void rms_norm_forward(Context& ctx, const RmsNormForward& args);

struct RmsNormBackward {
  ConstTensorView dy;      // (M, D)
  ConstTensorView y;       // (M, D) of the forward pass
  ConstTensorView rstd;    // (M)
  ConstTensorView weight;  // (D)
  TensorView dresidual;    // (M, D) fp32, the gradient of h is ADDED here (it already holds that of
                           // the stream above); it is the gradient of branch as well
  TensorView dweight;      // (D) fp32
  GradMode mode = GradMode::kAccumulate;           // of dweight
  GradMode residual_mode = GradMode::kAccumulate;  // kOverwrite: nothing lies above this norm
  TensorView dbranch;  // (M, D) a copy of dresidual in the activation type, or empty
};
void rms_norm_backward(Context& ctx, const RmsNormBackward& args);

}  // namespace gmamba
