// SPDX-License-Identifier: Apache-2.0
/// CUDA bodies of the scan in pieces: summaries of a piece for the state and for its gradient, and
/// the composition of two summaries.
#include "kernels/cuda_sequence.h"
#include "kernels/scan_launch.cuh"

namespace gmamba::cuda {
namespace {

using namespace scan;

/// What both summaries share: the arguments besides x, z and w, then summaries of chunks and their
/// combination.
template <bool kGradient, class T>
void summarise(Context& ctx, SummaryArgs<T> p, const ConstTensorView& delta,
               const ConstTensorView& A, const ConstTensorView& bias, TensorView delta_sum,
               TensorView state) {
  p.delta = rows_of<const T>(delta);
  const auto rates = A.as<const float, 2>();
  p.A = rates.data;
  p.A_stride = rates.stride[0];
  p.bias = vector_of<const float>(bias);
  p.batch = delta.dim(0);
  p.length = delta.dim(1);
  p.d_inner = static_cast<int>(delta.dim(2));
  p.d_state = static_cast<int>(A.dim(1));
  if (p.batch == 0 || p.d_inner == 0) return;
  const int64_t warps = p.batch * ceil_div(p.d_inner, warp_channels(p.d_state));
  const Chunks chunks = cut_time(p.length, warps, multiprocessors(ctx) * 8);
  p.chunks = chunks.count;
  p.chunk_length = chunks.length;
  p.exact_sum = true;
  Arena::Scope scope(ctx.arena());
  const int64_t rows = p.batch * p.chunks;
  CombineArgs c;
  c.state = scratch(ctx, rows * p.d_inner * p.d_state);
  p.delta_sum = scratch(ctx, rows * p.d_inner);
  p.state = {c.state, static_cast<int64_t>(p.d_inner) * p.d_state, p.d_state};
  launch_summary<kGradient>(ctx, p);
  c.A = p.A;
  c.A_stride = p.A_stride;
  c.delta_sum = p.delta_sum;
  c.last = rows_of<float>(state);
  const auto total = delta_sum.as<float, 2>();
  c.total = {total.data, total.stride[0], total.stride[0]};
  c.batch = p.batch;
  c.chunks = p.chunks;
  c.d_inner = p.d_inner;
  c.d_state = p.d_state;
  launch_combine(ctx, c, kGradient);
}

struct ComposeArgs {
  View<const float, 2> A;          // (E, N)
  View<const float, 2> delta_sum;  // (B, E)
  View<const float, 3> local, before;
  View<float, 3> after;  // (B, E, N)
};

__global__ void __launch_bounds__(256) scan_compose_kernel(const ComposeArgs p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= p.after.size()) return;
  const int64_t n = i % p.after.extent[2];
  const int64_t e = i / p.after.extent[2] % p.after.extent[1];
  const int64_t b = i / p.after.extent[2] / p.after.extent[1];
  const float decay = ex2(*p.A.at(e, n) * kLog2e * *p.delta_sum.at(b, e));
  *p.after.at(b, e, n) = fmaf(decay, *p.before.at(b, e, n), *p.local.at(b, e, n));
}

}  // namespace

void selective_scan_summarise(Context& ctx, const SelectiveScanForward& piece, TensorView delta_sum,
                              TensorView state) {
  over_activation(piece.delta.dtype, [&]<class T>(T) {
    SummaryArgs<T> p;
    p.x = rows_of<const T>(piece.u);
    p.w = rows_of<const T>(piece.B);
    summarise<false>(ctx, p, piece.delta, piece.A, piece.delta_bias, delta_sum, state);
  });
}

void selective_scan_summarise_backward(Context& ctx, const SelectiveScanBackward& piece,
                                       TensorView delta_sum, TensorView dstate) {
  over_activation(piece.delta.dtype, [&]<class T>(T) {
    SummaryArgs<T> p;
    p.x = rows_of<const T>(piece.dy);
    p.z = rows_of<const T>(piece.z);
    p.w = rows_of<const T>(piece.C);
    summarise<true>(ctx, p, piece.delta, piece.A, piece.delta_bias, delta_sum, dstate);
  });
}

void selective_scan_combine(Context& ctx, ConstTensorView A, ConstTensorView delta_sum,
                            ConstTensorView local, ConstTensorView before, TensorView after) {
  const ComposeArgs p{A.as<const float, 2>(), delta_sum.as<const float, 2>(),
                      local.as<const float, 3>(), before.as<const float, 3>(),
                      after.as<float, 3>()};
  if (p.after.size() == 0) return;
  scan_compose_kernel<<<grid_of(ceil_div(p.after.size(), 256)), 256, 0, stream_of(ctx)>>>(p);
  check_launch(ctx, "scan_compose", to_string(after.shape()));
}

}  // namespace gmamba::cuda
