// SPDX-License-Identifier: Apache-2.0
/// CUDA body of the selective scan, forward: outputs in one walk when channels and batch rows fill
/// the machine; else summaries of chunks, their combination, and the outputs of all chunks.
#include <optional>

#include "kernels/convert.h"
#include "kernels/cuda_sequence.h"
#include "kernels/scan_launch.cuh"
#include "kernels/selective_scan_forward.cuh"
#include "kernels/selective_scan_forward_joint.cuh"

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
  p.ready = args.delta_ready;
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

/// The states before all chunks that `p` is cut into, (B, chunks, E, N) in the arena, from
/// summaries of the chunks and their combination; `last` gets the one behind them where it isn't
/// empty.
template <class T>
TensorView find_starts(Context& ctx, const ForwardArgs<T>& p, const Rows<const float>& from,
                       const Rows<float>& last) {
  const Shape shape = {p.batch, p.chunks, int64_t{p.d_inner}, int64_t{p.d_state}};
  const TensorView states = ctx.arena().f32(shape);
  const Arena::Scope scope(ctx.arena());
  SummaryArgs<T> s;
  s.x = p.u;
  s.delta = p.delta;
  s.w = p.B;
  s.A = p.A;
  s.A_stride = p.A_stride;
  s.bias = p.bias;
  s.ready = p.ready;
  s.state = {states.as<float, 4>().data, static_cast<int64_t>(p.d_inner) * p.d_state, p.d_state};
  s.delta_sum = scratch(ctx, p.batch * p.chunks * p.d_inner);
  s.batch = p.batch;
  s.length = p.length;
  s.chunks = p.chunks;
  s.chunk_length = p.chunk_length;
  s.longer = p.longer;
  s.d_inner = p.d_inner;
  s.d_state = p.d_state;
  s.all_chunks = !last.empty();
  launch_summary<false>(ctx, s);
  CombineArgs c;
  c.A = p.A;
  c.A_stride = p.A_stride;
  c.state = s.state.data;
  c.delta_sum = s.delta_sum;
  c.from = from;
  c.last = last;
  c.batch = p.batch;
  c.chunks = p.chunks;
  c.d_inner = p.d_inner;
  c.d_state = p.d_state;
  launch_combine(ctx, c, false);
  return states;
}

/// State i of (B, count, E, N), as (B, E, N).
TensorView state_at(TensorView states, int64_t i) {
  if (states.empty()) return {};
  states = states.slice(1, i, i + 1);
  for (size_t axis = 1; axis < 3; ++axis) {
    states.extent[axis] = states.extent[axis + 1];
    states.stride[axis] = states.stride[axis + 1];
  }
  states.rank = 3;
  return states;
}

/// Marks and the outgoing state alone. Close marks are the starts of chunks; between marks that lie
/// far apart there are chunks of their own.
template <class T>
void advance(Context& ctx, const SelectiveScanForward& args) {
  constexpr int64_t kFar = 8192;
  const Arena::Scope scope(ctx.arena());
  ForwardArgs<T> p = forward_args<T>(args);
  const bool close = !args.marks.empty() && args.mark_every < kFar;
  if (close || args.marks.empty() || args.mark_every >= p.length) {
    const int64_t warps = p.batch * ceil_div(p.d_inner, warp_channels(p.d_state));
    const Chunks cut = cut_time(p.length, warps, int64_t{8} * multiprocessors(ctx));
    p.chunk_length = close ? args.mark_every : cut.length;
    p.chunks = close ? args.marks.dim(1) : cut.count;
    const TensorView starts = find_starts(ctx, p, rows_of<const float>(args.state_in), p.state_out);
    if (!args.marks.empty()) {
      gmamba::convert(ctx, close ? starts : starts.slice(1, 0, 1), args.marks);
    }
    return;
  }
  ConstTensorView before = args.state_in;
  for (int64_t i = 0; i < args.marks.dim(1); ++i) {
    const int64_t begin = i * args.mark_every;
    const int64_t end = std::min(p.length, begin + args.mark_every);
    SelectiveScanForward part = args;
    part.u = args.u.slice(1, begin, end);
    part.delta = args.delta.slice(1, begin, end);
    part.B = args.B.slice(1, begin, end);
    part.C = args.C.slice(1, begin, end);
    part.marks = args.marks.slice(1, i, i + 1);
    part.mark_every = end - begin;
    part.state_in = before;
    part.state_out = end < p.length ? state_at(args.marks, i + 1) : args.state_out;
    advance<T>(ctx, part);
    before = part.state_out;
  }
}

/// Maps of the arrays of `p` in tiles of `rows` positions, `width` channels and `columns` states;
/// nothing where the copy unit cannot move them.
template <class T>
std::optional<ForwardMaps> forward_maps(const Context& ctx, const ForwardArgs<T>& p, int64_t rows,
                                        int64_t width, int64_t columns) {
  // a tile that sticks out of a chunk would be stored over the next
  const bool whole = p.chunks == 1 || p.chunk_length % kChunkTile == 0;
  if (!whole || !has_copy_unit(ctx)) return {};
  const auto write = [&](const auto& array, int64_t extent, int64_t tile_width, TileMap& map) {
    return write_tile_map({array.data, sizeof(T), p.batch, p.length, extent, array.outer,
                           array.inner, rows, tile_width},
                          map);
  };
  ForwardMaps maps;
  const bool reached =
      write(p.u, p.d_inner, width, maps.u) && write(p.delta, p.d_inner, width, maps.delta) &&
      write(p.z, p.d_inner, width, maps.z) && write(p.y, p.d_inner, width, maps.y) &&
      write(p.B, p.d_state, columns, maps.B) && write(p.C, p.d_state, columns, maps.C);
  return reached ? std::optional(maps) : std::nullopt;
}

/// Starts the kernel of the outputs that `wanted` names if the copy unit reaches all arrays, else
/// the one of copies.
template <class T, int kStates, int kSplit>
void start_outputs(Context& ctx, const ForwardArgs<T>& p, OutputsKernel wanted) {
  constexpr bool kFew = kFewStates<T, kStates * kSplit>;
  constexpr bool kMayBeReady = sizeof(T) == 2;
  const auto teams = [&](int64_t width) {
    return ceil_div(p.batch * p.chunks * ceil_div(p.d_inner, width), kForwardWarps);
  };
  const auto start = [&]<int kChannels>(std::integral_constant<int, kChannels>, auto&& at_most) {
    using S = WalkShape<T, kStates, kSplit, kChannels>;
    const auto maps = forward_maps(ctx, p, S::kRows, S::kWidth, S::kColumns);
    if (!maps) return false;
    constexpr int kBytes = ForwardBulkShape<T, kStates, kSplit, kChannels>::kBytes;
    start_teams(ctx, teams(S::kWidth), kForwardTeams, kForwardWarps * kBytes, at_most, p, *maps);
    return true;
  };
  if constexpr (kFew) {
    if (wanted == OutputsKernel::kJoint) {
      using S = ForwardJointShape<kStates>;
      if (const auto maps = forward_maps(ctx, p, S::kRows, S::kWidth, kStates)) {
        const auto kernel = p.ready ? scan_forward_joint_kernel<kStates, true>
                                    : scan_forward_joint_kernel<kStates, false>;
        start_teams(
            ctx, p.batch * p.chunks * ceil_div(p.d_inner, S::kWidth), kJointTeams, S::kBytes,
            [&](int) { return kernel; }, p, *maps);
        return;
      }
    }
    if constexpr (kStates == 8) {
      const auto kernel =
          p.ready ? scan_forward_bulk_kernel<T, kStates, kSplit, 4, kForwardTeams, true>
                  : scan_forward_bulk_kernel<T, kStates, kSplit, 4, kForwardTeams, false>;
      if (wanted == OutputsKernel::kFour &&
          start(std::integral_constant<int, 4>{}, [&](int) { return kernel; })) {
        return;
      }
    }
  }
  if constexpr (!kFew || kStates == 8) {
    const auto at_most = [&](int teams) {
      if constexpr (kMayBeReady) {
        if (p.ready) {
          return teams <= 2 ? scan_forward_bulk_kernel<T, kStates, kSplit, 2, 2, true>
                            : scan_forward_bulk_kernel<T, kStates, kSplit, 2, kForwardTeams, true>;
        }
      }
      return teams <= 2 ? scan_forward_bulk_kernel<T, kStates, kSplit, 2, 2>
                        : scan_forward_bulk_kernel<T, kStates, kSplit, 2, kForwardTeams>;
    };
    if (start(std::integral_constant<int, 2>{}, at_most)) return;
  }
  const auto of_copies = [&](int) {
    if constexpr (kMayBeReady) {
      if (p.ready) return scan_forward_kernel<T, kStates, kSplit, true>;
    }
    return scan_forward_kernel<T, kStates, kSplit>;
  };
  start_teams(ctx, teams(64 / kSplit), kForwardTeams,
              kForwardWarps * forward_warp_bytes<T, kStates, kSplit>(), of_copies, p);
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
  const States<const float> known(args.known, "known");
  const bool few_states = kFewStates<T, 16> && p.d_state <= 16 && has_copy_unit(ctx);
  const OutputsCut cut = known.rows.empty()
                             ? cut_outputs(ctx, p.length, p.batch, p.d_inner, p.d_state, few_states)
                             : OutputsCut{{args.known.dim(1), args.mark_every},
                                          few_states ? OutputsKernel::kJoint : OutputsKernel::kTwo};
  const Chunks& chunks = cut.chunks;
  p.chunks = chunks.count;
  p.chunk_length = chunks.length;
  p.longer = chunks.longer;
  p.start = known.rows.empty() ? state_in : known.rows;
  p.start_per_row = known.rows.empty() ? p.chunks : known.per_row;
  p.vectors.states = p.vectors.states && fits_vectors(p.start);
  const Arena::Scope scope(ctx.arena());
  if (chunks.count > 1 && known.rows.empty()) {
    const States<const float> starts(find_starts(ctx, p, state_in, {}), "starts");
    p.start = starts.rows;
    p.start_is_late = true;
  }
  over_states(p.d_state, [&]<int kStates, int kSplit>() {
    start_outputs<T, kStates, kSplit>(ctx, p, cut.kernel);
  });
  check_launch(ctx, "scan_forward", p.batch, " x ", p.length, " x ", p.d_inner, ", state ",
               p.d_state, ", ", p.chunks, " chunks");
}

}  // namespace

void selective_scan_forward(Context& ctx, const SelectiveScanForward& args) {
  if (args.delta.dim(0) == 0 || args.delta.dim(2) == 0) return;
  over_activation(args.delta.dtype, [&]<class T>(T) {
    args.y.empty() ? advance<T>(ctx, args) : forward<T>(ctx, args);
  });
}

}  // namespace gmamba::cuda
