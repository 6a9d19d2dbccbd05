// SPDX-License-Identifier: Apache-2.0
/// Residual add and root-mean-square norm, forward and backward.
/// Layout  row-major (M, D); T in float or bf16, the residual stream and sums in float
/// Launch  a warp does a row, 8 neighbouring elements per lane, D <= 2048; other widths take a
/// block
///         per row, element by element. The backward pass keeps each lane's sums of dweight in
///         registers over all rows of its warp: one partial per block, added in order
/// Floor   forward 8 D (residual in and out) + 2 D sizeof(T) bytes per row, backward 8 D +
///         3 D sizeof(T): D = 256 in bf16 over 2^20 rows 1.07 and 1.25 ms at 3.0 TB/s
#include "kernels/rms_norm.h"

#include <algorithm>

#include "kernels/cuda_basic.h"
#include "kernels/cuda_reduce.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kVector = 8;                       // elements of a lane at a time
constexpr int kSpan = kVector * kWarp;           // elements of a warp at a time
constexpr int64_t kWidest = int64_t{8} * kSpan;  // of a row that one warp does

/// The typed arguments; B is the type of the branch, Y of y.
template <class B, class Y>
struct Forward {
  View<float, 2> residual;  // (M, D)
  View<const B, 2> branch;  // (M, D) or empty
  const float* weight;      // (D)
  float epsilon;
  View<Y, 2> y;  // (M, D)
  float* rstd;   // (M) or null
};

/// norm_scale of rms_norm.h.
__device__ inline float scale_of(float weight) {
  return fabsf(weight) < kLeastNormScale ? copysignf(kLeastNormScale, weight) : weight;
}

template <int Spans, class B, class Y>
__global__ void __launch_bounds__(kThreads) forward_warp_kernel(Forward<B, Y> a) {
  after_previous_kernel();
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= a.y.extent[0]) return;
  const int64_t width = a.y.extent[1];
  float h[Spans][kVector];
  float squares = 0;
#pragma unroll
  for (int s = 0; s < Spans; ++s) {
    const int64_t column = s * kSpan + lane * kVector;
    if (column >= width) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) h[s][i] = 0;
      continue;
    }
    load_floats<kVector>(a.residual.at(row, column), h[s]);
    if (!a.branch.empty()) {
      float added[kVector];
      load_floats<kVector>(a.branch.at(row, column), added);
#pragma unroll
      for (int i = 0; i < kVector; ++i) h[s][i] += added[i];
      store_floats<kVector>(a.residual.at(row, column), h[s]);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) squares += h[s][i] * h[s][i];
  }
  const float mean = warp_sum(squares) / static_cast<float>(width);
  const float rstd = 1.0F / sqrtf(mean + a.epsilon);
  if (a.rstd != nullptr && lane == 0) a.rstd[row] = rstd;
#pragma unroll
  for (int s = 0; s < Spans; ++s) {
    const int64_t column = s * kSpan + lane * kVector;
    if (column >= width) continue;
    float weight[kVector];
    load_floats<kVector>(a.weight + column, weight);
#pragma unroll
    for (int i = 0; i < kVector; ++i) h[s][i] = h[s][i] * rstd * scale_of(weight[i]);
    store_floats<kVector>(a.y.at(row, column), h[s]);
  }
}

/// Any width, any alignment: a block per row. The sum is read again where it was written.
template <class B, class Y>
__global__ void __launch_bounds__(kThreads) forward_block_kernel(Forward<B, Y> a) {
  after_previous_kernel();
  __shared__ float scratch[kWarps];
  const int64_t width = a.y.extent[1];
  for (int64_t row = blockIdx.x; row < a.y.extent[0]; row += gridDim.x) {
    const auto value = [&](int64_t i) {
      const float h = *a.residual.at(row, i);
      return a.branch.empty() ? h : h + as_float(*a.branch.at(row, i));
    };
    float squares = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) {
      const float h = value(i);
      squares += h * h;
    }
    const float mean = block_sum<kThreads>(squares, scratch) / static_cast<float>(width);
    const float rstd = 1.0F / sqrtf(mean + a.epsilon);
    if (a.rstd != nullptr && threadIdx.x == 0) a.rstd[row] = rstd;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) {
      const float h = value(i);
      if (!a.branch.empty()) *a.residual.at(row, i) = h;
      store_as(a.y.at(row, i), h * rstd * scale_of(a.weight[i]));
    }
  }
}

template <class B, class Y>
void forward(const Context& ctx, const RmsNormForward& args) {
  Forward<B, Y> a{};
  a.residual = args.residual.as<float, 2>();
  a.branch = args.branch.as<const B, 2>();
  a.weight = args.weight.flat<const float>().data();
  a.epsilon = args.epsilon;
  a.y = args.y.as<Y, 2>();
  a.rstd = args.rstd.flat<float>().data();
  const int64_t rows = a.y.extent[0];
  const int64_t width = a.y.extent[1];
  const bool vectors = width % kVector == 0 && aligned(a.residual, 16) && aligned(a.branch, 16) &&
                       aligned(a.y, 16) && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
  const cudaStream_t stream = stream_of(ctx);
  if (vectors && width <= kWidest) {
    const auto blocks = static_cast<unsigned>(ceil_div(rows, kWarps));
    if (width <= kSpan) {
      start_overlapping(stream, forward_warp_kernel<1, B, Y>, blocks, kThreads, 0, a);
    } else if (width <= 2 * kSpan) {
      start_overlapping(stream, forward_warp_kernel<2, B, Y>, blocks, kThreads, 0, a);
    } else if (width <= 4 * kSpan) {
      start_overlapping(stream, forward_warp_kernel<4, B, Y>, blocks, kThreads, 0, a);
    } else {
      start_overlapping(stream, forward_warp_kernel<8, B, Y>, blocks, kThreads, 0, a);
    }
  } else {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20));
    start_overlapping(stream, forward_block_kernel<B, Y>, blocks, kThreads, 0, a);
  }
  check_launch(ctx, "rms_norm_forward", to_string(args.y.shape()));
}

template <class T, class B>
struct Backward {
  View<const T, 2> dy, y;    // (M, D)
  const float* rstd;         // (M)
  const float* weight;       // (D)
  View<float, 2> dresidual;  // (M, D)
  View<B, 2> dbranch;        // (M, D) or empty
  bool overwrite;
};

/// Warps of a backward block and blocks per multiprocessor: as many warps as registers allow, in
/// few blocks, since each block leaves a partial sum.
template <int Spans>
struct BackwardShape {
  static constexpr int kWarps = Spans <= 2 ? 16 : 8;
  static constexpr int kResident = Spans == 1 ? 2 : 1;
};

/// Persistent warps over rows; `partials` (blocks, D) gets each block's sums of dweight.
template <int Spans, class T, class B>
__global__ void __launch_bounds__(BackwardShape<Spans>::kWarps* kWarp,
                                  BackwardShape<Spans>::kResident)
    backward_warp_kernel(Backward<T, B> a, float* partials) {
  after_previous_kernel();
  constexpr int kWarps = BackwardShape<Spans>::kWarps;
  extern __shared__ float sums[];  // (warps, D)
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t rows = a.dy.extent[0];
  const int64_t width = a.dy.extent[1];
  float weight[Spans][kVector];
  float inverse[Spans][kVector];
  float dweight[Spans][kVector];  // times weight, until the end
#pragma unroll
  for (int s = 0; s < Spans; ++s) {
    const int64_t column = s * kSpan + lane * kVector;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      dweight[s][i] = 0;
      weight[s][i] = column < width ? scale_of(a.weight[column + i]) : 1;
      inverse[s][i] = 1.0F / weight[s][i];
    }
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp; row < rows; row += step) {
    float y[Spans][kVector];
    float dy[Spans][kVector];
    float stream[Spans][kVector];
    float dot = 0;
#pragma unroll
    for (int s = 0; s < Spans; ++s) {
      const int64_t column = s * kSpan + lane * kVector;
#pragma unroll
      for (int i = 0; i < kVector; ++i) y[s][i] = dy[s][i] = stream[s][i] = 0;
      if (column < width) {
        load_floats<kVector>(a.dy.at(row, column), dy[s]);
        load_floats<kVector>(a.y.at(row, column), y[s]);
        if (!a.overwrite) load_floats<kVector>(a.dresidual.at(row, column), stream[s]);
      }
    }
    const float rstd = a.rstd[row];
#pragma unroll
    for (int s = 0; s < Spans; ++s) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) dot += dy[s][i] * y[s][i];
    }
    const float pull = rstd * warp_sum(dot) / static_cast<float>(width);
#pragma unroll
    for (int s = 0; s < Spans; ++s) {
      const int64_t column = s * kSpan + lane * kVector;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        dweight[s][i] += dy[s][i] * y[s][i];
        stream[s][i] += dy[s][i] * rstd * weight[s][i] - y[s][i] * inverse[s][i] * pull;
      }
      if (column < width) {
        store_floats<kVector>(a.dresidual.at(row, column), stream[s]);
        if (!a.dbranch.empty()) store_floats<kVector>(a.dbranch.at(row, column), stream[s]);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < Spans; ++s) {
    const int64_t column = s * kSpan + lane * kVector;
#pragma unroll
    for (int i = 0; i < kVector; ++i) dweight[s][i] *= inverse[s][i];
    if (column < width) store_floats<kVector>(sums + warp * width + column, dweight[s]);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < width; i += kWarps * kWarp) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w * width + i];
    partials[static_cast<int64_t>(blockIdx.x) * width + i] = sum;
  }
}

