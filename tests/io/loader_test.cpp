// SPDX-License-Identifier: Apache-2.0
#include "io/loader.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::error_of;
using test::random_bases;
using test::TemporaryFolder;
using test::wrap;

constexpr int32_t kNoTarget = -100;

/// What a row must hold, letter by letter.
void expect_row(const Genome& genome, const Tokenizer& tokenizer, const LoaderOptions& options,
                const Batch& batch, size_t row, double& weight_sum, int64_t& predicted) {
  const Window& window = batch.windows[row];
  std::string letters = genome.read(window.interval);
  if (window.reverse) letters = reverse_complement(letters);
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const auto length = static_cast<size_t>(options.context);
  ASSERT_EQ(batch.valid[row], static_cast<int64_t>(std::min(letters.size(), length)));
  for (size_t t = 0; t < length; ++t) {
    const size_t at = row * length + t;
    const int token = t < letters.size()
                          ? vocabulary.id_of_byte[static_cast<unsigned char>(letters[t])]
                          : vocabulary.pad;
    ASSERT_EQ(batch.tokens[at], token) << row << " " << t;
    int32_t target = kNoTarget;
    float weight = 0;
    if (t + 1 < letters.size()) {
      const char next = letters[t + 1];
      if (std::string_view("ACGTUacgtu").find(next) != std::string_view::npos) {
        target = vocabulary.id_of_byte[static_cast<unsigned char>(next)];
        weight = next >= 'a' ? options.repeat_weight : 1.0F;
        weight_sum += weight;
        ++predicted;
      }
    }
    ASSERT_EQ(batch.targets[at], target) << row << " " << t;
    ASSERT_EQ(batch.weights[at], weight) << row << " " << t;
  }
}

void expect_same(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.valid, b.valid);
  EXPECT_EQ(a.weight_sum, b.weight_sum);
  EXPECT_EQ(a.predicted, b.predicted);
  EXPECT_EQ(a.next_draw, b.next_draw);
  EXPECT_EQ(a.skipped, b.skipped);
  ASSERT_EQ(a.windows.size(), b.windows.size());
  for (size_t i = 0; i < a.windows.size(); ++i) {
    EXPECT_EQ(a.windows[i].interval, b.windows[i].interval);
    EXPECT_EQ(a.windows[i].reverse, b.windows[i].reverse);
  }
}

class LoaderTest : public ::testing::Test {
 protected:
  TemporaryFolder folder;
  Genome genome{{folder.write("x.fa", ">a\n" + wrap(random_bases(3000, 1), 60) + ">n\n" +
                                          wrap(std::string(700, 'N'), 60) + ">s\n" +
                                          wrap(random_bases(20, 2), 60) + ">one\nA\n")}};
  Tokenizer tokenizer{Vocabulary::characters()};
  std::vector<Interval> all = make_split(genome, {}).train;
  LoaderOptions options{.batch = 3, .context = 64, .repeat_weight = 0.25F};
};

TEST_F(LoaderTest, RowsHoldWhatTheGenomeDoes) {
  const WindowSampler sampler(all, options.context + 1, true, 5);
  BatchLoader loader(genome, sampler, tokenizer, options);
  uint64_t cursor = 0;
  int64_t skipped = 0;
  for (int step = 0; step < 60; ++step) {
    const Batch batch = loader.next();
    ASSERT_EQ(batch.batch, 3);
    ASSERT_EQ(batch.length, 64);
    ASSERT_EQ(batch.windows.size(), 3u);
    double weight_sum = 0;
    int64_t predicted = 0;
    for (size_t row = 0; row < 3; ++row) {
      expect_row(genome, tokenizer, options, batch, row, weight_sum, predicted);
    }
    EXPECT_DOUBLE_EQ(batch.weight_sum, weight_sum);
    EXPECT_EQ(batch.predicted, predicted);
    EXPECT_GT(batch.predicted, 0);
    // the windows are those of the sampler, in its order, less those of nothing but N
    size_t row = 0;
    for (; cursor < batch.next_draw; ++cursor) {
      const Window window = sampler.draw(cursor);
      if (row < 3 && window.interval == batch.windows[row].interval &&
          window.reverse == batch.windows[row].reverse) {
        ++row;
      } else {
        const std::string letters = genome.read(window.interval);
        EXPECT_TRUE(letters.size() < 2 || letters.find_first_not_of('N') == std::string::npos);
        ++skipped;
      }
    }
    EXPECT_EQ(row, 3u);
    skipped -= batch.skipped;
  }
  EXPECT_EQ(skipped, 0);
  EXPECT_GE(loader.waited_seconds(), 0);
}

