// SPDX-License-Identifier: Apache-2.0
/// The whole model on a GPU against the CPU: hidden states, logits, states, gradients and training
/// steps, in fp32 and bf16; cut into segments; repeated.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/convert.h"
#include "kernels/cross_entropy.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "libmamba/memory_plan.h"
#include "libmamba/model_folder.h"
#include "libmamba/segmented.h"
#include "libmamba/trainer.h"
#include "tests/kernels/device_arrays.h"
#include "tests/kernels/relative_error.h"

namespace gmamba {
namespace {

using test::kGpu;
using test::relative_error;

const std::string kGolden = std::string(GMAMBA_SOURCE_DIR) + "/test_data/golden/";

/// A model's name, and how to make it on the CPU.
Model named_model(const std::string& name) {
  if (name != "random") return load_model(kGolden + name, Device{});
  ModelConfig config;
  config.d_model = 64;
  config.n_layers = 4;
  config.dt_rank = 8;
  Model model(config, Device{});
  initialize(model.parameters(), config, 5);
  return model;
}

Model on_gpu(const Model& model) {
  Model copy(model.config(), kGpu);
  copy.parameters() = model.parameters().clone_to(kGpu);
  return copy;
}

struct Data {
  int64_t batch, length;
  std::vector<uint8_t> tokens;
  std::vector<int32_t> targets;
  std::vector<float> weights;

  explicit Data(int64_t batch_ = 2, int64_t length_ = 300) : batch(batch_), length(length_) {
    Random random(11, RandomUse::kTest);
    for (int64_t i = 0; i < batch * length; ++i) {
      tokens.push_back(static_cast<uint8_t>(7 + random.below(5)));
    }
    for (int64_t i = 0; i < batch * length; ++i) {
      const bool last = i % length == length - 1;
      targets.push_back(last ? kIgnoreTarget : tokens[static_cast<size_t>(i + 1)]);
      weights.push_back(random.below(4) == 0 ? 0.1F : 1.0F);
    }
  }
  Shape shape() const { return {batch, length}; }
};

/// What a forward pass gives, on the host.
struct Forward {
  std::vector<float> hidden, logits, state;
};

std::vector<float> to_host(Context& ctx, ConstTensorView view) {
  const Arena::Scope scope(ctx.arena());
  const TensorView plain = ctx.arena().f32({view.size()});
  convert(ctx, view.reshape({view.size()}), plain);
  std::vector<float> out(static_cast<size_t>(view.size()));
  ctx.download(plain, host_view(out.data(), {view.size()}));
  return out;
}

Forward forward(Context& ctx, const Model& model, const Data& data, int64_t segment) {
  const Arena::Scope scope(ctx.arena());
  const ModelConfig& config = model.config();
  const int64_t B = data.batch, L = data.length, D = config.d_model, V = config.vocab_size;
  SequenceState state(config, B, ctx.device());
  Forward out;
  out.hidden.resize(static_cast<size_t>(B * L * D));
  out.logits.resize(static_cast<size_t>(B * L * V));
  for (int64_t begin = 0; begin < L; begin += segment) {
    const Arena::Scope inner(ctx.arena());
    const int64_t end = std::min(L, begin + segment);
    std::vector<uint8_t> piece;
    for (int64_t b = 0; b < B; ++b) {
      const auto row = data.tokens.begin() + b * L;
      piece.insert(piece.end(), row + begin, row + end);
    }
    const TensorView tokens = ctx.arena().tensor(DType::kU8, {B, end - begin});
    ctx.upload(host_view(std::as_const(piece).data(), tokens.shape()), tokens);
    const TensorView hidden = ctx.arena().tensor(ctx.activations(), {B, end - begin, D});
    const TensorView logits = ctx.arena().f32({B * (end - begin), V});
    model.forward(ctx, tokens, state, hidden);
    model.logits(ctx, hidden.reshape({B * (end - begin), D}), logits);
    const auto hidden_part = to_host(ctx, hidden);
    const auto logits_part = to_host(ctx, logits);
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(hidden_part.begin() + b * (end - begin) * D, (end - begin) * D,
                  out.hidden.begin() + (b * L + begin) * D);
      std::copy_n(logits_part.begin() + b * (end - begin) * V, (end - begin) * V,
                  out.logits.begin() + (b * L + begin) * V);
    }
  }
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    for (const TensorView& part : {state.conv(layer), state.ssm(layer)}) {
      const auto values = to_host(ctx, part);
      out.state.insert(out.state.end(), values.begin(), values.end());
    }
  }
  return out;
}

struct Gradient {
  ParameterBuffer values;  // on the CPU
  LossTotals totals;
};

