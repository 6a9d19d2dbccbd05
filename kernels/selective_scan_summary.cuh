// SPDX-License-Identifier: Apache-2.0
/// Summaries of chunks of time, for the state and for its gradient.
///   state     sum over t of exp(A * sum of delta behind t) delta B u: what a chunk that starts
///             from zero ends in; walked backwards in time
///   gradient  sum over t of exp(A * sum of delta up to and with t) C dy silu(z): the gradient of
///             the incoming state when that of the outgoing one is zero; walked forwards
/// Either walk starts where the decay is 1 and ends where it is smallest, so a group of four states
/// stops once exp(A * sum) is below kForgotten for all channels of the warp: exact to the rounding
/// of what goes in, and most of the work where the memory is shorter than a chunk. The sum of delta
/// that is kept is then that of the positions walked, unless the exact one is asked for. Order how
/// far a channel must be walked differs a hundredfold between channels, so the lanes of
///         a block take its channels in the order of an estimate of that (from a sample of the
///         deltas, by a pure function of the data): then most warps have only channels that stop
///         early. The estimate decides what work is saved, never what is computed
/// Layout  a thread keeps one channel x kStates states; kSplit threads share the states of a
///         channel, each with a place of its own in the order. Tiles of u, delta, z and B of all
///         channels of the block come into shared memory by asynchronous copies, two tiles ahead;
///         one barrier per tile; warps that are done go on copying
/// Launch  one block per (batch row, chunk, group of channels)
/// Floor   memory: x, delta (and z) once where a slow channel lies in every sector of 16; 0.7 ms
///         (1.05 with z) for 2^20 positions of 512 channels
#pragma once

#include "kernels/cuda_overlap.cuh"
#include "kernels/scan_stage.cuh"

namespace gmamba::cuda::scan {

/// log2 of the decay below which nothing is left: in fp32, and beside activations of bf16, whose
/// rounding is 2^16 times as much, 2^8 times what is dropped there.
template <class T>
constexpr float kForgotten = sizeof(T) == 4 ? 30.0F : 17.0F;
constexpr int kSummaryThreads = 256;
constexpr int kSummaryBlocks = 2;  // on an SM, with 128 registers per thread

template <class T>
struct SummaryArgs {
  Rows<const T> x, delta, z;  // (B, L, E): u, or dy with its gate z or without
  Rows<const T> w;            // (B, L, N): B, or C
  const float* A = nullptr;   // (E, N)
  int64_t A_stride = 0;
  const float* bias = nullptr;  // (E) or empty
  bool ready = false;           // delta is behind bias and softplus
  Rows<float> state;            // (B * chunks, E, N)
  float* delta_sum = nullptr;   // (B * chunks, E)
  bool exact_sum = false;       // delta_sum over all positions, wherever the states stopped
  bool all_chunks = false;      // that on which nothing follows, too; as with exact_sum
  int64_t batch = 0, length = 0;
  int64_t chunks = 1, chunk_length = 0;
  int64_t longer = 0;  // chunks that are a tile longer
  // Only what reaches the borders between stretches of so many chunks is wanted. A launch does the
  // chunks [from, from + count) of every stretch, and stops where those before `from` leave
  // nothing.
  int stretch = 1, from = 0, count = 1;
  int first_stretch = 0, stretches = 1;  // the stretches that are wanted
  int d_inner = 0, d_state = 0;
  int width = 0;  // channels of a block
  // for the kernel on tensor cores: how many parts of the channels are begun one behind the other,
  // each over all chunks, so that the last warps to begin are of channels that forget fast where
  // slow ones come first; how many teams of warps there are, each with a chunk and channels of its
  // own; whether the warps of a block keep within a few windows of each other, and bytes from a
  // window to the next in each array
  int parts = 1;
  uint32_t teams = 0;
  bool together = false;
  int64_t next_x = 0, next_delta = 0, next_z = 0, next_w = 0;
  Vectors vectors;
};

template <class T, int kStates, int kSplit, bool kGradient>
struct SummaryShape {
  static constexpr int kColumns = kStates * kSplit;
  static constexpr int kWidth = kSummaryThreads / kSplit;  // channels of a block at most
  static constexpr int kRows = 32 / static_cast<int>(sizeof(T));
  static constexpr int kArrays = kGradient ? 3 : 2;
  static constexpr int kStages = 3;
  static constexpr int kTile = kArrays * kRows * kWidth;  // elements of a stage
  static constexpr int kTokens = kRows * kColumns;        // elements of w in a stage
  static constexpr int kBytes =
      kStages * (kTile + kTokens) * static_cast<int>(sizeof(T)) + 2 * kTokens * 4;
};

/// The deltas of a channel in kSamples positions of its chunk, added.
template <class T>
__device__ inline float sample_deltas(const T* delta, int64_t stride, int steps, float bias,
                                      bool ready) {
  constexpr int kSamples = 16;
  float sum = 0.0F;
#pragma unroll 8
  for (int i = 0; i < kSamples; ++i) {
    const int t = static_cast<int>(static_cast<int64_t>(steps) * i / kSamples);
    sum += delta_of<T>(widen(delta[t * stride]), bias, ready);
  }
  return sum * (1.0F / kSamples);
}

/// The item (of kSummaryThreads) of this thread when items are dealt out by `remaining`, the
/// largest first. Positive floats compare as their bits; the item's number in the last bits makes
/// all keys different, NaN or not. Of eight warps, the first and the last share a scheduler, and so
/// on; of two blocks on a multiprocessor, `turn` puts the slowest warps on different ones.
__device__ inline int item_of_rank(float remaining, uint32_t* keys, int* order, const int& turn) {
  const int item = static_cast<int>(threadIdx.x);
  const uint32_t key =
      (__float_as_uint(fabsf(remaining)) & ~(kSummaryThreads - 1U)) | static_cast<uint32_t>(item);
  keys[item] = key;
  __syncthreads();
  int larger = 0;
#pragma unroll 8
  for (int i = 0; i < kSummaryThreads; i += 4) {
    const uint4 others = *reinterpret_cast<const uint4*>(keys + i);
    larger += (others.x > key) + (others.y > key) + (others.z > key) + (others.w > key);
  }
  order[larger] = item;
  __syncthreads();
  const int warp = (item / 32) ^ (turn * 3);
  return order[(warp < 4 ? warp : 11 - warp) * 32 + item % 32];
}

/// Walks a chunk; kSub positions of a group of states are computed together.
template <class T, int kStates, int kSplit, bool kGradient, int kSub>
__global__ void __launch_bounds__(kSummaryThreads, kSummaryBlocks)
    scan_summary_kernel(const SummaryArgs<T> p) {
  wait_for_previous_kernel();
  let_next_kernel_begin();  // in this order for those who read ahead behind the combination
  using S = SummaryShape<T, kStates, kSplit, kGradient>;
  constexpr int kWidth = S::kWidth;
  constexpr int kRows = S::kRows;
  constexpr int kQuads = kStates / 4;
  static_assert(kRows % kSub == 0 && kSummaryThreads == 256);
  extern __shared__ __align__(16) unsigned char summary_shared[];
  __shared__ __align__(16) uint32_t keys[kSummaryThreads];
  __shared__ int order[kSummaryThreads];
  __shared__ int order_turn;
  T* const tiles_at = reinterpret_cast<T*>(summary_shared);
  T* const tokens_at = tiles_at + S::kStages * S::kTile;
  float* const wide_at = reinterpret_cast<float*>(tokens_at + S::kStages * S::kTokens);

  const int thread = static_cast<int>(threadIdx.x);
  const int groups = (p.d_inner + p.width - 1) / p.width;
  int64_t unit = blockIdx.x;
  const int first = static_cast<int>(unit % groups) * p.width;
  unit /= groups;
  const int piece = static_cast<int>(unit % p.count);
  unit /= p.count;
  const int64_t chunk = (unit % p.stretches + p.first_stretch) * p.stretch + p.from + piece;
  const int64_t b = unit / p.stretches;
  if (chunk >= p.chunks) return;
  const int64_t row = b * p.chunks + chunk;
  const int64_t begin = chunk_begin(chunk, p.chunk_length, p.longer);
  const int steps = chunk_steps(chunk, p.chunk_length, p.longer, p.length);
  const int valid = min(p.width, p.d_inner - first);
  const bool gated = kGradient && !p.z.empty();

  // tile i of the walk: the gradient counts tiles from the start of the chunk, the state from its
  // end; a tile that sticks out lies at the end of the chunk either way. Positions that don't exist
  // get a delta of zero
  const int tiles = (steps + kRows - 1) / kRows;
  const auto place = [&](int i) { return (kGradient ? i : tiles - 1 - i) * kRows; };
  // whole tiles take the short way, a tile that sticks out or lacks alignment the long one
  const RowPieces<T, kRows, kWidth, kSummaryThreads> row_pieces(thread);
  const TokenPieces<T, kRows, S::kColumns, kSummaryThreads> token_pieces(kSummaryThreads - 1 -
                                                                         thread);
  const bool has_rows = row_pieces.any(valid);
  const bool has_tokens = token_pieces.any(p.d_state);
  const auto rows_at = [&](const Rows<const T>& from) {
    return from.empty() ? nullptr : from.at(b, begin) + first + row_pieces.column;
  };
  const T* const x_from = rows_at(p.x);
  const T* const delta_from = rows_at(p.delta);
  const T* const z_from = rows_at(p.z);
  const T* const w_from = p.w.at(b, begin) + token_pieces.column;
  const auto fetch = [&](int i) {
    if (i >= tiles) return;
    const int t = place(i);
    const int rows = min(kRows, steps - t);
    T* const to = tiles_at + i % S::kStages * S::kTile;
    if (p.vectors.rows && rows == kRows) {
      if (has_rows) {
        row_pieces.fetch(to, x_from, static_cast<int>(p.x.inner), t);
        row_pieces.fetch(to + kRows * kWidth, delta_from, static_cast<int>(p.delta.inner), t);
        if (gated)
          row_pieces.fetch(to + 2 * kRows * kWidth, z_from, static_cast<int>(p.z.inner), t);
      }
    } else {
      const auto get = [&](T* place, const Rows<const T>& from, uint32_t fill) {
        fetch_block<kRows, kWidth, 16, kSummaryThreads>(place, from.at(b, begin + t) + first,
                                                        static_cast<int>(from.inner), rows, valid,
                                                        fill, p.vectors.rows, thread);
      };
      get(to, p.x, 0);
      get(to + kRows * kWidth, p.delta, p.ready ? 0U : kMinusInfinity<T>);
      if (gated) get(to + 2 * kRows * kWidth, p.z, 0);
    }
  };
  const auto fetch_tokens = [&](int i) {
    if (i >= tiles) return;
    const int t = place(i);
    const int rows = min(kRows, steps - t);
    T* const to = tokens_at + i % S::kStages * S::kTokens;
    if (p.vectors.tokens && rows == kRows && p.d_state == S::kColumns) {
      if (has_tokens) token_pieces.fetch(to, w_from, static_cast<int>(p.w.inner), t);
    } else {
      fetch_block<kRows, S::kColumns, 8, kSummaryThreads, true>(
          to, p.w.at(b, begin + t), static_cast<int>(p.w.inner), rows, p.d_state, 0,
          p.vectors.tokens, kSummaryThreads - 1 - thread);
    }
  };
  const auto widen_tokens = [&](int i) {
    const int quad = kSummaryThreads - 1 - thread;
    if (quad < S::kTokens / 4) {
      float v[4];
      const T* const from = tokens_at + i % S::kStages * S::kTokens;
      reinterpret_cast<const Packed<T, 4>*>(from)[quad].widen(v);
      store_shared(wide_at + i % 2 * S::kTokens + quad * 4, v);
    }
  };
  static_assert(S::kTokens / 4 <= kSummaryThreads);
  fetch(0);
  fetch_tokens(0);
  fetch_tokens(1);
  commit_copies();
  fetch(1);
  fetch_tokens(2);
  commit_copies();

  // what an item must walk, in sums of delta: for each four states up to kForgotten
  const auto bias_of = [&](int e) { return p.bias == nullptr ? 0.0F : p.bias[e]; };
  const auto gone_before = [&](int e) {
    float sum = 0.0F;
    for (int i = 0; i < p.from; ++i) {
      sum += p.delta_sum[(row - piece - p.from + i) * p.d_inner + e];
    }
    return sum;
  };
  const auto limits = [&](const float(&A)[kStates], int count, float gone, float(&limit)[kQuads]) {
#pragma unroll
    for (int g = 0; g < kQuads; ++g) {
      float slowest = INFINITY;  // smallest -A
      bool endless = false;      // growing, constant or NaN
#pragma unroll
      for (int n = g * 4; n < g * 4 + 4; ++n) {
        if (n >= count) continue;
        slowest = fminf(slowest, -A[n]);
        endless = endless || !(A[n] < 0.0F);
      }
      limit[g] = g * 4 >= count ? -INFINITY : endless ? INFINITY : kForgotten<T> / slowest - gone;
    }
  };
  float A[kStates];
  float limit[kQuads];
  const auto load_rates = [&](int item) {
    const int local = min(item / kSplit, valid - 1);
    const int n0 = item % kSplit * kStates;
    const int count = item / kSplit < valid ? max(0, min(kStates, p.d_state - n0)) : 0;
    const int e = first + local;
    load_states(p.A + e * p.A_stride + n0, count, p.vectors.states, A);
#pragma unroll
    for (int n = 0; n < kStates; ++n) A[n] *= kLog2e;
    limits(A, count, gone_before(e), limit);
    return count;
  };
  load_rates(thread);
  float remaining = 0.0F;
#pragma unroll
  for (int g = 0; g < kQuads; ++g) remaining = fmaxf(remaining, limit[g]);
  if (remaining > 0.0F && steps > 0) {
    const int e = first + thread / kSplit;
    remaining /= sample_deltas(p.delta.at(b, begin) + e, p.delta.inner, steps, bias_of(e), p.ready);
  }
  if (thread == 0) order_turn = static_cast<int>(warp_slot() / (kSummaryThreads / 32) % 2);
  const int item = item_of_rank(remaining, keys, order, order_turn);
  const int states = load_rates(item);
  const int local = min(item / kSplit, valid - 1);
  const int n0 = item % kSplit * kStates;
  const int e = first + local;
  const float bias = bias_of(e);

  float h[kStates];
#pragma unroll
  for (int n = 0; n < kStates; ++n) h[n] = 0.0F;
  float sum = 0.0F;
  wait_for_copies<1>();
  __syncthreads();
  widen_tokens(0);
#pragma unroll 1
  for (int i = 0;; ++i) {
    unsigned active = 0;
#pragma unroll
    for (int g = 0; g < kQuads; ++g) {
      // written so that NaN keeps a group active
      active |= __any_sync(kFullWarp, !(sum >= limit[g])) ? 1U << g : 0U;
    }
    const bool alive = active != 0 || p.exact_sum;
    wait_for_copies<1>();
    // behind this barrier tile i is there, its w wide, and nobody reads tile i - 1
    if (__syncthreads_or(alive && i < tiles) == 0) break;
    fetch(i + 2);
    fetch_tokens(i + 3);
    commit_copies();
    widen_tokens(i + 1);
    if (!alive) continue;
    const T* const x_tile = tiles_at + i % S::kStages * S::kTile + local;
    const float* const w_tile = wide_at + i % 2 * S::kTokens + n0;
#pragma unroll 1
    for (int s = 0; s < kRows; s += kSub) {
      float before[kSub];  // sum of delta between the step and the walk's start
      float value[kSub];
#pragma unroll
      for (int j = 0; j < kSub; ++j) {
        const T* const at = x_tile + (kGradient ? s + j : kRows - 1 - s - j) * kWidth;
        const float v = widen(at[0]);
        const float d = delta_of<T>(widen(at[kRows * kWidth]), bias, p.ready);
        if constexpr (kGradient) {
          const float z = widen(at[2 * kRows * kWidth]);
          sum += d;
          before[j] = sum;
          // without a branch, behind which the next position would wait for the exponential unit
          const float gate = z * sigmoid(z);
          value[j] = v * (gated ? gate : 1.0F);
        } else {
          before[j] = sum;
          sum += d;
          value[j] = v * d;
        }
      }
#pragma unroll
      for (int g = 0; g < kQuads; ++g) {
        if ((active >> g & 1U) == 0) continue;
#pragma unroll
        for (int j = 0; j < kSub; ++j) {
          float w[4];
          load_shared(w_tile + (kGradient ? s + j : kRows - 1 - s - j) * S::kColumns + g * 4, w);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int n = g * 4 + k;
            h[n] = fmaf(ex2(before[j] * A[n]), value[j] * w[k], h[n]);
          }
        }
      }
    }
  }
  wait_for_copies<0>();
  store_states(p.state.at(row, e) + n0, states, p.vectors.states, h);
  // of the threads of a channel, that which walked furthest knows its decay
  float* const sums = reinterpret_cast<float*>(keys);
  sums[item] = sum;
  __syncthreads();
  if (thread < valid) {
    float most = sums[thread * kSplit];
#pragma unroll
    for (int i = 1; i < kSplit; ++i) most = fmaxf(most, sums[thread * kSplit + i]);
    p.delta_sum[row * p.d_inner + first + thread] = most;
  }
}

}  // namespace gmamba::cuda::scan
