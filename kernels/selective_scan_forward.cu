// SPDX-License-Identifier: Apache-2.0
/// CUDA body of the selective scan, forward: outputs in one walk when channels and batch rows fill
/// the machine; else summaries of chunks, their combination, and the outputs of all chunks.
#include <optional>

#include "kernels/convert.h"
#include "kernels/cuda_sequence.h"
#include "kernels/scan_launch.cuh"
#include "kernels/selective_scan_forward.cuh"
#include "kernels/selective_scan_forward_bulk.cuh"

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

/// Maps of the arrays of `p` in tiles of a warp; nothing where the copy unit cannot move them.
template <class T, int kStates, int kSplit, int kChannels>
std::optional<ForwardMaps> forward_maps(const Context& ctx, const ForwardArgs<T>& p) {
  using S = WalkShape<T, kStates, kSplit, kChannels>;
  // a tile that sticks out of a chunk would be stored over the next
  const bool whole = p.chunks == 1 || p.chunk_length % kChunkTile == 0;
  if (!whole || !has_copy_unit(ctx)) return {};
  const auto write = [&](const auto& rows, int64_t width, int64_t tile_width, TileMap& map) {
    return write_tile_map({rows.data, sizeof(T), p.batch, p.length, width, rows.outer, rows.inner,
                           S::kRows, tile_width},
                          map);
  };
  ForwardMaps maps;
  const bool reached =
      write(p.u, p.d_inner, S::kWidth, maps.u) &&
      write(p.delta, p.d_inner, S::kWidth, maps.delta) &&
      write(p.z, p.d_inner, S::kWidth, maps.z) && write(p.y, p.d_inner, S::kWidth, maps.y) &&
      write(p.B, p.d_state, S::kColumns, maps.B) && write(p.C, p.d_state, S::kColumns, maps.C);
  return reached ? std::optional(maps) : std::nullopt;
}

/// Starts a kernel of the outputs for what `p` says, of warps that take `width` channels and
/// `bytes` of shared memory each; at_most(teams) is the kernel for so many teams on an SM.
template <class T, class Choose, class... Arguments>
void start_walks(Context& ctx, const ForwardArgs<T>& p, int width, int bytes, Choose&& at_most,
                 const Arguments&... arguments) {
  const int64_t units = p.batch * p.chunks * ceil_div(p.d_inner, width);
  require_countable(units);
  const int64_t sms = multiprocessors(ctx);
  // a grid that doesn't fill the machine is spread over all of it
  const auto teams = static_cast<int>(
      std::min<int64_t>(ceil_div(ceil_div(units, kForwardWarps), sms), kForwardTeams));
  const int of_block = in_one_block(teams, units, sms) ? teams : 1;
  const int warps = of_block * kForwardWarps;
  bytes = spread(warps * bytes, teams / of_block);
  start_overlapping(stream_of(ctx), with_shared_memory(at_most(teams), bytes),
                    grid_of(ceil_div(units, warps)), warps * 32, bytes, p, arguments...);
}

/// Starts the outputs' kernel for what `p` says, with `lane_channels` channels a lane where that is
/// possible.
template <class T, int kStates, int kSplit>
void start_outputs(Context& ctx, const ForwardArgs<T>& p, int lane_channels) {
  constexpr int kWidth = 64 / kSplit;
  constexpr bool kMayBeReady = sizeof(T) == 2;
  if constexpr (kFourFit<T, kStates>) {
    if (lane_channels == 4) {
      if (const auto maps = forward_maps<T, kStates, kSplit, 4>(ctx, p)) {
        const auto at_most = [&](int) {
          return p.ready ? scan_forward_bulk_kernel<T, kStates, kSplit, 4, kForwardTeams, true>
                         : scan_forward_bulk_kernel<T, kStates, kSplit, 4, kForwardTeams, false>;
        };
        start_walks(ctx, p, 2 * kWidth, ForwardBulkShape<T, kStates, kSplit, 4>::kBytes, at_most,
                    *maps);
        return;
      }
    }
  }
  if (const auto maps = forward_maps<T, kStates, kSplit, 2>(ctx, p)) {
    const auto at_most = [&](int teams) {
      if constexpr (kMayBeReady) {
        if (p.ready) {
          return teams <= 2
                     ? scan_forward_bulk_kernel<T, kStates, kSplit, 2, 2, true>
                     : scan_forward_bulk_kernel<T, kStates, kSplit, 2, kForwardTeams, true>;
        }
      }
      return teams <= 2 ? scan_forward_bulk_kernel<T, kStates, kSplit, 2, 2>
                         : scan_forward_bulk_kernel<T, kStates, kSplit, 2, kForwardTeams>;
    };
    start_walks(ctx, p, kWidth, ForwardBulkShape<T, kStates, kSplit, 2>::kBytes, at_most, *maps);
    return;
  }
  const auto at_most = [&](int) {
    if constexpr (kMayBeReady) {
      if (p.ready) return scan_forward_kernel<T, kStates, kSplit, true>;
    }
    return scan_forward_kernel<T, kStates, kSplit>;
  };
  start_walks(ctx, p, kWidth, forward_warp_bytes<T, kStates, kSplit>(), at_most);
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
  const bool in_pairs = ceil_div(p.d_inner, warp_channels(p.d_state)) % 2 == 0;
  const bool four_fit = in_pairs && p.d_state <= 8 && kFourFit<T, 8> && has_copy_unit(ctx);
  const OutputsCut cut = known.rows.empty() ? cut_outputs(ctx, p.length, warps, four_fit)
                                            : OutputsCut{{args.known.dim(1), args.mark_every}};
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
    start_outputs<T, kStates, kSplit>(ctx, p, cut.lane_channels);
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
