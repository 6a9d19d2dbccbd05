// SPDX-License-Identifier: Apache-2.0
/// Copies between float and bf16.
/// Layout  rows strided, the last axis contiguous; leading axes are folded into rows
/// Launch  a thread does 8 elements of a row where rows are aligned to 16 bytes, else 1
/// Floor   sizeof(From) + sizeof(To) bytes per element
#include "kernels/convert.h"

#include "kernels/cuda_basic.h"
#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 256;

template <int N, class From, class To>
__global__ void convert_kernel(View<const From, 4> from, View<To, 4> to) {
  const int64_t per_row = from.extent[3] / N;
  const int64_t count = from.extent[0] * from.extent[1] * from.extent[2] * per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t row = i / per_row;
    const int64_t column = i % per_row * N;
    const int64_t c = row % from.extent[2];
    const int64_t b = row / from.extent[2] % from.extent[1];
    const int64_t a = row / from.extent[2] / from.extent[1];
    float values[N];
    load_floats<N>(from.at(a, b, c, column), values);
    store_floats<N>(to.at(a, b, c, column), values);
  }
}

/// The view with leading axes of extent 1 up to rank 4.
template <class T, class Byte>
View<T, 4> rank4(const BasicTensorView<Byte>& view) {
  View<T, 4> out;
  out.data = reinterpret_cast<T*>(view.data);
  for (int i = 0; i < 4; ++i) {
    const int axis = i - (4 - view.rank);
    out.extent[i] = axis < 0 ? 1 : view.extent[static_cast<size_t>(axis)];
    out.stride[i] = axis < 0 ? 0 : view.stride[static_cast<size_t>(axis)];
  }
  return out;
}

template <class From, class To>
void launch(const Context& ctx, const ConstTensorView& from_any, const TensorView& to_any) {
  constexpr int kWide = 8;
  auto from = rank4<const From>(from_any);
  auto to = rank4<To>(to_any);
  if (from_any.contiguous() && to_any.contiguous()) {
    from.extent[3] = to.extent[3] = from.size();
    for (int i = 0; i < 3; ++i) from.extent[i] = to.extent[i] = 1;
  }
  const cudaStream_t stream = stream_of(ctx);
  const bool wide = from.extent[3] % kWide == 0 && aligned(from, 16) && aligned(to, 16);
  const int64_t items = from.size() / (wide ? kWide : 1);
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(ceil_div(items, kThreads), int64_t{16} * multiprocessors(ctx)));
  if (wide) {
    convert_kernel<kWide><<<blocks, kThreads, 0, stream>>>(from, to);
  } else {
    convert_kernel<1><<<blocks, kThreads, 0, stream>>>(from, to);
  }
  check_launch(ctx, "convert", to_string(from_any.shape()));
}

}  // namespace

void convert(Context& ctx, ConstTensorView from, TensorView to) {
  over_activation(from.dtype, [&](auto in) {
    over_activation(to.dtype,
                    [&](auto out) { launch<decltype(in), decltype(out)>(ctx, from, to); });
  });
}

}  // namespace gmamba::cuda
