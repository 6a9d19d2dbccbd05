// SPDX-License-Identifier: Apache-2.0
/// The scan's step sizes from their projection, in one operation:
///   delta = softplus(x W^T + bias)
/// Beside a product of matrices it saves the scan's passes bias and softplus, each of which would
/// compute them again (selective_scan.h, delta_ready), and rounds delta once, to the precision of a
/// bf16 of its own size.
/// Shapes  x (M, R)  weight (E, R)  bias (E) or empty  delta (M, E); rows may be strided
/// Types   x, weight and delta in the activation type; bias fp32
/// Limits  any M, R, E on a CPU; on a GPU what delta_projection_fits names
#pragma once

#include "kernels/linear.h"

namespace gmamba {

/// True where a GPU has a kernel for activations of `type`: bf16, an even rank up to 64, E a
/// multiple of 8. Rows of delta then lie on multiples of 16 bytes, those of x of 4.
inline bool delta_projection_fits(Device device, DType type, int64_t rank, int64_t d_inner) {
  return !device.is_cpu() && type == DType::kBF16 && rank > 0 && rank <= 64 && rank % 2 == 0 &&
         d_inner % 8 == 0;
}

struct DeltaProjection {
  ConstTensorView x;       // (M, R)
  ConstTensorView weight;  // (E, R)
  ConstTensorView bias;    // (E) or empty
  TensorView delta;        // (M, E)
};
void delta_projection(Context& ctx, const DeltaProjection& args);

}  // namespace gmamba
