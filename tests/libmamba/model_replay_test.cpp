// SPDX-License-Identifier: Apache-2.0
/// Short forward passes on a GPU that are replayed from recordings give the bits of those whose
/// kernels are launched one by one, whatever else the context does between them.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/replay.h"
#include "libmamba/core/random.h"
#include "libmamba/model.h"
#include "libmamba/trainer.h"
#include "tests/kernels/device_arrays.h"

namespace gmamba {
namespace {

using test::kGpu;

Model gpu_model(const ModelConfig& config, uint64_t seed) {
  Model host(config, Device{});
  initialize(host.parameters(), config, seed);
  Model model(config, kGpu);
  model.parameters() = host.parameters().clone_to(kGpu);
  return model;
}

ModelConfig config_of(int64_t d_model, int64_t n_layers) {
  ModelConfig config;
  config.d_model = d_model;
  config.n_layers = n_layers;
  config.dt_rank = ModelConfig::auto_dt_rank(d_model);
  return config;
}

std::vector<std::byte> bytes_of(Context& ctx, ConstTensorView view) {
  std::vector<std::byte> out(static_cast<size_t>(view.size() * size_of(view.dtype)));
  ctx.download(view, make_view(out.data(), view.dtype, Device{}, view.shape()));
  return out;
}

/// Reads segments and remembers, byte for byte, what came out.
class Reader {
 public:
  Reader(DType type, bool replayed) : ctx_(kGpu, {.activations = type}) {
    allow_replay(ctx_, replayed);
  }

  Context& ctx() { return ctx_; }

  struct Segment {
    int64_t batch, length;
    int layer = -1;
    DType hidden = DType::kF32;
    bool without_hidden = false;
  };

  /// The next tokens of the sequences that `state` has read so far.
  void read(const Model& model, const Segment& segment, SequenceState& state) {
    const auto& [batch, length, layer, hidden_type, without_hidden] = segment;
    const Arena::Scope scope(ctx_.arena());
    std::vector<uint8_t> tokens(static_cast<size_t>(batch * length));
    for (uint8_t& token : tokens) token = static_cast<uint8_t>(7 + random_.below(5));
    const TensorView on_device = ctx_.arena().tensor(DType::kU8, {batch, length});
    const TensorView hidden =
        ctx_.arena().tensor(hidden_type, {batch, length, model.config().d_model});
    ctx_.upload(host_view(std::as_const(tokens).data(), {batch, length}), on_device);
    if (without_hidden) {
      model.advance(ctx_, on_device, state, {});
    } else {
      model.forward(ctx_, on_device, state, hidden, layer);
      seen_.push_back(bytes_of(ctx_, hidden));
    }
    seen_.push_back(bytes_of(ctx_, state.all_conv()));
    seen_.push_back(bytes_of(ctx_, state.all_ssm()));
  }

  const std::vector<std::vector<std::byte>>& seen() const { return seen_; }

 private:
  Context ctx_;
  Random random_{5, RandomUse::kTest};
  std::vector<std::vector<std::byte>> seen_;
};

/// Runs `story` with and without recordings, in both types, and expects the same bytes, and so many
/// passes that could not be recorded.
void expect_same_bytes(const std::function<void(Reader&)>& story, int64_t refused = 0) {
  for (const DType type : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(std::string(to_string(type)));
    Reader replayed(type, true);
    Reader launched(type, false);
    story(replayed);
    story(launched);
    EXPECT_EQ(replay_counts(launched.ctx()).replayed, 0);
    EXPECT_GT(replay_counts(replayed.ctx()).replayed, 0);
    EXPECT_EQ(replay_counts(replayed.ctx()).refused, refused);
    ASSERT_EQ(replayed.seen().size(), launched.seen().size());
    for (size_t i = 0; i < replayed.seen().size(); ++i) {
      ASSERT_TRUE(replayed.seen()[i] == launched.seen()[i]) << "array " << i;
    }
  }
}

TEST(CudaModelReplay, ShapesInTurnWithStatesCarried) {
  GMAMBA_NEEDS_GPU();
  const Model model = gpu_model(config_of(256, 3), 3);
  expect_same_bytes([&](Reader& reader) {
    std::map<int64_t, SequenceState> states;
    for (const int64_t batch : {1, 2, 16, 200}) {
      states.emplace(batch, SequenceState(model.config(), batch, kGpu));
    }
    for (int round = 0; round < 6; ++round) {
      for (const auto& [batch, length] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 300}, {16, 64}, {1, 4096}, {2, 37}, {1, 1}, {16, 256}, {200, 8}, {1, 20000}}) {
        reader.read(model, {batch, length}, states.at(batch));
      }
    }
  });
}

