// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw.h"

#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/simd_targets_fixture.h"
#include "tests/reference/adamw.h"

namespace gmamba {
namespace {

using test::error_of;
using test::expect_within_budget;
using test::random_tensor;
using test::same_bits;
using test::values;

constexpr double kRate = 1e-2;

/// Parameters and moments, and the arguments that point at them.
struct Optimiser {
  explicit Optimiser(int64_t count)
      : parameters(random_tensor({count}, 1)),
        exp_avg(Device{}, DType::kF32, {count}),
        exp_avg_sq(Device{}, DType::kF32, {count}),
        norm(Device{}, DType::kF64, {1}) {}

  AdamW arguments(const Tensor& gradients, int64_t step, float max_norm) {
    AdamW args;
    args.parameters = parameters;
    args.gradients = gradients;
    args.exp_avg = exp_avg;
    args.exp_avg_sq = exp_avg_sq;
    args.norm = norm;
    args.max_norm = max_norm;
    args.learning_rate = static_cast<float>(kRate);
    args.step = step;
    return args;
  }

  Tensor parameters, exp_avg, exp_avg_sq, norm;
};

template <class Real>
reference::AdamWState<Real> naive_steps(const Optimiser& start, const std::vector<Tensor>& steps,
                                        const std::vector<float>& decay, double max_norm) {
  reference::AdamWState<Real> state{values<Real>(start.parameters.view()),
                                    values<Real>(start.exp_avg.view()),
                                    values<Real>(start.exp_avg_sq.view())};
  const reference::AdamWOptions options{max_norm, static_cast<float>(kRate), 0.9F, 0.95F, 1e-8F};
  int64_t t = 0;
  for (const Tensor& gradients : steps) {
    reference::adamw_step(state, values<Real>(gradients.view()),
                          std::vector<Real>(decay.begin(), decay.end()), options, ++t);
  }
  return state;
}

// nothing, one, odd, just over a vector and over a block
const int64_t kCounts[] = {0, 1, 3, 17, 100, 16385, 40000};

std::vector<DecayRange> ranges_for(int64_t count) {
  std::vector<DecayRange> ranges;
  ranges.push_back({0, 0, 9.0F});  // covers nothing
  if (count >= 3) ranges.push_back({1, 2, 0.5F});
  if (count >= 100) ranges.push_back({4, 4, 9.0F});
  if (count >= 100) ranges.push_back({5, count / 2, 0.1F});
  if (count >= 100) ranges.push_back({count / 2, count - 3, 0.01F});
  return ranges;
}

class AdamWTargets : public test::SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(, AdamWTargets, testing::ValuesIn(test::simd_targets()),
                         test::simd_target_name);

TEST_P(AdamWTargets, StepsMatchTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const int64_t count : kCounts) {
    for (const double max_norm : {0.0, 0.5, 1e6}) {
      Optimiser optimiser(count);
      std::vector<Tensor> gradients;
      for (uint64_t step = 0; step < 4; ++step) {
        gradients.push_back(random_tensor({count}, 10 + step));
      }
      const auto ranges = ranges_for(count);
      std::vector<float> decay(static_cast<size_t>(count), 0.0F);
      for (const DecayRange& range : ranges) {
        std::fill(decay.begin() + range.begin, decay.begin() + range.end, range.weight_decay);
      }
      const auto oracle = naive_steps<double>(optimiser, gradients, decay, max_norm);
      const auto naive = naive_steps<float>(optimiser, gradients, decay, max_norm);
      int64_t t = 0;
      for (const Tensor& gradient : gradients) {
        global_norm(ctx, gradient, optimiser.norm);
        AdamW args = optimiser.arguments(gradient, ++t, static_cast<float>(max_norm));
        args.decay = ranges;
        adamw_step(ctx, args);
      }
      const std::string what = concat("count ", count, " max_norm ", max_norm);
      expect_within_budget(values<double>(optimiser.parameters.view()), oracle.parameters,
                           naive.parameters, what);
      expect_within_budget(values<double>(optimiser.exp_avg.view()), oracle.exp_avg, naive.exp_avg,
                           what + " exp_avg");
      expect_within_budget(values<double>(optimiser.exp_avg_sq.view()), oracle.exp_avg_sq,
                           naive.exp_avg_sq, what + " exp_avg_sq");
    }
  }
}

TEST(AdamW, TheFirstStepMovesByTheLearningRate) {
  Context ctx;
  Optimiser optimiser(5);
  const Tensor before = optimiser.parameters.clone();
  const Tensor gradients = random_tensor({5}, 2, 100.0);
  AdamW args = optimiser.arguments(gradients, 1, 0);
  args.norm = {};
  adamw_step(ctx, args);
  for (size_t i = 0; i < 5; ++i) {
    const float sign = gradients.host<float>()[i] > 0 ? 1.0F : -1.0F;
    EXPECT_NEAR(optimiser.parameters.host<float>()[i],
                before.host<float>()[i] - static_cast<float>(kRate) * sign, 1e-6);
  }
}

TEST(AdamW, SmallDecayIsNotRoundedAway) {
  Context ctx;
  Optimiser optimiser(1);
  optimiser.parameters.host<float>()[0] = 1.0F;
  const Tensor gradients(Device{}, DType::kF32, {1});
  const DecayRange range{0, 1, 1e-4F};  // a step shrinks by 1e-6: a few roundings of 1
  for (int64_t t = 1; t <= 1000; ++t) {
    AdamW args = optimiser.arguments(gradients, t, 0);
    args.decay = {&range, 1};
    adamw_step(ctx, args);
  }
  EXPECT_NEAR(optimiser.parameters.host<float>()[0], std::exp(-1e-3), 4e-5);
}

TEST(AdamW, ANormThatIsNotFiniteLeavesEverythingUntouched) {
  Context ctx;
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Optimiser optimiser(20000);
    const Optimiser untouched(20000);
    Tensor gradients = random_tensor({20000}, 2);
    gradients.host<float>()[17000] = bad;
    global_norm(ctx, gradients, optimiser.norm);
    EXPECT_FALSE(std::isfinite(optimiser.norm.host<double>()[0]));
    adamw_step(ctx, optimiser.arguments(gradients, 1, 1.0F));
    EXPECT_TRUE(same_bits(optimiser.parameters, untouched.parameters));
    EXPECT_TRUE(same_bits(optimiser.exp_avg, untouched.exp_avg));
    EXPECT_TRUE(same_bits(optimiser.exp_avg_sq, untouched.exp_avg_sq));
  }
}

