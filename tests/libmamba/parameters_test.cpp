// SPDX-License-Identifier: Apache-2.0
#include "libmamba/parameters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "libmamba/state.h"

namespace gmamba {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 16;
  config.d_model = 32;
  config.n_layers = 4;
  config.d_state = 8;
  config.dt_rank = 3;
  return config;
}

std::shared_ptr<const ParameterLayout> layout_of(const ModelConfig& config) {
  return std::make_shared<const ParameterLayout>(config);
}

struct Moments {
  double mean = 0, deviation = 0, low = 0, high = 0;
};

Moments moments(std::span<const float> values) {
  Moments m{0, 0, values[0], values[0]};
  for (const float v : values) {
    m.mean += v;
    m.deviation += static_cast<double>(v) * v;
    m.low = std::min<double>(m.low, v);
    m.high = std::max<double>(m.high, v);
  }
  const auto n = static_cast<double>(values.size());
  m.mean /= n;
  m.deviation = std::sqrt(m.deviation / n - m.mean * m.mean);
  return m;
}

TEST(ParameterLayoutTest, CountsMatchPublishedModels) {
  // sizes of the published text models, for which the counts are known, with a small vocabulary
  struct Case {
    int64_t d_model, n_layers;
    double published_millions;
  };
  for (const Case& c : {Case{768, 24, 129.1}, Case{2560, 64, 2768}}) {
    ModelConfig config;
    config.vocab_size = 16;
    config.d_model = c.d_model;
    config.n_layers = c.n_layers;
    config.dt_rank = ModelConfig::auto_dt_rank(c.d_model);
    const int64_t text_rows = 50280 - 16;
    const auto count = ParameterLayout(config).count() + text_rows * c.d_model;
    EXPECT_NEAR(static_cast<double>(count) / 1e6, c.published_millions,
                c.published_millions * 1e-3);
  }
}

TEST(ParameterLayoutTest, DecayingParametersComeFirstAndAreAligned) {
  ModelConfig config = small_config();
  config.d_model = 33;
  config.use_bias = true;
  config.tie_embeddings = false;
  config.task = TaskKind::kClassification;
  config.labels = {"a", "b", "c"};
  const ParameterLayout layout(config);
  int64_t end = 0;
  int64_t sum = 0;
  for (const ParameterInfo& info : layout.all()) {
    EXPECT_EQ(info.offset % 16, 0) << info.name;
    EXPECT_GE(info.offset, end) << info.name;
    end = info.offset + info.size;
    sum += info.size;
    EXPECT_EQ(info.decay, info.offset < layout.decay_end()) << info.name;
  }
  EXPECT_EQ(sum, layout.count());
  EXPECT_GE(layout.buffer_size(), end);
  EXPECT_LT(layout.buffer_size(), end + 16);
}

TEST(ParameterLayoutTest, NamesShapesAndDecayAreThePublishedOnes) {
  ModelConfig config = small_config();
  config.use_bias = true;
  config.tie_embeddings = false;
  config.task = TaskKind::kRegression;
  config.labels = {"expression"};
  const ParameterLayout layout(config);
  EXPECT_EQ(layout.all().size(), 4u * 12 + 4);
  const auto expect = [&](const std::string& name, const Shape& shape, bool decay) {
    const int index = layout.find(name);
    ASSERT_GE(index, 0) << name;
    const ParameterInfo& info = layout.all()[static_cast<size_t>(index)];
    EXPECT_EQ(info.shape, shape) << name;
    EXPECT_EQ(info.decay, decay) << name;
  };
  expect("backbone.embeddings.weight", {16, 32}, false);
  expect("backbone.layers.0.norm.weight", {32}, false);
  expect("backbone.layers.3.mixer.in_proj.weight", {128, 32}, true);
  expect("backbone.layers.3.mixer.in_proj.bias", {128}, false);
  expect("backbone.layers.1.mixer.conv1d.weight", {64, 1, 4}, true);
  expect("backbone.layers.1.mixer.conv1d.bias", {64}, false);
  expect("backbone.layers.1.mixer.x_proj.weight", {19, 64}, true);
  expect("backbone.layers.1.mixer.dt_proj.weight", {64, 3}, true);
  expect("backbone.layers.1.mixer.dt_proj.bias", {64}, false);
  expect("backbone.layers.1.mixer.A_log", {64, 8}, false);
  expect("backbone.layers.1.mixer.D", {64}, false);
  expect("backbone.layers.1.mixer.out_proj.weight", {32, 64}, true);
  expect("backbone.layers.1.mixer.out_proj.bias", {32}, false);
  expect("backbone.norm_f.weight", {32}, false);
  expect("lm_head.weight", {16, 32}, true);
  expect("score.weight", {1, 32}, true);
  EXPECT_EQ(layout.find("backbone.layers.4.norm.weight"), -1);
}

