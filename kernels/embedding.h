// SPDX-License-Identifier: Apache-2.0
/// Rows of a table by token.
/// Shapes  tokens (M) uint8  table (V, D)  y (M, D)
/// Errors  kInput when a token is not below V; a GPU doesn't stop for it: such a row is NaN, and
/// its
///         gradient is left out
#pragma once

#include "kernels/linear.h"

namespace gmamba {

/// y[m] = table[tokens[m]]
void embedding_forward(Context& ctx, ConstTensorView tokens, ConstTensorView table, TensorView y);

/// dtable[v] (+)= sum of dy[m] over tokens[m] == v, added in order of m.
void embedding_backward(Context& ctx, ConstTensorView tokens, ConstTensorView dy, TensorView dtable,
                        GradMode mode);

}  // namespace gmamba