TEST(AdamW, HasTheSameBitsForAnyNumberOfThreads) {
  Optimiser first(50001);
  for (const int threads : {1, 2, 3, 4}) {
    Context ctx(Device{}, {.threads = threads});
    Optimiser optimiser(50001);
    const Tensor gradients = random_tensor({50001}, 2);
    global_norm(ctx, gradients, optimiser.norm);
    adamw_step(ctx, optimiser.arguments(gradients, 1, 1.0F));
    if (threads == 1) {
      first.parameters = optimiser.parameters.clone();
      first.norm = optimiser.norm.clone();
    }
    EXPECT_TRUE(same_bits(first.parameters, optimiser.parameters)) << threads << " threads";
    EXPECT_TRUE(same_bits(first.norm, optimiser.norm)) << threads << " threads";
  }
}

TEST(AdamW, RefusesRangesThatDoNotFit) {
  Context ctx;
  Optimiser optimiser(10);
  const Tensor gradients = random_tensor({10}, 2);
  const std::vector<std::vector<DecayRange>> bad = {{{0, 11, 0.1F}},
                                                    {{-1, 3, 0.1F}},
                                                    {{4, 3, 0.1F}},
                                                    {{0, 5, 0.1F}, {4, 6, 0.1F}},
                                                    {{5, 6, 0.1F}, {0, 2, 0.1F}}};
  for (const auto& ranges : bad) {
    AdamW args = optimiser.arguments(gradients, 1, 0);
    args.decay = ranges;
    EXPECT_EQ(error_of([&] { adamw_step(ctx, args); }).first, ErrorKind::kInternal);
  }
  EXPECT_EQ(error_of([&] { adamw_step(ctx, optimiser.arguments(gradients, 0, 0)); }).first,
            ErrorKind::kInternal);
  const Tensor fewer = random_tensor({9}, 2);
  EXPECT_EQ(error_of([&] { adamw_step(ctx, optimiser.arguments(fewer, 1, 0)); }).second,
            "adamw_step: gradients: expected shape (10), found (9)");
}

TEST_P(AdamWTargets, TheGlobalNormIsSummedInDouble) {
  Context ctx(Device{}, {.threads = 2});
  Tensor norm(Device{}, DType::kF64, {1});
  for (const int64_t count : kCounts) {
    for (const double scale : {1e-30, 1.0, 1e30}) {  // squares beyond fp32 on both sides
      const Tensor tensor = random_tensor({count}, 3, scale);
      global_norm(ctx, tensor, norm);
      const double oracle = reference::global_norm(values<double>(tensor.view()));
      EXPECT_NEAR(norm.host<double>()[0], oracle, 1e-13 * oracle) << count << ' ' << scale;
    }
  }
  const Tensor table = random_tensor({6, 4}, 3);
  EXPECT_EQ(error_of([&] { global_norm(ctx, table.view().slice(1, 0, 2), norm); }).first,
            ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba
