// SPDX-License-Identifier: Apache-2.0
#include "io/streams.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::error_of;
using test::random_bases;
using test::TemporaryFolder;
using test::wrap;

/// A base as it is read: contig, position, strand.
using Place = std::tuple<int32_t, int64_t, bool>;

std::vector<Place> places_of(const Window& window) {
  std::vector<Place> places;
  for (int64_t i = window.interval.start; i < window.interval.end; ++i) {
    places.emplace_back(window.interval.contig, i, window.reverse);
  }
  if (window.reverse) std::reverse(places.begin(), places.end());
  return places;
}

TEST(StreamPlans, EveryBaseIsReadOnceAPassByStreamsOfEqualLength) {
  const std::vector<Interval> intervals = {{0, 0, 0, 700}, {0, 1, 10, 13}, {0, 1, 50, 450},
                                           {0, 2, 0, 1},   {0, 3, 0, 90},  {0, 4, 5, 5}};
  for (const int64_t streams : {1, 3, 7, 40}) {
    StreamPlan plan(intervals, streams, true, 9, 0);
    std::vector<std::vector<Place>> orders;
    bool reversed = false;
    for (int64_t pass = 0; pass < 5; ++pass) {
      std::vector<Place> all;
      for (int64_t stream = 0; stream < streams; ++stream) {
        EXPECT_NEAR(static_cast<double>(plan.bases(stream)), 1194.0 / static_cast<double>(streams),
                    1.01);
        for (int64_t at = 0; at < plan.bases(stream);) {
          const StreamPlan::Walk walk = plan.walk(stream, pass, at);
          ASSERT_EQ(walk.start, at);
          ASSERT_GT(walk.length(), 0);
          EXPECT_EQ(plan.walk(stream, pass, at + walk.length() - 1).window.interval,
                    walk.window.interval);
          const auto part = places_of(walk.window);
          all.insert(all.end(), part.begin(), part.end());
          reversed = reversed || walk.window.reverse;
          at += walk.length();
        }
      }
      std::set<std::pair<int32_t, int64_t>> seen;
      for (const auto& [contig, position, reverse] : all) seen.emplace(contig, position);
      EXPECT_EQ(all.size(), 1194U);
      EXPECT_EQ(seen.size(), 1194U);
      orders.push_back(all);
    }
    EXPECT_TRUE(reversed);
    EXPECT_NE(orders[0], orders[1]) << "passes differ";
    StreamPlan again(intervals, streams, true, 9, 0);
    EXPECT_EQ(places_of(again.walk(0, 3, 0).window), places_of(plan.walk(0, 3, 0).window));
  }
  error_of([&] { StreamPlan(intervals, 598, false, 9, 0); }, ErrorKind::kUsage);
}

TEST(StreamPlans, PartsAndSeedsReadInOtherOrders) {
  std::vector<Interval> intervals;
  for (int32_t i = 0; i < 50; ++i) intervals.push_back({0, i, 0, 100});
  const auto order = [&](uint64_t seed, uint64_t part) {
    StreamPlan plan(intervals, 1, false, seed, part);
    std::vector<int32_t> contigs;
    for (int64_t at = 0; at < 5000; at += 100) {
      contigs.push_back(plan.walk(0, 0, at).window.interval.contig);
    }
    return contigs;
  };
  EXPECT_EQ(order(1, 0), order(1, 0));
  EXPECT_NE(order(1, 0), order(2, 0));
  EXPECT_NE(order(1, 0), order(1, 1));
}

/// A contig of stretches of bases and runs of N.
std::string with_gaps(const std::vector<std::pair<int64_t, int64_t>>& parts) {
  std::string letters;
  uint64_t seed = 5;
  for (const auto& [bases, gap] : parts) {
    letters += random_bases(bases, seed++, "ACGTacgt") + std::string(static_cast<size_t>(gap), 'N');
  }
  return letters;
}

/// One row as the tests see it.
struct Row {
  bool fresh;
  Window window;
  std::vector<uint8_t> tokens;
  std::vector<int32_t> targets;
  int64_t valid;
};

class StreamsTest : public ::testing::Test {
 protected:
  static std::map<int64_t, std::vector<Row>> read(BatchMaker& maker, int64_t batches,
                                                  int64_t batches_a_round) {
    std::map<int64_t, std::vector<Row>> streams;
    const std::atomic<bool> stop{false};
    for (int64_t i = 0; i < batches; ++i) {
      const Batch batch = maker.make(stop);
      for (int64_t row = 0; row < batch.batch; ++row) {
        const auto r = static_cast<size_t>(row);
        const auto begin = row * batch.length;
        streams[i % batches_a_round * batch.batch + row].push_back(
            {batch.fresh.at(r) != 0,
             batch.windows.at(r),
             {batch.tokens.begin() + begin, batch.tokens.begin() + begin + batch.length},
             {batch.targets.begin() + begin, batch.targets.begin() + begin + batch.length},
             batch.valid.at(r)});
      }
    }
    return streams;
  }

