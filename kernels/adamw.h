// SPDX-License-Identifier: Apache-2.0
/// One optimiser step over the contiguous parameter buffer, with the gradient clipped to a global
/// norm:
///   g = gradient * min(1, max_norm / norm);  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
///   p = p - lr * wd * p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)
/// A norm that is not finite leaves everything untouched: the step is skipped.
/// Shapes  all (P) fp32; norm (1) fp64
/// Source  Loshchilov and Hutter 2019, "Decoupled weight decay regularization"
#pragma once

#include <span>

#include "libmamba/core/context.h"

namespace gmamba {

/// Elements [begin, end) of the buffer and the weight decay they get.
struct DecayRange {
  int64_t begin = 0;
  int64_t end = 0;
  float weight_decay = 0;
};

struct AdamW {
  TensorView parameters;      // (P)
  ConstTensorView gradients;  // (P)
  TensorView exp_avg;         // (P) m
  TensorView exp_avg_sq;      // (P) v
  ConstTensorView norm;       // (1) fp64 global norm of the gradients, or empty: no clip, no skip
  float max_norm = 0;         // 0: no clipping
  float learning_rate = 0;
  float beta1 = 0.9F;
  float beta2 = 0.95F;
  float epsilon = 1e-8F;
  int64_t step = 1;                   // t, from 1
  std::span<const DecayRange> decay;  // ranges outside of these decay by 0
};
void adamw_step(Context& ctx, const AdamW& args);

/// norm[0] = sqrt(sum of squares), summed in fp64 in fixed blocks.
void global_norm(Context& ctx, ConstTensorView values, TensorView norm);

}  // namespace gmamba
