// SPDX-License-Identifier: Apache-2.0
/// Host side of the scan's kernels: views to rows, the choice of a compiled size, how time is cut
/// into chunks, and the launches that several of the operations share.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cuda_common.cuh"
#include "kernels/scan_combine.cuh"
#include "kernels/scan_grid.h"
#include "kernels/selective_scan.h"
#include "kernels/selective_scan_forward_walk.cuh"
#include "kernels/selective_scan_summary_mma.cuh"

namespace gmamba::cuda::scan {

/// A view of rank 3, or nothing. The strides of axes of one element don't matter.
template <class T, class AnyView>
Rows<T> rows_of(const AnyView& view) {
  const auto typed = view.template as<T, 3>();
  constexpr int64_t kFurthest = (int64_t{1} << 29) - 1;  // byte distances of 32 bits
  require(typed.stride[1] <= kFurthest, ErrorKind::kUnsupported, "selective_scan: rows ",
          typed.stride[1], " elements apart; at most ", kFurthest, " on a GPU");
  return {typed.data, typed.stride[0], typed.stride[1]};
}
template <class T, class AnyView>
T* vector_of(const AnyView& view) {
  return view.template as<T, 1>().data;
}

/// True when rows of activations and states can be read in whole vectors of four.
template <class T>
bool fits_vectors(const Rows<T>& rows) {
  constexpr int64_t kElements = 4;
  return reinterpret_cast<uintptr_t>(rows.data) % (kElements * sizeof(T)) == 0 &&
         rows.outer % kElements == 0 && rows.inner % kElements == 0;
}
inline bool fits_vectors(const float* data, int64_t stride = 4) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}
inline bool fits_vectors(int64_t d_inner, int64_t d_state) {
  return d_inner % 4 == 0 && (d_state == 8 || d_state == 16 || d_state == 32 || d_state == 64);
}

/// True when every row starts on a multiple of `bytes` and holds whole pieces of as many.
template <class T>
bool in_pieces(const Rows<T>& rows, int64_t width, int64_t bytes) {
  const int64_t elements = bytes / static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(bytes) == 0 &&
         rows.outer % elements == 0 && rows.inner % elements == 0 && width % elements == 0;
}

/// Calls body<kStates, kSplit>() for d_state, padded to 8, 16, 32 or 64.
template <class Body>
void over_states(int64_t d_state, Body&& body) {
  if (d_state <= 8) {
    body.template operator()<8, 1>();
  } else if (d_state <= 16) {
    body.template operator()<16, 1>();
  } else if (d_state <= 32) {
    body.template operator()<16, 2>();
  } else {
    body.template operator()<16, 4>();
  }
}

/// Chunks of time that are walked side by side.
struct Chunks {
  int64_t count = 1;
  int64_t length = 0;
  int64_t longer = 0;  // of the first this many, one tile of kChunkTile positions more
};

constexpr int64_t kShortestChunk = 64;

/// One chunk when `units` of work (warps or blocks of one chunk) fill the machine, which holds
/// `capacity` of them; else as many as fill it once. Splitting costs a summary of every chunk,
/// which is cheaper the longer the chunk, so no more than that. They are whole tiles each.
inline Chunks cut_time(int64_t length, int64_t units, int64_t capacity) {
  if (length <= kShortestChunk || units * 2 >= capacity) return {1, length};
  const int64_t wanted = std::max<int64_t>(1, capacity / units);
  const int64_t tiles = ceil_div(ceil_div(length, wanted), kChunkTile);
  const int64_t chunk = std::max(kShortestChunk, tiles * kChunkTile);
  return {ceil_div(length, chunk), chunk};
}

/// The same in parts as equal as whole tiles can be, so that none but the last chunk ends within
/// one.
inline Chunks cut_evenly(int64_t length, int64_t units, int64_t capacity) {
  if (length <= kShortestChunk || units * 2 >= capacity) return {1, length};
  const int64_t tiles = ceil_div(length, kChunkTile);
  const int64_t count = std::min(capacity / units, tiles * kChunkTile / kShortestChunk);
  return {count, tiles / count * kChunkTile, tiles % count};
}

/// Uninitialised fp32 values in the arena.
inline float* scratch(Context& ctx, int64_t count) {
  return ctx.arena().f32({count}).as<float, 1>().data;
}

