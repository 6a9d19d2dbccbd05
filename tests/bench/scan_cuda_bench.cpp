// SPDX-License-Identifier: Apache-2.0
/// The selective scan on a GPU: forward, forward with saved states, and backward, with gate, D and
/// delta bias. Arguments: batch, length, channels, states, bytes of an activation (2: bf16, 4:
/// f32). The deltas are those of a fresh model: per channel log-uniform from 1e-3 to 1e-1, and
/// noise; A = -(1..N). docs/performance/scan_cuda.md holds floors and results.
///   gmamba_bench --benchmark_filter=cuda_scan
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/selective_scan.h"
#include "libmamba/core/random.h"

namespace gmamba {
namespace {

/// (1, L, width) of normal numbers from a table, uploaded piece by piece.
Tensor noise(Context& ctx, DType dtype, const Shape& shape, float scale, uint64_t seed) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  Random random(seed, RandomUse::kTest);
  Tensor host({}, dtype, {kPiece});
  for (int64_t i = 0; i < kPiece; ++i) {
    const float value = scale * static_cast<float>(random.normal());
    if (dtype == DType::kF32) {
      host.host<float>()[static_cast<size_t>(i)] = value;
    } else {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      host.host<bf16>()[static_cast<size_t>(i)].bits = static_cast<uint16_t>(bits >> 16);
    }
  }
  Tensor out = ctx.make(dtype, shape);
  TensorView all = out.view().reshape({out.size()});
  for (int64_t i = 0; i < out.size(); i += kPiece) {
    const int64_t count = std::min(kPiece, out.size() - i);
    ctx.upload(host.view().slice(0, 0, count), all.slice(0, i, i + count));
  }
  return out;
}

struct Problem {
  Problem(Context& ctx, int64_t B, int64_t L, int64_t E, int64_t N, DType type)
      : u(noise(ctx, type, {B, L, E}, 1, 1)),
        delta(noise(ctx, type, {B, L, E}, 0.5F, 2)),
        z(noise(ctx, type, {B, L, E}, 1, 3)),
        dy(noise(ctx, type, {B, L, E}, 1, 4)),
        b(noise(ctx, type, {B, L, N}, 1, 5)),
        c(noise(ctx, type, {B, L, N}, 1, 6)),
        a(ctx.make(DType::kF32, {E, N})),
        d(ctx.make(DType::kF32, {E})),
        bias(ctx.make(DType::kF32, {E})),
        saved(ctx.make(DType::kF32, {B, scan_saved_states(L, ctx.device()), E, N})),
        y(ctx.make(type, {B, L, E})),
        du(ctx.make(type, {B, L, E})),
        ddelta(ctx.make(type, {B, L, E})),
        dz(ctx.make(type, {B, L, E})),
        db(ctx.make(type, {B, L, N})),
        dc(ctx.make(type, {B, L, N})),
        da(ctx.make(DType::kF32, {E, N})),
        dd(ctx.make(DType::kF32, {E})),
        dbias(ctx.make(DType::kF32, {E})) {
    Tensor rates({}, DType::kF32, {E, N});
    Tensor shifts({}, DType::kF32, {E});
    Random random(7, RandomUse::kTest);
    for (int64_t e = 0; e < E; ++e) {
      const double mean = std::exp(random.uniform(std::log(1e-3), std::log(1e-1)));
      shifts.host<float>()[static_cast<size_t>(e)] =
          static_cast<float>(mean + std::log(-std::expm1(-mean)));
      for (int64_t n = 0; n < N; ++n) {
        rates.host<float>()[static_cast<size_t>(e * N + n)] = -static_cast<float>(n + 1);
      }
    }
    ctx.upload(rates, a);
    ctx.upload(shifts, bias);
  }

  SelectiveScanForward forward(bool train) {
    SelectiveScanForward args{u, delta, a, b, c, d, z, bias, {}, y, {}, {}};
    if (train) args.saved_states = saved;
    return args;
  }
  SelectiveScanBackward backward() {
    SelectiveScanBackward args;
    args.dy = dy;
    args.u = u;
    args.delta = delta;
    args.A = a;
    args.B = b;
    args.C = c;
    args.D = d;
    args.z = z;
    args.delta_bias = bias;
    args.saved_states = saved;
    args.du = du;
    args.ddelta = ddelta;
    args.dB = db;
    args.dC = dc;
    args.dz = dz;
    args.dA = da;
    args.dD = dd;
    args.ddelta_bias = dbias;
    return args;
  }

  Tensor u, delta, z, dy, b, c, a, d, bias, saved, y, du, ddelta, dz, db, dc, da, dd, dbias;
};

template <class Body>
void on_gpu(benchmark::State& state, Body&& body) {
  Backend& backend = backend_for(DeviceKind::kCuda);
  if (backend.device_count() == 0) {
    state.SkipWithError(backend.why_none().c_str());
    return;
  }
  Context ctx(Device{DeviceKind::kCuda, 0});
  const int64_t L = state.range(1);
  Problem problem(ctx, state.range(0), L, state.range(2), state.range(3),
                  state.range(4) == 2 ? DType::kBF16 : DType::kF32);
  selective_scan_forward(ctx, problem.forward(true));
  // calls in a row, as a model makes them, so that a short one isn't timed with its start
  using Clock = std::chrono::steady_clock;
  const auto seconds_of = [&](int64_t calls) {
    ctx.synchronize();
    const auto begin = Clock::now();
    for (int64_t i = 0; i < calls; ++i) body(ctx, problem);
    ctx.synchronize();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  seconds_of(1);
  const auto calls = std::max<int64_t>(1, static_cast<int64_t>(5e-3 / seconds_of(1)));
  for (auto _ : state) {
    state.SetIterationTime(seconds_of(calls) / static_cast<double>(calls));
  }
  state.SetItemsProcessed(state.iterations() * state.range(0) * L);
}

void cuda_scan_forward(benchmark::State& state) {
  on_gpu(state, [](Context& ctx, Problem& p) { selective_scan_forward(ctx, p.forward(false)); });
}
void cuda_scan_forward_train(benchmark::State& state) {
  on_gpu(state, [](Context& ctx, Problem& p) { selective_scan_forward(ctx, p.forward(true)); });
}
void cuda_scan_backward(benchmark::State& state) {
  on_gpu(state, [](Context& ctx, Problem& p) { selective_scan_backward(ctx, p.backward()); });
}

void shapes(benchmark::internal::Benchmark* bench) {
  constexpr int64_t kMi = int64_t{1} << 20;
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{1, kMi, 512, 16, 2},
                                         {16, 65536, 512, 16, 2},
                                         {1024, 1024, 512, 16, 2},
                                         {1, kMi, 1024, 16, 2},
                                         {32, 1024, 512, 16, 2},
                                         {1, 4096, 512, 16, 2},
                                         {1, 65536, 512, 16, 2},
                                         {1, kMi / 8, 512, 16, 2},
                                         {1, 4 * kMi, 512, 16, 2},
                                         {1, kMi, 512, 8, 2},
                                         {1024, 1024, 512, 8, 2},
                                         {1, kMi, 512, 32, 2},
                                         {1, kMi / 2, 512, 64, 2},
                                         {1, kMi, 512, 16, 4}}) {
    bench->Args(shape);
  }
  bench->ArgNames({"batch", "length", "channels", "states", "bytes"})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(11);
}

BENCHMARK(cuda_scan_forward)->Apply(shapes);
BENCHMARK(cuda_scan_forward_train)->Apply(shapes);
BENCHMARK(cuda_scan_backward)->Apply(shapes);

}  // namespace
}  // namespace gmamba