Gradient gradient(Context& ctx, const Model& model, const Data& data, int64_t segment) {
  const Arena::Scope scope(ctx.arena());
  ParameterBuffer buffer(model.parameters().shared_layout(), ctx.device());
  const TensorView tokens = ctx.arena().tensor(DType::kU8, data.shape());
  const TensorView targets = ctx.arena().tensor(DType::kI32, data.shape());
  const TensorView weights = ctx.arena().f32(data.shape());
  ctx.upload(host_view(data.tokens.data(), data.shape()), tokens);
  ctx.upload(host_view(data.targets.data(), data.shape()), targets);
  ctx.upload(host_view(data.weights.data(), data.shape()), weights);
  LanguageModelLoss loss(ctx, model, targets, weights, 0.01F, buffer);
  segmented_gradient(ctx, model, tokens, segment, loss, buffer);
  LossTotals totals = loss.totals(ctx);
  return {buffer.clone_to(Device{}), totals};
}

std::vector<float> flat(const ParameterBuffer& buffer, const std::string& name) {
  const auto view = buffer.view(name).flat<const float>();
  return {view.begin(), view.end()};
}

/// The gradient as a whole is within `tolerance` of the other, as is the loss; the gradient of one
/// parameter, where fewer roundings cancel, within one and a half of it.
void expect_same_gradient(const Gradient& got, const Gradient& want, double tolerance,
                          const std::string& what) {
  EXPECT_NEAR(got.totals.loss, want.totals.loss, tolerance * want.totals.loss) << what;
  EXPECT_EQ(got.totals.count, want.totals.count) << what;
  std::vector<float> all_got, all_want;
  for (const ParameterInfo& info : want.values.layout().all()) {
    const auto one = flat(got.values, info.name);
    const auto other = flat(want.values, info.name);
    EXPECT_LE(relative_error(one, other), 1.5 * tolerance) << what << ": " << info.name;
    all_got.insert(all_got.end(), one.begin(), one.end());
    all_want.insert(all_want.end(), other.begin(), other.end());
  }
  EXPECT_LE(relative_error(all_got, all_want), tolerance) << what;
}

struct Case {
  const char* model;
  DType type;
  double tolerance;
};

class CudaModel : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(, CudaModel,
                         testing::Values(Case{"mamba", DType::kF32, 1e-4},
                                         Case{"mamba", DType::kBF16, 2e-2},
                                         Case{"mamba_untied_bias", DType::kF32, 1e-4},
                                         Case{"mamba_untied_bias", DType::kBF16, 2e-2},
                                         Case{"random", DType::kF32, 1e-4},
                                         Case{"random", DType::kBF16, 2e-2}),
                         [](const auto& test_info) {
                           return test_info.param.model + std::string("_") +
                                  std::string(to_string(test_info.param.type));
                         });

TEST_P(CudaModel, ForwardIsThatOfTheCpuInAnySegments) {
  GMAMBA_NEEDS_GPU();
  const auto& [name, type, tolerance] = GetParam();
  const Model host_model = named_model(name);
  const Model model = on_gpu(host_model);
  const Data data;
  Context cpu;
  Context ctx(kGpu, {.activations = type});
  const Forward want = forward(cpu, host_model, data, data.length);
  for (const int64_t segment : {data.length, int64_t{128}, int64_t{37}, int64_t{1}}) {
    const Forward got = forward(ctx, model, data, segment);
    EXPECT_LE(relative_error(got.hidden, want.hidden), tolerance) << "segment " << segment;
    EXPECT_LE(relative_error(got.logits, want.logits), tolerance) << "segment " << segment;
    EXPECT_LE(relative_error(got.state, want.state), tolerance) << "segment " << segment;
  }
}

TEST_P(CudaModel, GradientIsThatOfTheCpuInAnySegments) {
  GMAMBA_NEEDS_GPU();
  const auto& [name, type, tolerance] = GetParam();
  const Model host_model = named_model(name);
  const Model model = on_gpu(host_model);
  const Data data;
  Context cpu;
  Context ctx(kGpu, {.activations = type});
  const Gradient want = gradient(cpu, host_model, data, data.length);
  const Gradient whole = gradient(ctx, model, data, data.length);
  expect_same_gradient(whole, want, tolerance, "against the CPU");
  for (const int64_t segment : {256, 100, 48, 31}) {
    const Gradient cut = gradient(ctx, model, data, segment);
    expect_same_gradient(cut, whole, type == DType::kF32 ? 2e-5 : tolerance,
                         "segment " + std::to_string(segment));
  }
}

/// One sequence wide enough that its first reading takes several segments at once and keeps states
/// within them for the second.
TEST(CudaSegments, GradientIsThatOfOneSegment) {
  GMAMBA_NEEDS_GPU();
  ModelConfig config;
  config.d_model = 256;
  config.n_layers = 2;
  config.dt_rank = 16;
  constexpr int64_t kSegment = 2048;
  const Data data(1, 5000);
  Model host(config, Device{});
  initialize(host.parameters(), config, 3);
  const Model model = on_gpu(host);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    const FirstSweep sweep = first_sweep(config, 1, data.length, kSegment, {kGpu, type});
    EXPECT_EQ(sweep.length, 2 * kSegment);
    EXPECT_EQ(sweep.mark_every, 16);
    Context ctx(kGpu, {.activations = type});
    const Gradient whole = gradient(ctx, model, data, data.length);
    const Gradient cut = gradient(ctx, model, data, kSegment);
    expect_same_gradient(cut, whole, type == DType::kF32 ? 2e-5 : 2e-2,
                         std::string(to_string(type)));
  }
}

TEST_P(CudaModel, RepeatsTheSameBits) {
  GMAMBA_NEEDS_GPU();
  const Model model = on_gpu(named_model(GetParam().model));
  const Data data;
  std::vector<std::vector<float>> first;
  for (int repeat = 0; repeat < 2; ++repeat) {
    Context ctx(kGpu, {.activations = GetParam().type});
    const Gradient result = gradient(ctx, model, data, 128);
    const auto all = result.values.flat().flat<const float>();
    first.emplace_back(all.begin(), all.end());
  }
  EXPECT_EQ(first[0], first[1]);
}

TEST_P(CudaModel, TrainsAsOnTheCpu) {
  GMAMBA_NEEDS_GPU();
  const auto& [name, type, tolerance] = GetParam();
  const Model host_model = named_model(name);
  const Data data;
  const OptimizerOptions options{.learning_rate = 1e-3, .total_steps = 4};
  std::vector<double> losses[2];
  for (const bool gpu : {false, true}) {
    Context ctx(gpu ? kGpu : Device{}, {.activations = gpu ? type : DType::kF32});
    Model model(host_model.config(), ctx.device());
    model.parameters() = host_model.parameters().clone_to(ctx.device());
    Trainer trainer(ctx, std::move(model), options);
    for (int step = 0; step < 4; ++step) {
      trainer.begin_step();
      trainer.add_language_batch(data.tokens, data.targets, data.weights, data.batch, data.length,
                                 128, 1.0 / 400);
      const StepReport report = trainer.end_step();
      EXPECT_FALSE(report.skipped);
      losses[gpu ? 1 : 0].push_back(report.loss.mean());
    }
  }
  EXPECT_LT(losses[0].back(), losses[0].front());
  EXPECT_LE(relative_error(losses[1], losses[0]), tolerance);
}

struct Step {
  int64_t batch, context, segment, extras;

  std::string name() const {
    return concat(batch, " x ", context, ", segment ", segment, ", extras ", extras);
  }
};

/// Three layers that are as wide as those of real models.
ModelConfig wide_config() {
  ModelConfig config;
  config.d_model = 256;
  config.n_layers = 3;
  config.dt_rank = 16;
  return config;
}

/// What a trainer with that context has held and holds is what was planned, within a twentieth.
void expect_planned(Context& ctx, const ModelConfig& config, const MemoryPlan& plan) {
  const int64_t buffers = 4 * ParameterLayout(config).buffer_size() * 4;
  const auto planned = static_cast<double>(plan.total_bytes());
  EXPECT_NEAR(static_cast<double>(ctx.arena().peak_bytes() + buffers), planned, 0.05 * planned);
  EXPECT_LE(static_cast<double>(ctx.arena().held_bytes() + buffers), 1.05 * planned);
}

/// The memory that a step really holds, beside its plan.
TEST(CudaMemory, IsThatOfThePlan) {
  GMAMBA_NEEDS_GPU();
  const ModelConfig config = wide_config();
  const Arithmetic arithmetic{kGpu, DType::kBF16};
  for (const Step& step : {Step{1, 131072, 131072, 0}, Step{1, 131072, 131072, 6},
                           Step{128, 1024, 1024, 1}, Step{1, 262144, 65536, 4}}) {
    SCOPED_TRACE(step.name());
    const MemoryPlan plan =
        plan_training(config, step.batch, step.context, step.segment, arithmetic, step.extras);
    EXPECT_EQ(extras_within(plan.total_bytes(), config, step.batch, step.context, step.segment,
                            arithmetic),
              step.extras);
    Context ctx(kGpu, {.activations = DType::kBF16});
    Model host(config, Device{});
    initialize(host.parameters(), config, 3);
    Trainer trainer(ctx, on_gpu(host), {});
    trainer.limit_scratch(scratch_within(plan.total_bytes(), config, step.batch, step.segment));
    const int64_t count = step.batch * step.context;
    const std::vector<uint8_t> tokens(static_cast<size_t>(count), 8);
    const std::vector<int32_t> targets(static_cast<size_t>(count), 9);
    const std::vector<float> weights(static_cast<size_t>(count), 1.0F);
    trainer.begin_step();
    trainer.add_language_batch(tokens, targets, weights, step.batch, step.context, step.segment,
                               1e-5);
    trainer.end_step();
    expect_planned(ctx, config, plan);
  }
}

/// Weights and losses of some steps of several batches; staged ahead of their use or not at all.
std::pair<std::vector<float>, std::vector<double>> train_steps(DType type, int64_t segment,
                                                               bool staged) {
  Context ctx(kGpu, {.activations = type});
  Trainer trainer(ctx, on_gpu(named_model("random")), {.learning_rate = 1e-3, .total_steps = 5});
  Data data;
  std::vector<double> losses;
  for (int step = 0; step < 5; ++step) {
    trainer.begin_step();
    std::vector<StagedBatch> ahead;
    for (int batch = 0; batch < 6; ++batch) {
      std::rotate(data.tokens.begin(), data.tokens.begin() + 17, data.tokens.end());
      std::rotate(data.targets.begin(), data.targets.begin() + 17, data.targets.end());
      if (staged && segment >= data.length) {
        ahead.push_back(trainer.stage(data.tokens, data.targets, data.weights, data.batch,
                                      data.length, segment));
        if (ahead.size() < 3) continue;
        for (const StagedBatch& one : ahead) trainer.add_language_batch(one, segment, 1.0 / 2400);
        ahead.clear();
      } else {
        trainer.add_language_batch(data.tokens, data.targets, data.weights, data.batch, data.length,
                                   segment, 1.0 / 2400);
        if (!staged) ctx.synchronize();
      }
    }
    losses.push_back(trainer.end_step().loss.loss);
  }
  const ParameterBuffer values = trainer.model().parameters().clone_to(Device{});
  const auto all = values.flat().flat<const float>();
  return {{all.begin(), all.end()}, losses};
}

/// The memory that a step over whole sequences really holds, beside its plan.
TEST(CudaMemory, IsThatOfThePlanForWholeSequences) {
  GMAMBA_NEEDS_GPU();
  const ModelConfig config = wide_config();
  Model base(config, Device{});
  initialize(base.parameters(), config, 3);
  const Model host = with_task(base, TaskKind::kClassification, {"a", "b"}, PoolMode::kMax, 3);
  const Arithmetic arithmetic{kGpu, DType::kBF16};
  for (const Step& step : {Step{64, 2048, 131072, 0}, Step{64, 2048, 131072, 5},
                           Step{1, 262144, 65536, 1}, Step{512, 128, 131072, 6}}) {
    SCOPED_TRACE(step.name());
    const MemoryPlan plan = plan_sequence_training(host.config(), step.batch, step.context,
                                                   step.segment, arithmetic, step.extras);
    Context ctx(kGpu, {.activations = DType::kBF16});
    Trainer trainer(ctx, on_gpu(host), {});
    trainer.limit_scratch(
        scratch_within(plan.total_bytes(), host.config(),
                       sequence_input_bytes(step.batch, step.context, step.segment, kGpu)));
    const std::vector<uint8_t> tokens(static_cast<size_t>(step.batch * step.context), 8);
    const auto rows = static_cast<size_t>(step.batch);
    trainer.begin_step();
    const SequenceBatch batch(ctx, tokens, std::vector<int64_t>(rows, step.context),
                              std::vector<int32_t>(rows, 1), {}, step.segment);
    trainer.add_sequence_batch(batch, 1.0 / static_cast<double>(step.batch));
    trainer.end_step();
    expect_planned(ctx, host.config(), plan);
  }
}

/// Weights and losses of some steps over two batches of whole sequences of several lengths; made
/// ahead of their use, or each waited for.
std::pair<std::vector<float>, std::vector<double>> sequence_steps(Device device, DType type,
                                                                  TaskKind task, int64_t segment,
                                                                  bool ahead) {
  const bool classify = task == TaskKind::kClassification;
  const std::vector<std::string> labels =
      classify ? std::vector<std::string>{"a", "b"} : std::vector<std::string>{"value"};
  const Model host = with_task(named_model("random"), task, labels, PoolMode::kMean, 3);
  Context ctx(device, {.activations = device.is_cpu() ? DType::kF32 : type});
  Model model(host.config(), device);
  model.parameters() = host.parameters().clone_to(device);
  Trainer trainer(ctx, std::move(model), {.learning_rate = 1e-3, .total_steps = 4});
  const Data data;
  std::vector<int64_t> lengths;
  std::vector<int32_t> classes;
  std::vector<float> values;
  for (int64_t b = 0; b < data.batch; ++b) {
    lengths.push_back(b == 0 ? data.length : data.length / (b + 2));
    classify ? classes.push_back(static_cast<int32_t>(b % 2)) : values.push_back(0.5F);
  }
  const auto make = [&] {
    return SequenceBatch(ctx, data.tokens, lengths, classes, values, segment);
  };
  std::vector<double> losses;
  const double scale = 0.5 / static_cast<double>(data.batch);
  for (int step = 0; step < 4; ++step) {
    trainer.begin_step();
    if (ahead) {
      const SequenceBatch one = make();
      const SequenceBatch two = make();
      trainer.add_sequence_batch(one, scale);
      trainer.add_sequence_batch(two, scale);
    } else {
      for (int i = 0; i < 2; ++i) {
        trainer.add_sequence_batch(make(), scale);
        ctx.synchronize();
      }
    }
    losses.push_back(trainer.end_step().loss.mean());
  }
  const ParameterBuffer got = trainer.model().parameters().clone_to(Device{});
  const auto all = got.flat().flat<const float>();
  return {{all.begin(), all.end()}, losses};
}

TEST(CudaSequences, TrainAsOnTheCpuAndStagedAheadWithTheSameBits) {
  GMAMBA_NEEDS_GPU();
  for (const TaskKind task : {TaskKind::kClassification, TaskKind::kRegression}) {
    const auto cpu = sequence_steps(Device{}, DType::kF32, task, 4096, false);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t segment : {4096, 100}) {
        const auto waiting = sequence_steps(kGpu, type, task, segment, false);
        EXPECT_EQ(sequence_steps(kGpu, type, task, segment, true), waiting);
        EXPECT_LE(relative_error(waiting.second, cpu.second), type == DType::kF32 ? 1e-3 : 3e-2)
            << "segment " << segment;
      }
    }
  }
}

TEST(CudaStaging, WaitingForEachBatchChangesNoBit) {
  GMAMBA_NEEDS_GPU();
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const int64_t segment : {512, 100}) {  // rows in one piece, and a segment at a time
      const auto waiting = train_steps(type, segment, false);
      const auto ahead = train_steps(type, segment, true);
      EXPECT_EQ(ahead.first, waiting.first);
      EXPECT_EQ(ahead.second, waiting.second);
    }
  }
}

TEST(CudaStaging, ArraysArriveWhateverTheDeviceIsBusyWith) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  constexpr int64_t kCount = 1 << 20;
  const Tensor ballast = ctx.make(DType::kF32, {1 << 26});
  Tensor other = ctx.make(DType::kF32, {1 << 26});
  std::vector<Tensor> kept;
  for (int i = 0; i < 12; ++i) {
    std::vector<int32_t> host(kCount, i);
    kept.push_back(ctx.make(DType::kI32, {kCount}));
    ctx.copy(ballast, other);  // the stream is behind the host
    const ConstTensorView view = host_view(std::as_const(host).data(), {kCount});
    const Staged staged = ctx.stage({&view, 1});
    std::fill(host.begin(), host.end(), -1);
    ctx.copy(staged.view(0), kept.back());
  }
  for (int i = 0; i < 12; ++i) {
    std::vector<int32_t> got(kCount);
    ctx.download(kept[static_cast<size_t>(i)], host_view(got.data(), {kCount}));
    EXPECT_EQ(std::count(got.begin(), got.end(), i), kCount);
  }
}

TEST(CudaMemory, IsCountedAsTheDriverDoes) {
  GMAMBA_NEEDS_GPU();
  Backend& backend = backend_for(DeviceKind::kCuda);
  Context ctx(kGpu);
  const int64_t before = backend.allocated_bytes(0);
  const int64_t free_before = backend.free_bytes(0);
  const Tensor tensor = ctx.make(DType::kF32, {1 << 28});
  EXPECT_EQ(backend.allocated_bytes(0) - before, int64_t{1} << 30);
  EXPECT_NEAR(static_cast<double>(free_before - backend.free_bytes(0)), 1 << 30, 1 << 25);
  EXPECT_GT(backend.total_bytes(0), backend.free_bytes(0));
}

}  // namespace
}  // namespace gmamba
