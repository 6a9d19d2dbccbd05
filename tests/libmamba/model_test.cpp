// SPDX-License-Identifier: Apache-2.0
#include "libmamba/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "io/npy.h"
#include "kernels/cross_entropy.h"
#include "libmamba/core/file.h"
#include "libmamba/core/random.h"
#include "libmamba/model_folder.h"
#include "libmamba/safetensors.h"
#include "libmamba/segmented.h"

namespace gmamba {
namespace {

const std::string kGolden = std::string(GMAMBA_SOURCE_DIR) + "/test_data/golden/";

double relative_error(std::span<const float> got, std::span<const float> want) {
  EXPECT_EQ(got.size(), want.size());
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

std::span<const float> values(const ParameterBuffer& buffer, const std::string& name) {
  return buffer.view(name).flat<const float>();
}

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 16;
  config.d_model = 24;
  config.n_layers = 3;
  config.d_state = 16;
  config.dt_rank = 3;
  return config;
}

Model small_model(ModelConfig config = small_config(), uint64_t seed = 5) {
  Model model(config, Device{});
  initialize(model.parameters(), config, seed);
  return model;
}

/// A batch of random bases and the targets that shift it by one.
struct Data {
  int64_t batch, length;
  std::vector<uint8_t> tokens;
  std::vector<int32_t> targets;
  std::vector<float> weights;

  Data(int64_t batch_, int64_t length_, uint64_t seed = 11) : batch(batch_), length(length_) {
    Random random(seed, RandomUse::kTest);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = 0; t < length; ++t) {
        tokens.push_back(static_cast<uint8_t>(7 + random.below(5)));
      }
      for (int64_t t = 0; t < length; ++t) {
        const auto at = static_cast<size_t>(b * length + t + 1);
        const bool inside = t + 1 < length && tokens[at] != 11;
        targets.push_back(inside ? tokens[at] : kIgnoreTarget);
        weights.push_back(random.below(4) == 0 ? 0.1F : 1.0F);
      }
    }
  }
  Shape shape() const { return {batch, length}; }
  ConstTensorView token_view() const { return host_view(tokens.data(), shape()); }
};

struct Gradients {
  ParameterBuffer buffer;
  LossTotals totals;
};

Gradients language_gradients(const Model& model, const Data& data, int64_t segment,
                             int threads = 2) {
  Context ctx(Device{}, {.threads = threads});
  Gradients result{ParameterBuffer(model.parameters().shared_layout(), Device{}), {}};
  LanguageModelLoss loss(ctx, model, host_view(data.targets.data(), data.shape()),
                         host_view(data.weights.data(), data.shape()), 0.25F, result.buffer);
  segmented_gradient(ctx, model, data.token_view(), segment, loss, result.buffer);
  result.totals = loss.totals(ctx);
  return result;
}

std::vector<float> hidden_states(const Model& model, const Data& data, int64_t segment,
                                 SequenceState& state, int layer = -1) {
  Context ctx;
  const int64_t d = model.config().d_model;
  std::vector<float> out(static_cast<size_t>(data.batch * data.length * d));
  for (int64_t begin = 0; begin < data.length; begin += segment) {
    const int64_t end = std::min(data.length, begin + segment);
    std::vector<uint8_t> piece;
    for (int64_t b = 0; b < data.batch; ++b) {
      const auto row = data.tokens.begin() + b * data.length;
      piece.insert(piece.end(), row + begin, row + end);
    }
    std::vector<float> hidden(piece.size() * static_cast<size_t>(d));
    model.forward(ctx, host_view(std::as_const(piece).data(), {data.batch, end - begin}), state,
                  host_view(hidden.data(), {data.batch, end - begin, d}), layer);
    for (int64_t b = 0; b < data.batch; ++b) {
      std::copy_n(hidden.begin() + b * (end - begin) * d, (end - begin) * d,
                  out.begin() + (b * data.length + begin) * d);
    }
  }
  return out;
}