inline unsigned grid_of(int64_t blocks) {
  require(blocks <= std::numeric_limits<int32_t>::max(), ErrorKind::kUnsupported,
          "selective_scan: ", blocks, " blocks; at most 2147483647 on a GPU");
  return static_cast<unsigned>(blocks);
}

/// Channels of a warp of the kernels with 2 channels x 16 states per thread.
inline int64_t warp_channels(int64_t d_state) {
  return d_state <= 16 ? 64 : d_state <= 32 ? 32 : 16;
}

/// How the outputs are cut: chunks of time, and the kernel that walks them.
enum class OutputsKernel {
  kTwo,    // warps with two channels a lane
  kFour,   // with four
  kJoint,  // teams of warps with one
};
struct OutputsCut {
  Chunks chunks;
  OutputsKernel kernel = OutputsKernel::kTwo;
};
/// few_states: there are kernels for few (bf16, a copy unit). A warp of kFour does the work of two
/// of kTwo, one of kJoint half of it: kJoint has the longest chunks, which are cheaper to
/// summarise, kFour the fewest instructions per state. So of 8 states, which are sooner bound by
/// instructions, kFour walks long chunks and kTwo what is not cut. Eight warps of kTwo on an SM
/// have longer chunks than twelve, which are for long ones too.
inline OutputsCut cut_outputs(Context& ctx, int64_t length, int64_t batch, int64_t d_inner,
                              int64_t d_state, bool few_states) {
  constexpr int64_t kLong = 1280;
  const int64_t sms = multiprocessors(ctx);
  const int64_t most = sms * kForwardWarps * kForwardTeams;
  const int64_t units = batch * ceil_div(d_inner, warp_channels(d_state));
  if (few_states) {
    const int64_t wide = batch * ceil_div(d_inner, 128);
    if (d_state <= 8 && units >= most) return {{1, length}, OutputsKernel::kTwo};
    if (d_state <= 8 && ceil_div(d_inner, 64) % 2 == 0) {
      const Chunks chunks = cut_evenly(length, wide, most);
      if (chunks.count > 1 && chunks.length >= kLong) return {chunks, OutputsKernel::kFour};
    }
    return {cut_evenly(length, wide, sms * kJointTeams), OutputsKernel::kJoint};
  }
  const Chunks full = cut_evenly(length, units, most);
  return {full.count == 1 || full.length >= kLong ? full : cut_evenly(length, units, sms * 8)};
}

/// Channels of a block of the summary: groups of equal width, a multiple of 8, that fit its
/// threads.
inline int summary_width(int64_t d_inner, int64_t d_state) {
  const int64_t widest = kSummaryThreads * warp_channels(d_state) / 64;
  return static_cast<int>(ceil_div(ceil_div(d_inner, ceil_div(d_inner, widest)), 8) * 8);
}

/// Teams of the summary on tensor cores on an SM.
constexpr int summary_mma_teams(int64_t d_state) {
  return d_state <= 16 ? 4 : d_state <= 32 ? 3 : 2;
}

/// How many pieces a chunk is cut into where only summaries of whole chunks are wanted, of
/// `borders` chunks of `length` positions in all: what fills the machine; four times as many for
/// long chunks, of which the last three quarters are mostly too far from the border to matter.
struct ChunkPieces {
  int count = 1;  // of a chunk
  int near = 1;   // that are walked first
};
inline ChunkPieces cut_chunk(Context& ctx, int64_t length, int64_t borders, int64_t d_inner,
                             int64_t d_state, bool mma) {
  constexpr int64_t kShortest = 256;
  constexpr int64_t kLong = 8192;
  const int64_t sms = multiprocessors(ctx);
  const int64_t blocks =
      borders * ceil_div(d_inner, mma ? 16 * kSummaryMmaWarps : summary_width(d_inner, d_state));
  const int64_t capacity = sms * (mma ? summary_mma_teams(d_state) : kSummaryBlocks);
  const int64_t wanted = std::max<int64_t>(1, capacity / std::max<int64_t>(1, blocks));
  const int64_t shortest = std::max<int64_t>(1, length / kShortest);
  if (length < kLong || mma) return {static_cast<int>(std::min(wanted, shortest)), 0};
  const auto count = static_cast<int>(std::min(wanted * 4, shortest));
  return {count, (count + 3) / 4};
}

/// Groups of channels and chunks, which kernels count in 32 bits.
inline void require_countable(int64_t units) {
  require(units < int64_t{1} << 32, ErrorKind::kUnsupported, "selective_scan: ", units,
          " groups of channels and chunks; at most 4294967295 on a GPU");
}

/// A kernel whose dynamic shared memory may be more than 48 KB.
template <class Kernel>
Kernel with_shared_memory(Kernel kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for the shared memory of a scan kernel");
  return kernel;
}

/// Starts a kernel of `units` teams with `bytes` of shared memory each, of which `most` share an
/// SM; at_most(teams) is the kernel for so many on an SM.
template <class Choose, class... Arguments>
void start_teams(Context& ctx, int64_t units, int most, int bytes, Choose&& at_most,
                 const Arguments&... arguments) {
  require_countable(units * kTeamWarps);
  const TeamGrid grid = team_grid(units, multiprocessors(ctx), most, bytes, most_shared_bytes(ctx));
  start_overlapping(stream_of(ctx), with_shared_memory(at_most(grid.teams), grid.bytes),
                    grid_of(grid.blocks), grid.of_block * kTeamWarps * 32, grid.bytes,
                    arguments...);
}

/// SummaryArgs::parts for chunks of `length` positions. More of them suit models whose channels lie
/// in the order of their speed, and cost others a little: lines of memory that lie side by side are
/// read at different times, where chunks are long from memory itself.
inline int summary_parts(int64_t length, int d_inner, bool gradient) {
  constexpr int64_t kShort = 768;
  constexpr int64_t kLong = 2048;
  constexpr int kBlock = 16 * kSummaryMmaWarps;  // channels
  if (length < kShort || d_inner % kBlock != 0) return 1;
  const int blocks = d_inner / kBlock;
  if (gradient || length <= kLong) return blocks;
  return blocks % 2 == 0 ? 2 : 1;
}

/// Finds out how the arrays of a summary may be read, and which stretches it must do: unless what
/// all chunks come to is wanted (all_chunks), not that on which nothing follows, whose place is
/// never read.
template <bool kGradient, class T>
void prepare_summary(SummaryArgs<T>& p) {
  p.vectors.rows = in_pieces(p.x, p.d_inner, 16) && in_pieces(p.delta, p.d_inner, 16) &&
                   in_pieces(p.z, p.d_inner, 16);
  p.vectors.tokens = in_pieces(p.w, p.d_state, 8);
  constexpr int64_t kNear = int64_t{1} << 26;  // rows that a window's offsets of 32 bits reach
  p.vectors.wide_tokens = in_pieces(p.w, p.d_state, 16) && p.w.inner < kNear;
  p.vectors.states = fits_vectors(p.A, p.A_stride) && p.d_state % 4 == 0;
  p.width = summary_width(p.d_inner, p.d_state);
  // over long walks the warps of a block would read sectors of the same lines of memory at times
  // far apart; over short ones waiting for each other costs more than it saves
  constexpr int64_t kLongWalk = 6144;
  p.together = p.chunk_length >= kLongWalk;
  p.parts = summary_parts(p.chunk_length, p.d_inner, kGradient);
  constexpr int64_t kWindow = 16 * static_cast<int64_t>(sizeof(T)) * (kGradient ? 1 : -1);
  p.next_x = kWindow * p.x.inner;
  p.next_delta = kWindow * p.delta.inner;
  p.next_z = kWindow * p.z.inner;
  p.next_w = kWindow * p.w.inner;
  const bool all = p.exact_sum || p.all_chunks;
  p.first_stretch = kGradient && !all ? 1 : 0;
  p.stretches = static_cast<int>(ceil_div(p.chunks, p.stretch)) - (all ? 0 : 1);
}

/// True when the summary's kernel on tensor cores can read what a prepared `p` points to, and there
/// is one: not for gradients of ready deltas without a gate.
template <bool kGradient, class T>
bool fits_summary_mma(const SummaryArgs<T>& p) {
  return sizeof(T) == 2 && p.vectors.rows && p.vectors.tokens &&
         !(kGradient && p.ready && p.z.empty());
}

