// SPDX-License-Identifier: Apache-2.0
/// Weighted cross-entropy of logits against targets, and its gradient, in one pass.
///   loss[m] = logsumexp(logits[m]) - logits[m, target[m]]     natural log, fp32 with fp64 sums
///   dlogits[m, v] = (softmax(logits[m])[v] - [v == target[m]]) * weight[m] * scale
/// Rows whose target is kIgnoreTarget, or whose weight is 0, have zero loss and zero gradient.
/// Shapes  logits, dlogits (M, V)  targets (M) int32  weights, losses (M) fp32  totals (4) fp64
/// Types   logits fp32; dlogits fp32 or in the activation type
/// Errors  kInput when a target is neither kIgnoreTarget nor in [0, V); a GPU doesn't stop for it
///         and gives such a row a loss and gradient of NaN
#pragma once

#include "kernels/linear.h"

namespace gmamba {

constexpr int32_t kIgnoreTarget = -100;

struct CrossEntropy {
  ConstTensorView logits;   // (M, V)
  ConstTensorView targets;  // (M) int32
  ConstTensorView weights;  // (M) or empty: ones
  float scale = 1;          // factor of dlogits
  TensorView losses;        // (M) unweighted loss of each row (0 where ignored), or empty
  TensorView dlogits;       // (M, V) or empty
  TensorView totals;  // (4) fp64, added to: weighted loss, weight, weight of rows whose argmax is
                      // the target, number of rows counted; or empty
};
void cross_entropy(Context& ctx, const CrossEntropy& args);

}  // namespace gmamba
