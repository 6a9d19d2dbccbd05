// SPDX-License-Identifier: Apache-2.0
/// Both gradients of a dense projection y = x W^T (linear.h) at once:
///   dx         = dy W
///   dweight (+)= dy^T x
/// Where the inputs are few (the rank of the step-size projection) both products are bound by
/// reading dy, so one kernel that reads it once takes half the time of two.
/// Shapes  dy (M, N)  x, dx (M, K)  weight, dweight (N, K); rows may be strided
/// Types   dy, x and weight in the activation type; dx in the activation type or fp32; dweight fp32
/// Limits  any M, N, K >= 0; every last axis contiguous; dx must not be x
/// On a GPU one kernel does it where bf16 rows fit (N a multiple of 64 up to 1,024, K a multiple of
/// 8 up to 32, N K up to 16,384, dx in bf16, rows on multiples of 16 bytes) and shared memory is
/// enough (171 KB for 512 x 16); elsewhere the two products of linear.h follow each other.
#pragma once

#include "kernels/linear.h"

namespace gmamba {

struct LinearBackward {
  ConstTensorView dy;                     // (M, N)
  ConstTensorView x;                      // (M, K)
  ConstTensorView weight;                 // (N, K)
  TensorView dx;                          // (M, K)
  TensorView dweight;                     // (N, K)
  GradMode mode = GradMode::kAccumulate;  // of dweight
};
void linear_backward(Context& ctx, const LinearBackward& args);

}  // namespace gmamba
