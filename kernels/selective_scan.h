// SPDX-License-Identifier: Apache-2.0
/// The selective scan of Mamba, with everything that surrounds it fused:
///   delta = softplus(delta_raw + delta_bias), or as delta_projection.h makes it (delta_ready)
///   h[b,e,n] <- exp(delta A[e,n]) h[b,e,n] + delta B[b,l,n] u[b,l,e]
///   y[b,l,e] = (sum_n C[b,l,n] h[b,e,n] + D[e] u[b,l,e]) * silu(z[b,l,e])
/// Composition over l is associative, and the decay of a stretch is exp(A * sum(delta)): pieces are
/// summarised from a zero state, summaries combined in order, and each piece finished from its true
/// starting state. Pieces are cut by shape alone, so results do not depend on the number of
/// threads. Shapes  u, delta, z, y (B, L, E)  A (E, N)  B, C (B, L, N)  D, delta_bias (E)  states
/// (B, E, N) Types   u, delta, z, B, C, y and their gradients in the activation type; A, D,
/// delta_bias, states,
///         sums and gradients of parameters fp32. Rows of u, delta, z, B, C, y may be strided.
/// Limits  1 <= N <= 64, any L including 0; state_in and state_out are different arrays; A < 0
/// Source  Gu and Dao 2023, "Mamba: linear-time sequence modeling with selective state spaces"
#pragma once

#include "kernels/linear.h"

namespace gmamba {

/// Positions between two states that the forward pass keeps for the backward pass: on the CPU, and
/// on a GPU, where walking a stretch again costs more than memory traffic.
constexpr int64_t kScanSavedEvery = 64;
constexpr int64_t kScanSavedEveryGpu = 16;

/// Number of kept states for `length` positions on `device`: the state before position 0, and
/// before every multiple of the spacing.
inline int64_t scan_saved_states(int64_t length, Device device = {}) {
  const int64_t every = device.is_cpu() ? kScanSavedEvery : kScanSavedEveryGpu;
  return (length + every - 1) / every;
}

/// Positions between marks (below) with which a later pass over `length` positions needs no more to
/// fill a GPU: a divisor of `length` and a multiple of the spacing above, from the shape alone. 0:
/// batch rows and channels fill one without, or no divisor is near what they lack.
int64_t scan_mark_spacing(int64_t batch, int64_t length, int64_t d_inner);

struct SelectiveScanForward {
  ConstTensorView u;           // (B, L, E)
  ConstTensorView delta;       // (B, L, E) before bias and softplus
  ConstTensorView A;           // (E, N) negative
  ConstTensorView B;           // (B, L, N)
  ConstTensorView C;           // (B, L, N)
  ConstTensorView D;           // (E) or empty
  ConstTensorView z;           // (B, L, E) or empty: no gate
  ConstTensorView delta_bias;  // (E) or empty
  ConstTensorView state_in;    // (B, E, N) or empty: zeros
  TensorView y;                // (B, L, E), or empty: states alone, without C, D, z, saved_states
  TensorView state_out;        // (B, E, N) or empty
  TensorView saved_states;     // (B, scan_saved_states(L, device), E, N) or empty: for backward
  /// States on the way: before positions 0, mark_every, 2 mark_every ..., as (B, ceil(L /
  /// mark_every), E, N), or empty. mark_every is a multiple of the spacing of saved states. `marks`
  /// gets them, and not together with saved_states. `known`, found by a pass that began earlier, is
  /// where the stretches between them begin (state_in is not read), which spares summaries of them.
  TensorView marks;
  ConstTensorView known;
  int64_t mark_every = 0;
  /// `delta` is behind bias and softplus (bf16 on a GPU); delta_bias, where given, only tells the
  /// choice of kernels how large it may be.
  bool delta_ready = false;
};
void selective_scan_forward(Context& ctx, const SelectiveScanForward& args);

struct SelectiveScanBackward {
  ConstTensorView dy;          // (B, L, E)
  ConstTensorView dstate_out;  // (B, E, N) gradient of the outgoing state, or empty: zeros
  ConstTensorView u, delta, A, B, C, D, z, delta_bias;  // as in the forward pass
  ConstTensorView saved_states;  // (B, scan_saved_states(L, device), E, N) from forward
  TensorView du;                 // (B, L, E)
  TensorView ddelta;             // (B, L, E) gradient of delta before bias and softplus
  TensorView dB, dC;             // (B, L, N)
  TensorView dz;                 // (B, L, E), or empty without a gate
  TensorView y;                  // (B, L, E) the forward result, recomputed on the way, or empty
  TensorView dstate_in;          // (B, E, N) or empty
  TensorView dA;                 // (E, N)
  TensorView dD;                 // (E) or empty
  TensorView ddelta_bias;        // (E) or empty
  GradMode mode = GradMode::kAccumulate;  // of dA, dD and ddelta_bias; all others are overwritten
  bool delta_ready =
      false;  // as in the forward pass; ddelta is before bias and softplus all the same
};
void selective_scan_backward(Context& ctx, const SelectiveScanBackward& args);

/// Scratch that the backward pass takes on a CPU.
int64_t scan_backward_scratch_cpu(int64_t batch, int64_t length, int64_t d_inner, int64_t d_state);

}  // namespace gmamba