  TemporaryFolder folder;
  Tokenizer tokenizer{Vocabulary::characters()};
};

TEST_F(StreamsTest, RowsGoOnWhereTheLastEndedAndNeverReadWhatIsHeldOut) {
  const Genome genome({folder.write("x.fa", ">a\n" + wrap(random_bases(3000, 1, "ACGTacgt"), 60) +
                                                ">b\n" + wrap(random_bases(500, 2, "ACGT"), 60))});
  const std::vector<Interval> train = {{0, 0, 0, 1200}, {0, 0, 1300, 3000}, {0, 1, 0, 500}};
  const LoaderOptions options{.batch = 2, .context = 64};
  auto maker = stream_batches(genome, StreamPlan(train, 6, true, 3, 0), tokenizer, options, {});
  const auto streams = read(*maker, 3 * 60, 3);
  ASSERT_EQ(streams.size(), 6U);
  std::map<std::pair<int32_t, int64_t>, int> predicted;
  int fresh = 0;
  for (const auto& [stream, rows] : streams) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const Row& row = rows[i];
      const auto read_now = places_of(row.window);
      const bool inside = std::any_of(train.begin(), train.end(), [&](const Interval& interval) {
        return interval.contig == row.window.interval.contig &&
               interval.start <= row.window.interval.start &&
               row.window.interval.end <= interval.end;
      });
      ASSERT_TRUE(inside);
      if (row.fresh) {
        ++fresh;
      } else {
        ASSERT_GT(i, 0U);
        // the target of the last token is the next row's first token
        EXPECT_EQ(places_of(rows[i - 1].window).back(), read_now.front());
        EXPECT_EQ(rows[i - 1].valid, 64);
        EXPECT_EQ(rows[i - 1].targets.back(), row.tokens.front());
      }
      const std::string letters = read_window(genome, row.window);
      for (size_t t = 0; t + 1 < letters.size(); ++t) {
        const auto code = [&](size_t at) {
          return tokenizer.vocabulary().id_of_byte[static_cast<unsigned char>(letters[at])];
        };
        ASSERT_EQ(row.tokens[t], code(t));
        ASSERT_EQ(row.targets[t], code(t + 1));
        ++predicted[{row.window.interval.contig, std::get<1>(read_now[t + 1])}];
      }
      for (size_t t = letters.size(); t < 64; ++t) ASSERT_EQ(row.targets[t], -100);
    }
  }
  EXPECT_GT(fresh, 6);
  // 60 rows of at most 64 bases for each of 6 streams, of 3400 bases: six passes and a half
  EXPECT_GT(predicted.size(), 3380U);
  int rarely = 0;  // bases that often begin a walk
  for (const auto& [place, times] : predicted) {
    rarely += times < 4 ? 1 : 0;
    EXPECT_LE(times, 7);
  }
  EXPECT_LT(rarely, 10);
}

/// Starts of memory in one pass of one stream, and what was predicted, by position.
struct Reading {
  std::vector<int64_t> starts;
  std::vector<int64_t> predicted;
  int64_t skipped = 0;
};

Reading one_pass(const Genome& genome, const Tokenizer& tokenizer, int64_t length, int64_t context,
                 int64_t reset) {
  Reading reading;
  auto maker = stream_batches(genome, StreamPlan({{0, 0, 0, length}}, 1, false, 3, 0), tokenizer,
                              {.batch = 1, .context = context}, {.reset_bases = reset});
  const std::atomic<bool> stop{false};
  while (true) {
    const Batch batch = maker->make(stop);
    reading.skipped += batch.skipped;
    const int64_t start = batch.windows[0].interval.start;
    // the end held nothing to predict, this is the next pass
    if (start == 0 && !reading.starts.empty()) return reading;
    if (batch.fresh[0] != 0) reading.starts.push_back(start);
    for (int64_t t = 0; t < context; ++t) {
      if (batch.targets[static_cast<size_t>(t)] >= 0) reading.predicted.push_back(start + t + 1);
    }
    if (batch.places[0].pass > 0) return reading;
  }
}

TEST_F(StreamsTest, LongRunsOfUnknownBasesEndWhatIsRememberedInAnyContext) {
  // gaps of 20 are the longest that are read over; some end or begin at borders of rows
  const std::string letters = with_gaps({{100, 20},
                                         {44, 21},
                                         {7, 1},
                                         {30, 20},
                                         {1, 300},
                                         {64, 19},
                                         {1, 20},
                                         {0, 1},
                                         {128, 64},
                                         {90, 40}});
  const auto length = static_cast<int64_t>(letters.size());
  const Genome genome({folder.write("g.fa", ">a\n" + wrap(letters, 60))});
  Reading want;
  want.starts.push_back(0);
  int64_t run = 0;
  bool after_reset = false;
  for (int64_t i = 0; i < length; ++i) {
    if (letters[static_cast<size_t>(i)] == 'N') {
      if (++run > 20) after_reset = true;
      continue;
    }
    run = 0;
    if (after_reset) {
      want.starts.push_back(i);
    } else if (i > 0) {
      want.predicted.push_back(i);
    }
    after_reset = false;
  }
  ASSERT_EQ(want.starts.size(), 5U);
  for (const int64_t context : {1, 5, 16, 20, 21, 64, 100, 5000}) {
    const Reading got = one_pass(genome, tokenizer, length, context, 20);
    EXPECT_EQ(got.starts, want.starts) << "context " << context;
    EXPECT_EQ(got.predicted, want.predicted) << "context " << context;
  }
  EXPECT_EQ(one_pass(genome, tokenizer, length, 64, 1000).starts, (std::vector<int64_t>{0}));
}

TEST_F(StreamsTest, GoOnFromSavedPlaces) {
  const std::string letters = with_gaps({{400, 60}, {300, 10}, {200, 100}, {250, 0}});
  const Genome genome({folder.write("g.fa", ">a\n" + wrap(letters, 60))});
  const std::vector<Interval> all = {{0, 0, 0, static_cast<int64_t>(letters.size())}};
  const LoaderOptions options{.batch = 2, .context = 32};
  const auto start = [&](std::vector<StreamPlace> places) {
    return stream_batches(genome, StreamPlan(all, 4, true, 8, 1), tokenizer, options,
                          {.reset_bases = 50, .places = std::move(places)});
  };
  const std::atomic<bool> stop{false};
  auto whole = start({});
  std::vector<Batch> batches;
  for (int i = 0; i < 80; ++i) batches.push_back(whole->make(stop));
  for (const size_t at : {size_t{2}, size_t{10}, size_t{36}, size_t{62}}) {
    std::vector<StreamPlace> places = batches[at - 2].places;
    places.insert(places.end(), batches[at - 1].places.begin(), batches[at - 1].places.end());
    auto resumed = start(places);
    for (size_t i = at; i < batches.size(); ++i) {
      const Batch batch = resumed->make(stop);
      ASSERT_EQ(batch.tokens, batches[i].tokens) << at << " " << i;
      ASSERT_EQ(batch.targets, batches[i].targets);
      ASSERT_EQ(batch.fresh, batches[i].fresh);
      ASSERT_EQ(batch.places, batches[i].places);
    }
  }
  error_of([&] { start(std::vector<StreamPlace>(3)); }, ErrorKind::kInput);
  error_of([&] { start(std::vector<StreamPlace>(4, {.pass = 0, .offset = 100000})); },
           ErrorKind::kInput);
}

TEST_F(StreamsTest, BackgroundThreadsGiveTheSame) {
  const Genome genome({folder.write("x.fa", ">a\n" + wrap(random_bases(3000, 1, "ACGTacgt"), 60))});
  const LoaderOptions options{.batch = 3, .context = 40};
  const auto start = [&] {
    return stream_batches(genome, StreamPlan({{0, 0, 0, 3000}}, 3, false, 8, 0), tokenizer, options,
                          {});
  };
  auto maker = start();
  BatchLoader loader(start(), 3);
  const std::atomic<bool> stop{false};
  for (int i = 0; i < 100; ++i) {
    const Batch want = maker->make(stop);
    const Batch got = loader.next();
    ASSERT_EQ(got.tokens, want.tokens);
    ASSERT_EQ(got.places, want.places);
  }
}

TEST_F(StreamsTest, NothingButNIsAnError) {
  const Genome genome({folder.write("n.fa", ">n\n" + wrap(std::string(5000, 'N'), 60))});
  for (const int64_t reset : {10, 1000000}) {
    auto maker = stream_batches(genome, StreamPlan({{0, 0, 0, 5000}}, 2, false, 8, 0), tokenizer,
                                {.batch = 2, .context = 64}, {.reset_bases = reset});
    const std::atomic<bool> stop{false};
    const std::string message = error_of([&] {
      for (int i = 0; i < 20000; ++i) maker->make(stop);
    });
    EXPECT_NE(message.find("nothing to predict"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace gmamba
