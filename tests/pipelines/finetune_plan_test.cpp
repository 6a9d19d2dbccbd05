// SPDX-License-Identifier: Apache-2.0
/// How fine-tuning runs are cut, by the lengths of their sequences and the memory of a GPU.
#include "pipelines/finetune_plan.h"

#include <gtest/gtest.h>

namespace gmamba {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

Machine gpu(int64_t total_bytes, int64_t free_bytes) {
  return {{{DeviceKind::kCuda, 0}, DType::kBF16}, total_bytes, free_bytes};
}

ModelConfig small_classifier() {
  ModelConfig config;
  config.d_model = 256;
  config.n_layers = 8;
  config.dt_rank = 16;
  config.task = TaskKind::kClassification;
  config.labels = {"a", "b"};
  return config;
}

FinetuneOptions options_of(int64_t batch) {
  FinetuneOptions options;
  options.batch = batch;
  options.common.out = "runs/fine";
  return options;
}

int64_t bytes(const FinetuneOptions& options, const SequenceLengths& lengths) {
  return plan_finetuning(options, small_classifier(), lengths, {}).memory.total_bytes();
}

TEST(FinetunePlans, AreOfTheBatchThatNeedsMost) {
  const FinetuneOptions options = options_of(8);
  const ModelConfig config = small_classifier();
  // the segment of a CPU has room for 2048 tokens: 8 rows of 256, 2 of 1000
  EXPECT_EQ(bytes(options, {{256}, {}}),
            plan_sequence_training(config, 8, 256, 2048).total_bytes());
  EXPECT_EQ(bytes(options, {{1000}, {}}),
            plan_sequence_training(config, 2, 1000, 2048).total_bytes());
  EXPECT_EQ(bytes(options, {{1, 100, 200, 256, 1000}, {}}),
            std::max(bytes(options, {{256}, {}}), bytes(options, {{1000}, {}})));
  // a sequence longer than a segment goes alone, with states at its borders
  EXPECT_EQ(bytes(options, {{100000}, {}}),
            plan_sequence_training(config, 1, 100000, 2048).total_bytes());
  EXPECT_GT(bytes(options, {{100000}, {}}), bytes(options, {{2048}, {}}));
  // what is held out is read, in batches of any number of rows
  EXPECT_EQ(bytes(options, {{4}, {256}}),
            plan_sequence_training(config, 8, 256, 2048, {}, 0, false).total_bytes());
  EXPECT_EQ(bytes(options, {{256}, {256}}), bytes(options, {{256}, {}}));
}

TEST(FinetunePlans, AHeadAloneNeedsLess) {
  FinetuneOptions options = options_of(8);
  const int64_t whole = bytes(options, {{256}, {}});
  options.freeze = true;
  EXPECT_LT(bytes(options, {{256}, {}}), whole / 2);
}

TEST(FinetunePlans, AFreshRunIsCutByTheWholeGpuAndOneThatGoesOnAsItBegan) {
  const FinetuneOptions options = options_of(1024);
  const ModelConfig config = small_classifier();
  const SequenceLengths lengths{{1024}, {1024}};
  const auto plan = [&](const Machine& machine, int64_t recorded = 0) {
    return plan_finetuning(options, config, lengths, machine, recorded);
  };
  const FinetunePlan alone = plan(gpu(6 * kGiB, 6 * kGiB));
  EXPECT_LT(alone.segment, default_segment(Device{DeviceKind::kCuda, 0}));
  EXPECT_LE(alone.memory.total_bytes(), 4 * kGiB) << "a reserve is left";
  EXPECT_EQ(plan(gpu(6 * kGiB, 5 * kGiB)).segment, alone.segment);
  EXPECT_EQ(plan(gpu(80 * kGiB, 79 * kGiB), alone.segment).segment, alone.segment);
  const FinetunePlan large = plan(gpu(80 * kGiB, 79 * kGiB));
  EXPECT_EQ(large.segment, default_segment(Device{DeviceKind::kCuda, 0}));
  // all rows of the batch are counted: what is left over is for activations
  const int64_t input = 3 * sequence_input_bytes(large.segment / 1024, 1024, large.segment,
                                                 Device{DeviceKind::kCuda});
  EXPECT_EQ(large.scratch_bytes, scratch_within(77 * kGiB, config, input));
  try {
    plan(gpu(6 * kGiB, kGiB));
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("the GPU has free 1 GiB of its 6 GiB; what fits: --segment "),
              std::string::npos)
        << error.message();
  }
  try {
    plan(gpu(80 * kGiB, kGiB), 131072);
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("start a new run from its weights: --model runs/fine --segment"),
              std::string::npos)
        << error.message();
  }
}

}  // namespace
}  // namespace gmamba
