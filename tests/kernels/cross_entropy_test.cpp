// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/simd_targets_fixture.h"
#include "tests/reference/cross_entropy.h"

namespace gmamba {
namespace {

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
  int64_t vocab;
  int64_t gap;
  double scale;  // of the logits
};

// nothing, one, odd, just over a vector or the padding, thousands of labels, far apart logits
const Case kCases[] = {{0, 5, 0, 1},    {1, 1, 0, 1},    {3, 2, 1, 3},    {5, 5, 0, 1},
                       {7, 9, 3, 1},    {129, 16, 0, 2}, {260, 17, 5, 1}, {4, 65, 0, 1},
                       {3, 3001, 7, 1}, {50, 8, 0, 60},  {40000, 5, 0, 1}};

std::string name(const Case& c) {
  return concat("rows ", c.rows, " vocab ", c.vocab, " gap ", c.gap, " scale ", c.scale);
}

/// Every fifth row ignored; with one label the rest have target 0.
Tensor random_targets(const Case& c) {
  Tensor targets(Device{}, DType::kI32, {c.rows});
  Random random(9, RandomUse::kTest);
  int64_t m = 0;
  for (int32_t& target : targets.host<int32_t>()) {
    target = static_cast<int32_t>(random.below(static_cast<uint64_t>(c.vocab)));
    if (++m % 5 == 0) target = kIgnoreTarget;
  }
  return targets;
}

/// Weights in [0, 2), every seventh 0.
Tensor random_weights(int64_t rows) {
  Tensor weights(Device{}, DType::kF32, {rows});
  Random random(10, RandomUse::kTest);
  int64_t m = 0;
  for (float& weight : weights.host<float>()) {
    weight = static_cast<float>(++m % 7 == 0 ? 0.0 : random.uniform(0.0, 2.0));
  }
  return weights;
}

std::vector<int32_t> listed(const Tensor& targets) {
  const auto span = targets.host<int32_t>();
  return {span.begin(), span.end()};
}

void check_case(Context& ctx, const Case& c, bool weighted) {
  Tensor logits_owner, dlogits_owner;
  const TensorView logits =
      strided_copy(logits_owner, random_tensor({c.rows, c.vocab}, 1, c.scale), c.gap);
  const TensorView dlogits = strided_copy(dlogits_owner, garbage_tensor({c.rows, c.vocab}), c.gap);
  const Tensor targets = random_targets(c);
  const Tensor weights = weighted ? random_weights(c.rows) : Tensor();
  Tensor losses = garbage_tensor({c.rows});
  Tensor totals(Device{}, DType::kF64, {4});
  totals.host<double>()[0] = 10;
  const auto vocab = static_cast<size_t>(c.vocab);
  const auto oracle = reference::cross_entropy(values<double>(logits), vocab, listed(targets),
                                               values<double>(weights.view()), 0.25);
  const auto naive = reference::cross_entropy(values<float>(logits), vocab, listed(targets),
                                              values<float>(weights.view()), 0.25);
  cross_entropy(ctx, {logits, targets, weights, 0.25F, losses, dlogits, totals});
  expect_within_budget(values<double>(losses.view()), oracle.losses, naive.losses, name(c));
  expect_within_budget(values<double>(dlogits), oracle.dlogits, naive.dlogits,
                       name(c) + " dlogits");
  const auto total = totals.host<double>();
  EXPECT_NEAR(total[0], 10 + oracle.weighted_loss, 1e-6 * (1 + oracle.weighted_loss)) << name(c);
  EXPECT_NEAR(total[1], oracle.weight, 1e-12 * (1 + oracle.weight)) << name(c);
  EXPECT_NEAR(total[2], oracle.weight_right, 1e-12 * (1 + oracle.weight)) << name(c);
  EXPECT_EQ(total[3], oracle.rows) << name(c);
}

class CrossEntropyTargets : public test::SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(, CrossEntropyTargets, testing::ValuesIn(test::simd_targets()),
                         test::simd_target_name);

TEST_P(CrossEntropyTargets, MatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const bool weighted : {false, true}) check_case(ctx, c, weighted);
  }
}

TEST(CrossEntropy, GradientOfTheOracleIsThatOfItsLoss) {
  const std::vector<int32_t> targets = {2, -100, 0, 4};
  const std::vector<double> weights = {1, 1, 0.5, 0};
  const auto logits = values<double>(random_tensor({4, 5}, 1).view());
  const auto run = [&](const auto& at) {
    return reference::cross_entropy(at, 5, targets, weights, 1.0);
  };
  expect_gradient([&](const auto& at) { return run(at).weighted_loss; }, logits,
                  run(logits).dlogits, "logits");
}

TEST(CrossEntropy, TheGradientMayTakeThePlaceOfTheLogits) {
  Context ctx;
  const Case c{300, 11, 0, 1};
  Tensor logits = random_tensor({c.rows, c.vocab}, 1);
  const Tensor targets = random_targets(c);
  Tensor dlogits(Device{}, DType::kF32, {c.rows, c.vocab});
  cross_entropy(ctx, {logits, targets, {}, 2.0F, {}, dlogits, {}});
  cross_entropy(ctx, {logits, targets, {}, 2.0F, {}, logits, {}});
  EXPECT_TRUE(same_bits(logits, dlogits));
}

