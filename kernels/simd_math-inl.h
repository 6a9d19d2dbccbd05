// SPDX-License-Identifier: Apache-2.0
/// Vector functions of fp32 lanes for Highway code: exp2, exp, log1p, softplus, sigmoid, SiLU and
/// their derivatives. Compiled once per instruction set; include it from a file that is read again
/// by hwy/foreach_target.h, after kernels/simd_targets.h.
/// Accuracy  measured by tests/kernels/simd_math_test.cpp: exp within 2 ulp, exp2 within 2.4,
///           the rest within 4; below the smallest normal number results are 0 (exp, exp2), above
///           the largest they are infinite, NaN stays NaN
/// Source    range reduction by the nearest integer; polynomials are weighted minimax fits whose
///           coefficients were rounded one after the other, the rest fitted again
#include "kernels/simd_targets.h"

// The guard toggles, because the file is read once per instruction set.
#if defined(GMAMBA_KERNELS_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GMAMBA_KERNELS_SIMD_MATH_INL_H_
#undef GMAMBA_KERNELS_SIMD_MATH_INL_H_
#else
#define GMAMBA_KERNELS_SIMD_MATH_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Nearest integer in one instruction. NaN gives an integer whose low nine bits are 0, so that
// ScaleByPowerOf2 hands it on; values outside int32 give anything. (Highway's NearestInt spends
// three more instructions to saturate.)
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
template <size_t N>
HWY_INLINE hn::Vec128<int32_t, N> RoundToInt(hn::Vec128<float, N> x) {
  return hn::Vec128<int32_t, N>{_mm_cvtps_epi32(x.raw)};
}
#if HWY_TARGET != HWY_SSE4
HWY_INLINE hn::Vec256<int32_t> RoundToInt(hn::Vec256<float> x) {
  return hn::Vec256<int32_t>{_mm256_cvtps_epi32(x.raw)};
}
#endif
#if HWY_TARGET == HWY_AVX3
HWY_INLINE hn::Vec512<int32_t> RoundToInt(hn::Vec512<float> x) {
  return hn::Vec512<int32_t>{_mm512_cvtps_epi32(x.raw)};
}
#endif
#else
template <class V>
HWY_INLINE auto RoundToInt(V x) {
  return hn::NearestInt(hn::IfThenElseZero(hn::Eq(x, x), x));
}
#endif

/// p * 2^n for integral n, where both p (about 1) and the result are normal numbers or the result
/// is exactly infinite.
template <class D, class V, class VI>
HWY_INLINE V ScaleByPowerOf2(D d, V p, VI n) {
  const hn::RebindToSigned<D> di;
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(n)));
}

/// 2^x[i] for -126 <= x[i] <= 128, and NaN for NaN; a caller that knows the range saves the guards
/// of Exp2. The steps of the M results are written side by side, so that independent instructions
/// stand next to each other. The polynomial of the fraction f, |f| <= 0.5, is within 1.1e-7, exact
/// at 0 and its slope exact to 3e-9, so that products of many factors close to 1 keep their
/// accuracy.
template <class D, class V, size_t M>
HWY_INLINE void Exp2InRange(D d, const V (&x)[M], V (&y)[M]) {
  decltype(RoundToInt(x[0])) n[M];
  V f[M];
  for (size_t i = 0; i < M; ++i) n[i] = RoundToInt(x[i]);
  for (size_t i = 0; i < M; ++i) f[i] = hn::Sub(x[i], hn::ConvertTo(d, n[i]));
  const V c5 = hn::Set(d, 0.001330051571F);
  for (size_t i = 0; i < M; ++i) y[i] = hn::MulAdd(c5, f[i], hn::Set(d, 0.009669659659F));
  for (size_t i = 0; i < M; ++i) y[i] = hn::MulAdd(y[i], f[i], hn::Set(d, 0.05550558493F));
  for (size_t i = 0; i < M; ++i) y[i] = hn::MulAdd(y[i], f[i], hn::Set(d, 0.2402228266F));
  for (size_t i = 0; i < M; ++i) y[i] = hn::MulAdd(y[i], f[i], hn::Set(d, 0.6931471825F));
  for (size_t i = 0; i < M; ++i) y[i] = hn::MulAdd(y[i], f[i], hn::Set(d, 1.0F));
  for (size_t i = 0; i < M; ++i) y[i] = ScaleByPowerOf2(d, y[i], n[i]);
}
template <class D, class V>
HWY_INLINE V Exp2InRange(D d, V x) {
  const V in[1] = {x};
  V out[1];
  Exp2InRange(d, in, out);
  return out[0];
}