/// Starts the summary's kernel of one channel per thread for what `p` says.
template <bool kGradient, int kStates, int kSplit, class T>
void start_summary(Context& ctx, const SummaryArgs<T>& p, int64_t units) {
  const int bytes = spread(SummaryShape<T, kStates, kSplit, kGradient>::kBytes, kSummaryBlocks,
                           most_shared_bytes(ctx));
  const auto kernel =
      with_shared_memory(scan_summary_kernel<T, kStates, kSplit, kGradient, 8>, bytes);
  start_overlapping(stream_of(ctx), kernel, grid_of(units * ceil_div(p.d_inner, p.width)),
                    kSummaryThreads, bytes, p);
}
/// True where chunks are so long that the warps of the forward pass's summary take turns, of which
/// there are two with chunks as cut_outputs makes them. Shorter walks are soon over, and what a
/// turn begins with is then better hidden by another block; over longer ones the warps that read
/// the same lines of memory drift apart.
inline bool take_turns(int64_t length) {
  constexpr int64_t kShort = 768;
  constexpr int64_t kLong = 2048;
  return length >= kShort && length <= kLong;
}
/// The same on tensor cores.
template <bool kGradient, int kStates, bool kPaired>
void start_summary_mma(Context& ctx, SummaryArgs<bf16> p, int64_t units) {
  constexpr int kTeams = summary_mma_teams(kStates);
  using S = SummaryMmaShape<kStates, kGradient>;
  const int64_t warps = units * ceil_div(p.d_inner, S::kWidth);
  require_countable(warps);
  const int64_t teams = ceil_div(warps, kSummaryMmaWarps);
  p.teams = static_cast<uint32_t>(teams);
  const int64_t sms = multiprocessors(ctx);
  const bool once = teams <= sms * kTeams;
  const bool share = kGradient ? once : (once || S::kTurns) && take_turns(p.chunk_length);
  const TeamGrid grid =
      turns_grid(teams, sms, kTeams, S::kTeamBytes, most_shared_bytes(ctx), share);
  const auto kernel = with_shared_memory(
      p.ready ? scan_summary_mma_kernel<kStates, kGradient, kGradient, true, kPaired, kTeams>
      : kGradient && !p.z.empty()
          ? scan_summary_mma_kernel<kStates, kGradient, kGradient, false, kPaired, kTeams>
          : scan_summary_mma_kernel<kStates, kGradient, false, false, kPaired, kTeams>,
      grid.bytes);
  start_overlapping(stream_of(ctx), kernel, grid_of(grid.blocks),
                    grid.of_block * kSummaryMmaWarps * 32, grid.bytes, p);
}
template <bool kGradient, int kStates>
void start_summary_mma(Context& ctx, const SummaryArgs<bf16>& p, int64_t units) {
  using S = SummaryMmaShape<kStates, kGradient>;
  const int64_t longest = p.chunk_length + (p.longer > 0 ? kChunkTile : 0);
  if (S::kPairs && longest > kPairWindows * S::kRows) {
    start_summary_mma<kGradient, kStates, S::kPairs>(ctx, p, units);
  } else {
    start_summary_mma<kGradient, kStates, false>(ctx, p, units);
  }
}

/// Summaries of all chunks; where only whole stretches of chunks matter, of the first `near` chunks
/// of each stretch, then of the others as far as they matter.
template <bool kGradient, class T>
void launch_summary(Context& ctx, SummaryArgs<T> p, int near = 0) {
  prepare_summary<kGradient>(p);
  if (p.stretches == 0) return;
  if (near == 0) near = p.stretch;
  over_states(p.d_state, [&]<int kStates, int kSplit>() {
    for (p.from = 0; p.from < p.stretch; p.from += p.count) {
      p.count = p.from == 0 ? near : p.stretch - near;
      const int64_t units = p.batch * p.stretches * p.count;
      if constexpr (sizeof(T) == 2) {
        if (fits_summary_mma<kGradient>(p)) {
          start_summary_mma<kGradient, kStates * kSplit>(ctx, p, units);
          continue;
        }
      }
      start_summary<kGradient, kStates, kSplit>(ctx, p, units);
    }
  });
  check_launch(ctx, kGradient ? "scan_summary (gradient)" : "scan_summary", p.batch, " x ",
               p.length, " x ", p.d_inner, ", state ", p.d_state, ", ", p.chunks, " chunks");
}

inline void launch_combine(Context& ctx, const CombineArgs& p, bool reversed) {
  const auto start = [&](auto kernel, int64_t blocks, dim3 threads) {
    start_overlapping(stream_of(ctx), kernel, grid_of(blocks), threads, 0, p);
  };
  if (reversed) {
    with_combine_kernel<true>(p, start);
  } else {
    with_combine_kernel<false>(p, start);
  }
  check_launch(ctx, "scan_combine", p.batch, " x ", p.chunks, " chunks x ", p.d_inner, ", state ",
               p.d_state);
}

}  // namespace gmamba::cuda::scan
