// SPDX-License-Identifier: Apache-2.0
/// CUDA body of the selective scan, backward: where batch rows and channels don't fill the machine,
/// gradients of the state at the ends of chunks come from summaries and their combination; then all
/// gradients of all chunks, and the sums of partials in fixed order.
#include <optional>

#include "kernels/cuda_reduce.cuh"
#include "kernels/cuda_sequence.h"
#include "kernels/scan_launch.cuh"
#include "kernels/selective_scan_backward.cuh"
#include "kernels/selective_scan_backward_mma.cuh"

namespace gmamba::cuda {
namespace {

using namespace scan;

template <class T>
BackwardArgs<T> backward_args(const SelectiveScanBackward& args) {
  BackwardArgs<T> p;
  p.dy = rows_of<const T>(args.dy);
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
  const auto saved = args.saved_states.as<const float, 4>();
  p.saved = {saved.data, saved.stride[1], saved.stride[2]};
  p.saved_per_row = saved.extent[1];
  require(saved.empty() || saved.extent[0] <= 1 || saved.extent[1] == 0 ||
              saved.stride[0] == saved.extent[1] * saved.stride[1],
          ErrorKind::kUnsupported, "selective_scan_backward: saved_states must be one block");
  p.dstate_end = rows_of<const float>(args.dstate_out);
  p.du = rows_of<T>(args.du);
  p.ddelta = rows_of<T>(args.ddelta);
  p.dz = rows_of<T>(args.dz);
  p.y = rows_of<T>(args.y);
  p.dstate_in = rows_of<float>(args.dstate_in);
  p.batch = args.delta.dim(0);
  p.length = args.delta.dim(1);
  p.d_inner = static_cast<int>(args.delta.dim(2));
  p.d_state = static_cast<int>(args.A.dim(1));
  return p;
}

template <class T>
bool fits_vectors(const BackwardArgs<T>& p) {
  bool fits = scan::fits_vectors(p.d_inner, p.d_state) && scan::fits_vectors(p.A, p.A_stride) &&
              scan::fits_vectors(p.D) && scan::fits_vectors(p.bias) &&
              scan::fits_vectors(p.saved) && scan::fits_vectors(p.dstate_end) &&
              scan::fits_vectors(p.dstate_in);
  fits = fits && scan::fits_vectors(p.dy) && scan::fits_vectors(p.u) && scan::fits_vectors(p.delta);
  fits = fits && scan::fits_vectors(p.z) && scan::fits_vectors(p.B) && scan::fits_vectors(p.C);
  fits = fits && scan::fits_vectors(p.du) && scan::fits_vectors(p.ddelta);
  fits = fits && scan::fits_vectors(p.dz) && scan::fits_vectors(p.y);
  return fits;
}

/// Gradients of the state behind every chunk, into the arena, from summaries of pieces of chunks.
template <class T>
void find_chunk_gradients(Context& ctx, BackwardArgs<T>& p) {
  SummaryArgs<T> s;
  s.x = p.dy;
  s.delta = p.delta;
  s.z = p.z;
  s.w = p.C;
  s.A = p.A;
  s.A_stride = p.A_stride;
  s.bias = p.bias;
  s.ready = p.ready;
  s.batch = p.batch;
  s.length = p.length;
  s.d_inner = p.d_inner;
  s.d_state = p.d_state;
  prepare_summary<true>(s);
  const ChunkPieces pieces = cut_chunk(ctx, p.chunk_length, p.batch * p.chunks, p.d_inner,
                                       p.d_state, fits_summary_mma<true>(s));
  const int64_t piece = ceil_div(ceil_div(p.chunk_length, pieces.count), kChunkTile) * kChunkTile;
  p.chunk_length = piece * pieces.count;
  p.chunks = ceil_div(p.length, p.chunk_length);
  s.chunks = ceil_div(p.length, piece);
  s.chunk_length = piece;
  const int64_t rows = s.batch * s.chunks;
  float* const states = scratch(ctx, rows * p.d_inner * p.d_state);
  s.state = {states, static_cast<int64_t>(p.d_inner) * p.d_state, p.d_state};
  s.delta_sum = scratch(ctx, rows * p.d_inner);
  s.stretch = pieces.count;
  launch_summary<true>(ctx, s, pieces.near);
  CombineArgs c;
  c.A = p.A;
  c.A_stride = p.A_stride;
  c.state = states;
  c.delta_sum = s.delta_sum;
  c.from = p.dstate_end;
  c.batch = s.batch;
  c.chunks = s.chunks;
  c.d_inner = p.d_inner;
  c.d_state = p.d_state;
  launch_combine(ctx, c, true);
  p.dstate_end = {states, s.state.outer, s.state.inner};
  p.end_per_row = s.chunks;
  p.end_per_chunk = pieces.count;
  p.end_is_late = p.chunks > 1;
}

/// dA, dD and ddelta_bias from the partial sums of all batch rows and chunks.
template <class T>
void sum_parameters(Context& ctx, const BackwardArgs<T>& p, const SelectiveScanBackward& args) {
  const auto dA = args.dA.as<float, 2>();
  const int64_t rows = p.batch * p.chunks;
  const int64_t width = p.d_inner;
  PartialSums<float> sums[3] = {
      {p.dA, rows, width * p.d_state, dA.data, p.d_state, dA.stride[0]},
      {p.dD, rows, width, vector_of<float>(args.dD), width, width},
      {p.dD + width, rows, width, vector_of<float>(args.ddelta_bias), width, width}};
  sums[1].stride = sums[2].stride = 2 * width;
  add_partials(ctx, "scan_parameter_sums", sums, args.mode);
}

/// What differs between the kernels of all gradients.
template <class T>
struct MainKernel {
  void (*kernel)(BackwardArgs<T>);
  void (*bulk)(BackwardArgs<T>, BackwardMaps);  // or this one
  int bytes;                                    // of shared memory
  int blocks;                                   // on an SM
  int width;                                    // channels of a block
  int columns;                                  // states, padded
};
template <class T, int kLanes, bool kFast, int kBlocks>
MainKernel<T> kernel_f32() {
  using S = BackwardShape<kLanes, 2, kScanSavedEveryGpu>;
  return {scan_backward_kernel<T, kLanes, 2, kScanSavedEveryGpu, kFast, kBlocks>,
          nullptr,
          S::kBytes,
          kBlocks,
          S::kBlockWidth,
          S::kColumns};
}
template <int kStates, int kBlocks>
MainKernel<bf16> kernel_mma(bool gated, bool ready) {
  using S = MmaShape<kStates>;
  static_assert(S::kTile == kScanSavedEveryGpu);
  return {ready   ? scan_backward_mma_kernel<kStates, true, true, kBlocks>
          : gated ? scan_backward_mma_kernel<kStates, true, false, kBlocks>
                  : scan_backward_mma_kernel<kStates, false, false, kBlocks>,
          nullptr,
          S::kBytes,
          kBlocks,
          S::kBlockWidth,
          kStates};
}
/// With tiles that the copy unit brings, for 8 states.
MainKernel<bf16> kernel_bulk(bool gated, bool ready) {
  constexpr int kBlocks = 2;
  using S = MmaShape<8, true>;
  return {nullptr,
          ready   ? scan_backward_bulk_kernel<true, true, kBlocks>
          : gated ? scan_backward_bulk_kernel<true, false, kBlocks>
                  : scan_backward_bulk_kernel<false, false, kBlocks>,
          S::kBytes,
          kBlocks,
          S::kBlockWidth,
          8};
}

/// True when the kernel on tensor cores can read and write rows in its pieces, and there is one:
/// not for ready deltas without a gate.
template <class T>
bool fits_mma(const BackwardArgs<T>& p) {
  bool fits = fits_vectors(p) && !(p.ready && p.z.empty());
  const Rows<const T> all[] = {p.u, p.delta, p.dy, p.z};
  for (const Rows<const T>& rows : all) fits = fits && in_pieces(rows, p.d_inner, 16);
  return fits;
}
/// Positions whose bytes 32 bits can count, which that kernel asks of a chunk.
template <class T>
int64_t short_offsets(const BackwardArgs<T>& p) {
  int64_t bytes = p.d_state * 8;  // of a row
  const int64_t strides[] = {p.u.inner, p.delta.inner, p.dy.inner,     p.z.inner,  p.B.inner,
                             p.C.inner, p.du.inner,    p.ddelta.inner, p.dz.inner, p.y.inner};
  for (const int64_t stride : strides) {
    bytes = std::max(bytes, stride * static_cast<int64_t>(sizeof(T)));
  }
  return (int64_t{1} << 32) / bytes;
}

/// Maps of the arrays of `p` in tiles of a warp of the kernel for 8 states; nothing where the copy
/// unit cannot bring them.
std::optional<BackwardMaps> backward_maps(const Context& ctx, const BackwardArgs<bf16>& p) {
  using S = MmaShape<8, true>;
  if (p.d_state != 8 || !has_copy_unit(ctx)) return {};
  const auto write = [&](const Rows<const bf16>& rows, int64_t width, int64_t tile_width,
                         TileMap& map) {
    return write_tile_map({rows.data, sizeof(bf16), p.batch, p.length, width, rows.outer,
                           rows.inner, S::kTile, tile_width},
                          map);
  };
  BackwardMaps maps;
  const bool reached =
      write(p.u, p.d_inner, S::kWidth, maps.u) &&
      write(p.delta, p.d_inner, S::kWidth, maps.delta) &&
      write(p.dy, p.d_inner, S::kWidth, maps.dy) && write(p.z, p.d_inner, S::kWidth, maps.z) &&
      write(p.B, p.d_state, p.d_state, maps.B) && write(p.C, p.d_state, p.d_state, maps.C) &&
      write_tile_map({p.saved.data, sizeof(float), p.batch * p.saved_per_row, p.d_inner, p.d_state,
                      p.saved.outer, p.saved.inner, S::kWidth, p.d_state},
                     maps.saved);
  return reached ? std::optional(maps) : std::nullopt;
}

MainKernel<bf16> kernel_mma(int d_state, bool gated, bool ready) {
  switch (d_state) {
    case 8:
      return kernel_mma<8, 2>(gated, ready);
    case 16:
      return kernel_mma<16, 3>(gated, ready);
    case 32:
      return kernel_mma<32, 3>(gated, ready);
    default:
      return kernel_mma<64, 3>(gated, ready);
  }
}

/// The kernel for `p`; `maps` gets what it needs of the copy unit.
template <class T>
MainKernel<T> main_kernel(const Context& ctx, const BackwardArgs<T>& p,
                          std::optional<BackwardMaps>& maps) {
  if constexpr (sizeof(T) == 2) {
    if (fits_mma(p)) {
      const int most = most_shared_bytes(ctx);  // some devices have less
      const MainKernel<T> bulk = kernel_bulk(!p.z.empty(), p.ready);
      if (bulk.bytes <= most) maps = backward_maps(ctx, p);
      if (maps) return bulk;
      const MainKernel<T> kernel = kernel_mma(p.d_state, !p.z.empty(), p.ready);
      if (kernel.bytes <= most) return kernel;
    }
  } else if (fits_vectors(p)) {
    switch (p.d_state) {
      case 8:
        return kernel_f32<T, 2, true, 2>();
      case 16:
        return kernel_f32<T, 4, true, 3>();
      case 32:
        return kernel_f32<T, 8, true, 3>();
      default:
        return kernel_f32<T, 16, true, 2>();  // a third block spills, and gains nothing
    }
  }
  // any alignment and any number of states, padded
  return p.d_state <= 16 ? kernel_f32<T, 4, false, 3>() : kernel_f32<T, 16, false, 2>();
}

template <class T>
void backward(Context& ctx, const SelectiveScanBackward& args) {
  BackwardArgs<T> p = backward_args<T>(args);
  Arena::Scope scope(ctx.arena());
  std::optional<BackwardMaps> maps;
  const MainKernel<T> main = main_kernel(ctx, p, maps);
  const int64_t groups = ceil_div(p.d_inner, main.width);
  const Chunks chunks = cut_time(p.length, p.batch * groups,
                                 static_cast<int64_t>(multiprocessors(ctx)) * main.blocks);
  // half, because pieces of a chunk may lengthen it
  p.chunk_length = std::min(chunks.length, std::max<int64_t>(64, short_offsets(p) / 128 * 64));
  p.chunks = p.chunk_length == chunks.length ? chunks.count : ceil_div(p.length, p.chunk_length);
  if (p.chunks > 1) find_chunk_gradients(ctx, p);
  const int64_t rows = p.batch * p.chunks;
  p.dBC = scratch(ctx, groups * p.batch * p.length * 2 * main.columns);
  p.dA = scratch(ctx, rows * p.d_inner * p.d_state);
  p.dD = scratch(ctx, rows * 2 * p.d_inner);
  if (rows > 0) {
    const auto start = [&](auto kernel, const auto&... arguments) {
      start_teams(
          ctx, rows * groups, main.blocks, main.bytes, [&](int) { return kernel; }, p,
          arguments...);
    };
    if (maps) {
      start(main.bulk, *maps);
    } else {
      start(main.kernel);
    }
    check_launch(ctx, "scan_backward", p.batch, " x ", p.length, " x ", p.d_inner, ", state ",
                 p.d_state, ", ", p.chunks, " chunks");
  }
  PositionSums<T> sums;
  sums.partial = p.dBC;
  sums.dB = rows_of<T>(args.dB);
  sums.dC = rows_of<T>(args.dC);
  sums.groups = groups;
  sums.batch = p.batch;
  sums.length = p.length;
  sums.d_state = p.d_state;
  sums.columns = main.columns;
  const int64_t quads = p.batch * p.length * (main.columns / 2);
  if (quads > 0) {
    start_overlapping(stream_of(ctx), scan_position_sums_kernel<T>, grid_of(ceil_div(quads, 256)),
                      256, 0, sums);
    check_launch(ctx, "scan_position_sums", p.batch, " x ", p.length, ", state ", p.d_state);
  }
  sum_parameters(ctx, p, args);
}

}  // namespace

void selective_scan_backward(Context& ctx, const SelectiveScanBackward& args) {
  if (args.delta.dim(2) == 0) return;
  over_activation(args.delta.dtype, [&]<class T>(T) { backward<T>(ctx, args); });
}

}  // namespace gmamba::cuda
