// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernels/simd_math_test.cpp"
#include "hwy/foreach_target.h"
// after foreach_target
#include "kernels/simd_math-inl.h"

#ifndef GMAMBA_TESTS_SIMD_MATH_FUNCTION
#define GMAMBA_TESTS_SIMD_MATH_FUNCTION
namespace gmamba {
enum class MathFunction {
  kExp2,
  kExp2InRange,
  kExp,
  kLog1p,
  kSoftplus,
  kSigmoid,
  kSigmoidToo,
  kSilu,
  kDSilu
};
}
#endif

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

template <class D, class V>
V evaluate(D d, MathFunction function, V x) {
  switch (function) {
    case MathFunction::kExp2:
      return Exp2(d, x);
    case MathFunction::kExp2InRange:
      return Exp2InRange(d, x);
    case MathFunction::kExp:
      return Exp(d, x);
    case MathFunction::kLog1p:
      return Log1pUnit(d, x);
    case MathFunction::kSoftplus:
      return Softplus(d, x);
    case MathFunction::kSigmoid:
      return Sigmoid(d, x);
    case MathFunction::kSigmoidToo: {
      V sigmoid;
      SoftplusAndSigmoid(d, x, sigmoid);
      return sigmoid;
    }
    case MathFunction::kSilu:
      return Silu(d, x);
    case MathFunction::kDSilu:
      return SiluDerivative(d, x, Sigmoid(d, x));
  }
  return x;
}

// values.size() is a multiple of 16, the longest vector
void evaluate_all(MathFunction function, const std::vector<float>& x, std::vector<float>& y) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < x.size(); i += hn::Lanes(d)) {
    hn::StoreU(evaluate(d, function, hn::LoadU(d, x.data() + i)), d, y.data() + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {
namespace {

HWY_EXPORT(evaluate_all);

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class SimdMath : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { choose(GetParam()); }
  void TearDown() override { choose(0); }

  static void choose(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().DeInit();
  }

  static std::vector<float> apply(MathFunction function, std::vector<float> x) {
    const size_t count = x.size();
    x.resize((count + 15) / 16 * 16, 0.5F);
    std::vector<float> y(x.size());
    HWY_DYNAMIC_DISPATCH(evaluate_all)(function, x, y);
    y.resize(count);
    return y;
  }

  /// Largest error in units in the last place over [low, high], at every `step`-th float.
  static double worst_ulp(MathFunction function, float low, float high, double (*exact)(double)) {
    constexpr int kSamples = 400000;
    std::vector<float> x(kSamples);
    for (int i = 0; i < kSamples; ++i) {
      const double share = i / (kSamples - 1.0);
      x[static_cast<size_t>(i)] = static_cast<float>(low + (high - low) * share);
    }
    for (int i = 0; i < 2000; ++i) {  // and small magnitudes
      const double small = std::ldexp(1.0 + (i % 7) / 7.0, -i / 20);
      if (small <= high) x.push_back(static_cast<float>(small));
      if (-small >= low) x.push_back(static_cast<float>(-small));
    }
    const std::vector<float> y = apply(function, x);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = exact(static_cast<double>(x[i]));
      if (std::abs(want) < static_cast<double>(std::numeric_limits<float>::min())) {
        EXPECT_LE(std::abs(static_cast<double>(y[i])), 1.2e-38) << x[i];
        continue;
      }
      const double ulp = std::ldexp(1.0, std::ilogb(want) - 23);
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - want) / ulp);
    }
    return worst;
  }
};

double exp2_exact(double x) { return std::exp2(x); }
double exp_exact(double x) { return std::exp(x); }
double log1p_exact(double x) { return std::log1p(x); }
double softplus_exact(double x) { return std::log1p(std::exp(-std::abs(x))) + std::max(x, 0.0); }
double sigmoid_exact(double x) { return 1 / (1 + std::exp(-x)); }
double silu_exact(double x) { return x / (1 + std::exp(-x)); }
double dsilu_exact(double x) {
  const double s = sigmoid_exact(x);
  return s * (1 + x * (1 - s));
}

TEST_P(SimdMath, ExponentialsWithinTheirBounds) {
  EXPECT_LE(worst_ulp(MathFunction::kExp2, -126, 127.9F, exp2_exact), 2.4);
  EXPECT_LE(worst_ulp(MathFunction::kExp2, -2, 2, exp2_exact), 2.4);
  EXPECT_LE(worst_ulp(MathFunction::kExp2InRange, -126, 127.9F, exp2_exact), 2.4);
  EXPECT_LE(worst_ulp(MathFunction::kExp, -87.33F, 88.72F, exp_exact), 2.0);
  EXPECT_LE(worst_ulp(MathFunction::kExp, -2, 2, exp_exact), 2.0);
}

