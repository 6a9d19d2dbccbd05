// SPDX-License-Identifier: Apache-2.0
/// How runs are cut on GPUs of several sizes, with and without other programs there.
#include "pipelines/pretrain_plan.h"

#include <gtest/gtest.h>

#include <functional>

namespace gmamba {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

Machine gpu(int64_t total_bytes, int64_t free_bytes) {
  return {{{DeviceKind::kCuda, 0}, DType::kBF16}, total_bytes, free_bytes};
}

PretrainOptions options_of(int64_t context, int64_t batch_tokens) {
  PretrainOptions options;
  options.context = context;
  options.d_model = 256;
  options.layers = 8;
  options.training.batch_tokens = batch_tokens;
  options.training.steps = 100;
  options.common.out = "runs/one";
  return options;
}

ModelConfig config_of(const PretrainOptions& options) {
  ModelConfig config;
  config.d_model = options.d_model;
  config.n_layers = options.layers;
  config.dt_rank = ModelConfig::auto_dt_rank(options.d_model);
  return config;
}

PretrainPlan plan(const PretrainOptions& options, const Machine& machine, int64_t recorded = 0) {
  return plan_pretraining(options, config_of, machine, recorded);
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.message();
  }
  return "nothing was refused";
}

testing::AssertionResult says(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

TEST(PretrainPlans, AFreshRunIsCutByTheWholeGpuNotByWhatIsFree) {
  const PretrainOptions options = options_of(1 << 20, 1 << 20);
  const PretrainPlan alone = plan(options, gpu(24 * kGiB, 23 * kGiB));
  EXPECT_LT(alone.last().segment, 1 << 20);
  EXPECT_LE(alone.memory.total_bytes(), 22 * kGiB) << "a reserve is left";
  const int64_t least =
      plan_training(config_of(options), 1, 1 << 20, alone.computed, gpu(0, 0).arithmetic)
          .total_bytes();
  // as long as it fits at all, other programs change what is kept and not how the run is cut
  for (const int64_t free : {22 * kGiB, 20 * kGiB, least + kGiB / 4}) {
    const PretrainPlan beside = plan(options, gpu(24 * kGiB, free));
    EXPECT_EQ(beside.computed, alone.computed) << free;
    EXPECT_EQ(beside.last().segment, alone.last().segment);
    EXPECT_LE(beside.memory.total_bytes(), free);
  }
  const std::string said = refusal([&] { plan(options, gpu(24 * kGiB, least * 6 / 10)); });
  EXPECT_TRUE(says(said, "the GPU has free"));
  EXPECT_TRUE(says(said, "of its 24 GiB"));
  EXPECT_TRUE(says(said, "what fits: --segment"));
}

TEST(PretrainPlans, ALargeGpuTakesTheUsualCut) {
  const PretrainPlan large = plan(options_of(1 << 20, 1 << 20), gpu(80 * kGiB, 79 * kGiB));
  EXPECT_EQ(large.computed, default_training_segment(Device{DeviceKind::kCuda, 0}));
  EXPECT_GT(large.memory.total_bytes(), 60 * kGiB) << "what is left keeps more";
}

TEST(PretrainPlans, ACutKeepsTheStepsOfAllLayersWhereANearOneCan) {
  const PretrainOptions options = options_of(1 << 22, 1 << 22);
  const int64_t layers = options.layers;
  bool less = false, same = false, more = false;
  for (int64_t gib = 3; gib <= 30; ++gib) {
    const Machine machine = gpu((gib + 2) * kGiB, (gib + 2) * kGiB);
    const PretrainPlan found = plan(options, machine);
    const auto near = [&](int64_t computed) { return plan(options, machine, computed); };
    int64_t halved = 1 << 20;  // the largest power of two that fits
    while (plan_training(config_of(options), 1, 1 << 22, halved, machine.arithmetic).total_bytes() +
               (int64_t{1} << 26) >
           gib * kGiB) {
      halved /= 2;
    }
    less = less || found.computed == halved / 4 * 3;
    same = same || found.computed == halved;
    more = more || found.computed == halved / 4 * 6;
    EXPECT_GE(found.computed, halved / 4 * 3) << gib;
    EXPECT_LE(found.computed, halved / 4 * 6) << gib;
    if (found.extras < layers) {
      EXPECT_EQ(found.computed, halved) << gib;
    } else if (found.computed < halved) {
      EXPECT_LT(near(halved).extras, layers) << gib;
    }
  }
  EXPECT_TRUE(less && same && more);
}

TEST(PretrainPlans, ARunThatGoesOnIsCutAsItBegan) {
  for (const int64_t context : {1 << 10, 1 << 20}) {
    PretrainOptions options = options_of(context, 1 << 20);
    const PretrainPlan began = plan(options, gpu(12 * kGiB, 11 * kGiB));
    ASSERT_LT(began.computed, 1 << 20);
    for (const Machine& machine : {gpu(80 * kGiB, 79 * kGiB), gpu(12 * kGiB, 11 * kGiB)}) {
      const PretrainPlan after = plan(options, machine, began.computed);
      EXPECT_EQ(after.last().segment, began.last().segment);
      EXPECT_EQ(after.last().rows, began.last().rows);
      EXPECT_EQ(after.last().micro_batches, began.last().micro_batches);
    }
    // the user's word counts for more
    options.common.segment = 2048;
    EXPECT_EQ(plan(options, gpu(80 * kGiB, 79 * kGiB), began.computed).computed, 2048);
  }
}

TEST(PretrainPlans, AllStagesOfAWarmUpKeepTheirRows) {
  PretrainOptions options = options_of(3000, 64 << 10);
  options.context_warmup = true;
  options.context_warmup_from = 1000;
  options.common.max_memory = kGiB;
  const PretrainPlan began = plan(options, gpu(80 * kGiB, 79 * kGiB));
  options.common.max_memory = 0;
  const PretrainPlan after = plan(options, gpu(80 * kGiB, 79 * kGiB), began.computed);
  ASSERT_EQ(after.stages.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(after.stages[i].rows, began.stages[i].rows) << i;
  EXPECT_NE(plan(options, gpu(80 * kGiB, 79 * kGiB)).last().rows, began.last().rows)
      << "a new run would be cut otherwise";
}

TEST(PretrainPlans, ARunThatCannotGoOnSaysWhatItNeedsAndWhatWouldFit) {
  const PretrainOptions options = options_of(1 << 20, 1 << 20);
  const PretrainPlan began = plan(options, gpu(80 * kGiB, 79 * kGiB));
  const std::string said =
      refusal([&] { plan(options, gpu(80 * kGiB, 6 * kGiB), began.computed); });
  EXPECT_TRUE(says(said, "--resume: runs/one goes on as it began, 1,048,576 tokens at once"));
  EXPECT_TRUE(says(said, "the GPU has free 6 GiB of its 80 GiB"));
  const std::string flag = "--init runs/one --segment ";
  ASSERT_TRUE(says(said, flag));
  PretrainOptions instead = options;
  instead.common.segment = std::stoll(said.substr(said.find(flag) + flag.size()));
  EXPECT_LE(plan(instead, gpu(80 * kGiB, 6 * kGiB)).memory.total_bytes(), 6 * kGiB);
}

TEST(PretrainPlans, ARefusalNamesTheLargestSegmentThatFits) {
  PretrainOptions options = options_of(1 << 21, 1 << 21);
  options.common.segment = 1 << 21;
  const Machine machine = gpu(80 * kGiB, 79 * kGiB);
  const std::string said = refusal([&] { plan(options, machine); });
  ASSERT_TRUE(says(said, "what fits: --segment "));
  options.common.segment = 1 << 20;
  EXPECT_LE(plan(options, machine).memory.total_bytes(), 79 * kGiB);
  EXPECT_TRUE(says(said, "--segment 1048576"));
  // a search without --segment begins at the usual cut as well
  options.common.segment = 0;
  const std::string usual = refusal([&] { plan(options, gpu(80 * kGiB, 40 * kGiB)); });
  EXPECT_TRUE(says(usual, "--segment 524288"));
}

TEST(PretrainPlans, AskingForMoreThanIsFreeTakesWhatIsFree) {
  PretrainOptions options = options_of(1 << 20, 1 << 20);
  options.common.max_memory = 200 * kGiB;
  const PretrainPlan got = plan(options, gpu(80 * kGiB, 70 * kGiB));
  EXPECT_EQ(got.device_bytes, 70 * kGiB);
  EXPECT_LE(got.memory.total_bytes(), 70 * kGiB);
}

}  // namespace
}  // namespace gmamba
