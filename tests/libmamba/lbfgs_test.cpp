// SPDX-License-Identifier: Apache-2.0
#include "libmamba/lbfgs.h"

#include <gtest/gtest.h>

namespace gmamba {
namespace {

TEST(Lbfgs, FindsTheMinimumOfAnIllConditionedBowl) {
  const SmoothFunction bowl = [](std::span<const double> x, std::span<double> gradient) {
    double value = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double scale = static_cast<double>(i * i * i + 1);
      const double at = x[i] - static_cast<double>(i);
      value += scale * at * at / 2;
      gradient[i] = scale * at;
    }
    return value;
  };
  std::vector<double> x(30, -3.0);
  const int iterations = minimise(bowl, x, {.max_iterations = 2000, .tolerance = 1e-13});
  EXPECT_LT(iterations, 2000);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], static_cast<double>(i), 1e-5);
}

TEST(Lbfgs, FollowsACurvedValley) {
  const SmoothFunction rosenbrock = [](std::span<const double> x, std::span<double> gradient) {
    const double across = x[1] - x[0] * x[0];
    gradient[0] = -400 * x[0] * across - 2 * (1 - x[0]);
    gradient[1] = 200 * across;
    return 100 * across * across + (1 - x[0]) * (1 - x[0]);
  };
  std::vector<double> x = {-1.2, 1.0};
  EXPECT_LT(minimise(rosenbrock, x, {.max_iterations = 500, .tolerance = 1e-9}), 500);
  EXPECT_NEAR(x[0], 1, 1e-6);
  EXPECT_NEAR(x[1], 1, 1e-6);
}

TEST(Lbfgs, StaysAtAMinimum) {
  const SmoothFunction flat = [](std::span<const double>, std::span<double> gradient) {
    gradient[0] = 0;
    return 1.0;
  };
  std::vector<double> x = {2.0};
  EXPECT_EQ(minimise(flat, x), 0);
  EXPECT_EQ(x[0], 2.0);
}

}  // namespace
}  // namespace gmamba
