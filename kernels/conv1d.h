// SPDX-License-Identifier: Apache-2.0
/// Depthwise causal convolution along the sequence with the previous segment's tail, then SiLU:
///   y[b,l,e] = silu(bias[e] + sum_k weight[e,k] x[b, l-K+1+k, e]);  positions before 0 from
///   tail_in
/// Shapes  x, y (B, L, E)  weight (E, K)  bias (E)  tail_in, tail_out (B, K-1, E)
/// Types   x, y in the activation type, the rest fp32; rows may be strided
/// Limits  1 <= K <= 4 (2..4 in published models); any L including 0 and L < K-1; tail_in and
///         tail_out are different arrays
/// Source  Gu and Dao 2023; state-spaces/mamba
#pragma once

#include "kernels/linear.h"

namespace gmamba {

struct Conv1dForward {
  ConstTensorView x;        // (B, L, E)
  ConstTensorView weight;   // (E, K)
  ConstTensorView bias;     // (E) or empty
  ConstTensorView tail_in;  // (B, K-1, E) or empty: zeros
  TensorView y;             // (B, L, E)
  TensorView tail_out;      // (B, K-1, E) the last K-1 inputs, or empty
};
void conv1d_forward(Context& ctx, const Conv1dForward& args);

struct Conv1dBackward {
  ConstTensorView dy;                     // (B, L, E)
  ConstTensorView dtail_out;              // (B, K-1, E) gradient of tail_out, or empty: zeros
  ConstTensorView x;                      // (B, L, E)
  ConstTensorView weight;                 // (E, K)
  ConstTensorView bias;                   // (E) or empty
  ConstTensorView tail_in;                // (B, K-1, E) or empty: zeros
  TensorView dx;                          // (B, L, E)
  TensorView dtail_in;                    // (B, K-1, E) or empty
  TensorView dweight;                     // (E, K)
  TensorView dbias;                       // (E) or empty
  GradMode mode = GradMode::kAccumulate;  // of dweight and dbias
};
void conv1d_backward(Context& ctx, const Conv1dBackward& args);

}  // namespace gmamba
