// SPDX-License-Identifier: Apache-2.0
/// Convolution of 4 taps, SiLU and the projection of its result in one kernel, bf16 rows.
/// Layout  a pair of warps owns 32 neighbouring positions and goes through all channels, 128 at a
///         time, 64 a warp; a lane 4 g + t has positions 4 g .. 4 g + 3, so that it slides its own
///         window, and 8 channels of each 32. What it has convolved is, rounded to bf16, exactly a
///         fragment of the product's left side (rows and channels in an order of our own, in which
///         the matrix is read as well), so the product costs no shuffle and no trip through shared
///         memory; only the sums over all channels meet there, once per tile.
/// Memory  x comes in by asynchronous copies into two stages of the pair's own (35 rows: 3 before
///         its positions), up to two chunks ahead; y takes the place of x in its stage and leaves
///         from there, so that both move 256 bytes of a row at a time (with 64 at a time, memory
///         gives a quarter less). The matrix and the taps stay in shared memory; they come in
///         behind the first rows and before the second ones, with nothing waited for in between.
/// Launch  persistent blocks of 8 pairs (6 where P > 48), which share nothing but the matrix; pairs
///         take tiles of neighbouring positions at the same time, so rows read twice come from L2
/// Floor   2 E + 2 E + 2 P bytes per position: E = 512, P = 48 over 2^20 positions 0.75 ms at
///         3.0 TB/s
#include "kernels/conv1d_math.cuh"
#include "kernels/conv_projection.h"
#include "kernels/cuda_overlap.cuh"
#include "kernels/cuda_sequence.h"
#include "kernels/cuda_tiles.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kTaps = 4;
constexpr int kBefore = kTaps - 1;       // rows before a tile that it reads
constexpr int kTile = 32;                // positions of a pair of warps
constexpr int kRows = 4;                 // of them of a lane
constexpr int kChunk = 128;              // channels of a stage
constexpr int kPitch = kChunk * 2 + 16;  // bytes between staged rows: no bank conflicts
constexpr int kStage = (kTile + kBefore) * kPitch;
constexpr int kTail = kBefore * kChunk * 4;  // bytes of the tail's rows, fp32
constexpr int kStages = 2;
constexpr int kHalves = 2;  // a pair's warps: of the rows to move, of a chunk's channels
constexpr int kHalfRows = kTile / kHalves;
constexpr int kMostOutputs = 64;

/// Pairs of a block: as many as shared memory holds at E = 512, and registers allow without spills.
__host__ __device__ constexpr int pairs_for(int outputs) { return outputs <= 48 ? 8 : 6; }
constexpr int threads_for(int outputs) { return pairs_for(outputs) * kHalves * kWarp; }

struct Problem {
  View<const bf16, 3> x;           // (B, L, E)
  View<const float, 3> tail_in;    // (B, 3, E) or empty
  const float* weight;             // (E, 4)
  const float* bias;               // (E) or null
  View<const bf16, 2> projection;  // (P, E)
  View<bf16, 3> y;                 // (B, L, E)
  View<bf16, 2> projected;         // (B L, P)
  View<float, 3> tail_out;         // (B, 3, E) or empty
  int tiles;                       // in all
  int tiles_of_sequence;
  int chunks;  // of kChunk channels
};

/// Shared memory, in bytes from its start: the matrix, then taps and bias by channel, then by pair
/// two stages and the tail's rows of a chunk.
/// Channels are padded to whole chunks with zeros, outputs to whole fragments.
/// The matrix lies as lanes read it: by 32 channels, then (16 bytes of each lane's 8 channels) by
/// half, then by output, 4 x 8 bytes for the four t.
struct Places {
  __host__ __device__ Places(int chunks, int outputs)
      : width(chunks * kChunk),
        taps(outputs * width * 2),
        pairs(taps + (kTaps + 1) * width * static_cast<int>(sizeof(float))),
        bytes(pairs + pairs_for(outputs) * kOfPair) {}
  static constexpr int kOfPair = kStages * kStage + kTail;
  int width, taps, pairs, bytes;
};
constexpr int kMatrixRow = 32;  // bytes of an output's 16 channels

/// Where a tile lies.
struct Tile {
  int b, index;
  __device__ Tile(const Problem& p, int tile)
      : b(tile / p.tiles_of_sequence), index(tile - b * p.tiles_of_sequence) {}
  __device__ int64_t begin() const { return static_cast<int64_t>(index) * kTile; }
};