TEST(CudaModelReplay, OutputsOfEveryKind) {
  GMAMBA_NEEDS_GPU();
  const Model model = gpu_model(config_of(64, 4), 3);
  expect_same_bytes([&](Reader& reader) {
    SequenceState state(model.config(), 2, kGpu);
    for (int round = 0; round < 6; ++round) {
      for (const int layer : {-1, 0, 2, 3}) {
        reader.read(model, {2, 100, layer, DType::kF32}, state);
        reader.read(model, {2, 100, layer, reader.ctx().activations()}, state);
      }
      reader.read(model, {.batch = 2, .length = 100, .without_hidden = true}, state);
    }
  });
}

TEST(CudaModelReplay, TwoModelsOnOneContext) {
  GMAMBA_NEEDS_GPU();
  const Model one = gpu_model(config_of(64, 4), 3);
  const Model other = gpu_model(config_of(64, 4), 4);
  const Model small = gpu_model(config_of(32, 2), 5);
  expect_same_bytes([&](Reader& reader) {
    SequenceState state(one.config(), 1, kGpu);
    SequenceState of_small(small.config(), 1, kGpu);
    for (int round = 0; round < 6; ++round) {
      reader.read(one, {1, 500}, state);
      reader.read(other, {1, 500}, state);
      reader.read(small, {1, 500}, of_small);
    }
  });
}

TEST(CudaModelReplay, ModelsThatComeAndGo) {
  GMAMBA_NEEDS_GPU();
  expect_same_bytes([](Reader& reader) {
    // often in the memory of the one before
    for (const uint64_t seed : {1, 2, 3}) {
      for (const int64_t d_state : {16, 8}) {
        ModelConfig config = config_of(64, 2);
        config.d_state = d_state;
        const Model model = gpu_model(config, seed);
        SequenceState state(config, 1, kGpu);
        for (int i = 0; i < 5; ++i) reader.read(model, {1, 500}, state);
      }
    }
  });
}

TEST(CudaModelReplay, ParametersAndStatesThatChange) {
  GMAMBA_NEEDS_GPU();
  expect_same_bytes([](Reader& reader) {
    Model model = gpu_model(config_of(64, 3), 3);
    SequenceState state(model.config(), 1, kGpu);
    SequenceState other(model.config(), 1, kGpu);
    for (int round = 0; round < 9; ++round) {
      reader.read(model, {1, 200}, state);
      reader.read(model, {1, 200}, other);
      if (round == 4) state.reset();
      if (round == 5) other.assign(reader.ctx(), state);
      if (round == 6) state = other.clone();
      if (round % 3 != 2) continue;
      Model next = gpu_model(model.config(), 10 + static_cast<uint64_t>(round));
      reader.ctx().copy(next.parameters().flat(), model.parameters().flat());
      reader.ctx().synchronize();
    }
  });
}

TEST(CudaModelReplay, ArenaThatGrowsOrIsFreed) {
  GMAMBA_NEEDS_GPU();
  const Model model = gpu_model(config_of(64, 3), 3);
  expect_same_bytes([&](Reader& reader) {
    SequenceState state(model.config(), 1, kGpu);
    Arena& arena = reader.ctx().arena();
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 5; ++i) reader.read(model, {1, 400}, state);
      if (round == 0) arena.release_all();
      if (round == 1) arena.reserve(arena.held_bytes() + (int64_t{64} << 20));
      if (round == 2) reader.read(model, {1, 100000}, state);
    }
    // within other scratch, and where that ends
    for (const int64_t count : {1000, 3000000}) {
      const Arena::Scope scope(arena);
      arena.f32({count});
      for (int i = 0; i < 5; ++i) reader.read(model, {1, 400}, state);
    }
    for (int i = 0; i < 5; ++i) reader.read(model, {1, 400}, state);
  });
}

TEST(CudaModelReplay, MoreShapesThanAreKept) {
  GMAMBA_NEEDS_GPU();
  const Model model = gpu_model(config_of(32, 2), 3);
  expect_same_bytes([&](Reader& reader) {
    SequenceState state(model.config(), 1, kGpu);
    reader.read(model, {1, 400}, state);
    for (int round = 0; round < 4; ++round) {
      for (int64_t length = 1; length <= 80; ++length) reader.read(model, {1, length}, state);
    }
    // old ones make room in the end
    for (int64_t length = 200; length < 300; ++length) {
      for (int i = 0; i < 5; ++i) reader.read(model, {1, length}, state);
    }
    EXPECT_LE(replay_counts(reader.ctx()).held, 64);
  });
}

TEST(CudaModelReplay, AnErrorLeavesTheModelReadable) {
  GMAMBA_NEEDS_GPU();
  const Model model = gpu_model(config_of(64, 2), 3);
  expect_same_bytes(
      [&](Reader& reader) {
        SequenceState state(model.config(), 1, kGpu);
        SequenceState wrong(model.config(), 2, kGpu);
        for (int i = 0; i < 6; ++i) {
          EXPECT_THROW(reader.read(model, {1, 100}, wrong), Error);
          reader.read(model, {1, 100}, state);
        }
      },
      1);
}

/// Weights and losses of steps over batches of two shapes, some of which go on from a state.
std::pair<std::vector<std::byte>, std::vector<double>> train(DType type, TaskKind task,
                                                             bool replayed) {
  Context ctx(kGpu, {.activations = type});
  allow_replay(ctx, replayed);
  const ModelConfig config = config_of(64, 3);
  Model model = gpu_model(config, 7);
  if (task != TaskKind::kNone) {
    Model host(config, Device{});
    initialize(host.parameters(), config, 7);
    const Model tasked = with_task(host, task, {"a", "b"}, PoolMode::kMean, 3);
    model = Model(tasked.config(), kGpu);
    model.parameters() = tasked.parameters().clone_to(kGpu);
  }
  Trainer trainer(ctx, std::move(model), {.learning_rate = 1e-3, .total_steps = 10});
  Random random(9, RandomUse::kTest);
  SequenceState state(config, 4, kGpu);
  std::vector<double> losses;
  for (int step = 0; step < 10; ++step) {
    trainer.begin_step();
    for (const int64_t length : {100, 256, 100, 256}) {
      std::vector<uint8_t> tokens(static_cast<size_t>(4 * length));
      for (uint8_t& token : tokens) token = static_cast<uint8_t>(7 + random.below(4));
      const std::vector<int32_t> targets(tokens.begin(), tokens.end());
      const std::vector<float> weights(tokens.size(), step % 2 == 0 ? 1.0F : 0.5F);
      const double scale = 1.0 / static_cast<double>(tokens.size());
      if (task != TaskKind::kNone) {
        const SequenceBatch batch(ctx, tokens, {length, length / 2, 1, length}, {0, 1, 0, 1}, {},
                                  1024);
        trainer.add_sequence_batch(batch, 0.25);
      } else {
        const StagedBatch batch = trainer.stage(tokens, targets, weights, 4, length, 1024);
        trainer.add_language_batch(batch, 1024, scale, length == 256 ? &state : nullptr);
      }
    }
    losses.push_back(trainer.end_step().loss.loss);
  }
  EXPECT_EQ(replay_counts(ctx).replayed > 0, replayed);
  EXPECT_EQ(replay_counts(ctx).refused, 0);
  return {bytes_of(ctx, std::as_const(trainer.model().parameters()).flat()), losses};
}

TEST(CudaModelReplay, TrainingSteps) {
  GMAMBA_NEEDS_GPU();
  for (const DType type : {DType::kF32, DType::kBF16}) {
    for (const TaskKind task : {TaskKind::kNone, TaskKind::kClassification}) {
      const auto launched = train(type, task, false);
      const auto replayed = train(type, task, true);
      EXPECT_EQ(replayed.second, launched.second);
      EXPECT_TRUE(replayed.first == launched.first);
    }
  }
}

}  // namespace
}  // namespace gmamba
