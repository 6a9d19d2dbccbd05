// SPDX-License-Identifier: Apache-2.0
/// Loops over a row of any length for Highway code: whole vectors first, then single elements, so
/// that nothing is read or written past the end. Compiled once per instruction set, as
/// kernels/simd_math-inl.h.
#include "kernels/simd_targets.h"

// The guard toggles, because the file is read once per instruction set.
#if defined(GMAMBA_KERNELS_SIMD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GMAMBA_KERNELS_SIMD_ROWS_INL_H_
#undef GMAMBA_KERNELS_SIMD_ROWS_INL_H_
#else
#define GMAMBA_KERNELS_SIMD_ROWS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using OneLane = hn::CappedTag<float, 1>;

/// Runs step(tag, i) for the vectors and then the single elements of [0, count).
template <class Step>
HWY_INLINE void OverRow(int64_t count, Step&& step) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) step(d, i);
  for (; i < count; ++i) step(OneLane(), i);
}

/// Sum of the fp32 lanes of term(tag, i) over [0, count): four running vectors, added in a fixed
/// order.
template <class Term>
HWY_INLINE float SumRow(int64_t count, Term&& term) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  auto sum2 = hn::Zero(d);
  auto sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 = hn::Add(sum0, term(d, i));
    sum1 = hn::Add(sum1, term(d, i + lanes));
    sum2 = hn::Add(sum2, term(d, i + 2 * lanes));
    sum3 = hn::Add(sum3, term(d, i + 3 * lanes));
  }
  for (; i + lanes <= count; i += lanes) sum0 = hn::Add(sum0, term(d, i));
  const auto both = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
  float sum = hn::GetLane(hn::SumOfLanes(d, both));
  for (; i < count; ++i) sum += hn::GetLane(term(OneLane(), i));
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#endif  // GMAMBA_KERNELS_SIMD_ROWS_INL_H_