class GoldenModel : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, MatchesTheReferenceImplementation) {
  const std::string folder = kGolden + GetParam();
  const Model model = load_model(folder, Device{});
  const NpyArray ids = read_npy(folder + "/input_ids.npy");
  const NpyArray hidden = read_npy(folder + "/hidden.npy");
  const NpyArray logits = read_npy(folder + "/logits.npy");
  Data data(ids.values.shape()[0], ids.values.shape()[1]);
  const auto id_values = ids.values.host<int64_t>();
  for (size_t i = 0; i < id_values.size(); ++i) {
    data.tokens[i] = static_cast<uint8_t>(id_values[i]);
  }
  double predicted = 0;
  for (int64_t b = 0; b < data.batch; ++b) {
    for (int64_t t = 0; t < data.length; ++t) {
      const auto at = static_cast<size_t>(b * data.length + t);
      data.targets[at] = t + 1 < data.length ? data.tokens[at + 1] : kIgnoreTarget;
      data.weights[at] = 1;
      predicted += t + 1 < data.length ? 1 : 0;
    }
  }

  SequenceState state(model.config(), data.batch, Device{});
  const std::vector<float> got = hidden_states(model, data, data.length, state);
  EXPECT_LT(relative_error(got, hidden.values.host<float>()), 1e-5);

  Context ctx;
  const int64_t rows = data.batch * data.length;
  std::vector<float> got_logits(static_cast<size_t>(rows * model.config().vocab_size));
  model.logits(ctx, host_view(got.data(), {rows, model.config().d_model}),
               host_view(got_logits.data(), {rows, model.config().vocab_size}));
  EXPECT_LT(relative_error(got_logits, logits.values.host<float>()), 1e-5);

  for (const int64_t segment : {data.length, int64_t{50}}) {
    ParameterBuffer gradients(model.parameters().shared_layout(), Device{});
    LanguageModelLoss loss(ctx, model, host_view(data.targets.data(), data.shape()), {},
                           static_cast<float>(1 / predicted), gradients);
    segmented_gradient(ctx, model, data.token_view(), segment, loss, gradients);
    const SafetensorsReader reference(folder + "/grads.safetensors");
    size_t compared = 0;
    for (const ParameterInfo& info : model.parameters().layout().all()) {
      const SafetensorsEntry* entry = reference.find(info.name);
      ASSERT_NE(entry, nullptr) << info.name;
      std::vector<float> want(static_cast<size_t>(info.size));
      reference.read_f32(*entry, want);
      EXPECT_LT(relative_error(values(gradients, info.name), want), 1e-4) << info.name;
      ++compared;
    }
    EXPECT_GE(compared, 30u);
    const Json golden = parse_json(read_file(folder + "/golden.json", 1 << 20), "golden.json");
    EXPECT_NEAR(loss.totals(ctx).mean(), golden["loss"].get<double>(), 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenModel, ::testing::Values("mamba", "mamba_untied_bias"));

TEST(ModelForward, SplittingChangesNothing) {
  const Model model = small_model();
  const Data data(2, 301);
  SequenceState whole_state(model.config(), 2, Device{});
  const std::vector<float> whole = hidden_states(model, data, data.length, whole_state);
  for (const int64_t segment : {1, 2, 3, 64, 65, 130, 300}) {
    SequenceState state(model.config(), 2, Device{});
    EXPECT_LT(relative_error(hidden_states(model, data, segment, state), whole), 2e-6) << segment;
    for (int64_t i = 0; i < model.config().n_layers; ++i) {
      EXPECT_LT(relative_error(std::as_const(state).ssm(i).flat<const float>(),
                               std::as_const(whole_state).ssm(i).flat<const float>()),
                5e-6);
      EXPECT_LT(relative_error(std::as_const(state).conv(i).flat<const float>(),
                               std::as_const(whole_state).conv(i).flat<const float>()),
                5e-6);
    }
  }
}

TEST(ModelForward, BatchMatesAndPaddingChangeNothing) {
  const Model model = small_model();
  const Data both(2, 90);
  SequenceState state(model.config(), 2, Device{});
  const std::vector<float> together = hidden_states(model, both, 90, state);
  for (int64_t b = 0; b < 2; ++b) {
    Data alone(1, 70);
    std::copy_n(both.tokens.begin() + b * 90, 70, alone.tokens.begin());
    SequenceState one(model.config(), 1, Device{});
    const std::vector<float> hidden = hidden_states(model, alone, 70, one);
    const auto d = model.config().d_model;
    EXPECT_LT(relative_error(hidden, std::span(together).subspan(static_cast<size_t>(b * 90 * d),
                                                                 hidden.size())),
              1e-6);
  }
}

TEST(ModelForward, EmptySegmentKeepsTheState) {
  const Model model = small_model();
  const Data data(1, 20);
  SequenceState state(model.config(), 1, Device{});
  hidden_states(model, data, 20, state);
  const SequenceState before = state.clone();
  Context ctx;
  uint8_t token = 0;
  float hidden = 0;
  model.forward(ctx, host_view(&token, {1, 0}), state,
                host_view(&hidden, {1, 0, model.config().d_model}));
  for (int64_t i = 0; i < model.config().n_layers; ++i) {
    EXPECT_EQ(relative_error(std::as_const(state).ssm(i).flat<const float>(),
                             before.ssm(i).flat<const float>()),
              0);
  }
}

TEST(ModelForward, RefusesWhatDoesNotFit) {
  const Model model = small_model();
  const Data data(2, 10);
  SequenceState wrong(model.config(), 1, Device{});
  EXPECT_THROW(hidden_states(model, data, 10, wrong), Error);
  SequenceState right(model.config(), 2, Device{});
  EXPECT_THROW(hidden_states(model, data, 10, right, 3), Error);
}

TEST(ModelGradient, SegmentsGiveTheSameGradient) {
  const Model model = small_model();
  const Data data(2, 333);
  const Gradients whole = language_gradients(model, data, data.length);
  for (const int64_t segment : {1, 3, 64, 100, 332}) {
    const Gradients split = language_gradients(model, data, segment);
    EXPECT_NEAR(split.totals.loss, whole.totals.loss, 1e-5 * whole.totals.loss);
    EXPECT_EQ(split.totals.count, whole.totals.count);
    for (const ParameterInfo& info : model.parameters().layout().all()) {
      EXPECT_LT(relative_error(values(split.buffer, info.name), values(whole.buffer, info.name)),
                1e-5)
          << info.name << " segment " << segment;
    }
  }
}

TEST(ModelGradient, AMillionTokensInSegmentsOf4096) {
  ModelConfig config = small_config();
  config.d_model = 8;
  config.n_layers = 2;
  config.dt_rank = 1;
  const Model model = small_model(config);
  const Data data(1, 1 << 20);
  const Gradients whole = language_gradients(model, data, data.length);
  const Gradients split = language_gradients(model, data, 4096);
  EXPECT_NEAR(split.totals.loss, whole.totals.loss, 1e-6 * whole.totals.loss);
  for (const ParameterInfo& info : model.parameters().layout().all()) {
    EXPECT_LT(relative_error(values(split.buffer, info.name), values(whole.buffer, info.name)),
              1e-5)
        << info.name;
  }
}

TEST(ModelGradient, MemoryIsFlatInContextButForTheStatesAtBorders) {
  const Model model = small_model();
  const auto peak = [&](int64_t length) {
    const Data data(1, length);
    Context ctx;
    ParameterBuffer gradients(model.parameters().shared_layout(), Device{});
    LanguageModelLoss loss(ctx, model, host_view(data.targets.data(), data.shape()), {}, 1,
                           gradients);
    segmented_gradient(ctx, model, data.token_view(), 512, loss, gradients);
    return ctx.arena().peak_bytes();
  };
  Context ctx;
  const SequenceState border = SequenceState::scratch(ctx, model.config(), 1);
  EXPECT_GE(ctx.arena().used_bytes(), border.bytes());
  EXPECT_EQ(peak(65536) - peak(2048), (65536 - 2048) / 512 * ctx.arena().used_bytes());
}

TEST(ModelGradient, ThreadsChangeNoBit) {
  const Model model = small_model();
  const Data data(2, 200);
  const Gradients one = language_gradients(model, data, 64, 1);
  for (const int threads : {2, 3, 4}) {
    const Gradients more = language_gradients(model, data, 64, threads);
    EXPECT_EQ(std::memcmp(one.buffer.flat().data, more.buffer.flat().data,
                          static_cast<size_t>(one.buffer.flat().size()) * sizeof(float)),
              0);
  }
}

/// Loss as a function of parameters, in the precision of the model.
double loss_of(const Model& model, const Data& data) {
  return language_gradients(model, data, data.length).totals.loss * 0.25;
}

TEST(ModelGradient, AgreesWithDirectionalDerivatives) {
  for (const bool variant : {false, true}) {
    ModelConfig config = small_config();
    config.use_bias = variant;
    config.use_conv_bias = !variant;
    config.tie_embeddings = !variant;
    config.d_conv = variant ? 3 : 4;
    const Model model = small_model(config, 17);
    const Data data(2, 120);
    const Gradients gradients = language_gradients(model, data, 50);
    for (uint64_t direction = 0; direction < 4; ++direction) {
      // along the gradient plus noise, so that the derivative is far above rounding
      Random random(direction, RandomUse::kTest, 3);
      const auto g = gradients.buffer.flat().flat<const float>();
      std::vector<double> along(g.size());
      double norm = 0;
      for (const float value : g) norm += static_cast<double>(value) * value;
      norm = std::sqrt(norm);
      double slope = 0;
      for (size_t i = 0; i < g.size(); ++i) {
        if (g[i] == 0) continue;
        along[i] = g[i] / norm + 0.3 * random.normal() / std::sqrt(static_cast<double>(g.size()));
        slope += along[i] * g[i];
      }
      const double step = 2e-3;
      const auto shifted = [&](double sign) {
        Model moved(config, Device{});
        const auto from = model.parameters().flat().flat<const float>();
        const auto to = moved.parameters().flat().flat<float>();
        for (size_t i = 0; i < to.size(); ++i) {
          to[i] = static_cast<float>(from[i] + sign * step * along[i]);
        }
        return loss_of(moved, data);
      };
      const double measured = (shifted(1) - shifted(-1)) / (2 * step);
      EXPECT_NEAR(measured, slope, 5e-3 * std::abs(slope)) << "variant " << variant;
    }
  }
}

TEST(ModelGradient, SequenceHeadAgreesWithDifferences) {
  for (const PoolMode pool : {PoolMode::kMean, PoolMode::kLast, PoolMode::kMax}) {
    ModelConfig config = small_config();
    const Model base = small_model(config);
    Model model = with_task(base, TaskKind::kClassification, {"a", "b", "c"}, pool, 3);
    const Data data(3, 80);
    const std::vector<int64_t> lengths = {80, 55, 7};
    const auto run = [&](Model& at, int64_t segment, ParameterBuffer& gradients) {
      Context ctx;
      const Arena::Scope scope(ctx.arena());
      const SequenceBatch batch(ctx, data.tokens, lengths, {0, 2, 1}, {}, segment);
      SequenceLoss loss(ctx, at, batch, 1.0F / 3, gradients);
      segmented_gradient(ctx, at, batch.tokens(), segment, loss, gradients);
      const LossTotals totals = loss.totals(ctx);
      EXPECT_EQ(totals.count, 3);
      return totals.loss / 3;
    };
    ParameterBuffer whole(model.parameters().shared_layout(), Device{});
    run(model, 80, whole);
    ParameterBuffer split(model.parameters().shared_layout(), Device{});
    run(model, 17, split);
    EXPECT_LT(relative_error(split.flat().flat<const float>(), whole.flat().flat<const float>()),
              1e-5);
    for (const char* name : {"score.weight", "backbone.layers.1.mixer.in_proj.weight"}) {
      const auto g = values(whole, name);
      const size_t at = static_cast<size_t>(
          std::max_element(g.begin(), g.end(),
                           [](float a, float b) { return std::abs(a) < std::abs(b); }) -
          g.begin());
      float& parameter = model.parameters().view(name).flat<float>()[at];
      const float before = parameter;
      ParameterBuffer scratch(model.parameters().shared_layout(), Device{});
      parameter = before + 2e-3F;
      const double up = run(model, 80, scratch);
      parameter = before - 2e-3F;
      const double down = run(model, 80, scratch);
      parameter = before;
      EXPECT_NEAR((up - down) / 4e-3, g[at], 2e-2 * std::abs(g[at]) + 2e-5) << name;
    }
  }
}

TEST(ModelMemory, StepsAllocateNothingAfterTheFirst) {
  const Model model = small_model();
  const Data data(2, 130);
  Context ctx;
  ParameterBuffer gradients(model.parameters().shared_layout(), Device{});
  int64_t after_first = 0;
  for (int step = 0; step < 4; ++step) {
    const Arena::Scope scope(ctx.arena());
    LanguageModelLoss loss(ctx, model, host_view(data.targets.data(), data.shape()), {}, 1,
                           gradients);
    segmented_gradient(ctx, model, data.token_view(), 65, loss, gradients);
    if (step == 0) after_first = ctx.arena().allocations();
  }
  EXPECT_EQ(ctx.arena().allocations(), after_first);
  EXPECT_EQ(ctx.arena().used_bytes(), 0);
}

}  // namespace
}  // namespace gmamba