TEST(ParameterBufferTest, ViewsShareTheBufferAndCloneDoesNot) {
  ParameterBuffer buffer(layout_of(small_config()), Device{});
  buffer.view("backbone.norm_f.weight").flat<float>()[3] = 5;
  const ParameterBuffer copy = buffer.clone();
  buffer.fill_zero();
  EXPECT_EQ(copy.view("backbone.norm_f.weight").flat<const float>()[3], 5);
  EXPECT_EQ(buffer.view("backbone.norm_f.weight").flat<float>()[3], 0);
  EXPECT_EQ(copy.view(copy.layout().find("backbone.layers.0.mixer.conv1d.weight")).rank, 3);
  EXPECT_THROW(buffer.view("no such"), Error);
  EXPECT_THROW(buffer.view(-1), Error);
}

class InitializeTest : public ::testing::Test {
 protected:
  void make(const ModelConfig& config, uint64_t seed = 7) {
    values_ = std::make_unique<ParameterBuffer>(layout_of(config), Device{});
    initialize(*values_, config, seed);
  }
  std::span<const float> of(const std::string& name) const {
    return std::as_const(*values_).view(name).flat<const float>();
  }
  void expect_uniform(const std::string& name, double bound) {
    const Moments m = moments(of(name));
    const double error = 5 * bound / std::sqrt(3 * static_cast<double>(of(name).size()));
    EXPECT_NEAR(m.mean, 0, error) << name;
    EXPECT_NEAR(m.deviation, bound / std::sqrt(3.0), bound * 0.05) << name;
    EXPECT_LE(std::max(-m.low, m.high), bound * (1 + 1e-6)) << name;
    EXPECT_GE(m.high - m.low, bound * 1.9) << name;
  }
  std::unique_ptr<ParameterBuffer> values_;
};

TEST_F(InitializeTest, FollowsTheReferenceDistributions) {
  ModelConfig config = small_config();
  config.d_model = 128;
  config.vocab_size = 64;
  config.dt_rank = 8;
  config.dt_scale = 2;
  config.use_bias = true;
  config.tie_embeddings = false;
  config.task = TaskKind::kClassification;
  for (int i = 0; i < 40; ++i) config.labels.push_back(std::to_string(i));
  make(config);
  const std::string mixer = "backbone.layers.2.mixer.";
  const double d = 128;
  const double e = 256;
  expect_uniform(mixer + "in_proj.weight", 1 / std::sqrt(d));
  expect_uniform(mixer + "x_proj.weight", 1 / std::sqrt(e));
  expect_uniform(mixer + "out_proj.weight", 1 / std::sqrt(e) / std::sqrt(4.0));
  expect_uniform(mixer + "conv1d.weight", 0.5);
  expect_uniform(mixer + "conv1d.bias", 0.5);
  expect_uniform(mixer + "dt_proj.weight", 2 / std::sqrt(8.0));
  expect_uniform("lm_head.weight", 1 / std::sqrt(d));
  for (const char* name : {"backbone.embeddings.weight", "score.weight"}) {
    EXPECT_NEAR(moments(of(name)).deviation, 0.02, 0.001) << name;
    EXPECT_NEAR(moments(of(name)).mean, 0, 0.002) << name;
  }
  for (const auto& name : {mixer + "in_proj.bias", mixer + "out_proj.bias"}) {
    EXPECT_EQ(moments(of(name)).deviation, 0) << name;
    EXPECT_EQ(of(name)[0], 0) << name;
  }
  for (const auto& name : {mixer + "D", std::string("backbone.layers.0.norm.weight"),
                           std::string("backbone.norm_f.weight")}) {
    EXPECT_EQ(moments(of(name)).low, 1) << name;
    EXPECT_EQ(moments(of(name)).high, 1) << name;
  }
}

TEST_F(InitializeTest, DecayRatesAndStepsAreTheReferenceOnes) {
  ModelConfig config = small_config();
  config.d_model = 256;
  make(config);
  const auto a_log = of("backbone.layers.1.mixer.A_log");
  for (size_t i = 0; i < a_log.size(); ++i) {
    EXPECT_FLOAT_EQ(std::exp(a_log[i]), static_cast<float>(i % 8 + 1));
  }
  double log_sum = 0;
  const auto bias = of("backbone.layers.1.mixer.dt_proj.bias");
  for (const float b : bias) {
    const double delta = std::log1p(std::exp(static_cast<double>(b)));
    EXPECT_GE(delta, 0.001 * (1 - 1e-4));
    EXPECT_LE(delta, 0.1 * (1 + 1e-4));
    log_sum += std::log(delta);
  }
  // log-uniform: the mean of the logarithm is that of the ends
  EXPECT_NEAR(log_sum / static_cast<double>(bias.size()), std::log(0.01), 0.3);
  EXPECT_TRUE(std::is_sorted(bias.begin(), bias.end()));
  config.dt_init_floor = 0.05;
  make(config);
  for (const float b : of("backbone.layers.1.mixer.dt_proj.bias")) {
    EXPECT_GE(std::log1p(std::exp(static_cast<double>(b))), 0.05 * (1 - 1e-4));
  }
}

TEST_F(InitializeTest, EachParameterHasItsOwnStream) {
  ModelConfig config = small_config();
  make(config);
  const ParameterBuffer plain = values_->clone();
  config.tie_embeddings = false;
  config.use_bias = true;
  config.task = TaskKind::kRegression;
  config.labels = {"y"};
  make(config);
  const std::string name = "backbone.layers.1.mixer.in_proj.weight";
  const auto before = plain.view(name).flat<const float>();
  EXPECT_TRUE(std::equal(before.begin(), before.end(), of(name).begin()));
  EXPECT_NE(of("backbone.layers.0.mixer.in_proj.weight")[0], of(name)[0]);
  make(config, 8);
  EXPECT_FALSE(std::equal(before.begin(), before.end(), of(name).begin()));
}

