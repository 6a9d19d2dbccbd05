// SPDX-License-Identifier: Apache-2.0
/// Checks and dispatch of the selective scan; the bodies are in selective_scan_cpu.h and
/// cuda_sequence.h.
#include "kernels/selective_scan.h"

#include <algorithm>

#include "kernels/checks.h"
#include "kernels/cuda_sequence.h"
#include "kernels/selective_scan_cpu.h"
#include "kernels/selective_scan_pieces.h"

namespace gmamba {
namespace {

constexpr DType kF32 = DType::kF32;

struct ScanShape {
  int64_t batch, length, d_inner, d_state;
};

/// delta and A fix the shape of everything else.
ScanShape shape_of(const Door& door, const ConstTensorView& delta, const ConstTensorView& A) {
  door.first("delta", delta, door.activation(delta), 3);
  door.first("A", A, kF32, 2);
  const ScanShape shape{delta.dim(0), delta.dim(1), delta.dim(2), A.dim(1)};
  door.expect("A", A, kF32, {shape.d_inner, shape.d_state});
  require(shape.d_state >= 1 && shape.d_state <= cpu::kScanMaxState, ErrorKind::kShape,
          "selective_scan: A: expected a state size from 1 to ", cpu::kScanMaxState, ", found ",
          shape.d_state);
  return shape;
}

void check_ready(const Context& ctx, bool ready, DType type) {
  require(!ready || (!ctx.device().is_cpu() && type == DType::kBF16), ErrorKind::kUnsupported,
          "selective_scan: delta_ready is for bf16 on a GPU");
}

void check_forward(const Context& ctx, const SelectiveScanForward& args) {
  const Door door(ctx, "selective_scan_forward");
  const auto [B, L, E, N] = shape_of(door, args.delta, args.A);
  const DType type = args.delta.dtype;  // of all activations and their gradients
  door.expect("u", args.u, type, {B, L, E});
  door.expect("B", args.B, type, {B, L, N});
  door.expect("C", args.C, type, {B, L, N});
  door.optional("D", args.D, kF32, {E});
  door.optional("z", args.z, type, {B, L, E});
  door.optional("delta_bias", args.delta_bias, kF32, {E});
  door.optional("state_in", args.state_in, kF32, {B, E, N});
  door.optional("y", args.y, type, {B, L, E});
  check_ready(ctx, args.delta_ready, type);
  require(!args.y.empty() || args.saved_states.empty(), ErrorKind::kUnsupported,
          "selective_scan_forward: saved_states without y");
  door.optional("state_out", args.state_out, kF32, {B, E, N});
  door.optional("saved_states", args.saved_states, kF32,
                {B, scan_saved_states(L, ctx.device()), E, N});
  require(args.state_in.empty() || args.state_in.data != args.state_out.data, ErrorKind::kInternal,
          "selective_scan_forward: state_in and state_out are the same array");
  if (args.marks.empty() && args.known.empty()) return;
  const int64_t every = ctx.device().is_cpu() ? kScanSavedEvery : kScanSavedEveryGpu;
  require(args.mark_every > 0 && args.mark_every % every == 0, ErrorKind::kShape,
          "selective_scan_forward: mark_every: expected a multiple of ", every, ", found ",
          args.mark_every);
  const int64_t count = (L + args.mark_every - 1) / args.mark_every;
  door.optional("marks", args.marks, kF32, {B, count, E, N});
  door.optional("known", args.known, kF32, {B, count, E, N});
  require(args.marks.empty() || args.saved_states.empty(), ErrorKind::kUnsupported,
          "selective_scan_forward: marks and saved_states at once");
}

void check_backward(const Context& ctx, const SelectiveScanBackward& args) {
  const Door door(ctx, "selective_scan_backward");
  const auto [B, L, E, N] = shape_of(door, args.delta, args.A);
  const DType type = args.delta.dtype;  // of all activations and their gradients
  check_ready(ctx, args.delta_ready, type);
  door.expect("dy", args.dy, type, {B, L, E});
  door.expect("u", args.u, type, {B, L, E});
  door.expect("B", args.B, type, {B, L, N});
  door.expect("C", args.C, type, {B, L, N});
  door.optional("D", args.D, kF32, {E});
  door.optional("z", args.z, type, {B, L, E});
  door.optional("delta_bias", args.delta_bias, kF32, {E});
  door.optional("dstate_out", args.dstate_out, kF32, {B, E, N});
  if (L > 0)
    door.expect("saved_states", args.saved_states, kF32,
                {B, scan_saved_states(L, ctx.device()), E, N});
  door.expect("du", args.du, type, {B, L, E});
  door.expect("ddelta", args.ddelta, type, {B, L, E});
  door.expect("dB", args.dB, type, {B, L, N});
  door.expect("dC", args.dC, type, {B, L, N});
  door.optional("dz", args.dz, type, {B, L, E});
  door.optional("y", args.y, type, {B, L, E});
  door.optional("dstate_in", args.dstate_in, kF32, {B, E, N});
  door.expect("dA", args.dA, kF32, {E, N});
  door.optional("dD", args.dD, kF32, {E});
  door.optional("ddelta_bias", args.ddelta_bias, kF32, {E});
  require(args.dz.empty() || !args.z.empty(), ErrorKind::kShape,
          "selective_scan_backward: dz was given, but there is no gate z");
  require(args.dstate_out.empty() || args.dstate_out.data != args.dstate_in.data,
          ErrorKind::kInternal,
          "selective_scan_backward: dstate_out and dstate_in are the same array");
}

}  // namespace

int64_t scan_mark_spacing(int64_t batch, int64_t length, int64_t d_inner) {
  // eight warps of 64 channels, or four teams of 128, on each of 132 multiprocessors, the machine
  // this is tuned for
  constexpr int64_t kFull = 8 * 132;
  const int64_t warps = batch * ((d_inner + 63) / 64);
  if (warps <= 0 || length % kScanSavedEveryGpu != 0 || 2 * warps >= kFull) return 0;
  const int64_t most = kFull / warps;
  for (int64_t count = std::min(most, length / kScanSavedEveryGpu); 4 * count >= 3 * most;
       --count) {
    if (length % (count * kScanSavedEveryGpu) == 0) return length / count;
  }
  return 0;
}

void selective_scan_forward(Context& ctx, const SelectiveScanForward& args) {
  check_forward(ctx, args);
  ctx.device().is_cpu() ? cpu::selective_scan_forward(ctx, args)
                        : cuda::selective_scan_forward(ctx, args);
}

void selective_scan_backward(Context& ctx, const SelectiveScanBackward& args) {
  check_backward(ctx, args);
  ctx.device().is_cpu() ? cpu::selective_scan_backward(ctx, args)
                        : cuda::selective_scan_backward(ctx, args);
}

void selective_scan_summarise(Context& ctx, const SelectiveScanForward& piece, TensorView delta_sum,
                              TensorView state) {
  const Door door(ctx, "selective_scan_summarise");
  const auto [B, L, E, N] = shape_of(door, piece.delta, piece.A);
  const DType type = piece.delta.dtype;
  door.expect("u", piece.u, type, {B, L, E});
  door.expect("B", piece.B, type, {B, L, N});
  door.optional("delta_bias", piece.delta_bias, kF32, {E});
  door.expect("delta_sum", delta_sum, kF32, {B, E});
  door.expect("state", state, kF32, {B, E, N});
  ctx.device().is_cpu() ? cpu::selective_scan_summarise(ctx, piece, delta_sum, state)
                        : cuda::selective_scan_summarise(ctx, piece, delta_sum, state);
}

void selective_scan_summarise_backward(Context& ctx, const SelectiveScanBackward& piece,
                                       TensorView delta_sum, TensorView dstate) {
  const Door door(ctx, "selective_scan_summarise_backward");
  const auto [B, L, E, N] = shape_of(door, piece.delta, piece.A);
  const DType type = piece.delta.dtype;
  door.expect("dy", piece.dy, type, {B, L, E});
  door.expect("C", piece.C, type, {B, L, N});
  door.optional("z", piece.z, type, {B, L, E});
  door.optional("delta_bias", piece.delta_bias, kF32, {E});
  door.expect("delta_sum", delta_sum, kF32, {B, E});
  door.expect("dstate", dstate, kF32, {B, E, N});
  ctx.device().is_cpu() ? cpu::selective_scan_summarise_backward(ctx, piece, delta_sum, dstate)
                        : cuda::selective_scan_summarise_backward(ctx, piece, delta_sum, dstate);
}

void selective_scan_combine(Context& ctx, ConstTensorView A, ConstTensorView delta_sum,
                            ConstTensorView local, ConstTensorView before, TensorView after) {
  const Door door(ctx, "selective_scan_combine");
  door.first("A", A, kF32, 2);
  door.first("delta_sum", delta_sum, kF32, 2);
  const int64_t batch = delta_sum.dim(0);
  door.expect("delta_sum", delta_sum, kF32, {batch, A.dim(0)});
  door.expect("local", local, kF32, {batch, A.dim(0), A.dim(1)});
  door.expect("before", before, kF32, {batch, A.dim(0), A.dim(1)});
  door.expect("after", after, kF32, {batch, A.dim(0), A.dim(1)});
  ctx.device().is_cpu() ? cpu::selective_scan_combine(ctx, A, delta_sum, local, before, after)
                        : cuda::selective_scan_combine(ctx, A, delta_sum, local, before, after);
}

}  // namespace gmamba
