// SPDX-License-Identifier: Apache-2.0
/// What plans promise against what a step takes: within five percent on the CPU.
#include "libmamba/memory_plan.h"

#include <gtest/gtest.h>

#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "libmamba/trainer.h"

namespace gmamba {
namespace {

constexpr Device kCpu{};

struct PlanCase {
  int64_t d_model, layers, batch, context, segment;
  bool tied = true;
};

std::string name_of(const testing::TestParamInfo<PlanCase>& info) {
  const PlanCase& c = info.param;
  return concat("d", c.d_model, "_l", c.layers, "_", c.batch, "x", c.context, "_s", c.segment,
                c.tied ? "" : "_untied");
}

ModelConfig config_of(const PlanCase& c) {
  ModelConfig config;
  config.vocab_size = 16;
  config.d_model = c.d_model;
  config.n_layers = c.layers;
  config.dt_rank = ModelConfig::auto_dt_rank(c.d_model);
  config.tie_embeddings = c.tied;
  return config;
}

struct Tokens {
  std::vector<uint8_t> tokens;
  std::vector<int32_t> targets;
  std::vector<float> weights;
  explicit Tokens(int64_t count) {
    Random random(1, RandomUse::kTest);
    for (int64_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<uint8_t>(7 + random.below(4)));
      targets.push_back(static_cast<int32_t>(7 + random.below(4)));
      weights.push_back(1);
    }
  }
};

void expect_within_five_percent(const MemoryPlan& plan, int64_t measured) {
  const auto ratio =
      static_cast<double>(plan.total_bytes()) / static_cast<double>(std::max<int64_t>(1, measured));
  EXPECT_NEAR(ratio, 1, 0.05) << "planned over measured (" << format_bytes(measured) << "):\n"
                              << plan.text();
}

class MemoryPlans : public testing::TestWithParam<PlanCase> {};

INSTANTIATE_TEST_SUITE_P(, MemoryPlans,
                         testing::Values(PlanCase{64, 4, 1, 2048, 2048},   // one piece
                                         PlanCase{64, 4, 32, 64, 2048},    // many short rows
                                         PlanCase{64, 4, 8, 256, 256},     // a batch
                                         PlanCase{64, 4, 1, 8192, 1024},   // segments
                                         PlanCase{64, 4, 1, 16384, 256},   // many of them
                                         PlanCase{128, 2, 3, 500, 500},    // few layers, odd sizes
                                         PlanCase{32, 12, 2, 1024, 1024},  // many layers
                                         PlanCase{128, 3, 4, 512, 512, false}),
                         name_of);

TEST_P(MemoryPlans, ATrainingStepTakesWhatIsPlanned) {
  const PlanCase& c = GetParam();
  const ModelConfig config = config_of(c);
  Backend& backend = backend_for(DeviceKind::kCpu);
  const int64_t before = backend.allocated_bytes(0);
  Context ctx(kCpu, {.threads = 2});
  Model model(config, kCpu);
  initialize(model.parameters(), config, 1);
  Trainer trainer(ctx, std::move(model), {.total_steps = 2});
  const int64_t owned = backend.allocated_bytes(0) - before;
  const Tokens data(c.batch * c.context);
  for (int step = 0; step < 2; ++step) {
    trainer.begin_step();
    trainer.add_language_batch(data.tokens, data.targets, data.weights, c.batch, c.context,
                               c.segment, 1e-4);
    trainer.end_step();
  }
  const MemoryPlan plan = plan_training(config, c.batch, c.context, c.segment);
  const int64_t input = kTokenBytes * c.batch * c.context;
  expect_within_five_percent(plan, owned + ctx.arena().peak_bytes() + input);
  // no more is held than is used
  expect_within_five_percent(plan, owned + ctx.arena().held_bytes() + input);
}

/// Whole sequences with a task head; `backbone`: trained as well.
void expect_planned_sequences(const PlanCase& c, bool backbone) {
  Model base(config_of(c), kCpu);
  initialize(base.parameters(), base.config(), 1);
  Backend& backend = backend_for(DeviceKind::kCpu);
  const int64_t before = backend.allocated_bytes(0);
  Context ctx(kCpu, {.threads = 2});
  Model model = with_task(base, TaskKind::kClassification, {"a", "b", "c"}, PoolMode::kMax, 1);
  const ModelConfig config = model.config();
  Trainer trainer(ctx, std::move(model), {.total_steps = 2},
                  backbone ? Trained::kAll : Trained::kHeadOnly);
  const int64_t owned = backend.allocated_bytes(0) - before;
  const Tokens data(c.batch * c.context);
  const auto rows = static_cast<size_t>(c.batch);
  for (int step = 0; step < 2; ++step) {
    trainer.begin_step();
    const SequenceBatch batch(ctx, data.tokens, std::vector<int64_t>(rows, c.context),
                              std::vector<int32_t>(rows, 1), {}, c.segment);
    trainer.add_sequence_batch(batch, 1e-2);
    trainer.end_step();
  }
  const MemoryPlan plan =
      plan_sequence_training(config, c.batch, c.context, c.segment, {}, 0, backbone);
  const int64_t input = c.batch * c.context;
  expect_within_five_percent(plan, owned + ctx.arena().peak_bytes() + input);
  if (backbone) expect_within_five_percent(plan, owned + ctx.arena().held_bytes() + input);
}

TEST_P(MemoryPlans, AStepOverWholeSequencesTakesWhatIsPlanned) {
  expect_planned_sequences(GetParam(), true);
}

TEST_P(MemoryPlans, AStepOfAHeadAloneTakesWhatIsPlanned) {
  expect_planned_sequences(GetParam(), false);
}

TEST_P(MemoryPlans, AForwardPassTakesWhatIsPlanned) {
  const PlanCase& c = GetParam();
  const ModelConfig config = config_of(c);
  const int64_t length = std::min(c.context, c.segment);
  Backend& backend = backend_for(DeviceKind::kCpu);
  const int64_t before = backend.allocated_bytes(0);
  Context ctx(kCpu, {.threads = 2});
  Model model(config, kCpu);
  SequenceState state(config, c.batch, kCpu);
  const int64_t owned = backend.allocated_bytes(0) - before;
  const Tokens data(c.batch * length);
  const Shape shape = {c.batch, length};
  {
    const Arena::Scope scope(ctx.arena());
    const TensorView hidden = ctx.arena().f32({c.batch, length, config.d_model});
    const TensorView logits = ctx.arena().f32({c.batch * length, config.vocab_size});
    model.forward(ctx, host_view(data.tokens.data(), shape), state, hidden);
    model.logits(ctx, hidden.reshape({c.batch * length, config.d_model}), logits);
  }
  expect_within_five_percent(plan_forward(config, c.batch, length),
                             owned + ctx.arena().peak_bytes());
}

}  // namespace
}  // namespace gmamba
