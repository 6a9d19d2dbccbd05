// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/simd_targets_fixture.h"
#include "tests/reference/rms_norm.h"

namespace gmamba {
namespace {

using test::dot;
using test::error_of;
using test::expect_gradient;
using test::expect_within_budget;
using test::garbage_tensor;
using test::random_tensor;
using test::same_bits;
using test::strided_copy;
using test::values;

struct Case {
  int64_t rows;
  int64_t width;
  int64_t gap;
  double scale;  // of the residual
};

// nothing, one, odd, just over a vector, a group of vectors, a tile of rows, a chunk of the sum
const Case kCases[] = {{0, 8, 0, 1},      {5, 0, 0, 1},     {1, 1, 0, 1},       {3, 2, 1, 1},
                       {2, 7, 3, 1},      {4, 9, 0, 1},     {7, 33, 5, 1},      {65, 65, 0, 1},
                       {130, 256, 16, 1}, {3, 1027, 0, 1},  {20000, 3, 0, 1},   {9, 64, 0, 1e-4},
                       {9, 64, 0, 1e4},   {1100, 16, 2, 1}, {66, 20000, 0, 0.1}};

std::string name(const Case& c) {
  return concat("rows ", c.rows, " width ", c.width, " gap ", c.gap, " scale ", c.scale);
}

template <class Real>
reference::RmsNormResult<Real> expected_forward(const Case& c, const ConstTensorView& residual,
                                                const ConstTensorView& branch,
                                                const ConstTensorView& weight) {
  return reference::rms_norm_forward(c.rows, c.width, values<Real>(residual), values<Real>(branch),
                                     values<Real>(weight), 1e-5F);
}

class RmsNormTargets : public test::SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(, RmsNormTargets, testing::ValuesIn(test::simd_targets()),
                         test::simd_target_name);

TEST_P(RmsNormTargets, ForwardMatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const bool with_branch : {false, true}) {
      const Tensor start = random_tensor({c.rows, c.width}, 1, c.scale);
      const Tensor branch_values = random_tensor({c.rows, c.width}, 2, c.scale);
      const Tensor weight = random_tensor({c.width}, 3);
      Tensor residual_owner, branch_owner, y_owner;
      const TensorView residual = strided_copy(residual_owner, start, c.gap);
      const TensorView branch = strided_copy(branch_owner, branch_values, c.gap);
      const TensorView y = strided_copy(y_owner, garbage_tensor({c.rows, c.width}), c.gap);
      Tensor rstd = garbage_tensor({c.rows});
      const ConstTensorView added = with_branch ? ConstTensorView(branch) : ConstTensorView{};
      const auto oracle = expected_forward<double>(c, start, added, weight);
      const auto naive = expected_forward<float>(c, start, added, weight);
      rms_norm_forward(ctx, {residual, added, weight, 1e-5F, y, rstd});
      expect_within_budget(values<double>(residual), oracle.residual, naive.residual, name(c));
      expect_within_budget(values<double>(y), oracle.y, naive.y, name(c) + " y");
      if (c.width > 0) {
        expect_within_budget(values<double>(rstd.view()), oracle.rstd, naive.rstd,
                             name(c) + " rstd");
      }
    }
  }
}

TEST_P(RmsNormTargets, BackwardMatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      Tensor dy_owner, y_owner, dh_owner;
      const TensorView dy = strided_copy(dy_owner, random_tensor({c.rows, c.width}, 1), c.gap);
      const Tensor h = random_tensor({c.rows, c.width}, 2, c.scale);
      const TensorView dh = strided_copy(dh_owner, random_tensor({c.rows, c.width}, 3), c.gap);
      const Tensor weight = random_tensor({c.width}, 4);
      Tensor dweight = random_tensor({c.width}, 5);
      const auto forward = expected_forward<double>(c, h, {}, weight);
      Tensor rstd(Device{}, DType::kF32, {c.rows});
      Tensor y_values(Device{}, DType::kF32, {c.rows, c.width});
      std::copy(forward.rstd.begin(), forward.rstd.end(), rstd.host<float>().begin());
      std::copy(forward.y.begin(), forward.y.end(), y_values.host<float>().begin());
      const TensorView y = strided_copy(y_owner, y_values, c.gap);
      const auto expected = [&]<class Real>(Real) {
        auto start = values<Real>(dweight.view());
        if (mode == GradMode::kOverwrite) std::fill(start.begin(), start.end(), Real{0});
        return reference::rms_norm_backward<Real>(
            c.rows, c.width, values<Real>(dy), values<Real>(h.view()), values<Real>(rstd.view()),
            values<Real>(weight.view()), {values<Real>(dh), start});
      };
      const auto oracle = expected(0.0);
      const auto naive = expected(0.0F);
      rms_norm_backward(ctx, {dy, y, rstd, weight, dh, dweight, mode});
      expect_within_budget(values<double>(dh), oracle.dresidual, naive.dresidual, name(c));
      expect_within_budget(values<double>(dweight.view()), oracle.dweight, naive.dweight,
                           name(c) + " dweight");
    }
  }
}

TEST(RmsNorm, GradientsOfTheOracleAreThoseOfItsForward) {
  for (const auto& [rows, width] : {std::pair{1, 1}, {3, 5}, {2, 8}}) {
    const auto h = values<double>(random_tensor({rows, width}, 1).view());
    const auto weight = values<double>(random_tensor({width}, 2).view());
    const auto dy = values<double>(random_tensor({rows, width}, 3).view());
    const auto y = [&, r = rows, w = width](const auto& at, const auto& scale) {
      return reference::rms_norm_forward<double>(r, w, at, {}, scale, 1e-5);
    };
    const auto gradients = reference::rms_norm_backward<double>(
        rows, width, dy, h, y(h, weight).rstd, weight,
        {std::vector<double>(h.size()), std::vector<double>(weight.size())});
    expect_gradient([&](const auto& at) { return dot(y(at, weight).y, dy); }, h,
                    gradients.dresidual, "h");
    expect_gradient([&](const auto& at) { return dot(y(h, at).y, dy); }, weight, gradients.dweight,
                    "weight");
  }
}

TEST(RmsNorm, WeightsOfNothingStillLearn) {
  Context ctx;
  const Shape shape = {5, 6};
  Tensor h = random_tensor(shape, 1);
  Tensor weight = random_tensor({6}, 2);
  const auto w = weight.host<float>();
  w[1] = 0.0F, w[2] = -0.0F, w[3] = 1e-30F, w[4] = -1e-19F;  // the last is no nothing
  const Tensor dy = random_tensor(shape, 3);
  Tensor y(Device{}, DType::kF32, shape), dh(Device{}, DType::kF32, shape);
  Tensor rstd(Device{}, DType::kF32, {5}), dweight(Device{}, DType::kF32, {6});
  rms_norm_forward(ctx, {h, {}, weight, 1e-5F, y, rstd});
  rms_norm_backward(ctx, {dy, y, rstd, weight, dh, dweight});
  const Case c{5, 6, 0, 1};
  const auto forward = expected_forward<double>(c, h, {}, weight);
  for (size_t i = 0; i < forward.y.size(); ++i) {
    ASSERT_NEAR(y.host<float>()[i], forward.y[i], 1e-6 * std::abs(forward.y[i]) + 1e-18);
  }
  const auto oracle = reference::rms_norm_backward<double>(
      5, 6, values<double>(dy.view()), values<double>(h.view()), forward.rstd,
      values<double>(weight.view()), {std::vector<double>(30), std::vector<double>(6)});
  for (size_t i = 0; i < 30; ++i) ASSERT_NEAR(dh.host<float>()[i], oracle.dresidual[i], 1e-5) << i;
  for (size_t i = 0; i < 6; ++i) {
    ASSERT_NEAR(dweight.host<float>()[i], oracle.dweight[i], 1e-5) << i;
    ASSERT_GT(std::abs(oracle.dweight[i]), 1e-3);
  }
}

TEST(RmsNorm, HasTheSameBitsForAnyNumberOfThreads) {
  Tensor first[4];
  for (const int threads : {1, 2, 3, 4}) {
    Context ctx(Device{}, {.threads = threads});
    const Shape shape = {1500, 100};
    Tensor h = random_tensor(shape, 1);
    const Tensor branch = random_tensor(shape, 2);
    const Tensor weight = random_tensor({100}, 3);
    const Tensor dy = random_tensor(shape, 4);
    Tensor y(Device{}, DType::kF32, shape);
    Tensor dh = random_tensor(shape, 5);
    Tensor rstd(Device{}, DType::kF32, {1500});
    Tensor dweight = random_tensor({100}, 6);
    rms_norm_forward(ctx, {h, branch, weight, 1e-5F, y, rstd});
    rms_norm_backward(ctx, {dy, y, rstd, weight, dh, dweight, GradMode::kAccumulate});
    Tensor* const results[4] = {&h, &y, &dh, &dweight};
    for (int i = 0; i < 4; ++i) {
      if (threads == 1) {
        first[i] = results[i]->clone();
      } else {
        EXPECT_TRUE(same_bits(first[i], *results[i])) << threads << " threads, result " << i;
      }
    }
  }
}

TEST(RmsNorm, NamesWhatDoesNotFit) {
  Context ctx;
  Tensor h = random_tensor({4, 6}, 1);
  const Tensor weight = random_tensor({5}, 2);
  Tensor y = random_tensor({4, 6}, 3);
  const auto [kind, message] = error_of([&] {
    rms_norm_forward(ctx, {h, {}, weight, 1e-5F, y, {}});
  });
  EXPECT_EQ(kind, ErrorKind::kShape);
  EXPECT_EQ(message, "rms_norm_forward: weight: expected shape (6), found (5)");
  EXPECT_EQ(error_of([&] {
              rms_norm_backward(ctx, {y, h, weight, weight, h, y});
            }).first,
            ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba
