// SPDX-License-Identifier: Apache-2.0
/// CPU body: one pass over parameter, gradient and both moments, cut into blocks of fixed size; the
/// borders of the decay ranges cut blocks further.
#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"
#include "kernels/simd_targets.h"
#include "libmamba/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/adamw.cpp"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "kernels/simd_rows-inl.h"

#ifndef GMAMBA_KERNELS_ADAMW_FACTORS
#define GMAMBA_KERNELS_ADAMW_FACTORS
namespace gmamba {

/// The step's numbers that don't depend on the element.
struct AdamWFactors {
  float clip;            // of the gradient
  float beta1, beta2;    // of the old moments
  float fresh1, fresh2;  // of the gradient and its square: 1 - beta
  float rate;            // learning rate / (1 - beta1^t)
  float unbias2;         // 1 / sqrt(1 - beta2^t)
  float epsilon;
};

}  // namespace gmamba
#endif

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

/// `shrink` is learning rate * weight decay.
void adamw_span(const AdamWFactors& f, float shrink, int64_t count, const float* HWY_RESTRICT g_in,
                float* HWY_RESTRICT p_out, float* HWY_RESTRICT m_out, float* HWY_RESTRICT v_out) {
  OverRow(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto g = hn::Mul(hn::LoadU(d, g_in + i), hn::Set(d, f.clip));
    const auto m =
        hn::MulAdd(hn::Set(d, f.fresh1), g, hn::Mul(hn::Set(d, f.beta1), hn::LoadU(d, m_out + i)));
    const auto v = hn::MulAdd(hn::Mul(hn::Set(d, f.fresh2), g), g,
                              hn::Mul(hn::Set(d, f.beta2), hn::LoadU(d, v_out + i)));
    const auto spread = hn::MulAdd(hn::Sqrt(v), hn::Set(d, f.unbias2), hn::Set(d, f.epsilon));
    const auto move = hn::Div(hn::Mul(hn::Set(d, f.rate), m), spread);
    const auto p = hn::LoadU(d, p_out + i);
    hn::StoreU(hn::Sub(hn::NegMulAdd(hn::Set(d, shrink), p, p), move), d, p_out + i);
    hn::StoreU(m, d, m_out + i);
    hn::StoreU(v, d, v_out + i);
  });
}

