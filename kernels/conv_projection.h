// SPDX-License-Identifier: Apache-2.0
/// Convolution, SiLU and the projection that reads their result (conv1d and x_proj of a block), as
/// one operation: what passes between the two need not go through memory.
///   y         = silu(conv1d(x))                    as conv1d_forward
///   projected = y projection^T                     as linear_forward, from y as it is stored
/// Backward, with dy the gradient of y from its other users:
///   dprojection (+)= dprojected^T y
///   dx, dtail_in, dweight, dbias: conv1d_backward of dy + dprojected projection
/// Shapes  x, y (B, L, E)  weight (E, K)  bias (E)  tails (B, K-1, E)  projection (P, E)
///         projected (B L, P)
/// Types   x, y, projection, projected and their gradients in the activation type; the rest, and
///         gradients of parameters, fp32; rows may be strided
/// Limits  those of conv1d; any P
/// On a GPU one kernel does it where bf16 rows fit (4 taps, E and P multiples of 8, P up to 64,
/// rows on multiples of 16 bytes); elsewhere the operations named above run one after the other.
#pragma once

#include "kernels/linear.h"

namespace gmamba {

struct ConvProjectionForward {
  ConstTensorView x;           // (B, L, E)
  ConstTensorView weight;      // (E, K)
  ConstTensorView bias;        // (E) or empty
  ConstTensorView tail_in;     // (B, K-1, E) or empty: zeros
  ConstTensorView projection;  // (P, E)
  TensorView y;                // (B, L, E)
  TensorView projected;        // (B L, P)
  TensorView tail_out;         // (B, K-1, E) the last K-1 inputs, or empty
};
void conv_projection_forward(Context& ctx, const ConvProjectionForward& args);

struct ConvProjectionBackward {
  TensorView dy;                          // (B, L, E) used as scratch: its values are lost
  ConstTensorView dprojected;             // (B L, P)
  ConstTensorView dtail_out;              // (B, K-1, E) gradient of tail_out, or empty: zeros
  ConstTensorView x;                      // (B, L, E)
  ConstTensorView y;                      // (B, L, E) as the forward pass gave it
  ConstTensorView weight;                 // (E, K)
  ConstTensorView bias;                   // (E) or empty
  ConstTensorView tail_in;                // (B, K-1, E) or empty: zeros
  ConstTensorView projection;             // (P, E)
  TensorView dx;                          // (B, L, E)
  TensorView dtail_in;                    // (B, K-1, E) or empty
  TensorView dweight;                     // (E, K)
  TensorView dbias;                       // (E) or empty
  TensorView dprojection;                 // (P, E)
  GradMode mode = GradMode::kAccumulate;  // of dweight, dbias and dprojection
};
void conv_projection_backward(Context& ctx, const ConvProjectionBackward& args);

}  // namespace gmamba