/// The chunks of a pair's tiles, one after the other. Tiles go wave by wave over all pairs, blocks
/// first so that few tiles spread over all of them, and turned by one each wave, or with 32 tiles
/// in a sequence the same pairs would meet all tails.
struct Walk {
  int turn;
  int wave = 0;
  int chunk = 0;
  Tile tile;

  __device__ Walk(const Problem& p, int first) : turn(first), tile(p, first) {}
  __device__ bool exists(const Problem& p) const { return wave + turn < p.tiles; }
  __device__ void advance(const Problem& p) {
    chunk += 1;
    if (chunk < p.chunks) return;
    const auto pairs = static_cast<int>(gridDim.x * blockDim.x) / (kHalves * kWarp);
    chunk = 0;
    turn = turn + 1 < pairs ? turn + 1 : 0;
    wave += pairs;
    tile = Tile(p, wave + turn);
  }
};

/// A warp as one of its pair.
struct Member {
  int lane, half, pair;
  __device__ Member()
      : lane(static_cast<int>(threadIdx.x) % kWarp),
        half(static_cast<int>(threadIdx.x) / kWarp % kHalves),
        pair(static_cast<int>(threadIdx.x) / (kWarp * kHalves)) {}
  /// Waits for the other warp of the pair; what both wrote to shared memory is there.
  __device__ void meet() const {
    asm volatile("bar.sync %0, %1;" ::"r"(pair + 1), "n"(kHalves * kWarp) : "memory");
  }
};

/// Bytes from row to row.
template <class T>
__device__ int row_bytes(const View<T, 3>& view) {
  return static_cast<int>(view.stride[1]) * static_cast<int>(sizeof(T));
}

/// Starts copying this warp's rows of a chunk into a stage: those it stores y from, and the first
/// warp those before the tile.
__device__ void fetch(const Problem& p, const Walk& to, uint32_t stage, const Member& me) {
  constexpr int kPieces = kChunk / 8;       // of 16 bytes in a row
  constexpr int kAtOnce = kWarp / kPieces;  // rows
  const int channel = to.chunk * kChunk + me.lane % kPieces * 8;
  const bool there = channel < p.x.extent[2];
  const int own = me.lane / kPieces;
  const int64_t first = to.tile.begin() - kBefore;  // row of the sequence, the stage's first
  const uint32_t at = stage + own * kPitch + me.lane % kPieces * 16;
  const char* const from = reinterpret_cast<const char*>(p.x.at(to.tile.b, first + own, channel));
  const int64_t bytes = row_bytes(p.x);
  const int before = kBefore + me.half * kHalfRows;  // rows until the warp's
  if (to.tile.index > 0 && first + kBefore + kTile <= p.x.extent[1]) {
    if (me.half == 0) {
#pragma unroll
      for (int row = 0; row < kBefore; row += kAtOnce) {
        if (row + own >= kBefore) continue;
        tiles::copy_or_zeros<16>(at + row * kPitch, from + row * bytes, there);
      }
    }
    const char* const mine = from + before * bytes;
#pragma unroll
    for (int row = 0; row < kHalfRows; row += kAtOnce) {
      tiles::copy_or_zeros<16>(at + (before + row) * kPitch, mine + row * bytes, there);
    }
    return;
  }
  const int end = before + kHalfRows;
#pragma unroll 1
  for (int row = (me.half == 0 ? 0 : before) + own; row < end; row += kAtOnce) {
    const int64_t l = first + row;
    tiles::copy_or_zeros<16>(at + (row - own) * kPitch, from + (row - own) * bytes,
                             there && l >= 0 && l < p.x.extent[1]);
  }
}

/// Starts copying the matrix and the taps of the block.
__device__ void fetch_shared(const Problem& p, const Places& places, int outputs, char* shared) {
  const int width = static_cast<int>(p.x.extent[2]);
  const int threads = static_cast<int>(blockDim.x);
  const uint32_t matrix = tiles::shared_address(shared);
  for (int i = static_cast<int>(threadIdx.x); i < outputs * places.width / 4; i += threads) {
    const int row = i / (places.width / 4);
    const int channel = i % (places.width / 4) * 4;
    const bool there = row < p.projection.extent[0] && channel < width;
    const int place = (channel / 32 * 2 + channel / 4 % 2) * outputs + row;
    tiles::copy_or_zeros<8>(matrix + place * kMatrixRow + channel % 32 / 8 * 8,
                            there ? p.projection.at(row, channel) : p.projection.data, there);
  }
  const uint32_t taps = matrix + places.taps;
  for (int e = static_cast<int>(threadIdx.x); e < places.width; e += threads) {
    const bool there = e < width;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      tiles::copy_or_zeros<4>(taps + (k * places.width + e) * 4,
                              p.weight + (there ? e * kTaps + k : 0), there);
    }
    const bool biased = there && p.bias != nullptr;
    tiles::copy_or_zeros<4>(taps + (kTaps * places.width + e) * 4, biased ? p.bias + e : p.weight,
                            biased);
  }
}

