// SPDX-License-Identifier: Apache-2.0
/// Whole models against the floor of this machine, measured in the same run: the floor of a pass is
/// the time of its GEMM flops at the rate of one large sgemm plus the time of its exponentials at
/// the rate of the vector exp on data in the first-level cache. Counters: tokens_per_s,
/// floor_tokens_per_s and of_floor (their ratio).
#include <benchmark/benchmark.h>
#include <cblas.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "kernels/exp_rate.h"
#include "libmamba/core/parallel.h"
#include "libmamba/segmented.h"
#include "tests/bench/bench_helpers.h"

namespace gmamba::bench {
namespace {

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Best of several tries, per second, on all threads of the context.
template <class Body>
double best_rate(Context& ctx, double work_per_thread, Body&& body) {
  double best = 0;
  for (int attempt = 0; attempt < 7; ++attempt) {
    const double seconds =
        seconds_of([&] { parallel_for(ctx, ctx.threads(), [&](int64_t i) { body(i); }); });
    best = std::max(best, work_per_thread * ctx.threads() / seconds);
  }
  return best;
}

/// flops per second of 1024^3 products, one on each thread.
double sgemm_rate() {
  static const double rate = [] {
    constexpr int kSize = 1024;
    Context& ctx = context();
    openblas_set_num_threads(1);
    const Tensor a = filled({kSize, kSize});
    const Tensor b = filled({kSize, kSize});
    Tensor c(Device{}, DType::kF32, {ctx.threads(), kSize, kSize});
    return best_rate(ctx, 2.0 * kSize * kSize * kSize, [&](int64_t i) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1,
                  a.host<float>().data(), kSize, b.host<float>().data(), kSize, 0,
                  c.host<float>().data() + i * kSize * kSize, kSize);
    });
  }();
  return rate;
}

double exp_rate() {
  static const double rate = measure_exp_rate(context());
  return rate;
}

ModelConfig bench_config() {
  ModelConfig config;
  config.vocab_size = 16;
  config.d_model = 256;
  config.n_layers = 8;
  return config;
}

const Model& bench_model() {
  static const Model model = [] {
    Model made(bench_config(), Device{});
    initialize(made.parameters(), made.config(), 1);
    return made;
  }();
  return model;
}

/// GEMM flops of one token's forward pass: the four projections of each block and the head.
double forward_flops(const ModelConfig& c) {
  const auto d = static_cast<double>(c.d_model);
  const auto e = static_cast<double>(c.d_inner());
  const auto r = static_cast<double>(c.dt_rank);
  const auto n = static_cast<double>(c.d_state);
  const double block = 2 * (d * 2 * e + e * (r + 2 * n) + r * e + e * d);
  return static_cast<double>(c.n_layers) * block + 2 * d * static_cast<double>(c.vocab_size);
}

/// Exponentials of one token's forward pass: a decay per state, and softplus (an exponential and a
/// logarithm, counted as two), the SiLU of the convolution and that of the gate per channel.
double forward_exps(const ModelConfig& c) {
  return static_cast<double>(c.n_layers * c.d_inner() * (c.d_state + 4));
}

void report(benchmark::State& state, double tokens, double flops, double exps) {
  const double floor = 1 / (flops / sgemm_rate() + exps / exp_rate());
  state.counters["tokens_per_s"] =
      benchmark::Counter(tokens, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["floor_tokens_per_s"] = floor;
  state.counters["of_floor"] =
      benchmark::Counter(tokens / floor, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["sgemm_gflops"] = sgemm_rate() / 1e9;
  state.counters["exp_g_per_s"] = exp_rate() / 1e9;
}

/// Forward with logits over range(0) tokens in segments of range(1).
void BM_ModelForward(benchmark::State& state) {
  const Model& model = bench_model();
  const ModelConfig& config = model.config();
  Context& ctx = context();
  const int64_t length = state.range(0);
  const int64_t segment = std::min(length, state.range(1));
  const std::vector<uint8_t> tokens(static_cast<size_t>(segment), 8);
  Tensor hidden(Device{}, DType::kF32, {1, segment, config.d_model});
  Tensor logits(Device{}, DType::kF32, {segment, config.vocab_size});
  SequenceState carried(config, 1, Device{});
  for (auto _ : state) {
    for (int64_t done = 0; done < length; done += segment) {
      model.forward(ctx, host_view(tokens.data(), {1, segment}), carried, hidden);
      model.logits(ctx, hidden.view().reshape({segment, config.d_model}), logits);
    }
  }
  report(state, static_cast<double>(length), forward_flops(config), forward_exps(config));
}
BENCHMARK(BM_ModelForward)
    ->ArgNames({"tokens", "segment"})
    ->Args({1024, 2048})
    ->Args({4096, 2048})
    ->Args({16384, 2048})
    ->Args({65536, 2048})
    ->Args({262144, 2048})
    ->Args({1048576, 2048})
    ->Args({65536, 512})
    ->Args({65536, 1024})
    ->Args({65536, 4096})
    ->Args({65536, 16384})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

/// Loss and gradient (no optimiser step) over range(0) tokens in segments of range(1). Floor: three
/// forward passes' flops and two passes' exponentials in one segment; another forward pass in
/// several.
void BM_ModelGradient(benchmark::State& state) {
  const Model& model = bench_model();
  Context& ctx = context();
  const int64_t length = state.range(0);
  const int64_t segment = state.range(1);
  const std::vector<uint8_t> tokens(static_cast<size_t>(length), 8);
  const std::vector<int32_t> targets(static_cast<size_t>(length), 9);
  ParameterBuffer gradients(model.parameters().shared_layout(), Device{});
  for (auto _ : state) {
    LanguageModelLoss loss(ctx, model, host_view(targets.data(), {1, length}), {}, 1.0F, gradients);
    segmented_gradient(ctx, model, host_view(tokens.data(), {1, length}), segment, loss, gradients);
  }
  const double extra = length > segment ? 1 : 0;
  report(state, static_cast<double>(length), (3 + extra) * forward_flops(model.config()),
         (2 + extra) * forward_exps(model.config()));
}
BENCHMARK(BM_ModelGradient)
    ->ArgNames({"tokens", "segment"})
    ->Args({2048, 2048})
    ->Args({4096, 4096})
    ->Args({65536, 2048})
    ->Args({1048576, 4096})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace gmamba::bench
