// SPDX-License-Identifier: Apache-2.0
/// CUDA body of the selective scan, forward: outputs in one walk when channels and batch rows fill
/// the machine; else summaries of chunks, their combination, and the outputs of all chunks.
#include "kernels/cuda_sequence.h"
#include "kernels/scan_launch.cuh"
#include "kernels/selective_scan_forward.cuh"

namespace gmamba::cuda {
namespace {

using namespace scan;

/// States (B, count, E, N) as rows of (E, N): row b * per_row + i is state i of batch row b.
template <class T>
struct States {
  Rows<T> rows;
  int64_t per_row = 0;

  template <class AnyView>
  States(const AnyView& view, const char* name) {
    const auto states = view.template as<T, 4>();
    if (states.empty()) return;
    const bool one_row = states.extent[0] == 1;
    require(one_row || states.stride[0] % states.stride[1] == 0, ErrorKind::kUnsupported,
            "selective_scan_forward: ", name, ": batch rows must be whole states apart");
    rows = {states.data, states.stride[1], states.stride[2]};
    per_row = one_row ? states.extent[1] : states.stride[0] / states.stride[1];
  }
};

template <class T>
ForwardArgs<T> forward_args(const SelectiveScanForward& args) {
  ForwardArgs<T> p;
  p.u = rows_of<const T>(args.u);
  p.delta = rows_of<const T>(args.delta);
  p.z = rows_of<const T>(args.z);
  p.B = rows_of<const T>(args.B);
  p.C = rows_of<const T>(args.C);
  const auto A = args.A.as<const float, 2>();
  p.A = A.data;
  p.A_stride = A.stride[0];
  p.D = vector_of<const float>(args.D);
  p.bias = vector_of<const float>(args.delta_bias);
  p.open = p.z.empty() ? 1.0F : 0.0F;
  p.y = rows_of<T>(args.y);
  p.state_out = rows_of<float>(args.state_out);
  const bool marks = !args.marks.empty();
  const States<float> saved(marks ? args.marks : args.saved_states,
                            marks ? "marks" : "saved_states");
  p.saved = saved.rows;
  p.saved_per_row = saved.per_row;
  p.saved_every = marks ? args.mark_every : kScanSavedEveryGpu;
  p.batch = args.delta.dim(0);
  p.length = args.delta.dim(1);
  p.d_inner = static_cast<int>(args.delta.dim(2));
  p.d_state = static_cast<int>(args.A.dim(1));
  return p;
}

template <class T>
void forward(Context& ctx, const SelectiveScanForward& args) {
  ForwardArgs<T> p = forward_args<T>(args);
  const Rows<const float> state_in = rows_of<const float>(args.state_in);
  p.vectors.rows = in_pieces(p.u, p.d_inner, 16) && in_pieces(p.delta, p.d_inner, 16) &&
                   in_pieces(p.z, p.d_inner, 16) && in_pieces(p.y, p.d_inner, 16);
  p.vectors.tokens = in_pieces(p.B, p.d_state, 8) && in_pieces(p.C, p.d_state, 8);
  p.vectors.states = p.d_state % 4 == 0 && fits_vectors(p.A, p.A_stride) &&
                     fits_vectors(state_in) && fits_vectors(p.state_out) && fits_vectors(p.saved);
  const int64_t warps = p.batch * ceil_div(p.d_inner, warp_channels(p.d_state));
  const States<const float> known(args.known, "known");
  const Chunks chunks = known.rows.empty() ? cut_outputs(ctx, p.length, warps)
                                           : Chunks{args.known.dim(1), args.mark_every};
  p.chunks = chunks.count;
  p.chunk_length = chunks.length;
  p.start = known.rows.empty() ? state_in : known.rows;
  p.start_per_row = known.rows.empty() ? p.chunks : known.per_row;
  p.vectors.states = p.vectors.states && fits_vectors(p.start);
  Arena::Scope scope(ctx.arena());
  if (chunks.count > 1 && known.rows.empty()) {
    const int64_t rows = p.batch * p.chunks;
    SummaryArgs<T> s;
    s.x = p.u;
    s.delta = p.delta;
    s.w = p.B;
    s.A = p.A;
    s.A_stride = p.A_stride;
    s.bias = p.bias;
    float* const states = scratch(ctx, rows * p.d_inner * p.d_state);
    s.state = {states, static_cast<int64_t>(p.d_inner) * p.d_state, p.d_state};
    s.delta_sum = scratch(ctx, rows * p.d_inner);
    s.batch = p.batch;
    s.length = p.length;
    s.chunks = p.chunks;
    s.chunk_length = p.chunk_length;
    s.d_inner = p.d_inner;
    s.d_state = p.d_state;
    launch_summary<false>(ctx, s);
    CombineArgs c;
    c.A = p.A;
    c.A_stride = p.A_stride;
    c.state = states;
    c.delta_sum = s.delta_sum;
    c.from = state_in;
    c.batch = p.batch;
    c.chunks = p.chunks;
    c.d_inner = p.d_inner;
    c.d_state = p.d_state;
    launch_combine(ctx, c, false);
    p.start = {states, s.state.outer, s.state.inner};
  }
  over_states(p.d_state, [&]<int kStates, int kSplit>() {
    const int64_t units = p.batch * p.chunks * ceil_div(p.d_inner, 64 / kSplit);
    // a grid that doesn't fill the machine is spread over all of it
    const int64_t per_sm = ceil_div(ceil_div(units, kForwardWarps), multiprocessors(ctx));
    const int bytes = spread(kForwardWarps * forward_warp_bytes<T, kStates, kSplit>(),
                             static_cast<int>(std::min<int64_t>(per_sm, kForwardBlocks)));
    const auto kernel =
        with_shared_memory(scan_forward_kernel<T, kStates, kSplit, 4, kForwardBlocks>, bytes);
    kernel<<<grid_of(ceil_div(units, kForwardWarps)), kForwardWarps * 32, bytes, stream_of(ctx)>>>(
        p);
  });
  check_launch(ctx, "scan_forward", p.batch, " x ", p.length, " x ", p.d_inner, ", state ",
               p.d_state, ", ", p.chunks, " chunks");
}

}  // namespace

void selective_scan_forward(Context& ctx, const SelectiveScanForward& args) {
  if (args.delta.dim(0) == 0 || args.delta.dim(2) == 0) return;
  over_activation(args.delta.dtype, [&]<class T>(T) { forward<T>(ctx, args); });
}

}  // namespace gmamba::cuda
