// SPDX-License-Identifier: Apache-2.0
#include "pipelines/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

TEST(ClassMetricsOf, MatchHandComputedValues) {
  // confusion {{5, 1}, {2, 4}}: the two-class formula gives MCC = (5*4 - 1*2) / sqrt(7*5*6*6)
  std::vector<int32_t> truth(12, 0);
  std::vector<int32_t> predicted(12, 0);
  for (size_t i = 6; i < 12; ++i) truth[i] = 1;
  predicted[5] = 1;
  for (size_t i = 8; i < 12; ++i) predicted[i] = 1;
  const ClassMetrics m = class_metrics(truth, predicted, 2);
  EXPECT_EQ(m.confusion, (std::vector<std::vector<int64_t>>{{5, 1}, {2, 4}}));
  EXPECT_DOUBLE_EQ(m.accuracy, 9.0 / 12);
  EXPECT_NEAR(m.mcc, 18 / std::sqrt(7.0 * 5 * 6 * 6), 1e-12);
  EXPECT_NEAR(m.macro_f1, (10.0 / 13 + 8.0 / 11) / 2, 1e-12);
}

TEST(ClassMetricsOf, HandleTheEdges) {
  const std::vector<int32_t> same = {0, 1, 2, 1};
  EXPECT_DOUBLE_EQ(class_metrics(same, same, 3).mcc, 1);
  const std::vector<int32_t> constant = {1, 1, 1, 1};
  EXPECT_DOUBLE_EQ(class_metrics(same, constant, 3).mcc, 0);
  EXPECT_EQ(class_metrics({}, {}, 3).count, 0);
  EXPECT_THROW(class_metrics(same, std::vector<int32_t>{0, 1, 2, 3}, 3), Error);
  EXPECT_THROW(class_metrics(same, std::vector<int32_t>{0}, 3), Error);
}

TEST(RegressionMetricsOf, MatchHandComputedValues) {
  const std::vector<float> truth = {1, 2, 3, 4};
  const std::vector<float> predicted = {1.5F, 2.5F, 3.5F, 4.5F};
  const RegressionMetrics m = regression_metrics(truth, predicted);
  EXPECT_DOUBLE_EQ(m.mean_squared_error, 0.25);
  EXPECT_NEAR(m.pearson, 1, 1e-12);
  EXPECT_NEAR(m.r_squared, 1 - 1.0 / 5, 1e-12);
  const std::vector<float> constant(4, 2.0F);
  EXPECT_EQ(regression_metrics(truth, constant).pearson, 0);
}

TEST(ArgmaxRows, TakesTheFirstOfEquals) {
  const std::vector<float> values = {0.2F, 0.5F, 0.5F, 0.9F, 0, 0};
  EXPECT_EQ(argmax_rows(values, 3), (std::vector<int32_t>{1, 0}));
}

TEST(ConfusionText, KeepsOddNamesHarmless) {
  ClassMetrics m = class_metrics(std::vector<int32_t>{0, 1}, std::vector<int32_t>{0, 1}, 2);
  const std::string text = confusion_text(m, {"a\x1b[31m", "b"});
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace gmamba
