// SPDX-License-Identifier: Apache-2.0
/// Convolution of 4 taps, SiLU and the projection of its result in one kernel, bf16 rows.
/// Layout  a warp owns 32 neighbouring positions and goes through all channels, 128 at a time; a
///         lane 4 g + t has positions 4 g .. 4 g + 3, so that it slides its own window, and 8
///         channels of each 32. What it has convolved is, rounded to bf16, exactly a fragment of
///         the product's left side (rows and channels in an order of our own, in which the matrix
///         is read as well), so the product costs no shuffle and no trip through shared memory.
/// Memory  x comes in by asynchronous copies into two stages of the warp's own (35 rows: 3 before
///         its positions), one stage ahead; y takes the place of x in its stage and leaves from
///         there, so that both move 256 bytes of a row at a time (with 64 at a time, memory gives a
///         quarter less). The matrix and the taps stay in shared memory.
/// Launch  persistent blocks of 8 warps, which share nothing but the matrix; warps take tiles of
///         neighbouring positions at the same time, so rows read twice come from the L2
/// Floor   2 E + 2 E + 2 P bytes per position: E = 512, P = 48 over 2^20 positions 0.75 ms at
///         3.0 TB/s
#include "kernels/conv1d_math.cuh"
#include "kernels/conv_projection.h"
#include "kernels/cuda_sequence.h"
#include "kernels/cuda_tiles.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kTaps = 4;
constexpr int kBefore = kTaps - 1;       // rows before a tile that it reads
constexpr int kTile = 32;                // positions of a warp
constexpr int kRows = 4;                 // of them of a lane
constexpr int kChunk = 128;              // channels of a stage
constexpr int kPitch = kChunk * 2 + 16;  // bytes between staged rows: no bank conflicts
constexpr int kStage = (kTile + kBefore) * kPitch;
constexpr int kTail = kBefore * kChunk * 4;  // bytes of the tail's rows, fp32
constexpr int kStages = 2;
constexpr int kWarps = 8;
constexpr int kMostOutputs = 64;

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

/// Shared memory, in bytes from its start: the matrix, then taps and bias by channel, then by warp
/// two stages and the tail's rows of a chunk.
/// Channels are padded to whole chunks with zeros, outputs to whole fragments.
/// The matrix lies as lanes read it: by 32 channels, then (16 bytes of each lane's 8 channels) by
/// half, then by output, 4 x 8 bytes for the four t.
struct Places {
  __host__ __device__ Places(int chunks, int outputs)
      : width(chunks * kChunk),
        taps(outputs * width * 2),
        warps(taps + (kTaps + 1) * width * static_cast<int>(sizeof(float))),
        bytes(warps + kWarps * kOfWarp) {}
  static constexpr int kOfWarp = kStages * kStage + kTail;
  int width, taps, warps, bytes;
};
constexpr int kMatrixRow = 32;  // bytes of an output's 16 channels

/// Where a tile lies.
struct Tile {
  int b, index;
  __device__ Tile(const Problem& p, int tile)
      : b(tile / p.tiles_of_sequence), index(tile - b * p.tiles_of_sequence) {}
  __device__ int64_t begin() const { return static_cast<int64_t>(index) * kTile; }
};

/// Starts copying one chunk of a tile's rows into a stage.
__device__ void fetch(const Problem& p, const Tile& tile, int chunk, uint32_t stage, int lane) {
  constexpr int kPieces = kChunk / 8;  // of 16 bytes in a row
  const int channel = chunk * kChunk + lane % kPieces * 8;
  const bool there = channel < p.x.extent[2];
  const bf16* const from = p.x.at(tile.b, 0, there ? channel : 0);
  uint32_t to = stage + lane / kPieces * kPitch + lane % kPieces * 16;
#pragma unroll
  for (int row = 0; row < kTile + kBefore; row += kWarp / kPieces) {
    const int64_t l = tile.begin() - kBefore + row + lane / kPieces;
    if (row + lane / kPieces < kTile + kBefore) {
      const bool inside = there && l >= 0 && l < p.x.extent[1];
      tiles::copy_16_or_zeros(to, from + (inside ? l * p.x.stride[1] : 0), inside);
    }
    to += kWarp / kPieces * kPitch;
  }
}

/// Fills the matrix and the taps of the block.
__device__ void fill_shared(const Problem& p, const Places& places, int outputs, char* shared) {
  const int width = static_cast<int>(p.x.extent[2]);
  for (int i = static_cast<int>(threadIdx.x); i < outputs * places.width / 8;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / (places.width / 8);
    const int channel = i % (places.width / 8) * 8;
    const bool there = row < p.projection.extent[0] && channel < width;
    const uint4 v =
        there ? *reinterpret_cast<const uint4*>(p.projection.at(row, channel)) : uint4{};
    char* const to = shared + ((channel / 32 * 2) * outputs + row) * kMatrixRow + channel % 32;
    *reinterpret_cast<uint2*>(to) = make_uint2(v.x, v.y);
    *reinterpret_cast<uint2*>(to + outputs * kMatrixRow) = make_uint2(v.z, v.w);
  }
  float* const taps = reinterpret_cast<float*>(shared + places.taps);
  for (int e = static_cast<int>(threadIdx.x); e < places.width; e += static_cast<int>(blockDim.x)) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      taps[k * places.width + e] = e < width ? p.weight[e * kTaps + k] : 0.0F;
    }
    taps[kTaps * places.width + e] = e < width && p.bias != nullptr ? p.bias[e] : 0.0F;
  }
}

/// Brings a chunk of a sequence's tail (zeros without one) to the warp.
__device__ void fetch_tail(const Problem& p, const Tile& tile, int chunk, float* tail, int lane) {
  const int channel = chunk * kChunk + lane * 4;
  static_assert(kChunk == kWarp * 4);
#pragma unroll
  for (int i = 0; i < kBefore; ++i) {
    const bool there = !p.tail_in.empty() && channel < p.x.extent[2];
    *reinterpret_cast<float4*>(tail + i * kChunk + lane * 4) =
        there ? *reinterpret_cast<const float4*>(p.tail_in.at(tile.b, i, channel)) : float4{};
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

/// y of a chunk, which has taken the place of x, to memory: 256 bytes of two rows at a time.
__device__ void store_chunk(const Problem& p, const Tile& tile, int chunk, const char* stage,
                            int lane) {
  constexpr int kPieces = kChunk / 8;
  const int channel = chunk * kChunk + lane % kPieces * 8;
  if (channel >= p.x.extent[2]) return;
  const int64_t first = tile.begin() + lane / kPieces;
  bf16* const to = p.y.at(tile.b, first, channel);
  const char* const from = stage + (kBefore + lane / kPieces) * kPitch + lane % kPieces * 16;
#pragma unroll
  for (int row = 0; row < kTile; row += kWarp / kPieces) {
    if (first + row < p.x.extent[1]) {
      *reinterpret_cast<uint4*>(to + row * p.y.stride[1]) =
          *reinterpret_cast<const uint4*>(from + row * kPitch);
    }
  }
}

/// One staged chunk: y of its channels in place of x, and its part of the product.
template <int kOutputs>
__device__ void compute(const Problem& p, const Places& places, const Tile& tile, int chunk,
                        char* stage, const float* tail, const char* shared, int lane,
                        Sums<kOutputs>& sums) {
  const int g = lane / 4;
  const bool last = tile.begin() + kTile > p.x.extent[1] - kBefore && !p.tail_out.empty();
  const float* const taps = reinterpret_cast<const float*>(shared + places.taps);
#pragma unroll 1
  for (int quarter = 0; quarter < kChunk / 32; ++quarter) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int inside = quarter * 32 + lane % 4 * 8 + 4 * t;  // of the chunk's channels
      const int channel = chunk * kChunk + inside;
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
          shared + ((chunk * (kChunk / 32) + quarter) * 2 + t) * kOutputs * kMatrixRow + lane * 8;
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

template <int kOutputs>
__device__ void store_projected(const Problem& p, const Tile& tile, int lane,
                                Sums<kOutputs>& sums) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t l = tile.begin() + lane / 4 * kRows + r;
    bf16* const to = p.projected.at(tile.b * p.x.extent[1] + l, lane % 4 * 2);
#pragma unroll
    for (int n = 0; n < kOutputs / 8; ++n) {
      float(&sum)[4] = sums[r / 2][n];
      if (l < p.x.extent[1] && n * 8 < p.projected.extent[1]) {
        *reinterpret_cast<uint32_t*>(to + n * 8) = pack_bf16(sum[r % 2 * 2], sum[r % 2 * 2 + 1]);
      }
      sum[r % 2 * 2] = sum[r % 2 * 2 + 1] = 0;
    }
  }
}

template <int kOutputs>
__global__ void __launch_bounds__(kWarps* kWarp, 1) forward_kernel(const Problem p) {
  extern __shared__ __align__(16) char shared[];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Places places(p.chunks, kOutputs);
  char* const mine = shared + places.warps + warp * Places::kOfWarp;
  float* const tail = reinterpret_cast<float*>(mine + kStages * kStage);
  // wave by wave of all warps, blocks first so that few tiles spread over all of them, and turned
  // by one each wave, or with 32 tiles in a sequence the same warps would meet all tails
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  int turn = static_cast<int>(blockIdx.x + warp * gridDim.x);
  int wave = 0;
  int at = turn;
  Tile next(p, at);
  if (at < p.tiles) fetch(p, next, 0, tiles::shared_address(mine), lane);
  tiles::commit_copies();
  fill_shared(p, places, kOutputs, shared);
  __syncthreads();
  Sums<kOutputs> sums = {};
  int used = 0;  // the stage that is computed from, as an offset
  while (at < p.tiles) {
    const Tile tile = next;
    turn = turn + 1 < warps ? turn + 1 : 0;
    wave += warps;
    at = wave + turn;
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const bool more = chunk + 1 < p.chunks;
      if (!more) next = Tile(p, at);
      if (more || at < p.tiles) {
        fetch(p, next, more ? chunk + 1 : 0, tiles::shared_address(mine + (kStage - used)), lane);
      }
      tiles::commit_copies();
      if (tile.index == 0) fetch_tail(p, tile, chunk, tail, lane);
      tiles::wait_for_copies<1>();
      __syncwarp();
      compute<kOutputs>(p, places, tile, chunk, mine + used, tail, shared, lane, sums);
      __syncwarp();  // y is complete
      store_chunk(p, tile, chunk, mine + used, lane);
      __syncwarp();  // the next round's copies may overwrite it, and the tail
      used = kStage - used;
    }
    store_projected<kOutputs>(p, tile, lane, sums);
  }
}

/// Shared memory that a block may ask for.
int most_shared_bytes(const Context& ctx) {
  static_cast<void>(stream_of(ctx));
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "asking for the current GPU");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking for the GPU's shared memory");
  return bytes;
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
  forward_kernel<kOutputs><<<static_cast<unsigned>(blocks), kWarps * kWarp,
                             static_cast<size_t>(bytes), stream_of(ctx)>>>(p);
  check_launch(ctx, "conv_projection_forward", p.x.extent[0], " x ", p.x.extent[1], " x ",
               p.x.extent[2], ", ", p.projection.extent[0], " outputs");
  return true;
}

}  // namespace

bool conv_projection_forward(Context& ctx, const ConvProjectionForward& args) {
  constexpr int64_t kMostWidth = 4096;  // beyond it, what lies in shared memory does not fit
  constexpr int64_t kMostTiles = int64_t{1} << 30;
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
                    aligned(p.projected, 16) && aligned(p.tail_out, 16);
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
