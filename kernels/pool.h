// SPDX-License-Identifier: Apache-2.0
/// Pooling of hidden states over the positions of a sequence that arrives in segments.
/// Types   hidden and dhidden in the activation type
/// Shapes  hidden (B, L, D)  valid (B) int64: how many of these L rows belong to the sequence (the
///         rest is padding)  accumulator (B, D) fp64  position (B, D) int64
/// mean adds rows to the accumulator; last keeps the last valid row; max keeps the largest value
/// and its position (the first of equals). Divide a mean by the total length with pool_finish.
#pragma once

#include "kernels/linear.h"

namespace gmamba {

enum class PoolMode { kMean, kLast, kMax };

struct PoolUpdate {
  PoolMode mode = PoolMode::kMean;
  ConstTensorView hidden;  // (B, L, D)
  ConstTensorView valid;   // (B) int64, 0 <= valid <= L
  int64_t offset = 0;      // position of row 0 in its sequence; 0 also starts max afresh
  TensorView accumulator;  // (B, D) fp64, zeros at the start of a sequence
  TensorView position;     // (B, D) int64, kMax only: where the maximum stands
};
void pool_update(Context& ctx, const PoolUpdate& args);

/// pooled (B, D) fp32 = accumulator, divided by lengths (B) int64 for kMean (0 stays 0).
void pool_finish(Context& ctx, PoolMode mode, ConstTensorView accumulator, ConstTensorView lengths,
                 TensorView pooled);

struct PoolBackward {
  PoolMode mode = PoolMode::kMean;
  ConstTensorView dpooled;   // (B, D) fp32
  ConstTensorView lengths;   // (B) int64 whole lengths of the sequences
  ConstTensorView position;  // (B, D) int64, kMax only
  int64_t offset = 0;        // position of row 0 of this segment
  TensorView dhidden;        // (B, L, D), overwritten; rows at or past a sequence's length get 0
};
void pool_backward(Context& ctx, const PoolBackward& args);

}  // namespace gmamba
