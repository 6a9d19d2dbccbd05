// SPDX-License-Identifier: Apache-2.0
/// States that outlive a step, and the trainer's own bookkeeping.
#include "libmamba/trainer.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "libmamba/core/random.h"
#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

using test::tiny_config;
using test::tiny_model;

constexpr Device kCpu{};

/// Rows of random bases, each the target of the one before it; `from` and `length` cut a part out
/// of rows of `kWhole` tokens.
struct Rows {
  static constexpr int64_t kWhole = 150;
  int64_t batch = 3;
  int64_t length = 0;
  std::vector<uint8_t> tokens;
  std::vector<int32_t> targets;
  std::vector<float> weights;

  Rows(int64_t from, int64_t count) : length(count) {
    Random random(4, RandomUse::kTest);
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<uint8_t> row;
      for (int64_t t = 0; t <= kWhole; ++t) {
        row.push_back(static_cast<uint8_t>(7 + random.below(4)));
      }
      for (int64_t t = from; t < from + count; ++t) {
        tokens.push_back(row[static_cast<size_t>(t)]);
        targets.push_back(row[static_cast<size_t>(t + 1)]);
        weights.push_back(t % 5 == 0 ? 0.5F : 1.0F);
      }
    }
  }
  Shape shape() const { return {batch, length}; }
};

struct Result {
  LossTotals totals;
  ParameterBuffer gradients;
};

Result gradient(Context& ctx, const Model& model, const Rows& rows, int64_t segment,
                const SequenceState* start, SequenceState* end) {
  const Arena::Scope scope(ctx.arena());
  ParameterBuffer gradients(model.parameters().shared_layout(), kCpu);
  LanguageModelLoss loss(ctx, model, host_view(rows.targets.data(), rows.shape()),
                         host_view(rows.weights.data(), rows.shape()), 0.01F, gradients);
  segmented_gradient(ctx, model, host_view(rows.tokens.data(), rows.shape()), segment, loss,
                     gradients, {.start = start, .end = end});
  return {loss.totals(ctx), std::move(gradients)};
}

bool same_bits(ConstTensorView a, ConstTensorView b) {
  return a.size() == b.size() &&
         std::memcmp(a.data, b.data, static_cast<size_t>(a.size() * size_of(a.dtype))) == 0;
}

bool all_zero(ConstTensorView view) {
  for (const float value : view.flat<const float>()) {
    if (value != 0) return false;
  }
  return true;
}

double largest_difference(ConstTensorView a, ConstTensorView b) {
  double largest = 0;
  const auto x = a.flat<const float>();
  const auto y = b.flat<const float>();
  for (size_t i = 0; i < x.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(x[i]) - y[i]));
  }
  return largest;
}

TEST(SequenceStates, AMovedOneIsEmptyAndTheOtherHoldsIt) {
  SequenceState state(tiny_config(), 2, kCpu);
  state.all_ssm().flat<float>()[3] = 5;
  const void* const memory = state.all_ssm().data;
  SequenceState moved(std::move(state));
  EXPECT_TRUE(state.empty());
  EXPECT_EQ(state.batch(), 0);
  EXPECT_EQ(state.bytes(), 0);
  EXPECT_THROW(state.ssm(0), Error);
  state.reset();  // nothing to do, nothing to touch
  EXPECT_EQ(moved.all_ssm().data, memory);
  EXPECT_EQ(moved.all_ssm().flat<float>()[3], 5);

  SequenceState other(tiny_config(), 1, kCpu);
  other = std::move(moved);
  EXPECT_TRUE(moved.empty());
  EXPECT_EQ(other.batch(), 2);
  EXPECT_EQ(other.all_ssm().data, memory);
  SequenceState& self = other;
  other = std::move(self);
  EXPECT_EQ(other.all_ssm().data, memory);
  moved = SequenceState(tiny_config(), 4, kCpu);
  EXPECT_EQ(moved.batch(), 4);
}

TEST(SequenceStates, RowsAreClearedAlone) {
  Context ctx;
  SequenceState state(tiny_config(), 4, kCpu);
  for (float& value : state.all_conv().flat<float>()) value = 1;
  for (float& value : state.all_ssm().flat<float>()) value = 2;
  state.reset_rows(ctx, 1, 3);
  state.reset_rows(ctx, 2, 2);
  for (int64_t layer = 0; layer < state.n_layers(); ++layer) {
    for (const TensorView& part : {state.conv(layer), state.ssm(layer)}) {
      EXPECT_TRUE(all_zero(part.slice(0, 1, 3)));
      for (const int64_t row : {0, 3}) {
        for (const float value : part.slice(0, row, row + 1).flat<const float>()) {
          EXPECT_NE(value, 0);
        }
      }
    }
  }
}

TEST(CarriedState, ReadsOnWhereTheStepBeforeEnded) {
  const Model model = tiny_model(3);
  Context ctx;
  const Rows whole(0, 150), first(0, 70), second(70, 80);
  const Result all = gradient(ctx, model, whole, 150, nullptr, nullptr);
  SequenceState want(model.config(), 3, kCpu);
  gradient(ctx, model, whole, 40, nullptr, &want);
  for (const int64_t segment : {150, 33}) {
    SequenceState state(model.config(), 3, kCpu);
    const Result one = gradient(ctx, model, first, segment, &state, &state);
    EXPECT_FALSE(all_zero(state.all_ssm()));
    const Result two = gradient(ctx, model, second, segment, &state, &state);
    EXPECT_NEAR(one.totals.loss + two.totals.loss, all.totals.loss, 1e-5 * all.totals.loss);
    EXPECT_LT(largest_difference(state.all_ssm(), want.all_ssm()), 1e-4);
    EXPECT_LT(largest_difference(state.all_conv(), want.all_conv()), 1e-4);
    const Result alone = gradient(ctx, model, second, segment, nullptr, nullptr);
    EXPECT_GT(std::abs(alone.totals.loss - two.totals.loss), 1e-4) << "the state does matter";
  }
}

TEST(CarriedState, GivesTheSameGradientInAnySegments) {
  const Model model = tiny_model(3);
  Context ctx;
  SequenceState state(model.config(), 3, kCpu);
  gradient(ctx, model, Rows(0, 70), 70, nullptr, &state);
  const Rows rows(70, 80);
  const Result whole = gradient(ctx, model, rows, 80, &state, nullptr);
  const Result cut = gradient(ctx, model, rows, 17, &state, nullptr);
  EXPECT_LT(largest_difference(whole.gradients.flat(), cut.gradients.flat()), 1e-5);
}

TEST(CarriedState, ComesBackFromAFrozenBackboneToo) {
  const Model base = tiny_model(3);
  Context ctx;
  const Rows rows(0, 60);
  SequenceState want(base.config(), 3, kCpu), got(base.config(), 3, kCpu);
  gradient(ctx, base, rows, 25, nullptr, &want);
  const Arena::Scope scope(ctx.arena());
  const Model model = with_task(base, TaskKind::kClassification, {"a", "b"}, PoolMode::kMean, 3);
  ParameterBuffer gradients(model.parameters().shared_layout(), kCpu);
  const SequenceBatch batch(ctx, rows.tokens, {60, 60, 60}, {0, 1, 1}, {}, 25);
  SequenceLoss loss(ctx, model, batch, 1, gradients);
  segmented_gradient(ctx, model, host_view(rows.tokens.data(), rows.shape()), 25, loss, gradients,
                     {.backbone = false, .end = &got});
  EXPECT_TRUE(same_bits(got.all_ssm(), want.all_ssm()));
}

TEST(Training, SumsTheLossOfAllBatchesOfAStep) {
  Context ctx;
  Trainer trainer(ctx, tiny_model(3), {.learning_rate = 0, .total_steps = 2});
  const Rows one(0, 60), two(60, 40);
  LossTotals want;
  for (const Rows* rows : {&one, &two}) {
    want += gradient(ctx, trainer.model(), *rows, 64, nullptr, nullptr).totals;
  }
  for (int step = 0; step < 2; ++step) {  // nothing of the first is left in the second
    trainer.begin_step();
    for (const Rows* rows : {&one, &two}) {
      trainer.add_language_batch(rows->tokens, rows->targets, rows->weights, rows->batch,
                                 rows->length, 64, 0.01);
    }
    const StepReport report = trainer.end_step();
    EXPECT_DOUBLE_EQ(report.loss.loss, want.loss);
    EXPECT_EQ(report.loss.weight, want.weight);
    EXPECT_EQ(report.loss.correct, want.correct);
    EXPECT_EQ(report.loss.count, want.count);
  }
}

/// Weights and losses of some steps over two batches of whole sequences; all of a step's batches
/// made before the first is computed, or each when its turn comes.
std::pair<std::vector<float>, std::vector<double>> sequence_steps(TaskKind task, bool ahead,
                                                                  int64_t segment) {
  Context ctx;
  const std::vector<std::string> labels = task == TaskKind::kClassification
                                              ? std::vector<std::string>{"a", "b"}
                                              : std::vector<std::string>{"value"};
  Trainer trainer(ctx, with_task(tiny_model(3), task, labels, PoolMode::kMean, 3),
                  {.learning_rate = 1e-2, .total_steps = 4});
  const Rows one(0, 90), two(20, 60);
  const auto batch_of = [&](const Rows& rows) {
    const bool classes = task == TaskKind::kClassification;
    return SequenceBatch(ctx, rows.tokens, {rows.length, 31, 7},
                         classes ? std::vector<int32_t>{0, 1, 1} : std::vector<int32_t>{},
                         classes ? std::vector<float>{} : std::vector<float>{0.5F, -1, 2}, segment);
  };
  std::vector<double> losses;
  for (int step = 0; step < 4; ++step) {
    trainer.begin_step();
    if (ahead) {
      std::vector<SequenceBatch> batches;
      batches.push_back(batch_of(one));
      batches.push_back(batch_of(two));
      for (const SequenceBatch& batch : batches) trainer.add_sequence_batch(batch, 1.0 / 6);
    } else {
      trainer.add_sequence_batch(batch_of(one), 1.0 / 6);
      trainer.add_sequence_batch(batch_of(two), 1.0 / 6);
    }
    EXPECT_EQ(ctx.arena().used_bytes(), 0);
    const StepReport report = trainer.end_step();
    EXPECT_EQ(report.loss.count, 6);
    losses.push_back(report.loss.mean());
  }
  const auto values = trainer.model().parameters().flat().flat<const float>();
  return {{values.begin(), values.end()}, losses};
}

TEST(Training, SequencesMadeAheadGiveTheSameBits) {
  for (const TaskKind task : {TaskKind::kClassification, TaskKind::kRegression}) {
    for (const int64_t segment : {90, 25}) {
      const auto in_turn = sequence_steps(task, false, segment);
      EXPECT_EQ(sequence_steps(task, true, segment), in_turn);
      EXPECT_LT(in_turn.second.back(), in_turn.second.front());
    }
    // a cut changes roundings only
    const auto whole = sequence_steps(task, false, 90).second;
    const auto cut = sequence_steps(task, false, 25).second;
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(cut[i], whole[i], 1e-4);
  }
}

TEST(Training, BatchesOfWholeSequencesAreChecked) {
  Context ctx;
  const std::vector<uint8_t> tokens(10, 7);
  EXPECT_THROW(SequenceBatch(ctx, tokens, {3, 3, 3}, {0, 0, 0}, {}, 4), Error);
  EXPECT_THROW(SequenceBatch(ctx, tokens, {5, 5}, {0, 0}, {}, 0), Error);
  const SequenceBatch batch(ctx, tokens, {5, 3}, {0, 1}, {}, 2);
  for (const auto& [offset, first, second] :
       {std::array<int64_t, 3>{0, 2, 2}, {2, 2, 1}, {4, 1, 0}}) {
    const auto valid = batch.valid(offset).flat<const int64_t>();
    EXPECT_EQ(valid[0], first);
    EXPECT_EQ(valid[1], second);
  }
}

TEST(Training, ReadsStagedBatchesAndCarriesTheirState) {
  Context ctx;
  Trainer trainer(ctx, tiny_model(3), {.learning_rate = 0, .total_steps = 2});
  const Rows first(0, 70), second(70, 80);
  SequenceState want(trainer.model().config(), 3, kCpu);
  gradient(ctx, trainer.model(), first, 32, &want, &want);
  const Result expected = gradient(ctx, trainer.model(), second, 32, &want, &want);
  SequenceState state(trainer.model().config(), 3, kCpu);
  LossTotals got;
  for (const Rows* rows : {&first, &second}) {
    trainer.begin_step();
    const StagedBatch batch =
        trainer.stage(rows->tokens, rows->targets, rows->weights, rows->batch, rows->length, 32);
    trainer.add_language_batch(batch, 32, 0.01, &state);
    EXPECT_EQ(ctx.arena().used_bytes(), 0);
    got = trainer.end_step().loss;
  }
  EXPECT_EQ(got.loss, expected.totals.loss);
  EXPECT_TRUE(same_bits(state.all_ssm(), want.all_ssm()));
  EXPECT_TRUE(same_bits(state.all_conv(), want.all_conv()));
}

}  // namespace
}  // namespace gmamba