TEST(CrossEntropy, RowsMayAllBeIgnored) {
  Context ctx;
  const Tensor logits = random_tensor({3, 4}, 1);
  Tensor targets(Device{}, DType::kI32, {3});
  for (int32_t& target : targets.host<int32_t>()) target = kIgnoreTarget;
  Tensor losses = garbage_tensor({3});
  Tensor dlogits = garbage_tensor({3, 4});
  Tensor totals(Device{}, DType::kF64, {4});
  cross_entropy(ctx, {logits, targets, {}, 1.0F, losses, dlogits, totals});
  for (const float loss : losses.host<float>()) EXPECT_EQ(loss, 0.0F);
  for (const float gradient : dlogits.host<float>()) EXPECT_EQ(gradient, 0.0F);
  for (const double total : totals.host<double>()) EXPECT_EQ(total, 0.0);
}

TEST(CrossEntropy, EqualLogitsCountAsTheFirstLabel) {
  Context ctx;
  const Tensor logits(Device{}, DType::kF32, {2, 4});
  Tensor targets(Device{}, DType::kI32, {2});
  targets.host<int32_t>()[1] = 1;
  Tensor losses = garbage_tensor({2});
  Tensor totals(Device{}, DType::kF64, {4});
  cross_entropy(ctx, {logits, targets, {}, 1.0F, losses, {}, totals});
  EXPECT_EQ(totals.host<double>()[2], 1.0);
  EXPECT_NEAR(losses.host<float>()[0], std::log(4.0), 1e-6);
}

TEST_P(CrossEntropyTargets, KeepsExtremeLogitsApartFromBrokenOnes) {
  Context ctx;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  // a row of huge logits, one with an excluded label, three that hold no loss
  const std::vector<float> rows = {3e38F, -3e38F,    0,          1,          -kInfinity,
                                   2,     0,         kNan,       1,          0,
                                   0,     kInfinity, -kInfinity, -kInfinity, -kInfinity};
  Tensor logits(Device{}, DType::kF32, {5, 3});
  std::copy(rows.begin(), rows.end(), logits.host<float>().begin());
  Tensor targets(Device{}, DType::kI32, {5});
  Tensor losses = garbage_tensor({5});
  Tensor dlogits = garbage_tensor({5, 3});
  cross_entropy(ctx, {logits, targets, {}, 1.0F, losses, dlogits, {}});
  const auto loss = losses.host<float>();
  const auto gradient = dlogits.host<float>();
  EXPECT_EQ(loss[0], 0.0F);
  EXPECT_NEAR(loss[1], std::log(1 + std::exp(1.0)), 1e-6);
  EXPECT_EQ(gradient[4], 0.0F);
  for (size_t m = 2; m < 5; ++m) {
    EXPECT_TRUE(std::isnan(loss[m])) << m;
    for (size_t v = 0; v < 3; ++v) EXPECT_TRUE(std::isnan(gradient[3 * m + v])) << m << ' ' << v;
  }
}

TEST(CrossEntropy, HasTheSameBitsForAnyNumberOfThreads) {
  const Case c{5000, 13, 0, 1};
  Tensor first[3];
  for (const int threads : {1, 2, 3, 4}) {
    Context ctx(Device{}, {.threads = threads});
    const Tensor logits = random_tensor({c.rows, c.vocab}, 1);
    const Tensor targets = random_targets(c);
    const Tensor weights = random_weights(c.rows);
    Tensor losses = garbage_tensor({c.rows});
    Tensor dlogits = garbage_tensor({c.rows, c.vocab});
    Tensor totals(Device{}, DType::kF64, {4});
    cross_entropy(ctx, {logits, targets, weights, 0.1F, losses, dlogits, totals});
    Tensor* const results[3] = {&losses, &dlogits, &totals};
    for (int i = 0; i < 3; ++i) {
      if (threads == 1) first[i] = results[i]->clone();
      EXPECT_TRUE(same_bits(first[i], *results[i])) << threads << " threads, result " << i;
    }
  }
}

TEST(CrossEntropy, NamesABadTarget) {
  Context ctx;
  const Tensor logits = random_tensor({400, 5}, 1);
  for (const int32_t bad : {5, -1, -99, std::numeric_limits<int32_t>::min()}) {
    Tensor targets(Device{}, DType::kI32, {400});
    targets.host<int32_t>()[321] = bad;
    Tensor dlogits = garbage_tensor({400, 5});
    const auto [kind, message] = error_of([&] {
      cross_entropy(ctx, {logits, targets, {}, 1.0F, {}, dlogits, {}});
    });
    EXPECT_EQ(kind, ErrorKind::kInput);
    EXPECT_EQ(message, concat("cross_entropy: target ", bad,
                              " of row 321 is neither in [0, 5) nor the ignore index -100"));
    EXPECT_TRUE(same_bits(dlogits, garbage_tensor({400, 5})));
  }
  const Tensor targets(Device{}, DType::kI32, {399});
  EXPECT_EQ(error_of([&] {
              cross_entropy(ctx, {logits, targets, {}, 1.0F, {}, {}, {}});
            }).first,
            ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba
