// SPDX-License-Identifier: Apache-2.0
/// The operations that move memory: their floor is the rate of a copy over the same threads. Bytes
/// counted are those that must be read and written once.
///   gmamba_bench --benchmark_filter='StreamCopy|RmsNorm|Embedding|CrossEntropy|Adam|Norm|Pool'
#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/pool.h"
#include "kernels/rms_norm.h"
#include "libmamba/core/parallel.h"
#include "tests/bench/bench_helpers.h"

namespace gmamba::bench {
namespace {

constexpr int64_t kFloat = 4;
constexpr int64_t kTokens = 4096;
constexpr int64_t kWidth = 256;

/// The floor: copies as much as the range says, in pieces of 64 KiB.
void BM_StreamCopy(benchmark::State& state) {
  constexpr int64_t kPiece = 16384;
  Context& ctx = context();
  const int64_t count = state.range(0) / kFloat;
  const Tensor from = filled({count});
  Tensor to = filled({count});
  for (auto _ : state) {
    parallel_for(ctx, pieces(count, kPiece), [&](int64_t i) {
      const int64_t size = std::min(kPiece, count - i * kPiece);
      std::copy_n(from.host<float>().data() + i * kPiece, size,
                  to.host<float>().data() + i * kPiece);
    });
    benchmark::ClobberMemory();
  }
  count_bytes(state, 2 * count * kFloat);
}
BENCHMARK(BM_StreamCopy)
    ->ArgName("bytes")
    ->Arg(int64_t{4} << 20)    // an activation of 4096 tokens
    ->Arg(int64_t{256} << 20)  // beyond any cache
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

void BM_RmsNormForward(benchmark::State& state) {
  Context& ctx = context();
  Tensor h = filled({kTokens, kWidth});
  const Tensor branch = filled({kTokens, kWidth}, 1e-6);
  const Tensor weight = filled({kWidth});
  Tensor y = filled({kTokens, kWidth});
  Tensor rstd = filled({kTokens});
  for (auto _ : state) {
    rms_norm_forward(ctx, {h, branch, weight, 1e-5F, y, rstd});
  }
  count_bytes(state, 4 * kTokens * kWidth * kFloat);  // h twice, branch, y
}
BENCHMARK(BM_RmsNormForward)->UseRealTime()->Unit(benchmark::kMicrosecond);

void BM_RmsNormBackward(benchmark::State& state) {
  Context& ctx = context();
  const Tensor dy = filled({kTokens, kWidth}, 1e-6);
  const Tensor y = filled({kTokens, kWidth});
  const Tensor rstd = filled({kTokens});
  const Tensor weight = filled({kWidth});
  Tensor dh = filled({kTokens, kWidth});
  Tensor dweight = filled({kWidth});
  for (auto _ : state) {
    rms_norm_backward(ctx, {dy, y, rstd, weight, dh, dweight, GradMode::kOverwrite});
  }
  count_bytes(state, 4 * kTokens * kWidth * kFloat);  // dy, y, dh twice
}
BENCHMARK(BM_RmsNormBackward)->UseRealTime()->Unit(benchmark::kMicrosecond);

Tensor tokens_below(int64_t vocab) {
  Tensor tokens(Device{}, DType::kU8, {kTokens});
  Random random(2, RandomUse::kTest);
  for (uint8_t& token : tokens.host<uint8_t>()) {
    token = static_cast<uint8_t>(random.below(static_cast<uint64_t>(vocab)));
  }
  return tokens;
}

void BM_EmbeddingForward(benchmark::State& state) {
  Context& ctx = context();
  const Tensor tokens = tokens_below(16);
  const Tensor table = filled({16, kWidth});
  Tensor y = filled({kTokens, kWidth});
  for (auto _ : state) {
    embedding_forward(ctx, tokens, table, y);
  }
  count_bytes(state, kTokens * kWidth * kFloat);  // y; the table stays in cache
}
BENCHMARK(BM_EmbeddingForward)->UseRealTime()->Unit(benchmark::kMicrosecond);

void BM_EmbeddingBackward(benchmark::State& state) {
  Context& ctx = context();
  const Tensor tokens = tokens_below(16);
  const Tensor dy = filled({kTokens, kWidth});
  Tensor dtable = filled({16, kWidth});
  for (auto _ : state) {
    embedding_backward(ctx, tokens, dy, dtable, GradMode::kOverwrite);
  }
  count_bytes(state, kTokens * kWidth * kFloat);  // dy
}
BENCHMARK(BM_EmbeddingBackward)->UseRealTime()->Unit(benchmark::kMicrosecond);

/// Range: labels. Counts exponentials beside bytes, whichever is the tighter floor.
void BM_CrossEntropy(benchmark::State& state) {
  Context& ctx = context();
  const int64_t vocab = state.range(0);
  const Tensor logits = filled({kTokens, vocab}, 3.0);
  Tensor dlogits = filled({kTokens, vocab});
  Tensor targets(Device{}, DType::kI32, {kTokens});
  Tensor losses = filled({kTokens});
  Tensor totals(Device{}, DType::kF64, {4});
  for (auto _ : state) {
    cross_entropy(ctx, {logits, targets, {}, 1.0F, losses, dlogits, totals});
  }
  count_bytes(state, kTokens * (2 * vocab + 2) * kFloat);
  state.counters["exps"] = benchmark::Counter(static_cast<double>(kTokens * vocab),
                                              benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_CrossEntropy)
    ->ArgName("V")
    ->Arg(8)
    ->Arg(16)
    ->Arg(1000)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

constexpr int64_t kParameters = 3500000;  // d_model 256, 8 layers

void BM_AdamW(benchmark::State& state) {
  Context& ctx = context();
  Tensor parameters = filled({kParameters});
  const Tensor gradients = filled({kParameters});
  Tensor exp_avg(Device{}, DType::kF32, {kParameters});
  Tensor exp_avg_sq(Device{}, DType::kF32, {kParameters});
  const DecayRange decay{0, kParameters / 2, 0.1F};
  AdamW args;
  args.parameters = parameters;
  args.gradients = gradients;
  args.exp_avg = exp_avg;
  args.exp_avg_sq = exp_avg_sq;
  args.learning_rate = 1e-6F;
  args.decay = {&decay, 1};
  for (auto _ : state) {
    adamw_step(ctx, args);
  }
  count_bytes(state, 7 * kParameters * kFloat);  // parameter and moments twice, gradient
}
BENCHMARK(BM_AdamW)->UseRealTime()->Unit(benchmark::kMicrosecond);

void BM_GlobalNorm(benchmark::State& state) {
  Context& ctx = context();
  const Tensor values = filled({kParameters});
  Tensor norm(Device{}, DType::kF64, {1});
  for (auto _ : state) {
    global_norm(ctx, values, norm);
  }
  count_bytes(state, kParameters * kFloat);
}
BENCHMARK(BM_GlobalNorm)->UseRealTime()->Unit(benchmark::kMicrosecond);

void BM_PoolUpdate(benchmark::State& state, PoolMode mode) {
  Context& ctx = context();
  const Tensor hidden = filled({1, kTokens, kWidth});
  Tensor valid(Device{}, DType::kI64, {1});
  valid.host<int64_t>()[0] = kTokens;
  Tensor accumulator(Device{}, DType::kF64, {1, kWidth});
  Tensor position(Device{}, DType::kI64, {1, kWidth});
  for (auto _ : state) {
    pool_update(ctx, {mode, hidden, valid, 0, accumulator, position});
  }
  count_bytes(state, kTokens * kWidth * kFloat);
}
BENCHMARK_CAPTURE(BM_PoolUpdate, mean, PoolMode::kMean)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_PoolUpdate, max, PoolMode::kMax)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace gmamba::bench
