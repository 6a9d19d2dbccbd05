// SPDX-License-Identifier: Apache-2.0
/// The selective scan against its floor: BM_VectorExp2 measures the vector exponential on data in
/// the L1 cache, in items per second. `updates` is state updates per second, each of which takes
/// one exponential; `ns_token` is nanoseconds per token; bytes are those of the arrays over
/// positions.
///   gmamba_bench --benchmark_filter='VectorExp2|Scan' --benchmark_repetitions=5
#include "kernels/selective_scan.h"
#include "kernels/simd_targets.h"
#include "tests/bench/bench_helpers.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/scan_bench.cpp"
#include "hwy/foreach_target.h"
// after foreach_target
#include "kernels/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

/// y[i] = 2^x[i]; count is a multiple of four vectors.
void exp2_array(const float* HWY_RESTRICT x, float* HWY_RESTRICT y, size_t count) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < count; i += 4 * lanes) {
    V in[4];
    V out[4];
    for (size_t k = 0; k < 4; ++k) in[k] = hn::Load(d, x + i + k * lanes);
    Exp2InRange(d, in, out);
    for (size_t k = 0; k < 4; ++k) hn::Store(out[k], d, y + i + k * lanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba::bench {
namespace {

HWY_EXPORT(exp2_array);

constexpr size_t kExpCount = 2048;

void BM_VectorExp2(benchmark::State& state) {
  HWY_ALIGN static float x[kExpCount];
  HWY_ALIGN static float y[kExpCount];
  for (size_t i = 0; i < kExpCount; ++i) x[i] = -static_cast<float>(i % 100) * 0.1F;
  for (auto _ : state) {
    HWY_DYNAMIC_DISPATCH(exp2_array)(x, y, kExpCount);
    benchmark::DoNotOptimize(y[0]);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(static_cast<int64_t>(kExpCount) * state.iterations());
}
BENCHMARK(BM_VectorExp2);

/// Random arguments of a scan, with a gate, bias and skip, as a layer has them.
struct ScanArrays {
  ScanArrays(int64_t batch, int64_t length, int64_t d_inner, int64_t d_state)
      : xz(filled({batch, length, 2 * d_inner})),
        delta(filled({batch, length, d_inner})),
        dbc(filled({batch, length, 2 * d_state + 16})),
        A({}, DType::kF32, {d_inner, d_state}),
        D(filled({d_inner})),
        y({}, DType::kF32, {batch, length, d_inner}),
        state_in({}, DType::kF32, {batch, d_inner, d_state}),
        state_out({}, DType::kF32, {batch, d_inner, d_state}),
        saved({}, DType::kF32, {batch, scan_saved_states(length), d_inner, d_state}) {
    for (float& x : delta.host<float>()) x -= 4;
    for (int64_t i = 0; i < A.size(); ++i) {
      A.host<float>()[static_cast<size_t>(i)] = -static_cast<float>(i % d_state + 1);
    }
    forward.u = xz.view().slice(2, 0, d_inner);
    forward.z = xz.view().slice(2, d_inner, 2 * d_inner);
    forward.delta = delta;
    forward.A = A;
    forward.B = dbc.view().slice(2, 16, 16 + d_state);
    forward.C = dbc.view().slice(2, 16 + d_state, 16 + 2 * d_state);
    forward.D = forward.delta_bias = D;
    forward.state_in = state_in;
    forward.y = y;
    forward.state_out = state_out;
  }

  Tensor xz, delta, dbc, A, D, y, state_in, state_out, saved;
  SelectiveScanForward forward;
};

void count(benchmark::State& state, int64_t tokens, int64_t d_inner, int64_t d_state,
           int64_t arrays) {
  const auto per_second = benchmark::Counter::kIsIterationInvariantRate;
  const auto rows = static_cast<double>(tokens);
  const auto updates = rows * static_cast<double>(d_inner * d_state);
  state.counters["updates"] = benchmark::Counter(updates, per_second);
  count_bytes(state, tokens * (arrays * d_inner + 2 * d_state) * int64_t{sizeof(float)});
  state.counters["ns_token"] = benchmark::Counter(
      rows * 1e-9, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// arguments: batch, length, d_inner, d_state, threads (0: all), saved states
void BM_ScanForward(benchmark::State& state) {
  const int64_t batch = state.range(0), length = state.range(1), d_inner = state.range(2),
                d_state = state.range(3);
  Context ctx({}, {.threads = static_cast<int>(state.range(4))});
  ScanArrays arrays(batch, length, d_inner, d_state);
  if (state.range(5) != 0) arrays.forward.saved_states = arrays.saved;
  for (auto _ : state) {
    selective_scan_forward(ctx, arrays.forward);
    benchmark::DoNotOptimize(arrays.y.view().data);
  }
  count(state, batch * length, d_inner, d_state, 4);
}
BENCHMARK(BM_ScanForward)
    ->ArgNames({"B", "L", "E", "N", "threads", "saved"})
    ->Args({1, 4096, 512, 16, 1, 0})
    ->Args({1, 4096, 512, 16, 1, 1})
    ->Args({1, 4096, 512, 16, 0, 0})
    ->Args({1, 4096, 512, 8, 1, 0})
    ->Args({1, 4096, 512, 32, 1, 0})
    ->Args({1, 4096, 64, 16, 0, 0})
    ->Args({1, 1, 512, 16, 1, 0})
    ->Args({64, 1, 512, 16, 1, 0})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

void BM_ScanBackward(benchmark::State& state) {
  const int64_t batch = state.range(0), length = state.range(1), d_inner = state.range(2),
                d_state = state.range(3);
  Context ctx({}, {.threads = static_cast<int>(state.range(4))});
  ScanArrays arrays(batch, length, d_inner, d_state);
  arrays.forward.saved_states = arrays.saved;
  selective_scan_forward(ctx, arrays.forward);
  const auto like = [&](int64_t width) { return ctx.make(DType::kF32, {batch, length, width}); };
  Tensor du = like(d_inner), ddelta = like(d_inner), dz = like(d_inner), again = like(d_inner),
         dB = like(d_state), dC = like(d_state);
  Tensor dA = ctx.make(DType::kF32, {d_inner, d_state}), dD = ctx.make(DType::kF32, {d_inner}),
         dbias = ctx.make(DType::kF32, {d_inner}),
         dstate = ctx.make(DType::kF32, {batch, d_inner, d_state});
  const SelectiveScanForward& forward = arrays.forward;
  SelectiveScanBackward args;
  args.dy = arrays.y;
  args.dstate_out = arrays.state_out;
  args.u = forward.u;
  args.delta = forward.delta;
  args.A = forward.A;
  args.B = forward.B;
  args.C = forward.C;
  args.D = forward.D;
  args.z = forward.z;
  args.delta_bias = forward.delta_bias;
  args.saved_states = arrays.saved;
  args.du = du;
  args.ddelta = ddelta;
  args.dB = dB;
  args.dC = dC;
  args.dz = dz;
  args.y = again;
  args.dstate_in = dstate;
  args.dA = dA;
  args.dD = dD;
  args.ddelta_bias = dbias;
  for (auto _ : state) {
    selective_scan_backward(ctx, args);
    benchmark::DoNotOptimize(du.view().data);
  }
  count(state, batch * length, d_inner, d_state, 8);
}
BENCHMARK(BM_ScanBackward)
    ->ArgNames({"B", "L", "E", "N", "threads"})
    ->Args({1, 4096, 512, 16, 1})
    ->Args({1, 4096, 512, 16, 0})
    ->Args({1, 4096, 512, 8, 1})
    ->Args({1, 4096, 64, 16, 0})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace gmamba::bench
#endif  // HWY_ONCE
