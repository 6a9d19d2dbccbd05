// SPDX-License-Identifier: Apache-2.0
/// Depthwise causal convolution of K taps along the sequence, then SiLU, with the tail of the
/// segment before; and its backward pass.
/// Layout  (B, L, E), E fastest, rows strided; T in float or bf16, sums and tails in float
/// Launch  a thread does C neighbouring channels over a run of positions and slides a window of K
///         rows in registers, so that x is read once but for K-1 rows per run. 4 rows are loaded at
///         a time and kept packed, the forward pass loads the next 4 before it computes. C is 4
///         where rows are aligned, else 1: more channels take more registers than there are loads
///         to hide. Tails have blocks of their own after those of the runs.
/// Weights' gradients: one partial per run, added in order
/// Floor   2 (forward) and 3 (backward) sizeof(T) bytes per element: E = 512 in bf16 over 2^20
///         positions 0.72 and 1.07 ms at 3.0 TB/s
#include "kernels/conv1d.h"

#include <algorithm>

#include "kernels/conv1d_math.cuh"
#include "kernels/cuda_reduce.cuh"
#include "kernels/cuda_sequence.h"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 128;
/// Blocks per multiprocessor: as many as registers allow without spills, for loads in flight.
template <class T>
constexpr int kForwardBlocks = sizeof(T) == 2 ? 6 : 4;
template <class T>
constexpr int kBackwardBlocks = sizeof(T) == 2 ? 4 : 3;
constexpr int kAhead = 4;  // rows loaded before the first is used
constexpr int kMostTaps = 4;

/// C elements as they lie in memory: half the registers of their floats in bf16.
template <class T, int C>
struct alignas(sizeof(T) * C) Packed {
  T v[C];

  __device__ static Packed load(const T* from) { return *reinterpret_cast<const Packed*>(from); }
  __device__ void unpack(float (&to)[C]) const {
#pragma unroll
    for (int c = 0; c < C; ++c) to[c] = as_float(v[c]);
  }
};

/// What both passes read.
template <class T>
struct Input {
  View<const T, 3> x;            // (B, L, E)
  View<const float, 3> tail_in;  // (B, K-1, E) or empty
  const float* weight;           // (E, K)
  const float* bias;             // (E) or null
  int64_t run;                   // positions of a thread
  int64_t runs;                  // per sequence
  int64_t groups;                // of C channels
};

template <int K, int C>
struct Taps {
  float weight[K][C];
  float bias[C];

  template <class T>
  __device__ Taps(const Input<T>& in, int64_t e) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k][c] = in.weight[(e + c) * K + k];
      bias[c] = in.bias == nullptr ? 0.0F : in.bias[e + c];
    }
  }

  /// bias + sum_k weight[k] window[k]
  __device__ void convolve(const float (&window)[K][C], float (&pre)[C]) const {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      pre[c] = bias[c];
#pragma unroll
      for (int k = 0; k < K; ++k) pre[c] += weight[k][c] * window[k][c];
    }
  }
};

/// Row l of x, or of the tail before it (l >= 1 - K), as floats; rows past the end are zeros.
template <int K, int C, class T>
__device__ void load_row(const Input<T>& in, int64_t b, int64_t l, int64_t e, float (&row)[C]) {
  if (l >= 0 && l < in.x.extent[1]) {
    load_floats<C>(in.x.at(b, l, e), row);
    return;
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    row[c] = l >= 0 || in.tail_in.empty() ? 0.0F : *in.tail_in.at(b, l + K - 1, e + c);
  }
}

template <int K, int C>
__device__ void slide(float (&window)[K][C], const float (&row)[C]) {
#pragma unroll
  for (int k = 0; k + 1 < K; ++k) {
#pragma unroll
    for (int c = 0; c < C; ++c) window[k][c] = window[k + 1][c];
  }
#pragma unroll
  for (int c = 0; c < C; ++c) window[K - 1][c] = row[c];
}

/// Where a thread stands: sequence, first channel, first position and end of its run.
struct Place {
  int64_t b, e, begin, end;

  template <class T>
  __device__ bool find(const Input<T>& in, int channels) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t run = i / in.groups;
    b = run / in.runs;
    e = i % in.groups * channels;
    begin = run % in.runs * in.run;
    end = min(in.x.extent[1], begin + in.run);
    return b < in.x.extent[0];
  }
};

/// tail_out: the last K-1 rows that the segment and its own tail hold. One thread per value; few.
template <int K, class T>
__device__ void keep_tail(const Input<T>& in, const View<float, 3>& tail_out, int64_t i) {
  constexpr int kRows = K > 1 ? K - 1 : 1;  // with one tap there are none, and no block comes here
  const int64_t width = in.x.extent[2];
  if (i >= in.x.extent[0] * (K - 1) * width) return;
  const int64_t e = i % width;
  const int64_t k = i / width % kRows;
  const int64_t b = i / width / kRows;
  float row[1];
  load_row<K, 1>(in, b, in.x.extent[1] - K + 1 + k, e, row);
  *tail_out.at(b, k, e) = row[0];
}

template <int K, int C, class T>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T>)
    forward_kernel(Input<T> in, View<T, 3> y, View<float, 3> tail_out, int64_t main_blocks) {
  if (blockIdx.x >= main_blocks) {
    return keep_tail<K>(in, tail_out,
                        (static_cast<int64_t>(blockIdx.x) - main_blocks) * kThreads + threadIdx.x);
  }
  Place p;
  if (!p.find(in, C)) return;
  const Taps<K, C> taps(in, p.e);
  float window[K][C];
#pragma unroll
  for (int k = 1; k < K; ++k) load_row<K, C>(in, p.b, p.begin - K + k, p.e, window[k]);
  const int rows = static_cast<int>(p.end - p.begin);
  const int64_t x_step = in.x.stride[1];
  const int64_t y_step = y.stride[1];
  const T* from = in.x.at(p.b, p.begin, p.e);
  T* to = y.at(p.b, p.begin, p.e);
  Packed<T, C> next[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < rows) next[i] = Packed<T, C>::load(from + i * x_step);
  }
  for (int first = 0; first < rows; first += kAhead) {
    Packed<T, C> now[kAhead];
    from += kAhead * x_step;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      now[i] = next[i];
      if (first + kAhead + i < rows) next[i] = Packed<T, C>::load(from + i * x_step);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= rows) break;
      float row[C];
      float pre[C];
      now[i].unpack(row);
      slide<K, C>(window, row);
      taps.convolve(window, pre);
#pragma unroll
      for (int c = 0; c < C; ++c) pre[c] *= sigmoid_for<T>(pre[c]);
      store_floats<C>(to + i * y_step, pre);
    }
    to += kAhead * y_step;
  }
}

template <class T>
struct Gradients {
  View<const T, 3> dy;             // (B, L, E)
  View<const float, 3> dtail_out;  // (B, K-1, E) or empty
  View<T, 3> dx;                   // (B, L, E)
  View<float, 3> dtail_in;         // (B, K-1, E) or empty
  float* dweight;                  // (runs, E, K) partials
  float* dbias;                    // (runs, E) partials
};

/// dtail_in: the part of the first K-1 outputs' gradient that falls before the segment, and what of
/// dtail_out reaches back that far. One thread per value; few.
template <int K, class T>
__device__ void tail_gradient(const Input<T>& in, const Gradients<T>& g, int64_t i) {
  constexpr int kRows = K > 1 ? K - 1 : 1;
  const int64_t width = in.x.extent[2];
  if (i >= in.x.extent[0] * (K - 1) * width) return;
  const int64_t e = i % width;
  const int64_t at = i / width % kRows - (K - 1);  // position, from 1-K to -1
  const int64_t b = i / width / kRows;
  const int64_t length = in.x.extent[1];
  const int64_t kept = at - (length - (K - 1));  // its row in tail_out
  float sum = g.dtail_out.empty() || kept < 0 ? 0.0F : *g.dtail_out.at(b, kept, e);
  const Taps<K, 1> taps(in, e);
  for (int64_t l = 0; l < min(length, at + K); ++l) {
    float window[K][1];
    for (int k = 0; k < K; ++k) load_row<K, 1>(in, b, l - K + 1 + k, e, window[k]);
    float pre[1];
    taps.convolve(window, pre);
    const float dy[1] = {as_float(*g.dy.at(b, l, e))};
    float dpre[1];
    activation_gradient<T>(pre, dy, dpre);
    sum += in.weight[e * K + (at - l + K - 1)] * dpre[0];
  }
  *g.dtail_in.at(b, at + K - 1, e) = sum;
}