/// Brings this warp's channels of a sequence's tail (zeros without one) to shared memory.
__device__ void fetch_tail(const Problem& p, const Walk& walk, float* tail, const Member& me) {
  constexpr int kQuads = kChunk / kHalves / 4;
#pragma unroll
  for (int first = 0; first < kBefore * kQuads; first += kWarp) {
    const int i = first + me.lane;
    if (i >= kBefore * kQuads) continue;
    const int inside = me.half * (kChunk / kHalves) + i % kQuads * 4;
    const int channel = walk.chunk * kChunk + inside;
    const bool there = !p.tail_in.empty() && channel < p.x.extent[2];
    *reinterpret_cast<float4*>(tail + i / kQuads * kChunk + inside) =
        there ? *reinterpret_cast<const float4*>(p.tail_in.at(walk.tile.b, i / kQuads, channel))
              : float4{};
  }
}

/// The 7 rows that a lane's 4 positions read, of 4 channels; the first 3 of a sequence from its
/// tail, which may hold more digits than bf16.
struct Window {
  float row[kRows + kBefore][4];

  /// `from` is the lane's first row in the stage, `tail` null or the lane's channels of the tail.
  __device__ Window(uint32_t from, const float* tail) {
#pragma unroll
    for (int i = 0; i < kRows + kBefore; ++i) {
      uint32_t low, high;
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                   : "=r"(low), "=r"(high)
                   : "r"(from + i * kPitch)
                   : "memory");
      unpack_bf16(low, row[i][0], row[i][1]);
      unpack_bf16(high, row[i][2], row[i][3]);
    }
    if (tail == nullptr) return;
#pragma unroll
    for (int i = 0; i < kBefore; ++i) load_floats<4>(tail + i * kChunk, row[i]);
  }

  /// Those of the rows that are among the last 3 which the sequence and its tail hold.
  __device__ void keep_tail(const Problem& p, const Tile& tile, int channel, int group) const {
    const int64_t first = tile.begin() + group * kRows - p.x.extent[1];  // of them, in tail_out
    if (first + kRows + kBefore <= 0 || channel >= p.x.extent[2]) return;
    float* const to = p.tail_out.at(tile.b, first, channel);
#pragma unroll
    for (int i = 0; i < kRows + kBefore; ++i) {
      const bool own = i >= kBefore || (tile.index == 0 && group == 0);
      if (own && first + i >= 0 && first + i < kBefore) {
        store_floats<4>(to + i * p.tail_out.stride[1], row[i]);
      }
    }
  }
};

/// y of a lane's positions and 4 channels, as stored: channels 0, 1 in [.][0], 2, 3 in [.][1].
__device__ void convolve(const Window& window, const float* taps, int width,
                         uint32_t (&y)[kRows][2]) {
  float weight[kTaps + 1][4];
#pragma unroll
  for (int k = 0; k <= kTaps; ++k) load_floats<4>(taps + k * width, weight[k]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float value[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float pre = weight[kTaps][c];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) pre += weight[k][c] * window.row[r + k][c];
      value[c] = pre * sigmoid_for<bf16>(pre);
    }
    y[r][0] = pack_bf16(value[0], value[1]);
    y[r][1] = pack_bf16(value[2], value[3]);
  }
}

/// Fragments (kOutputs / 8) of the product over a lane's positions: [0] of its rows 0, 1; [1] of
/// its rows 2, 3.
template <int kOutputs>
using Sums = float[2][kOutputs / 8][4];

/// This warp's rows of y of a chunk, which has taken the place of x, to memory: 256 bytes of two
/// rows at a time.
__device__ void store_chunk(const Problem& p, const Walk& walk, const char* stage,
                            const Member& me) {
  constexpr int kPieces = kChunk / 8;
  constexpr int kAtOnce = kWarp / kPieces;
  const int channel = walk.chunk * kChunk + me.lane % kPieces * 8;
  if (channel >= p.x.extent[2]) return;
  const int row = me.half * kHalfRows + me.lane / kPieces;
  const int64_t first = walk.tile.begin() + row;
  char* const to = reinterpret_cast<char*>(p.y.at(walk.tile.b, first, channel));
  const char* const from = stage + (kBefore + row) * kPitch + me.lane % kPieces * 16;
  const int64_t bytes = row_bytes(p.y);
  const auto store = [&](int i) {
    *reinterpret_cast<uint4*>(to + i * bytes) = *reinterpret_cast<const uint4*>(from + i * kPitch);
  };
  if (walk.tile.begin() + kTile <= p.x.extent[1]) {
#pragma unroll
    for (int i = 0; i < kHalfRows; i += kAtOnce) store(i);
  } else {
#pragma unroll 1
    for (int i = 0; i < kHalfRows && first + i < p.x.extent[1]; i += kAtOnce) store(i);
  }
}

/// This warp's half of a staged chunk: y of its channels in place of x, and its part of the
/// product.
template <int kOutputs>
__device__ void compute(const Problem& p, const Places& places, const Walk& walk, char* stage,
                        const float* tail, const char* shared, const Member& me,
                        Sums<kOutputs>& sums) {
  constexpr int kQuarters = kChunk / 32;
  const int g = me.lane / 4;
  const Tile& tile = walk.tile;
  const bool last = tile.begin() + kTile > p.x.extent[1] - kBefore && !p.tail_out.empty();
  const float* const taps = reinterpret_cast<const float*>(shared + places.taps);
#pragma unroll 1
  for (int i = 0; i < kQuarters / kHalves; ++i) {
    const int quarter = me.half * (kQuarters / kHalves) + i;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int inside = quarter * 32 + me.lane % 4 * 8 + 4 * t;  // of the chunk's channels
      const int channel = walk.chunk * kChunk + inside;
      char* const rows = stage + g * kRows * kPitch + inside * 2;
      const Window window(tiles::shared_address(rows),
                          tile.index == 0 && g == 0 ? tail + inside : nullptr);
      if (last) window.keep_tail(p, tile, channel, g);
      uint32_t y[kRows][2];
      convolve(window, taps + channel, places.width, y);
      __syncwarp();  // neighbours have read the rows that y replaces
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        *reinterpret_cast<uint2*>(rows + (kBefore + r) * kPitch) = make_uint2(y[r][0], y[r][1]);
      }
      const char* const matrix =
          shared + ((walk.chunk * kQuarters + quarter) * 2 + t) * kOutputs * kMatrixRow +
          me.lane * 8;
#pragma unroll
      for (int n = 0; n < kOutputs / 8; ++n) {
        const uint2 b = *reinterpret_cast<const uint2*>(matrix + n * 8 * kMatrixRow);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t a[4] = {y[2 * j][0], y[2 * j + 1][0], y[2 * j][1], y[2 * j + 1][1]};
          tiles::multiply_add(sums[j][n], a, b.x, b.y);
        }
      }
    }
  }
}

/// The whole product of a tile: each warp takes two of a lane's four rows and gets the other warp's
/// sums of them through its own rows of the stage, which are free.
template <int kOutputs>
__device__ void store_projected(const Problem& p, const Tile& tile, char* stage, const Member& me,
                                Sums<kOutputs>& sums) {
  constexpr int kRowBytes = kWarp * 16;
  static_assert(kOutputs / 8 * kRowBytes <= kHalfRows * kPitch);
  const auto place = [&](int half, int n) {
    return reinterpret_cast<float4*>(stage + (kBefore + half * kHalfRows) * kPitch + n * kRowBytes +
                                     me.lane * 16);
  };
  me.meet();  // y has left the stage
#pragma unroll
  for (int n = 0; n < kOutputs / 8; ++n) {
    float other[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) other[i] = me.half == 0 ? sums[1][n][i] : sums[0][n][i];
    *place(1 - me.half, n) = make_float4(other[0], other[1], other[2], other[3]);
  }
  me.meet();
  const int64_t first = tile.begin() + me.lane / 4 * kRows + me.half * 2;
  bf16* const to = p.projected.at(tile.b * p.x.extent[1] + first, me.lane % 4 * 2);
#pragma unroll
  for (int n = 0; n < kOutputs / 8; ++n) {
    const float4 other = *place(me.half, n);
    const float more[4] = {other.x, other.y, other.z, other.w};
    float sum[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = (me.half == 0 ? sums[0][n][i] : sums[1][n][i]) + more[i];
      sums[0][n][i] = sums[1][n][i] = 0;
    }
    if (n * 8 >= p.projected.extent[1]) continue;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (first + r < p.x.extent[1]) {
        *reinterpret_cast<uint32_t*>(to + r * p.projected.stride[0] + n * 8) =
            pack_bf16(sum[r * 2], sum[r * 2 + 1]);
      }
    }
  }
}

