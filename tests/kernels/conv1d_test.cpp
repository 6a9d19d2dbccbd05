// SPDX-License-Identifier: Apache-2.0
#include "kernels/conv1d.h"

#include <gtest/gtest.h>

#include "tests/kernels/conv1d_cases.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/relative_error.h"
#include "tests/kernels/simd_targets_fixture.h"

namespace gmamba::test {
namespace {

void expect_conv_matches_oracle(Context& ctx, const ConvCase& conv) {
  const ConvData in = conv_inputs(conv);
  const auto wide = as_oracle(in);
  const auto oracle = reference::conv_forward(wide);
  const auto naive = reference::conv_forward(in);
  const auto doracle = reference::conv_backward(wide);
  const auto dnaive = reference::conv_backward(in);
  const ConvRun found = ConvRunner(ctx, in, conv.strided ? 11 : 0).run();
  expect_close(found.y, oracle.y, naive.y, "y");
  expect_close(found.tail_out, oracle.tail_out, naive.tail_out, "tail_out", 0);
  expect_close(found.d.x, doracle.x, dnaive.x, "dx");
  expect_close(found.d.weight, doracle.weight, dnaive.weight, "dweight");
  expect_close(found.d.bias, doracle.bias, dnaive.bias, "dbias");
  expect_close(found.d.tail_in, doracle.tail_in, dnaive.tail_in, "dtail_in");
}

class ConvCaseTest : public testing::TestWithParam<ConvCase> {};

TEST_P(ConvCaseTest, MatchesOracle) {
  Context ctx({}, {.threads = 2});
  expect_conv_matches_oracle(ctx, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Cases, ConvCaseTest, testing::ValuesIn(conv_cases()),
                         [](const auto& test) { return test.param.name(); });

using Conv1dTarget = SimdTargetTest;

TEST_P(Conv1dTarget, MatchesOracle) {
  Context ctx({}, {.threads = 1});
  for (const ConvCase& conv : conv_cases()) {
    SCOPED_TRACE(conv.name());
    expect_conv_matches_oracle(ctx, conv);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Conv1dTarget, testing::ValuesIn(simd_targets()),
                         simd_target_name);

TEST(Conv1d, OracleGradientsAreFiniteDifferences) {
  for (const ConvCase& conv : {ConvCase{2, 5, 3, 4}, ConvCase{1, 2, 2, 3}, ConvCase{1, 4, 2, 2}}) {
    const auto in = as_oracle(conv_inputs(conv));
    const auto gradients = reference::conv_backward(in);
    using Data = reference::ConvInputs<double>;
    const auto check = [&](std::vector<double> Data::*field, const std::vector<double>& gradient,
                           const char* what) {
      const auto loss = [&](const std::vector<double>& point) {
        Data moved = in;
        moved.*field = point;
        const auto out = reference::conv_forward(moved);
        return dot(out.y, in.dy) + dot(out.tail_out, in.dtail_out);
      };
      expect_gradient(loss, in.*field, gradient, what);
    };
    check(&Data::x, gradients.x, "dx");
    check(&Data::weight, gradients.weight, "dweight");
    check(&Data::bias, gradients.bias, "dbias");
    check(&Data::tail_in, gradients.tail_in, "dtail_in");
  }
}

void expect_same(const ConvRun& a, const ConvRun& b, double tolerance) {
  EXPECT_LE(relative_error(a.y, b.y), tolerance);
  EXPECT_LE(relative_error(a.tail_out, b.tail_out), tolerance);
  EXPECT_LE(relative_error(a.d.x, b.d.x), tolerance);
  EXPECT_LE(relative_error(a.d.weight, b.d.weight), tolerance);
  EXPECT_LE(relative_error(a.d.bias, b.d.bias), tolerance);
  EXPECT_LE(relative_error(a.d.tail_in, b.d.tail_in), tolerance);
}

TEST(Conv1d, SplittingChangesNothing) {
  Context ctx;
  for (int64_t d_conv = 2; d_conv <= 4; ++d_conv) {
    const ConvData in = conv_inputs({2, 140, 21, d_conv});
    const ConvRun whole = ConvRunner(ctx, in, 0).run();
    const std::vector<std::vector<int64_t>> splits = {
        {1}, {2}, {3}, {128}, {139}, {0}, {140}, {50, 50, 51}, {1, 2, 3, 4, 130}};
    for (const auto& borders : splits) {
      SCOPED_TRACE(testing::PrintToString(borders));
      const ConvRun cut = ConvRunner(ctx, in, 0).run(borders);
      expect_same(cut, whole, 1e-6);
      EXPECT_EQ(cut.y, whole.y);
    }
    std::vector<int64_t> every;
    for (int64_t i = 1; i < 140; ++i) every.push_back(i);
    expect_same(ConvRunner(ctx, in, 0).run(every), whole, 1e-6);
  }
}

TEST(Conv1d, ThreadsChangeNoBit) {
  for (const ConvCase& conv : {ConvCase{3, 300, 40, 4}, ConvCase{1, 20000, 3, 4}}) {
    const ConvData in = conv_inputs(conv);
    Context one({}, {.threads = 1});
    const ConvRun expected = ConvRunner(one, in, 0).run();
    for (const int threads : {2, 4}) {
      Context ctx({}, {.threads = threads});
      expect_same(ConvRunner(ctx, in, 0).run(), expected, 0);
    }
  }
}

TEST(Conv1d, GradientsOfParametersAccumulateOnRequest) {
  Context ctx;
  const ConvData in = conv_inputs({2, 70, 10, 4});
  const ConvRun once = ConvRunner(ctx, in, 0).run();
  ConvRunner overwriting(ctx, in, 0);
  overwriting.mode = GradMode::kOverwrite;
  overwriting.repeats = 2;
  expect_same(overwriting.run(), once, 0);
  ConvRunner accumulating(ctx, in, 0);
  accumulating.repeats = 2;
  const ConvRun twice = accumulating.run();
  EXPECT_EQ(twice.d.x, once.d.x);
  std::vector<float> expected;
  for (const float x : once.d.weight) expected.push_back(2 * x);
  EXPECT_LE(relative_error(twice.d.weight, expected), 1e-6);
}

TEST(Conv1d, StepsAllocateNothingAfterTheFirst) {
  Context ctx;
  const ConvData in = conv_inputs({2, 300, 40, 4});
  ConvRunner(ctx, in, 0).run();
  const int64_t allocations = ctx.arena().allocations();
  ConvRunner(ctx, in, 0).run();
  EXPECT_EQ(ctx.arena().allocations(), allocations);
  EXPECT_EQ(ctx.arena().used_bytes(), 0);
}

TEST(Conv1d, RefusesWhatDoesNotFit) {
  Context ctx;
  Tensor x = ctx.make(DType::kF32, {2, 8, 4});
  Tensor y = ctx.make(DType::kF32, {2, 8, 4});
  Tensor weight = ctx.make(DType::kF32, {4, 4});
  Tensor tail = ctx.make(DType::kF32, {2, 3, 4});
  const Conv1dForward good{x, weight, {}, {}, y, tail};
  EXPECT_NO_THROW(conv1d_forward(ctx, good));
  const auto refused = [&](auto&& change) {
    Conv1dForward args = good;
    change(args);
    return error_of([&] { conv1d_forward(ctx, args); }).first;
  };
  Tensor wide = ctx.make(DType::kF32, {4, 5});
  Tensor half = ctx.make(DType::kBF16, {2, 8, 4});
  EXPECT_EQ(refused([&](auto& a) { a.weight = wide; }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.y = tail; }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.tail_in = x; }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.tail_in = tail; }), ErrorKind::kInternal);
  EXPECT_EQ(refused([&](auto& a) { a.x = half; }), ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace gmamba::test