/// A step at position l gives the gradient of its pre-activation, with which dx[l-K+1] is complete;
/// a run therefore goes on for K-1 positions that belong to the next.
template <int K, int C, class T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    backward_kernel(Input<T> in, Gradients<T> g, int64_t main_blocks) {
  if (blockIdx.x >= main_blocks) {
    tail_gradient<K>(in, g,
                     (static_cast<int64_t>(blockIdx.x) - main_blocks) * kThreads + threadIdx.x);
    return;
  }
  Place p;
  if (!p.find(in, C)) return;
  const int64_t length = in.x.extent[1];
  const Taps<K, C> taps(in, p.e);
  float window[K][C];
  float dpre[K][C];
  float dweight[K][C];
  float dbias[C];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k > 0) load_row<K, C>(in, p.b, p.begin - K + k, p.e, window[k]);
#pragma unroll
    for (int c = 0; c < C; ++c) dpre[k][c] = dweight[k][c] = dbias[c] = 0;
  }
  const int own = static_cast<int>(p.end - p.begin);
  const int total = own + K - 1;
  const int there = static_cast<int>(min(length - p.begin, static_cast<int64_t>(total)));
  const int tail = static_cast<int>(min(length - (K - 1) - p.begin, static_cast<int64_t>(total)));
  const T* x = in.x.at(p.b, p.begin, p.e);
  const T* dy = g.dy.at(p.b, p.begin, p.e);
  for (int first = 0; first < total; first += kAhead) {
    Packed<T, C> rows[kAhead];
    Packed<T, C> drows[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      rows[i] = drows[i] = {};
      if (first + i >= there) continue;
      rows[i] = Packed<T, C>::load(x + i * in.x.stride[1]);
      drows[i] = Packed<T, C>::load(dy + i * g.dy.stride[1]);
    }
    x += kAhead * in.x.stride[1];
    dy += kAhead * g.dy.stride[1];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int l = first + i;
      if (l >= total) break;
      float row[C];
      float drow[C];
      float pre[C];
      float now[C];
      rows[i].unpack(row);
      drows[i].unpack(drow);
      slide<K, C>(window, row);
      taps.convolve(window, pre);
      activation_gradient<T>(pre, drow, now);  // zero past the end, where dy is
      slide<K, C>(dpre, now);
      if (l < own) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          dbias[c] += now[c];
#pragma unroll
          for (int k = 0; k < K; ++k) dweight[k][c] += now[c] * window[k][c];
        }
      }
      const int done = l - (K - 1);
      if (done < 0) continue;
      float dx[C];
#pragma unroll
      for (int c = 0; c < C; ++c) {
        dx[c] = taps.weight[K - 1][c] * dpre[0][c];
#pragma unroll
        for (int k = 1; k < K; ++k) dx[c] += taps.weight[K - 1 - k][c] * dpre[k][c];
      }
      if (done >= tail && !g.dtail_out.empty()) {
        const float* const kept = g.dtail_out.at(p.b, p.begin + done - (length - (K - 1)), p.e);
#pragma unroll
        for (int c = 0; c < C; ++c) dx[c] += kept[c];
      }
      store_floats<C>(g.dx.at(p.b, p.begin + done, p.e), dx);
    }
  }
  const int64_t run = p.b * in.runs + p.begin / in.run;
  const int64_t width = in.x.extent[2];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    g.dbias[run * width + p.e + c] = dbias[c];
#pragma unroll
    for (int k = 0; k < K; ++k) g.dweight[(run * width + p.e + c) * K + k] = dweight[k][c];
  }
}

/// Positions per thread: the longest of 16 to 1024 that still gives the device enough blocks.
int64_t run_length(int64_t positions, int64_t groups, int64_t shortest) {
  constexpr int64_t kEnoughBlocks = 1056;
  int64_t run = 1024;
  while (run > shortest && ceil_div(positions, run) * groups < kEnoughBlocks * kThreads) run /= 2;
  return run;
}

template <class T>
Input<T> input_of(const ConstTensorView& x, const ConstTensorView& weight,
                  const ConstTensorView& bias, const ConstTensorView& tail_in, int channels,
                  int64_t shortest) {
  Input<T> in{};
  in.x = x.as<const T, 3>();
  in.tail_in = tail_in.as<const float, 3>();
  in.weight = weight.flat<const float>().data();
  in.bias = bias.flat<const float>().data();
  in.groups = x.dim(2) / channels;
  in.run = run_length(x.dim(0) * x.dim(1), in.groups, shortest);
  in.runs = ceil_div(x.dim(1), in.run);
  return in;
}

/// Calls body with the number of taps as a constant.
template <class Body>
void over_taps(int64_t taps, Body&& body) {
  if (taps == 4) {
    body(std::integral_constant<int, 4>{});
  } else if (taps == 3) {
    body(std::integral_constant<int, 3>{});
  } else if (taps == 2) {
    body(std::integral_constant<int, 2>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}
static_assert(kMostTaps == 4);

template <int K, int C, class T>
void forward(const Context& ctx, const Conv1dForward& args) {
  constexpr int64_t kShortestRun = 16;
  const Input<T> in = input_of<T>(args.x, args.weight, args.bias, args.tail_in, C, kShortestRun);
  const int64_t blocks = ceil_div(in.x.extent[0] * in.runs * in.groups, kThreads);
  const int64_t tails = args.tail_out.empty() ? 0 : ceil_div(args.tail_out.size(), kThreads);
  if (blocks + tails == 0) return;
  forward_kernel<K, C><<<static_cast<unsigned>(blocks + tails), kThreads, 0, stream_of(ctx)>>>(
      in, args.y.as<T, 3>(), args.tail_out.as<float, 3>(), blocks);
  check_launch(ctx, "conv1d_forward", to_string(args.x.shape()), ", ", K, " taps");
}

template <int K, int C, class T>
void backward(Context& ctx, const Conv1dBackward& args) {
  constexpr int64_t kShortestRun = 32;
  const Input<T> in = input_of<T>(args.x, args.weight, args.bias, args.tail_in, C, kShortestRun);
  const int64_t width = in.x.extent[2];
  const int64_t runs = in.x.extent[0] * in.runs;
  const Arena::Scope scope(ctx.arena());
  Gradients<T> g{};
  g.dy = args.dy.as<const T, 3>();
  g.dtail_out = args.dtail_out.as<const float, 3>();
  g.dx = args.dx.as<T, 3>();
  g.dtail_in = args.dtail_in.as<float, 3>();
  g.dweight = ctx.arena().f32({runs, width, K}).template as<float, 3>().data;
  g.dbias = ctx.arena().f32({runs, width}).template as<float, 2>().data;
  const int64_t blocks = ceil_div(runs * in.groups, kThreads);
  const int64_t tails = args.dtail_in.empty() ? 0 : ceil_div(args.dtail_in.size(), kThreads);
  if (blocks + tails > 0) {
    backward_kernel<K, C>
        <<<static_cast<unsigned>(blocks + tails), kThreads, 0, stream_of(ctx)>>>(in, g, blocks);
    check_launch(ctx, "conv1d_backward", to_string(args.x.shape()), ", ", K, " taps");
  }
  const TensorView dweight = args.dweight;
  const PartialSums<float> sums[2] = {
      {g.dweight, runs, width * K, dweight.as<float, 2>().data, K,
       dweight.dim(0) > 1 ? dweight.stride[0] : K},
      {g.dbias, runs, width, args.dbias.flat<float>().data(), width, width}};
  add_partials(ctx, "conv1d_backward", sums, args.mode);
}

/// Empty tails of one tap have no rows to check.
template <class T, class... Views>
bool vectors_fit(int channels, int64_t width, const Views&... views) {
  return width % channels == 0 &&
         (aligned(views, static_cast<int64_t>(sizeof(T)) * channels) && ...);
}

}  // namespace

void conv1d_forward(Context& ctx, const Conv1dForward& args) {
  over_activation(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kChannels = 4;
    const bool vectors =
        vectors_fit<T>(kChannels, args.x.dim(2), args.x.as<const T, 3>(), args.y.as<T, 3>());
    over_taps(args.weight.dim(1), [&](auto taps) {
      constexpr int K = decltype(taps)::value;
      vectors ? forward<K, kChannels, T>(ctx, args) : forward<K, 1, T>(ctx, args);
    });
  });
}

void conv1d_backward(Context& ctx, const Conv1dBackward& args) {
  over_activation(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kChannels = 4;
    const bool vectors = vectors_fit<T>(kChannels, args.x.dim(2), args.x.as<const T, 3>(),
                                        args.dy.as<const T, 3>(), args.dx.as<T, 3>());
    over_taps(args.weight.dim(1), [&](auto taps) {
      constexpr int K = decltype(taps)::value;
      vectors ? backward<K, kChannels, T>(ctx, args) : backward<K, 1, T>(ctx, args);
    });
  });
}

}  // namespace gmamba::cuda
