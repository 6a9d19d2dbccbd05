// SPDX-License-Identifier: Apache-2.0
/// Projections of a model with d_model 256 and 8 layers, per call, beside the rate of one big
/// matrix product on the same threads.
///   gmamba_bench --benchmark_filter='Sgemm|Linear' --benchmark_repetitions=5
#include "kernels/linear.h"

#include <cblas.h>

#include "libmamba/core/parallel.h"
#include "tests/bench/bench_helpers.h"

namespace gmamba::bench {
namespace {

/// The floor: a product of 2048 x 2048 matrices, each thread one slab of rows.
void BM_SgemmPeak(benchmark::State& state) {
  constexpr int kSide = 2048;
  Context& ctx = context();
  const Tensor a = filled({kSide, kSide});
  const Tensor b = filled({kSide, kSide});
  Tensor c = filled({kSide, kSide});
  openblas_set_num_threads(1);
  const int slab = kSide / ctx.threads();
  for (auto _ : state) {
    parallel_for(ctx, ctx.threads(), [&](int64_t i) {
      const int rows = i + 1 == ctx.threads() ? kSide - static_cast<int>(i) * slab : slab;
      const int64_t first = i * slab * kSide;
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, kSide, kSide, 1.0F,
                  a.host<float>().data() + first, kSide, b.host<float>().data(), kSide, 0.0F,
                  c.host<float>().data() + first, kSide);
    });
    benchmark::ClobberMemory();
  }
  count_flops(state, 2.0 * kSide * kSide * kSide);
}
BENCHMARK(BM_SgemmPeak)->UseRealTime()->Unit(benchmark::kMillisecond);

enum class Part { kForward, kInput, kWeight };

/// Ranges: M, N, K.
void BM_Linear(benchmark::State& state, Part part) {
  Context& ctx = context();
  const int64_t rows = state.range(0);
  const int64_t outputs = state.range(1);
  const int64_t inputs = state.range(2);
  Tensor x = filled({rows, inputs});
  Tensor weight = filled({outputs, inputs});
  Tensor y = filled({rows, outputs});
  for (auto _ : state) {
    switch (part) {
      case Part::kForward:
        linear_forward(ctx, x, weight, {}, y);
        break;
      case Part::kInput:
        linear_backward_input(ctx, y, weight, x);
        break;
      case Part::kWeight:
        linear_backward_weight(ctx, y, x, weight, {}, GradMode::kOverwrite);
        break;
    }
    benchmark::ClobberMemory();
  }
  count_flops(state, 2.0 * static_cast<double>(rows * outputs * inputs));
}

void model_shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"M", "N", "K"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t rows : {2048, 4096}) {
    bench->Args({rows, 1024, 256});  // in_proj
    bench->Args({rows, 48, 512});    // x_proj
    bench->Args({rows, 512, 16});    // dt_proj
    bench->Args({rows, 256, 512});   // out_proj
    bench->Args({rows, 16, 256});    // lm_head
  }
}
BENCHMARK_CAPTURE(BM_Linear, forward, Part::kForward)->Apply(model_shapes);
BENCHMARK_CAPTURE(BM_Linear, input, Part::kInput)->Apply(model_shapes);
BENCHMARK_CAPTURE(BM_Linear, weight, Part::kWeight)->Apply(model_shapes);

}  // namespace
}  // namespace gmamba::bench
