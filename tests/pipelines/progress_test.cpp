// SPDX-License-Identifier: Apache-2.0
#include "pipelines/progress.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>
#include <vector>

namespace gmamba {
namespace {

class RememberingSink final : public ProgressSink {
 public:
  explicit RememberingSink(bool terminal) : terminal_(terminal) {}
  bool is_terminal() const override { return terminal_; }
  void progress_line(std::string_view text) override { lines.emplace_back(text); }
  void progress_bar(std::string_view text) override { bars.emplace_back(text); }
  std::vector<std::string> lines, bars;

 private:
  bool terminal_;
};

TEST(Progress, LineGivesShareRateAndTimeLeft) {
  EXPECT_EQ(Progress::line("embedding", "bases", {1500000, 0.25, 50000, 30}, "", false),
            "embedding 25% 1.5M bases, 50k bases/s, 01m 30s left");
  EXPECT_EQ(Progress::line("embedding", "bases", {10, -1, 5, 2}, "loss 1.3", false),
            "embedding 10 bases, 5 bases/s, loss 1.3");
  EXPECT_EQ(Progress::line("x", "b", {50, 0.5, 50, 1}, "", true),
            "x [############............] 50% 50 b, 50 b/s, 1s left");
}

TEST(Progress, BarIsDrawnAndRemovedOnATerminal) {
  RememberingSink sink(true);
  Progress progress(&sink, ProgressMode::kAuto);
  progress.start("working", "steps", 4);
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  progress.add(2);
  progress.add(1);  // too soon to redraw
  ASSERT_EQ(sink.bars.size(), 1u);
  EXPECT_NE(sink.bars[0].find("50%"), std::string::npos);
  progress.finish();
  EXPECT_EQ(sink.bars.back(), "");
  EXPECT_TRUE(sink.lines.empty());
}

TEST(Progress, TheRateIsOfTheLastWorkAndOfNothingElse) {
  RememberingSink sink(true);
  Progress progress(&sink, ProgressMode::kBar);
  progress.start("working", "steps", 10000);
  // each call is late enough to be drawn; what it says to have taken counts, not the clock
  for (const auto& [amount, seconds] :
       {std::pair{1000, 10.0}, {50, 10.0}, {50, 10.0}, {50, 10.0}}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(210));
    progress.add(amount, seconds);
  }
  ASSERT_EQ(sink.bars.size(), 4u);
  EXPECT_NE(sink.bars[0].find(" 100 steps/s"), std::string::npos) << sink.bars[0];
  EXPECT_NE(sink.bars[3].find(" 5 steps/s"), std::string::npos) << sink.bars[3];
  progress.start("working", "steps", 100);
  std::this_thread::sleep_for(std::chrono::milliseconds(210));
  progress.add(10, 1);
  EXPECT_NE(sink.bars.back().find(" 10 steps/s"), std::string::npos) << "a task begins anew";
}

TEST(Progress, CountsFromManyThreadsAndStaysQuietWhenShort) {
  RememberingSink sink(false);
  Progress progress(&sink, ProgressMode::kAuto);
  progress.start("counting", "items", -1);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 1000; ++k) progress.add(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(progress.done(), 4000);
  EXPECT_TRUE(sink.lines.empty() && sink.bars.empty()) << "less than ten seconds: nothing to say";
}

}  // namespace
}  // namespace gmamba
