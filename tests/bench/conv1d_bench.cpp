// SPDX-License-Identifier: Apache-2.0
/// The causal convolution against its floors: a copy (BM_StreamCopy, bytes) and, in cache, the
/// exponential of SiLU (BM_VectorExp2, one item per value).
///   gmamba_bench --benchmark_filter='VectorExp2|StreamCopy|Conv' --benchmark_repetitions=5
#include "kernels/conv1d.h"
#include "tests/bench/bench_helpers.h"

namespace gmamba::bench {
namespace {

constexpr int64_t kTaps = 4;

struct ConvArrays {
  ConvArrays(int64_t length, int64_t d_inner)
      : xz(filled({1, length, 2 * d_inner})),
        weight(filled({d_inner, kTaps})),
        bias(filled({d_inner})),
        tail(filled({1, kTaps - 1, d_inner})),
        y(filled({1, length, d_inner})),
        kept(filled({1, kTaps - 1, d_inner})) {}

  ConstTensorView x() const { return xz.view().slice(2, 0, weight.shape()[0]); }

  Tensor xz, weight, bias, tail, y, kept;
};

void count(benchmark::State& state, int64_t arrays) {
  const int64_t values = state.range(0) * state.range(1);
  state.SetItemsProcessed(state.iterations() * values);
  count_bytes(state, values * arrays * int64_t{sizeof(float)});
}

// arguments: length, d_inner, threads (0: all)
void BM_ConvForward(benchmark::State& state) {
  Context ctx({}, {.threads = static_cast<int>(state.range(2))});
  ConvArrays arrays(state.range(0), state.range(1));
  const Conv1dForward args{arrays.x(),  arrays.weight, arrays.bias,
                           arrays.tail, arrays.y,      arrays.kept};
  for (auto _ : state) {
    conv1d_forward(ctx, args);
    benchmark::ClobberMemory();
  }
  count(state, 2);
}
BENCHMARK(BM_ConvForward)
    ->ArgNames({"L", "E", "threads"})
    ->Args({4096, 512, 1})
    ->Args({4096, 512, 0})
    ->Args({1, 512, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

void BM_ConvBackward(benchmark::State& state) {
  Context ctx({}, {.threads = static_cast<int>(state.range(2))});
  ConvArrays arrays(state.range(0), state.range(1));
  Tensor dx = filled(arrays.y.shape());
  Tensor dtail = filled(arrays.tail.shape());
  Tensor dweight = filled(arrays.weight.shape());
  Tensor dbias = filled(arrays.bias.shape());
  Conv1dBackward args;
  args.dy = arrays.y;
  args.dtail_out = arrays.kept;
  args.x = arrays.x();
  args.weight = arrays.weight;
  args.bias = arrays.bias;
  args.tail_in = arrays.tail;
  args.dx = dx;
  args.dtail_in = dtail;
  args.dweight = dweight;
  args.dbias = dbias;
  args.mode = GradMode::kOverwrite;
  for (auto _ : state) {
    conv1d_backward(ctx, args);
    benchmark::ClobberMemory();
  }
  count(state, 3);
}
BENCHMARK(BM_ConvBackward)
    ->ArgNames({"L", "E", "threads"})
    ->Args({4096, 512, 1})
    ->Args({4096, 512, 0})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace gmamba::bench