TEST(ModelConfigTest, ValidateNamesTheFieldThatIsOut) {
  small_config().validate();
  struct Case {
    const char* field;
    std::function<void(ModelConfig&)> spoil;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Case> cases = {
      {"architecture", [](ModelConfig& c) { c.arch = "mamba2"; }},
      {"vocab_size", [](ModelConfig& c) { c.vocab_size = 0; }},
      {"vocab_size", [](ModelConfig& c) { c.vocab_size = 257; }},
      {"d_model", [](ModelConfig& c) { c.d_model = 0; }},
      {"d_model", [](ModelConfig& c) { c.d_model = (1 << 24) + 1; }},
      {"d_model", [](ModelConfig& c) { c.d_model = INT64_MIN; }},
      {"n_layers", [](ModelConfig& c) { c.n_layers = -1; }},
      {"n_layers", [](ModelConfig& c) { c.n_layers = 1 << 15; }},
      {"d_state", [](ModelConfig& c) { c.d_state = 65; }},
      {"d_conv", [](ModelConfig& c) { c.d_conv = 5; }},
      {"d_conv", [](ModelConfig& c) { c.d_conv = 0; }},
      {"expand", [](ModelConfig& c) { c.expand = 0; }},
      {"d_inner", [](ModelConfig& c) { c.expand = 1 << 24; }},
      {"dt_rank", [](ModelConfig& c) { c.dt_rank = 0; }},
      {"norm_epsilon", [=](ModelConfig& c) { c.norm_epsilon = nan; }},
      {"norm_epsilon", [](ModelConfig& c) { c.norm_epsilon = 0; }},
      {"dt_min", [](ModelConfig& c) { c.dt_min = -1; }},
      {"dt_max", [](ModelConfig& c) { c.dt_max = 1e-4; }},
      {"dt_init_floor", [=](ModelConfig& c) { c.dt_init_floor = nan; }},
      {"dt_scale", [](ModelConfig& c) { c.dt_scale = 0; }},
      {"pad_token", [](ModelConfig& c) { c.pad_token = 16; }},
      {"eos_token", [](ModelConfig& c) { c.eos_token = -2; }},
      {"without a task", [](ModelConfig& c) { c.labels = {"a"}; }},
      {"labels of a classifier",
       [](ModelConfig& c) {
         c.task = TaskKind::kClassification;
         c.labels = {"a"};
       }},
      {"twice",
       [](ModelConfig& c) {
         c.task = TaskKind::kClassification;
         c.labels = {"a", "a"};
       }},
      {"UTF-8",
       [](ModelConfig& c) {
         c.task = TaskKind::kClassification;
         c.labels = {"a", "\xc0\x80"};
       }},
      {"targets", [](ModelConfig& c) { c.task = TaskKind::kRegression; }},
      {"trained_context", [](ModelConfig& c) { c.trained_context = -1; }},
      {"parameters",
       [](ModelConfig& c) {
         c.d_model = 1 << 23;
         c.n_layers = 1 << 14;
       }},
  };
  for (const Case& c : cases) {
    ModelConfig config = small_config();
    c.spoil(config);
    try {
      config.validate();
      ADD_FAILURE() << c.field << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInput);
      EXPECT_NE(error.message().find(c.field), std::string::npos) << error.message();
    }
  }
}

TEST(SequenceStateTest, IsAValueOfTheRightSize) {
  const ModelConfig config = small_config();
  SequenceState state(config, 2, Device{});
  EXPECT_FALSE(state.empty());
  EXPECT_EQ(state.batch(), 2);
  EXPECT_EQ(state.n_layers(), 4);
  EXPECT_EQ(state.conv(3).shape(), (Shape{2, 3, 64}));
  EXPECT_EQ(state.ssm(0).shape(), (Shape{2, 64, 8}));
  EXPECT_EQ(state.bytes(), SequenceState::bytes(config, 2));
  EXPECT_EQ(state.bytes(), 4 * 4 * 2 * 64 * (3 + 8));
  EXPECT_THROW(state.conv(4), Error);
  EXPECT_THROW(state.ssm(-1), Error);

  *state.ssm(2).as<float, 3>().at(1, 5, 7) = 3;
  *state.conv(1).as<float, 3>().at(0, 2, 63) = 4;
  const SequenceState fork = state.clone();
  state.reset();
  EXPECT_EQ((*fork.ssm(2).as<const float, 3>().at(1, 5, 7)), 3);
  EXPECT_EQ((*fork.conv(1).as<const float, 3>().at(0, 2, 63)), 4);
  EXPECT_EQ((*state.ssm(2).as<float, 3>().at(1, 5, 7)), 0);
  EXPECT_EQ((*state.conv(1).as<float, 3>().at(0, 2, 63)), 0);
}

TEST(SequenceStateTest, NothingAndNoTailAreLegal) {
  SequenceState nothing;
  EXPECT_TRUE(nothing.empty());
  EXPECT_EQ(nothing.batch(), 0);
  EXPECT_EQ(nothing.bytes(), 0);
  EXPECT_TRUE(nothing.clone().empty());
  nothing.reset();
  EXPECT_THROW(nothing.conv(0), Error);

  ModelConfig config = small_config();
  config.d_conv = 1;
  SequenceState state(config, 1, Device{});
  EXPECT_EQ(state.conv(0).shape(), (Shape{1, 0, 64}));
  EXPECT_EQ(state.ssm(3).shape(), (Shape{1, 64, 8}));
}

}  // namespace
}  // namespace gmamba
