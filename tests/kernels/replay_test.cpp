// SPDX-License-Identifier: Apache-2.0
/// Which passes get a recording and which lose theirs; and, on a GPU, that whatever happens while
/// one is made leaves the context as it was.
#include "kernels/replay.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/replay_table.h"
#include "tests/kernels/device_arrays.h"

namespace gmamba {
namespace {

using test::kGpu;

/// A table whose recordings are numbers, used as replay does.
class Uses {
 public:
  explicit Uses(int64_t most) : table_(most) {}

  /// True when the pass was done by a recording.
  bool use(int64_t key) {
    auto& entry = table_.use({key});
    if (table_.wants(entry, [&] { ++removed_; })) {
      table_.keep(entry, static_cast<int>(key));
      ++made_;
    }
    if (!entry.recording) {
      ++entry.calls;
      return false;
    }
    EXPECT_EQ(*entry.recording, key);
    return true;
  }

  int64_t held() const { return table_.held(); }
  int made() const { return made_; }
  int removed() const { return removed_; }

 private:
  ReplayTable<int> table_;
  int made_ = 0;
  int removed_ = 0;
};

TEST(ReplayTable, RecordsWhatComesAThirdTime) {
  Uses uses(4);
  EXPECT_FALSE(uses.use(7));
  EXPECT_FALSE(uses.use(7));
  EXPECT_FALSE(uses.use(8));
  EXPECT_TRUE(uses.use(7));
  EXPECT_TRUE(uses.use(7));
  EXPECT_FALSE(uses.use(8));
  EXPECT_EQ(uses.made(), 1);
}

TEST(ReplayTable, MoreInTurnThanFitDontPushEachOtherOut) {
  Uses uses(4);
  int replayed = 0;
  for (int round = 0; round < 100; ++round) {
    for (int64_t key = 0; key < 6; ++key) replayed += uses.use(key);
  }
  EXPECT_EQ(uses.made(), 4);
  EXPECT_EQ(uses.removed(), 0);
  EXPECT_EQ(replayed, 4 * 98);
}

TEST(ReplayTable, WhatIsNotUsedMakesRoom) {
  Uses uses(4);
  for (int64_t key = 0; key < 4; ++key) {
    for (int i = 0; i < 3; ++i) uses.use(key);
  }
  EXPECT_EQ(uses.held(), 4);
  int replayed = 0;
  for (int i = 0; i < 20; ++i) replayed += uses.use(100) + uses.use(3);
  EXPECT_EQ(uses.removed(), 1);
  EXPECT_EQ(uses.held(), 4);
  EXPECT_GT(replayed, 25);
  EXPECT_TRUE(uses.use(3));
}

TEST(ReplayTable, PassesThatNeverComeAgainAreForgotten) {
  Uses uses(2);
  for (int64_t key = 0; key < 1000; ++key) EXPECT_FALSE(uses.use(key));
  EXPECT_FALSE(uses.use(0));  // twice already, were it remembered with its third
  EXPECT_FALSE(uses.use(0));
  EXPECT_TRUE(uses.use(0));
}

TEST(Replay, OnACpuCallsThePass) {
  Context ctx;
  int calls = 0;
  for (int i = 0; i < 5; ++i) replay(ctx, {1}, [&] { ++calls; });
  allow_replay(ctx, false);
  EXPECT_EQ(calls, 5);
  EXPECT_EQ(replay_counts(ctx).replayed, 0);
}

/// A pass that adds nothing up itself: it copies `from` to `to` through scratch.
class Copying {
 public:
  explicit Copying(Context& ctx)
      : ctx_(ctx), from_(ctx.make(DType::kF32, {64})), to_(ctx.make(DType::kF32, {64})) {}

  void pass() {
    const Arena::Scope scope(ctx_.arena());
    const TensorView between = ctx_.arena().f32({64});
    ctx_.copy(from_, between);
    ctx_.copy(between, to_);
  }
  /// Replays `body` on fresh values and expects them to arrive.
  void expect_copied(const std::function<void()>& body, int64_t key = 1) {
    const std::vector<float> values(64, ++last_);
    ctx_.upload(host_view(values.data(), {64}), from_);
    replay(ctx_, {key}, body);
    expect_there();
  }
  void expect_there() {
    std::vector<float> got(64);
    ctx_.download(to_, host_view(got.data(), {64}));
    EXPECT_EQ(got, std::vector<float>(64, last_));
  }