/// Sum of squares in fp64.
double squares_span(const float* HWY_RESTRICT values, int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const auto a = hn::PromoteTo(d, hn::LoadU(half, values + i));
    const auto b = hn::PromoteTo(d, hn::LoadU(half, values + i + lanes));
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < count; ++i) {
    sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {
namespace {

HWY_EXPORT(adamw_span);
HWY_EXPORT(squares_span);

constexpr int64_t kBlock = 16384;  // elements

/// Runs body(begin, end, weight_decay) for the pieces that the ranges cut [begin, end) into.
template <class Body>
void over_ranges(std::span<const DecayRange> ranges, int64_t begin, int64_t end, Body&& body) {
  auto range = std::upper_bound(ranges.begin(), ranges.end(), begin,
                                [](int64_t at, const DecayRange& r) { return at < r.end; });
  while (begin < end) {
    const bool inside = range != ranges.end() && range->begin <= begin;
    const int64_t border = range == ranges.end() ? end : inside ? range->end : range->begin;
    const int64_t stop = std::min(end, border);
    body(begin, stop, inside ? range->weight_decay : 0.0F);
    if (inside && stop == range->end) ++range;
    begin = stop;
  }
}

void check_ranges(std::span<const DecayRange> ranges, int64_t count) {
  int64_t last = 0;
  for (const DecayRange& range : ranges) {
    require(range.begin >= last && range.begin <= range.end && range.end <= count,
            ErrorKind::kInternal, "adamw_step: decay range [", range.begin, ", ", range.end,
            ") is reversed, out of order or beyond the ", count, " parameters");
    last = range.end;
  }
}

AdamWFactors factors(const AdamW& args, double clip) {
  const auto t = static_cast<double>(args.step);
  const auto beta1 = static_cast<double>(args.beta1);
  const auto beta2 = static_cast<double>(args.beta2);
  AdamWFactors f{};
  f.clip = static_cast<float>(clip);
  f.beta1 = args.beta1;
  f.beta2 = args.beta2;
  f.fresh1 = static_cast<float>(1 - beta1);
  f.fresh2 = static_cast<float>(1 - beta2);
  f.rate = static_cast<float>(static_cast<double>(args.learning_rate) / (1 - std::pow(beta1, t)));
  f.unbias2 = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  f.epsilon = args.epsilon;
  return f;
}

void adamw_cpu(const Context& ctx, const AdamW& args) {
  double clip = 1;
  if (!args.norm.empty()) {
    const double norm = *args.norm.as<const double, 1>().data;
    if (!std::isfinite(norm)) {
      return;
    }
    if (args.max_norm > 0 && norm > static_cast<double>(args.max_norm)) {
      clip = static_cast<double>(args.max_norm) / norm;
    }
  }
  const AdamWFactors f = factors(args, clip);
  const auto p = args.parameters.flat<float>();
  const auto g = args.gradients.flat<const float>();
  const auto m = args.exp_avg.flat<float>();
  const auto v = args.exp_avg_sq.flat<float>();
  const auto count = static_cast<int64_t>(p.size());
  parallel_for(ctx, pieces(count, kBlock), [&](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kBlock);
    over_ranges(args.decay, block * kBlock, end, [&](int64_t from, int64_t to, float decay) {
      HWY_DYNAMIC_DISPATCH(adamw_span)
      (f, args.learning_rate * decay, to - from, g.data() + from, p.data() + from, m.data() + from,
       v.data() + from);
    });
  });
}

void global_norm_cpu(Context& ctx, std::span<const float> values, double* norm) {
  const auto count = static_cast<int64_t>(values.size());
  const Arena::Scope scope(ctx.arena());
  const auto sums = ctx.arena().tensor(DType::kF64, {pieces(count, kBlock)}).flat<double>();
  parallel_for(ctx, static_cast<int64_t>(sums.size()), [&](int64_t block) {
    const int64_t begin = block * kBlock;
    sums[static_cast<size_t>(block)] =
        HWY_DYNAMIC_DISPATCH(squares_span)(values.data() + begin, std::min(kBlock, count - begin));
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  *norm = std::sqrt(sum);
}

}  // namespace

void adamw_step(Context& ctx, const AdamW& args) {
  const Door door(ctx, "adamw_step");
  door.first("parameters", args.parameters, DType::kF32, 1);
  const int64_t count = args.parameters.dim(0);
  door.expect("gradients", args.gradients, DType::kF32, {count});
  door.expect("exp_avg", args.exp_avg, DType::kF32, {count});
  door.expect("exp_avg_sq", args.exp_avg_sq, DType::kF32, {count});
  door.optional("norm", args.norm, DType::kF64, {1});
  require(args.step >= 1, ErrorKind::kInternal, "adamw_step: step ", args.step, ", the first is 1");
  check_ranges(args.decay, count);
  if (!ctx.device().is_cpu()) {
    return cuda::adamw_step(ctx, args);
  }
  adamw_cpu(ctx, args);
}

void global_norm(Context& ctx, ConstTensorView values, TensorView norm) {
  const Door door(ctx, "global_norm");
  door.flat("values", values, DType::kF32);
  door.expect("norm", norm, DType::kF64, {1});
  if (!ctx.device().is_cpu()) {
    return cuda::global_norm(ctx, values, norm);
  }
  global_norm_cpu(ctx, values.flat<const float>(), norm.as<double, 1>().data);
}

}  // namespace gmamba
#endif  // HWY_ONCE
