// SPDX-License-Identifier: Apache-2.0
/// The decay rates of the scan and their gradient: A = -exp(A_log), dA_log += dA * A.
/// Shapes  all (M, W) fp32, rows may be strided: (E, N) of a layer, or all layers' at once
#pragma once

#include "libmamba/core/context.h"

namespace gmamba {

void decay_rates_forward(Context& ctx, ConstTensorView A_log, TensorView A);

/// Adds to dA_log.
void decay_rates_backward(Context& ctx, ConstTensorView dA, ConstTensorView A, TensorView dA_log);

}  // namespace gmamba
