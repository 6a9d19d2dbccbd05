// SPDX-License-Identifier: Apache-2.0
#include "kernels/exp_rate.h"

#include <algorithm>
#include <chrono>

#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 16;  // independent, so that only the rate of the unit counts
constexpr int kRounds = 4096;

/// One ex2 instruction for each chain and round; nothing else touches the exponential unit.
__global__ void __launch_bounds__(kThreads) exp_chains(float* out) {
  float x[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) x[i] = -0.001F * static_cast<float>(threadIdx.x + i);
#pragma unroll 1
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
      asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x[i]));
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum += x[i];
  out[static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x] = sum;
}

}  // namespace

double measure_exp_rate(Context& ctx) {
  const Arena::Scope scope(ctx.arena());
  const int blocks = multiprocessors(ctx) * 8;
  const TensorView out = ctx.arena().f32({blocks, kThreads});
  const double count = static_cast<double>(blocks) * kThreads * kChains * kRounds;
  double best = 0;
  for (int attempt = 0; attempt < 6; ++attempt) {  // the first warms up
    ctx.synchronize();
    const auto start = std::chrono::steady_clock::now();
    exp_chains<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(ctx)>>>(
        reinterpret_cast<float*>(out.data));
    check_launch(ctx, "exp_chains", "blocks ", blocks);
    ctx.synchronize();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, count / seconds);
  }
  return best;
}

}  // namespace gmamba::cuda