TEST_P(SimdMath, TheRestWithinFourUlp) {
  EXPECT_LE(worst_ulp(MathFunction::kLog1p, 0, 1, log1p_exact), 4.0);
  EXPECT_LE(worst_ulp(MathFunction::kSoftplus, -87, 100, softplus_exact), 4.0);
  EXPECT_LE(worst_ulp(MathFunction::kSoftplus, -20, 20, softplus_exact), 4.0);
  EXPECT_LE(worst_ulp(MathFunction::kSigmoid, -87, 100, sigmoid_exact), 4.0);
  EXPECT_LE(worst_ulp(MathFunction::kSigmoidToo, -87, 100, sigmoid_exact), 4.0);
  EXPECT_LE(worst_ulp(MathFunction::kSilu, -87, 100, silu_exact), 4.0);
}

TEST_P(SimdMath, DerivativeOfSiluIsExactToRounding) {
  // it crosses zero near -1.278 and takes 1 - s from a rounded s, so the error is absolute
  std::vector<float> x;
  for (int i = -10000; i <= 10000; ++i) x.push_back(static_cast<float>(i) * 0.01F);
  const std::vector<float> y = apply(MathFunction::kDSilu, x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = static_cast<double>(y[i]) - dsilu_exact(static_cast<double>(x[i]));
    worst = std::max(worst, std::abs(error));
  }
  EXPECT_LE(worst, 1.5e-6);
}

TEST_P(SimdMath, LimitsAreKept) {
  const std::vector<float> x = {-kInfinity, -1e30F, -1000, 1000, 1e30F, kInfinity, kNan, 0};
  const std::vector<float> exp2 = apply(MathFunction::kExp2, x);
  const std::vector<float> exp = apply(MathFunction::kExp, x);
  const std::array<float, 6> expected = {0, 0, 0, kInfinity, kInfinity, kInfinity};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(exp2[i], expected[i]) << x[i];
    EXPECT_EQ(exp[i], expected[i]) << x[i];
  }
  EXPECT_TRUE(std::isnan(exp2[6]) && std::isnan(exp[6]));
  EXPECT_EQ(exp2[7], 1.0F);
  EXPECT_EQ(exp[7], 1.0F);
  EXPECT_EQ(apply(MathFunction::kExp2, {-126, -126.01F, 127, 128}),
            (std::vector<float>{std::ldexp(1.0F, -126), 0, std::ldexp(1.0F, 127), kInfinity}));

  const std::vector<float> softplus = apply(MathFunction::kSoftplus, x);
  EXPECT_EQ(std::vector<float>(softplus.begin(), softplus.begin() + 6),
            (std::vector<float>{0, 0, 0, 1000, 1e30F, kInfinity}));
  EXPECT_TRUE(std::isnan(softplus[6]));
  const std::vector<float> sigmoid = apply(MathFunction::kSigmoid, x);
  EXPECT_EQ(std::vector<float>(sigmoid.begin(), sigmoid.begin() + 6),
            (std::vector<float>{0, 0, 0, 1, 1, 1}));
  EXPECT_TRUE(std::isnan(sigmoid[6]));
  const std::vector<float> silu = apply(MathFunction::kSilu, {-1e30F, -1000, 1000, 1e30F, kNan});
  EXPECT_EQ(silu[0], 0.0F);
  EXPECT_EQ(silu[1], 0.0F);
  EXPECT_EQ(silu[2], 1000.0F);
  EXPECT_EQ(silu[3], 1e30F);
  EXPECT_TRUE(std::isnan(silu[4]));
}

TEST_P(SimdMath, SoftplusAboveTwentyIsItsArgument) {
  std::vector<float> x;
  for (int i = 1; i < 1000; ++i) x.push_back(20.0F + static_cast<float>(i) * 0.37F);
  EXPECT_EQ(apply(MathFunction::kSoftplus, x), x);
}

INSTANTIATE_TEST_SUITE_P(Targets, SimdMath, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& test) { return std::string(hwy::TargetName(test.param)); });

}  // namespace
}  // namespace gmamba
#endif  // HWY_ONCE
