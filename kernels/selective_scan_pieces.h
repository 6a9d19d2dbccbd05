// SPDX-License-Identifier: Apache-2.0
/// The selective scan in pieces, for whoever cuts a sequence: ranks that each own a part of it.
/// A piece acts on the state as an affine map, h -> exp(A * delta_sum) * h + state, where delta_sum
/// is the sum of its deltas and state is what it ends in when it starts from zero. So:
///     summarise each piece  ->  combine the summaries in order  ->  selective_scan_forward on each
///                                                                   piece from its true start
/// The gradient of the state runs the other way through the same decay: summarise_backward, combine
/// from the last piece to the first, selective_scan_backward with the true dstate_out.
/// Shapes  delta_sum (B, E)  states (B, E, N), all fp32
#pragma once

#include "kernels/selective_scan.h"

namespace gmamba {

/// Uses u, delta, A, B and delta_bias of `piece`; the rest may be empty.
void selective_scan_summarise(Context& ctx, const SelectiveScanForward& piece, TensorView delta_sum,
                              TensorView state);

/// Uses dy, delta, A, C, z and delta_bias of `piece`; the rest may be empty. `dstate` is the
/// gradient of the piece's incoming state when that of its outgoing state is zero.
void selective_scan_summarise_backward(Context& ctx, const SelectiveScanBackward& piece,
                                       TensorView delta_sum, TensorView dstate);

/// after = exp(A * delta_sum) * before + local. With `before` itself a summary's state this chains
/// two summaries (their delta_sums add up). `after` may be `before` or `local`.
void selective_scan_combine(Context& ctx, ConstTensorView A, ConstTensorView delta_sum,
                            ConstTensorView local, ConstTensorView before, TensorView after);

}  // namespace gmamba