 private:
  Context& ctx_;
  Tensor from_, to_;
  float last_ = 0;
};

TEST(CudaReplay, ValuesAreThoseOfTheMoment) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  Copying copying(ctx);
  int calls = 0;
  for (int i = 0; i < 8; ++i) {
    copying.expect_copied([&] {
      ++calls;
      copying.pass();
    });
  }
  const ReplayCounts counts = replay_counts(ctx);
  EXPECT_EQ(counts.recorded, 1);
  EXPECT_EQ(counts.replayed + counts.called, 8);
  EXPECT_EQ(calls, counts.called + counts.recorded);
  EXPECT_GE(counts.replayed, 4);
}

TEST(CudaReplay, AnErrorWhileRecordingLeavesThePassAsItWas) {
  GMAMBA_NEEDS_GPU();
  const auto refused = [](const std::function<void(Context&, int)>& disturb) {
    Context ctx(kGpu);
    Copying copying(ctx);
    int calls = 0;
    for (int i = 0; i < 8; ++i) {
      copying.expect_copied([&] {
        copying.pass();
        disturb(ctx, ++calls);
        copying.pass();
      });
    }
    EXPECT_EQ(replay_counts(ctx).replayed, 0);
    // the context records other passes all the same
    for (int i = 0; i < 5; ++i) copying.expect_copied([&] { copying.pass(); }, 2);
    EXPECT_GT(replay_counts(ctx).replayed, 0);
    return replay_counts(ctx).refused;
  };
  // the first call makes the arena's memory, so the fourth is the recording
  EXPECT_EQ(refused([](Context&, int call) {
              if (call == 4) fail(ErrorKind::kInput, "thrown while recorded");
            }),
            1);
  EXPECT_EQ(refused([](Context& ctx, int) { ctx.synchronize(); }), 1);
  EXPECT_EQ(refused([](Context& ctx, int) { ctx.make(DType::kF32, {8}); }), 1);
  EXPECT_EQ(refused([](Context& ctx, int) {
              std::vector<float> host(8);
              const Arena::Scope scope(ctx.arena());
              ctx.download(ctx.arena().f32({8}), host_view(host.data(), {8}));
            }),
            1);
}

TEST(CudaReplay, AnErrorOfThePassIsItsOwn) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  Copying copying(ctx);
  copying.expect_copied([&] { copying.pass(); }, 2);
  for (int i = 0; i < 6; ++i) {
    EXPECT_THROW(replay(ctx, {1},
                        [&] {
                          copying.pass();
                          fail(ErrorKind::kInput, "always");
                        }),
                 Error);
    copying.expect_there();
  }
  EXPECT_EQ(ctx.arena().used_bytes(), 0);
  for (int i = 0; i < 5; ++i) copying.expect_copied([&] { copying.pass(); }, 2);
  EXPECT_GT(replay_counts(ctx).replayed, 0);
}

TEST(CudaReplay, ScratchThatMovesEndsRecordings) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  Copying copying(ctx);
  const auto pass = [&] { copying.pass(); };
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 5; ++i) copying.expect_copied(pass);
    EXPECT_GE(replay_counts(ctx).held, 1);
    const int64_t recorded = replay_counts(ctx).recorded;
    ctx.arena().release_all();
    copying.expect_copied(pass);
    for (int i = 0; i < 4; ++i) copying.expect_copied(pass);
    EXPECT_EQ(replay_counts(ctx).recorded, recorded + 1);
    ctx.arena().reserve(ctx.arena().held_bytes() + (1 << 20));
    copying.expect_copied(pass);
    EXPECT_EQ(replay_counts(ctx).held, 0);
    // deeper in the arena it is another pass
    const Arena::Scope scope(ctx.arena());
    ctx.arena().f32({1000});
    for (int i = 0; i < 5; ++i) copying.expect_copied(pass);
  }
}

TEST(CudaReplay, CanBeForbidden) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  Copying copying(ctx);
  const auto pass = [&] { copying.pass(); };
  for (int i = 0; i < 5; ++i) copying.expect_copied(pass);
  const int64_t replayed = replay_counts(ctx).replayed;
  EXPECT_GT(replayed, 0);
  allow_replay(ctx, false);
  for (int i = 0; i < 5; ++i) copying.expect_copied(pass);
  EXPECT_EQ(replay_counts(ctx).replayed, replayed);
  EXPECT_EQ(replay_counts(ctx).held, 0);
}

TEST(CudaReplay, OtherThreadsMakeTensorsMeanwhile) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  Copying copying(ctx);
  std::atomic<bool> done = false;
  std::atomic<int> made = 0;
  std::string trouble;
  std::thread other([&] {
    try {
      while (!done) {
        Tensor tensor(kGpu, DType::kF32, {1000});
        const Tensor copy = tensor.clone();
        ++made;
      }
    } catch (const Error& error) {
      trouble = error.message();
    }
  });
  int64_t key = 0;
  while (made < 200 && key < 2000) {
    ++key;
    for (int i = 0; i < 4; ++i) copying.expect_copied([&] { copying.pass(); }, key);
  }
  done = true;
  other.join();
  EXPECT_EQ(trouble, "");
  EXPECT_EQ(replay_counts(ctx).refused, 0);
  EXPECT_GT(replay_counts(ctx).recorded, 10);
}

}  // namespace
}  // namespace gmamba