TEST_F(LoaderTest, SameBatchesWhateverThePrefetchAndTheThreads) {
  const WindowSampler sampler(all, options.context + 1, true, 6);
  std::vector<std::vector<Batch>> runs;
  for (const auto& [prefetch, threads] : {std::pair{0, 1}, {1, 1}, {8, 4}}) {
    options.prefetch = prefetch;
    options.threads = threads;
    BatchLoader loader(genome, sampler, tokenizer, options);
    std::vector<Batch>& batches = runs.emplace_back();
    for (int i = 0; i < 25; ++i) {
      batches.push_back(loader.next());
      if (i % 7 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  for (size_t i = 0; i < 25; ++i) {
    expect_same(runs[0][i], runs[1][i]);
    expect_same(runs[0][i], runs[2][i]);
  }
  // and from a saved cursor
  options.first_draw = runs[0][9].next_draw;
  BatchLoader resumed(genome, sampler, tokenizer, options);
  for (size_t i = 10; i < 25; ++i) expect_same(resumed.next(), runs[0][i]);
}

TEST_F(LoaderTest, StopsWhileTheQueueIsFull) {
  const WindowSampler sampler(all, options.context + 1, false, 7);
  for (int i = 0; i < 30; ++i) {
    options.prefetch = 1 + i % 3;
    BatchLoader loader(genome, sampler, tokenizer, options);
    for (int k = 0; k < i % 4; ++k) loader.next();
  }
}

TEST_F(LoaderTest, NothingButNIsAnError) {
  const WindowSampler sampler({{0, 1, 0, 700}}, options.context + 1, false, 7);
  for (const int prefetch : {0, 2}) {
    options.prefetch = prefetch;
    BatchLoader loader(genome, sampler, tokenizer, options);
    for (int twice = 0; twice < 2; ++twice) {
      EXPECT_NE(error_of([&] { loader.next(); }).find("nothing to predict"), std::string::npos);
    }
  }
}

TEST_F(LoaderTest, WeightZeroIsNothingToPredict) {
  const Genome lower({folder.write("l.fa", ">a\n" + wrap(random_bases(400, 1, "acgt"), 60))});
  const WindowSampler sampler({{0, 0, 0, 400}}, options.context + 1, false, 7);
  options.repeat_weight = 0;
  BatchLoader loader(lower, sampler, tokenizer, options);
  error_of([&] { loader.next(); });
  options.repeat_weight = 0.5F;
  BatchLoader weighted(lower, sampler, tokenizer, options);
  EXPECT_DOUBLE_EQ(weighted.next().weight_sum, 3 * 64 * 0.5);
}

TEST_F(LoaderTest, ErrorsOfTheFileComeOut) {
  const std::string path = folder.write("cut.fa", ">a\n" + wrap(random_bases(300000, 1), 60));
  const Genome cut({path});
  const WindowSampler sampler({{0, 0, 0, 300000}}, options.context + 1, false, 7);
  std::filesystem::resize_file(path, 2000);
  BatchLoader loader(cut, sampler, tokenizer, options);
  const std::string message = error_of([&] {
    for (int i = 0; i < 100; ++i) loader.next();
  });
  EXPECT_NE(message.find("became shorter"), std::string::npos) << message;
}

TEST_F(LoaderTest, GivenWindows) {
  std::vector<Window> windows =
      tile({{0, 0, 0, 200}, {0, 2, 0, 20}, {0, 3, 0, 1}, {0, 1, 0, 65}}, options.context + 1);
  windows[1].reverse = true;
  const Batch batch = make_batch(genome, windows, tokenizer, options);
  ASSERT_EQ(batch.batch, static_cast<int64_t>(windows.size()));
  double weight_sum = 0;
  int64_t predicted = 0;
  for (size_t row = 0; row < windows.size(); ++row) {
    expect_row(genome, tokenizer, options, batch, row, weight_sum, predicted);
  }
  EXPECT_DOUBLE_EQ(batch.weight_sum, weight_sum);
  EXPECT_EQ(batch.predicted, predicted);
  EXPECT_EQ(make_batch(genome, {}, tokenizer, options).batch, 0);
  error_of(
      [&] {
        make_batch(genome, tile({{0, 0, 0, 66}}, 66), tokenizer, options);
      },
      ErrorKind::kInternal);
}

TEST_F(LoaderTest, VocabularyWithoutPadOrN) {
  const Tokenizer other(Vocabulary::from_tokens({"[UNK]", "T", "G", "C", "A"}));
  const Batch batch = make_batch(genome, tile({{0, 2, 0, 20}}, 65), other, options);
  EXPECT_EQ(batch.tokens[63], 0);
  EXPECT_EQ(batch.valid[0], 20);
}

TEST_F(LoaderTest, RefusesNonsense) {
  const WindowSampler sampler(all, 65, false, 7);
  const auto expect = [&](LoaderOptions bad) {
    error_of([&] { BatchLoader(genome, sampler, tokenizer, bad); }, ErrorKind::kUsage);
  };
  expect({.batch = 0});
  expect({.context = 0});
  expect({.repeat_weight = -1});
  expect({.repeat_weight = std::numeric_limits<float>::quiet_NaN()});
}

}  // namespace
}  // namespace gmamba
