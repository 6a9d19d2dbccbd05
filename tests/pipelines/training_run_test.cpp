// SPDX-License-Identifier: Apache-2.0
#include "pipelines/training_run.h"

#include <gtest/gtest.h>

#include <limits>

namespace gmamba::test {
namespace {

TEST(RatioSince, IsOfWhatWasAddedSinceTheLastCall) {
  RatioSince speed;
  EXPECT_EQ(speed.next(100, 2), 50);
  EXPECT_EQ(speed.next(130, 5), 10) << "not the 26 of the whole";
  EXPECT_EQ(speed.next(130, 5), 0) << "nothing was done";
  EXPECT_EQ(speed.next(230, 6), 100);
}

StepReport step_of(double loss, double weight, double correct, bool skipped = false) {
  StepReport report;
  report.loss = {loss, weight, correct, 8};
  report.skipped = skipped;
  return report;
}

TEST(StepsOfLine, WeighsStepsByWhatTheyPredict) {
  StepsOfLine steps;
  steps.add(step_of(10, 10, 5));
  steps.add(step_of(60, 30, 5));
  const Json line = step_metrics(step_of(60, 30, 5), steps, 100, 7, Device{});
  EXPECT_EQ(line.at("steps"), 2);
  EXPECT_EQ(line.at("loss"), 1.75) << "70 of 40";
  EXPECT_EQ(line.at("accuracy"), 0.25);
  EXPECT_EQ(line.at("bits_per_base"), 1.75 * kBitsPerNat);
  EXPECT_EQ(line.at("skipped"), false);
}

TEST(StepsOfLine, LossesThatAreNotFiniteAreLeftOutAndSaid) {
  const double inf = std::numeric_limits<double>::infinity();
  StepsOfLine steps;
  steps.add(step_of(inf, 10, 0, true));
  const Json none = step_metrics(step_of(inf, 10, 0, true), steps, 1, 1, Device{});
  EXPECT_TRUE(none.at("loss").is_null() && none.at("accuracy").is_null());
  steps.add(step_of(20, 10, 1));
  const Json line = step_metrics(step_of(20, 10, 1), steps, 1, 1, Device{});
  EXPECT_EQ(line.at("loss"), 2.0);
  EXPECT_EQ(line.at("steps"), 2);
  EXPECT_EQ(line.at("skipped"), true);
}

TEST(StepsOfLine, ComeBackFromACheckpointWithTheSameBits) {
  StepsOfLine steps;
  for (int i = 1; i < 8; ++i) steps.add(step_of(1000.0 / (3 * i), 256.0 / 7, 0.1 * i, i == 3));
  Json state = {{"tokens", 5}};
  steps.save(state);
  const StepsOfLine back = StepsOfLine::load(parse_json(state.dump(), "state"));
  EXPECT_EQ(back.steps, 7);
  EXPECT_EQ(back.loss.loss, steps.loss.loss);
  EXPECT_EQ(back.loss.weight, steps.loss.weight);
  EXPECT_EQ(back.loss.correct, steps.loss.correct);
  EXPECT_EQ(back.loss.count, 56);
  EXPECT_TRUE(back.skipped);
  EXPECT_EQ(StepsOfLine::load({{"tokens", 5}}).steps, 0) << "a checkpoint of an earlier version";
}

}  // namespace
}  // namespace gmamba::test
