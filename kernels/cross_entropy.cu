// SPDX-License-Identifier: Apache-2.0
/// Weighted cross-entropy and its gradient in one pass over the logits.
/// Layout  row-major (M, V); logits in float, dlogits in float or bf16
/// Launch  V <= 32: a thread holds a row in registers, loaded 16 bytes at a time where V is a
///         multiple of 4; else a warp walks a row. Totals are fp64 per thread, then per block, and
///         the blocks' are added in order by one thread
/// Floor   4 V + V sizeof(T) + 8 bytes per row: V = 16 over 2^20 rows in bf16 0.035 ms at 3.0 TB/s
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/cuda_basic.h"
#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <class T>
struct Rows {
  View<const float, 2> logits;  // (M, V)
  View<const int32_t, 1> targets;
  View<const float, 1> weights;  // or empty
  float scale;
  View<float, 1> losses;  // or empty
  View<T, 2> dlogits;     // or empty
  double* partials;       // (blocks, 4)
};

/// What a row adds to the totals.
struct Totals {
  double loss = 0, weight = 0, correct = 0, count = 0;

  __device__ void add(float row_weight, double row_loss, bool is_argmax) {
    loss += static_cast<double>(row_weight) * row_loss;
    weight += static_cast<double>(row_weight);
    correct += is_argmax ? static_cast<double>(row_weight) : 0.0;
    count += 1.0;
  }
  __device__ void write(double* to) const {
    __shared__ double scratch[kWarps];
    const double sums[] = {block_sum<kThreads>(loss, scratch), block_sum<kThreads>(weight, scratch),
                           block_sum<kThreads>(correct, scratch),
                           block_sum<kThreads>(count, scratch)};
    if (threadIdx.x < 4) to[threadIdx.x] = sums[threadIdx.x];
  }
};

__device__ inline float nan_value() { return __int_as_float(0x7fffffff); }

/// A row of up to Most logits in registers, padded with -inf.
template <int Most, bool kVectors>
__device__ inline void load_row(const float* from, int vocab, float (&row)[Most]) {
#pragma unroll
  for (int v = 0; v < Most; v += 4) {
    float quad[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if constexpr (kVectors) {
      if (v < vocab) load_floats<4>(from + v, quad);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (v + i < vocab) quad[i] = from[v + i];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) row[v + i] = quad[i];
  }
}

template <int Most, bool kVectors, class T>
__device__ inline void store_row(T* to, int vocab, const float (&row)[Most]) {
#pragma unroll
  for (int v = 0; v < Most; v += 4) {
    const float quad[4] = {row[v], row[v + 1], row[v + 2], row[v + 3]};
    if constexpr (kVectors) {
      if (v < vocab) store_floats<4>(to + v, quad);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (v + i < vocab) store_as(to + v + i, quad[i]);
      }
    }
  }
}

/// Turns logits into their gradient; returns the loss and whether the target is the largest.
template <int Most>
__device__ inline double softmax_row(float (&row)[Most], int vocab, int32_t target, float factor,
                                     bool* is_argmax) {
  float top = -INFINITY;
  float aim = nan_value();
  int first = 0;  // where the largest stands
  bool broken = target < 0 || target >= vocab;
#pragma unroll
  for (int v = 0; v < Most; ++v) {
    if (v == target) aim = row[v];
    broken = broken || row[v] != row[v] || row[v] == INFINITY;
    if (row[v] > top) {
      top = row[v];
      first = v;
    }
  }
  float sum = 0;
#pragma unroll
  for (int v = 0; v < Most; ++v) {
    row[v] = expf(row[v] - top);
    sum += row[v];
  }
  if (broken) sum = nan_value();
  const float share = factor / sum;
#pragma unroll
  for (int v = 0; v < Most; ++v) row[v] = row[v] * share - (v == target ? factor : 0.0F);
  *is_argmax = first == target;
  return log(static_cast<double>(sum)) - (static_cast<double>(aim) - static_cast<double>(top));
}

/// V <= Most: a thread per row.
template <int Most, bool kVectors, class T>
__global__ void __launch_bounds__(kThreads) thread_rows_kernel(Rows<T> a) {
  const int vocab = static_cast<int>(a.logits.extent[1]);
  Totals totals;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t m = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       m < a.logits.extent[0]; m += step) {
    const int32_t target = *a.targets.at(m);
    const float weight = a.weights.empty() ? 1.0F : *a.weights.at(m);
    float row[Most];
    double loss = 0;
    if (target == kIgnoreTarget || weight == 0.0F) {
#pragma unroll
      for (int v = 0; v < Most; ++v) row[v] = 0;
    } else {
      bool is_argmax = false;
      load_row<Most, kVectors>(a.logits.at(m), vocab, row);
      loss = softmax_row<Most>(row, vocab, target, weight * a.scale, &is_argmax);
      totals.add(weight, loss, is_argmax);
    }
    if (!a.losses.empty()) *a.losses.at(m) = static_cast<float>(loss);
    if (!a.dlogits.empty()) store_row<Most, kVectors>(a.dlogits.at(m), vocab, row);
  }
  if (a.partials != nullptr) totals.write(a.partials + static_cast<int64_t>(blockIdx.x) * 4);
}

/// Any V: a warp per row, which it reads three times (from the cache after the first).
template <class T>
__global__ void __launch_bounds__(kThreads) warp_rows_kernel(Rows<T> a) {
  const int64_t rows = a.logits.extent[0];
  const int64_t vocab = a.logits.extent[1];
  const int lane = threadIdx.x % kWarp;
  Totals totals;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t m = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; m < rows;
       m += step) {
    const int32_t target = *a.targets.at(m);
    const float weight = a.weights.empty() ? 1.0F : *a.weights.at(m);
    if (target == kIgnoreTarget || weight == 0.0F) {
      if (!a.losses.empty() && lane == 0) *a.losses.at(m) = 0;
      for (int64_t v = lane; v < vocab && !a.dlogits.empty(); v += kWarp) {
        store_as(a.dlogits.at(m, v), 0.0F);
      }
      continue;
    }
    const bool known = target >= 0 && target < vocab;
    float top = -INFINITY;
    int64_t first = vocab;
    bool broken = !known;
    for (int64_t v = lane; v < vocab; v += kWarp) {
      const float value = *a.logits.at(m, v);
      broken = broken || value != value || value == INFINITY;
      if (value > top) {
        top = value;
        first = v;
      }
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, top, offset);
      const int64_t where = __shfl_xor_sync(kAllLanes, first, offset);
      if (other > top || (other == top && where < first)) {
        top = other;
        first = where;
      }
    }
    broken = __any_sync(kAllLanes, broken);
    float sum = 0;
    for (int64_t v = lane; v < vocab; v += kWarp) sum += expf(*a.logits.at(m, v) - top);
    sum = broken ? nan_value() : warp_sum(sum);
    const float aim = known ? *a.logits.at(m, target) : nan_value();
    const double loss =
        log(static_cast<double>(sum)) - (static_cast<double>(aim) - static_cast<double>(top));
    const float factor = weight * a.scale;
    const float share = factor / sum;
    for (int64_t v = lane; v < vocab && !a.dlogits.empty(); v += kWarp) {
      const float value = expf(*a.logits.at(m, v) - top) * share;
      store_as(a.dlogits.at(m, v), v == target ? value - factor : value);
    }
    if (lane == 0) {
      if (!a.losses.empty()) *a.losses.at(m) = static_cast<float>(loss);
      totals.add(weight, loss, first == target);
    }
  }
  if (a.partials != nullptr) totals.write(a.partials + static_cast<int64_t>(blockIdx.x) * 4);
}

/// totals += the blocks' partials: lane i takes every 32nd block, the lanes are added by shuffles.
__global__ void add_totals_kernel(const double* partials, int blocks, double* totals) {
  const int which = threadIdx.x / kWarp;  // of the 4 totals
  double sum = 0;
  for (int i = threadIdx.x % kWarp; i < blocks; i += kWarp) sum += partials[i * 4 + which];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) totals[which] += sum;
}

template <class T>
void launch(Context& ctx, const CrossEntropy& args) {
  constexpr int64_t kMostBlocks = 1056;
  const int64_t rows = args.logits.dim(0);
  const int64_t vocab = args.logits.dim(1);
  const bool small = vocab <= 32;
  const int64_t blocks = std::min(kMostBlocks, ceil_div(rows, small ? kThreads : kWarps));
  const Arena::Scope scope(ctx.arena());
  Rows<T> a{};
  a.logits = args.logits.as<const float, 2>();
  a.targets = args.targets.as<const int32_t, 1>();
  a.weights = args.weights.as<const float, 1>();
  a.scale = args.scale;
  a.losses = args.losses.as<float, 1>();
  a.dlogits = args.dlogits.as<T, 2>();
  if (!args.totals.empty()) {
    a.partials = ctx.arena().tensor(DType::kF64, {blocks, 4}).template as<double, 2>().data;
  }
  const bool vectors = vocab % 4 == 0 && aligned(a.logits, 16) && aligned(a.dlogits, 4 * sizeof(T));
  const auto grid = static_cast<unsigned>(blocks);
  const cudaStream_t stream = stream_of(ctx);
  if (!small) {
    warp_rows_kernel<<<grid, kThreads, 0, stream>>>(a);
  } else if (vocab <= 16) {
    vectors ? thread_rows_kernel<16, true><<<grid, kThreads, 0, stream>>>(a)
            : thread_rows_kernel<16, false><<<grid, kThreads, 0, stream>>>(a);
  } else {
    vectors ? thread_rows_kernel<32, true><<<grid, kThreads, 0, stream>>>(a)
            : thread_rows_kernel<32, false><<<grid, kThreads, 0, stream>>>(a);
  }
  check_launch(ctx, "cross_entropy", to_string(args.logits.shape()));
  if (a.partials == nullptr) return;
  add_totals_kernel<<<1, 4 * kWarp, 0, stream>>>(a.partials, static_cast<int>(blocks),
                                                 args.totals.as<double, 1>().data);
  check_launch(ctx, "cross_entropy totals", blocks);
}

}  // namespace

void cross_entropy(Context& ctx, const CrossEntropy& args) {
  if (args.logits.dim(0) == 0) return;
  over_activation(args.dlogits.empty() ? DType::kF32 : args.dlogits.dtype,
                  [&](auto type) { launch<decltype(type)>(ctx, args); });
}

}  // namespace gmamba::cuda