template <int kOutputs>
__global__ void __launch_bounds__(threads_for(kOutputs), 1) forward_kernel(const Problem p) {
  after_previous_kernel();
  extern __shared__ __align__(16) char shared[];
  const Member me;
  const Places places(p.chunks, kOutputs);
  char* const mine = shared + places.pairs + me.pair * Places::kOfPair;
  float* const tail = reinterpret_cast<float*>(mine + kStages * kStage);
  Walk walk(p, static_cast<int>(blockIdx.x + me.pair * gridDim.x));
  Walk ahead = walk;
  const auto fetch_next = [&](int stage) {
    if (ahead.exists(p)) {
      fetch(p, ahead, tiles::shared_address(mine + stage), me);
      ahead.advance(p);
    }
    tiles::commit_copies();
  };
  fetch_next(0);
  fetch_shared(p, places, kOutputs, shared);
  tiles::commit_copies();
  fetch_next(kStage);
  tiles::wait_for_copies<1>();
  __syncthreads();
  Sums<kOutputs> sums = {};
  int used = 0;  // the stage that is computed from, as an offset
  while (walk.exists(p)) {
    if (walk.tile.index == 0) fetch_tail(p, walk, tail, me);
    tiles::wait_for_copies<1>();
    me.meet();  // x is there
    compute<kOutputs>(p, places, walk, mine + used, tail, shared, me, sums);
    me.meet();  // y is complete
    store_chunk(p, walk, mine + used, me);
    if (walk.chunk + 1 == p.chunks) store_projected<kOutputs>(p, walk.tile, mine + used, me, sums);
    __syncwarp();  // the copies may overwrite what the warp has read
    fetch_next(used);
    walk.advance(p);
    used = kStage - used;
  }
}

/// False when the matrix and the stages do not fit shared memory.
template <int kOutputs>
bool launch(Context& ctx, const Problem& p) {
  const int bytes = Places(p.chunks, kOutputs).bytes;
  if (bytes > most_shared_bytes(ctx)) return false;
  check(cudaFuncSetAttribute(forward_kernel<kOutputs>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes),
        "shared memory of conv_projection_forward");
  const int blocks = std::min(p.tiles, multiprocessors(ctx));
  start_overlapping(stream_of(ctx), forward_kernel<kOutputs>, static_cast<unsigned>(blocks),
                    threads_for(kOutputs), bytes, p);
  check_launch(ctx, "conv_projection_forward", p.x.extent[0], " x ", p.x.extent[1], " x ",
               p.x.extent[2], ", ", p.projection.extent[0], " outputs");
  return true;
}

}  // namespace

bool conv_projection_forward(Context& ctx, const ConvProjectionForward& args) {
  constexpr int64_t kMostWidth = 4096;  // beyond it, what lies in shared memory does not fit
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  constexpr int64_t kMostStride = int64_t{1} << 29;  // of rows
  if (args.x.dtype != DType::kBF16 || args.weight.dim(1) != kTaps || args.x.size() == 0) {
    return false;
  }
  Problem p{};
  p.x = args.x.as<const bf16, 3>();
  p.tail_in = args.tail_in.as<const float, 3>();
  p.projection = args.projection.as<const bf16, 2>();
  p.y = args.y.as<bf16, 3>();
  p.projected = args.projected.as<bf16, 2>();
  p.tail_out = args.tail_out.as<float, 3>();
  const int64_t outputs = args.projection.dim(0);
  const int64_t width = args.x.dim(2);
  const bool fits = width % 8 == 0 && width <= kMostWidth && outputs % 8 == 0 && outputs > 0 &&
                    outputs <= kMostOutputs && args.weight.contiguous() && aligned(p.x, 16) &&
                    aligned(p.tail_in, 16) && aligned(p.projection, 16) && aligned(p.y, 16) &&
                    aligned(p.projected, 16) && aligned(p.tail_out, 16) &&
                    p.x.stride[1] <= kMostStride && p.y.stride[1] <= kMostStride;
  if (!fits) return false;
  p.weight = args.weight.flat<const float>().data();
  p.bias = args.bias.flat<const float>().data();
  const int64_t tiles_of_sequence = ceil_div(args.x.dim(1), kTile);
  if (args.x.dim(0) * tiles_of_sequence > kMostTiles) return false;
  p.tiles_of_sequence = static_cast<int>(tiles_of_sequence);
  p.tiles = static_cast<int>(args.x.dim(0) * tiles_of_sequence);
  p.chunks = static_cast<int>(ceil_div(width, kChunk));
  return outputs <= 48 ? launch<48>(ctx, p) : launch<kMostOutputs>(ctx, p);
}

}  // namespace gmamba::cuda