template <class T, class B>
__global__ void __launch_bounds__(kThreads) backward_block_kernel(Backward<T, B> a) {
  after_previous_kernel();
  __shared__ float scratch[kWarps];
  const int64_t width = a.dy.extent[1];
  for (int64_t row = blockIdx.x; row < a.dy.extent[0]; row += gridDim.x) {
    float dot = 0;
    for (int64_t i = threadIdx.x; i < width; i += kThreads) {
      dot += as_float(*a.dy.at(row, i)) * as_float(*a.y.at(row, i));
    }
    const float rstd = a.rstd[row];
    const float pull = rstd * block_sum<kThreads>(dot, scratch) / static_cast<float>(width);
    for (int64_t i = threadIdx.x; i < width; i += kThreads) {
      float* const to = a.dresidual.at(row, i);
      const float scale = scale_of(a.weight[i]);
      const float through = as_float(*a.dy.at(row, i)) * rstd * scale;
      const float normal = as_float(*a.y.at(row, i)) / scale;
      const float sum = (a.overwrite ? 0.0F : *to) + through - normal * pull;
      *to = sum;
      if (!a.dbranch.empty()) store_as(a.dbranch.at(row, i), sum);
    }
  }
}

template <class T, class B>
struct WeightTerm {
  Backward<T, B> a;
  __device__ float operator()(int64_t row, int64_t column) const {
    return as_float(*a.dy.at(row, column)) * as_float(*a.y.at(row, column)) /
           scale_of(a.weight[column]);
  }
};

template <int Spans, class T, class B>
void backward_warps(Context& ctx, const Backward<T, B>& a, const RmsNormBackward& args) {
  const int64_t rows = a.dy.extent[0];
  const int64_t width = a.dy.extent[1];
  using Shape = BackwardShape<Spans>;
  constexpr int kWarps = Shape::kWarps;
  const int64_t blocks =
      std::min<int64_t>(ceil_div(rows, kWarps), int64_t{Shape::kResident} * multiprocessors(ctx));
  const auto bytes = static_cast<int>(kWarps * width * 4);
  const Arena::Scope scope(ctx.arena());
  float* const partials = ctx.arena().f32({blocks, width}).as<float, 2>().data;
  const cudaStream_t stream = stream_of(ctx);
  auto* const kernel = backward_warp_kernel<Spans, T, B>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "rms_norm_backward: shared memory");
  start_overlapping(stream, kernel, static_cast<unsigned>(blocks), kWarps * kWarp, bytes, a,
                    partials);
  check_launch(ctx, "rms_norm_backward", to_string(args.dy.shape()));
  add_partials(ctx, "rms_norm_backward", static_cast<const float*>(partials), blocks, width, width,
               args.dweight.flat<float>().data(), width, args.mode);
}

template <class T, class B>
void backward(Context& ctx, const RmsNormBackward& args) {
  Backward<T, B> a{};
  a.dy = args.dy.as<const T, 2>();
  a.y = args.y.as<const T, 2>();
  a.rstd = args.rstd.flat<const float>().data();
  a.weight = args.weight.flat<const float>().data();
  a.dresidual = args.dresidual.as<float, 2>();
  a.dbranch = args.dbranch.as<B, 2>();
  a.overwrite = args.residual_mode == GradMode::kOverwrite;
  const int64_t rows = a.dy.extent[0];
  const int64_t width = a.dy.extent[1];
  const bool vectors = width % kVector == 0 && aligned(a.y, 16) && aligned(a.dy, 16) &&
                       aligned(a.dresidual, 16) && aligned(a.dbranch, 16);
  if (rows > 0 && vectors && width <= kWidest / 2) {
    if (width <= kSpan) return backward_warps<1>(ctx, a, args);
    if (width <= 2 * kSpan) return backward_warps<2>(ctx, a, args);
    return backward_warps<4>(ctx, a, args);
  }
  if (rows > 0) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20));
    start_overlapping(stream_of(ctx), backward_block_kernel<T, B>, blocks, kThreads, 0, a);
    check_launch(ctx, "rms_norm_backward", to_string(args.dy.shape()));
  }
  column_sums(ctx, "rms_norm_backward", WeightTerm<T, B>{a}, rows, width,
              args.dweight.flat<float>().data(), args.mode);
}

}  // namespace

void rms_norm_forward(Context& ctx, const RmsNormForward& args) {
  if (args.y.size() == 0) return;
  over_activation(args.branch.empty() ? args.y.dtype : args.branch.dtype, [&](auto branch) {
    over_activation(args.y.dtype,
                    [&](auto y) { forward<decltype(branch), decltype(y)>(ctx, args); });
  });
}

void rms_norm_backward(Context& ctx, const RmsNormBackward& args) {
  if (args.dweight.size() == 0) return;
  over_activation(args.dy.dtype, [&](auto dy) {
    over_activation(args.dbranch.empty() ? args.dy.dtype : args.dbranch.dtype,
                    [&](auto branch) { backward<decltype(dy), decltype(branch)>(ctx, args); });
  });
}

}  // namespace gmamba::cuda