/// `in_range` where low <= x < high, 0 below, infinity above; a NaN in `in_range` stays.
template <class D, class V>
HWY_INLINE V GuardExponential(D d, V x, float low, float high, V in_range) {
  const V infinity = hn::Set(d, std::numeric_limits<float>::infinity());
  const V below_high = hn::IfThenElse(hn::Ge(x, hn::Set(d, high)), infinity, in_range);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, low)), below_high);
}

/// 2^x.
template <class D, class V>
HWY_INLINE V Exp2(D d, V x) {
  return GuardExponential(d, x, -126.0F, 128.0F, Exp2InRange(d, x));
}

/// e^x for -87.33 <= x <= 88.72, and NaN for NaN.
template <class D, class V>
HWY_INLINE V ExpInRange(D d, V x) {
  const auto n = RoundToInt(hn::Mul(x, hn::Set(d, 1.44269504F)));
  const V whole = hn::ConvertTo(d, n);
  V f = hn::NegMulAdd(whole, hn::Set(d, 0.693145751953125F), x);  // ln 2: exact product, then rest
  f = hn::NegMulAdd(whole, hn::Set(d, 1.42860677e-6F), f);
  V p = hn::MulAdd(hn::Set(d, 0.001382146846F), f, hn::Set(d, 0.008368662558F));
  p = hn::MulAdd(p, f, hn::Set(d, 0.04166825488F));
  p = hn::MulAdd(p, f, hn::Set(d, 0.1666652113F));
  p = hn::MulAdd(p, f, hn::Set(d, 0.4999999404F));
  p = hn::MulAdd(hn::Mul(p, f), f, f);
  p = hn::Add(p, hn::Set(d, 1.0F));
  return ScaleByPowerOf2(d, p, n);
}

/// e^x.
template <class D, class V>
HWY_INLINE V Exp(D d, V x) {
  return GuardExponential(d, x, -87.3365402F, 88.722839F, ExpInRange(d, x));
}

/// e^-|x|.
template <class D, class V>
HWY_INLINE V ExpOfMinusAbs(D d, V x) {
  const V below = hn::Neg(hn::Abs(x));
  return hn::IfThenZeroElse(hn::Lt(below, hn::Set(d, -87.3365402F)), ExpInRange(d, below));
}

/// log(1 + t) for 0 <= t <= 1; NaN stays NaN.
template <class D, class V>
HWY_INLINE V Log1pUnit(D d, V t) {
  V p = hn::MulAdd(hn::Set(d, -0.003290468594F), t, hn::Set(d, 0.02008624189F));
  p = hn::MulAdd(p, t, hn::Set(d, -0.05745723099F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.1066112816F));
  p = hn::MulAdd(p, t, hn::Set(d, -0.1534488052F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.1969210207F));
  p = hn::MulAdd(p, t, hn::Set(d, -0.2495801896F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.3333046436F));
  p = hn::MulAdd(p, t, hn::Set(d, -0.4999993145F));
  return hn::MulAdd(hn::Mul(p, t), t, t);
}

/// log(1 + e^v): v itself for v > 20, e^v for very negative v.
template <class D, class V>
HWY_INLINE V Softplus(D d, V v) {
  const V tail = Log1pUnit(d, ExpOfMinusAbs(d, v));
  return hn::Add(hn::ZeroIfNegative(v), tail);
}

/// Softplus and its derivative, Sigmoid, from one exponential.
template <class D, class V>
HWY_INLINE V SoftplusAndSigmoid(D d, V v, V& sigmoid) {
  const V one = hn::Set(d, 1.0F);
  const V e = ExpOfMinusAbs(d, v);
  sigmoid = hn::Div(hn::IfThenElse(hn::Lt(v, hn::Zero(d)), e, one), hn::Add(one, e));
  return hn::Add(hn::ZeroIfNegative(v), Log1pUnit(d, e));
}

/// 1 / (1 + e^-v); the derivative of Softplus.
template <class D, class V>
HWY_INLINE V Sigmoid(D d, V v) {
  const V one = hn::Set(d, 1.0F);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(v))));
}

/// v sigmoid(v).
template <class D, class V>
HWY_INLINE V Silu(D d, V v) {
  return hn::Div(v, hn::Add(hn::Set(d, 1.0F), Exp(d, hn::Neg(v))));
}

/// Derivative of Silu at v, given s = Sigmoid(v): s (1 + v (1 - s)).
template <class D, class V>
HWY_INLINE V SiluDerivative(D d, V v, V s) {
  const V one = hn::Set(d, 1.0F);
  return hn::Mul(s, hn::MulAdd(v, hn::Sub(one, s), one));
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#endif  // GMAMBA_KERNELS_SIMD_MATH_INL_H_
