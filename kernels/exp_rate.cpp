// SPDX-License-Identifier: Apache-2.0
#include "kernels/exp_rate.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/exp_rate.cpp"
// clang-format off
#include "kernels/simd_targets.h"
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "kernels/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

/// Replaces each value by exp(-value), `rounds` times over: values stay in (0, 1).
void exp_rounds(float* HWY_RESTRICT values, size_t count, int rounds) {
  const hn::ScalableTag<float> d;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < count; i += hn::Lanes(d)) {
      hn::Store(Exp(d, hn::Neg(hn::Load(d, values + i))), d, values + i);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <chrono>
#include <vector>

#include "libmamba/core/parallel.h"

namespace gmamba {
namespace {
HWY_EXPORT(exp_rounds);
}  // namespace

double measure_exp_rate(Context& ctx) {
  if (!ctx.device().is_cpu()) return cuda::measure_exp_rate(ctx);
  constexpr int64_t kCount = 2048;  // 8 KiB per thread: the first-level cache
  constexpr int kRounds = 20000;
  Tensor values = ctx.make(DType::kF32, {ctx.threads(), kCount});
  for (float& x : values.host<float>()) x = 0.5F;
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    parallel_for(ctx, ctx.threads(), [&](int64_t thread) {
      HWY_DYNAMIC_DISPATCH(exp_rounds)
      (values.host<float>().data() + thread * kCount, static_cast<size_t>(kCount), kRounds);
    });
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(ctx.threads() * kCount) * kRounds / seconds);
  }
  return best;
}

}  // namespace gmamba
#endif  // HWY_ONCE
