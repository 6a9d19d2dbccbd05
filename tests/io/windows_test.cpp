// SPDX-License-Identifier: Apache-2.0
#include "io/windows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::error_of;
using test::random_bases;
using test::TemporaryFolder;
using test::wrap;

/// Which part each base belongs to, base by base; fails on a base in both.
std::map<std::pair<int32_t, int32_t>, std::string> paint(const Genome& genome, const Split& split) {
  std::map<std::pair<int32_t, int32_t>, std::string> bases;
  for (int32_t file = 0; file < genome.files(); ++file) {
    for (size_t i = 0; i < genome.contigs(file).size(); ++i) {
      bases[{file, static_cast<int32_t>(i)}] =
          std::string(static_cast<size_t>(genome.contigs(file)[i].length), '.');
    }
  }
  const auto fill = [&](const std::vector<Interval>& intervals, char mark) {
    for (const Interval& interval : intervals) {
      std::string& contig = bases[{interval.file, interval.contig}];
      for (int64_t i = interval.start; i < interval.end; ++i) {
        EXPECT_EQ(contig.at(static_cast<size_t>(i)), '.') << "base in two intervals";
        contig.at(static_cast<size_t>(i)) = mark;
      }
    }
  };
  fill(split.train, 't');
  fill(split.valid, 'v');
  return bases;
}

int64_t count(const std::map<std::pair<int32_t, int32_t>, std::string>& bases, char mark) {
  int64_t sum = 0;
  for (const auto& [contig, marks] : bases) {
    sum += std::count(marks.begin(), marks.end(), mark);
  }
  return sum;
}

class Split3 : public ::testing::Test {
 protected:
  TemporaryFolder folder;
  Genome genome{{folder.write("x.fa", ">a\n" + wrap(random_bases(48000, 1), 60) + ">b\n" +
                                          wrap(random_bases(9000, 2), 60)),
                 folder.write("y.fa", ">c\n" + wrap(random_bases(500, 3), 60))}};
};

TEST_F(Split3, WholeGenomeWithoutHoldOut) {
  const Split split = make_split(genome, {});
  EXPECT_EQ(split.train,
            (std::vector<Interval>{{0, 0, 0, 48000}, {0, 1, 0, 9000}, {1, 0, 0, 500}}));
  EXPECT_TRUE(split.valid.empty());
  EXPECT_EQ(split.train_bases, 57500);
}

TEST_F(Split3, FractionIsMetAndDisjointByBase) {
  for (const double fraction : {0.001, 0.02, 0.1, 0.5, 0.95}) {
    for (const int64_t block : {64, 1000, 4096, 65536}) {
      for (uint64_t seed = 0; seed < 4; ++seed) {
        SplitOptions options;
        options.valid_fraction = fraction;
        options.block_bases = block;
        options.seed = seed;
        const Split split = make_split(genome, options);
        const auto painted = paint(genome, split);
        EXPECT_EQ(count(painted, 't'), split.train_bases);
        EXPECT_EQ(count(painted, 'v'), split.valid_bases);
        EXPECT_EQ(count(painted, '.'), 0);
        EXPECT_GT(split.train_bases, 0);
        EXPECT_GT(split.valid_bases, 0);
        const double target = fraction * 57500;
        const double block_size =
            std::max(1024.0, std::min<double>(static_cast<double>(block), target));
        EXPECT_NEAR(static_cast<double>(split.valid_bases), target, block_size * 1.5) << fraction;
        // the same again, and another with another seed
        EXPECT_EQ(make_split(genome, options).valid, split.valid);
        options.seed = seed + 100;
        if (fraction < 0.5 && block <= 1000) {
          EXPECT_NE(make_split(genome, options).valid, split.valid);
        }
      }
    }
  }
}

TEST(Split1, OneShortContigGivesBothParts) {
  for (const int64_t length : {2, 3, 10, 1000, 48502}) {
    const TemporaryFolder folder;
    const Genome genome({folder.write("x.fa", ">a\n" + random_bases(length, 1) + "\n")});
    SplitOptions options;
    options.valid_fraction = 0.1;
    const Split split = make_split(genome, options);
    EXPECT_GT(split.train_bases, 0);
    EXPECT_GT(split.valid_bases, 0) << length;
    EXPECT_EQ(split.train_bases + split.valid_bases, length);
    if (length == 48502) {
      EXPECT_NEAR(static_cast<double>(split.valid_bases), 4850, 10);
    }
  }
  const TemporaryFolder folder;
  const Genome genome({folder.write("x.fa", ">a\nA\n")});
  SplitOptions options;
  options.valid_fraction = 0.5;
  EXPECT_EQ(make_split(genome, options).train_bases, 1);
}

TEST_F(Split3, ByContigsAndRegions) {
  SplitOptions options;
  options.valid_contigs = {"b", "c"};
  Split split = make_split(genome, options);
  EXPECT_EQ(split.train, (std::vector<Interval>{{0, 0, 0, 48000}}));
  EXPECT_EQ(split.valid, (std::vector<Interval>{{0, 1, 0, 9000}, {1, 0, 0, 500}}));

  options = {};
  options.regions = {{0, 0, 1000, 2000}, {0, 0, 1500, 3000}, {0, 1, 10, 20}, {0, 0, 0, 10}};
  options.valid_regions = {{0, 0, 2500, 4000}, {0, 0, 1100, 1200}, {0, 1, 0, 11}, {1, 0, 5, 5}};
  split = make_split(genome, options);
  EXPECT_EQ(split.train,
            (std::vector<Interval>{
                {0, 0, 0, 10}, {0, 0, 1000, 1100}, {0, 0, 1200, 2500}, {0, 1, 11, 20}}));
  EXPECT_EQ(split.valid,
            (std::vector<Interval>{{0, 0, 1100, 1200}, {0, 0, 2500, 4000}, {0, 1, 0, 11}}));
  paint(genome, split);

  options.valid_regions.clear();
  options.valid_contigs = {"b"};
  split = make_split(genome, options);
  EXPECT_EQ(split.valid, (std::vector<Interval>{{0, 1, 10, 20}}));
  EXPECT_EQ(split.train_bases, 2010);
}

TEST_F(Split3, RandomHoldOutsAgreeWithPainting) {
  Random random(5, RandomUse::kTest);
  const auto some = [&](int n) {
    std::vector<Interval> intervals;
    for (int i = 0; i < n; ++i) {
      const auto contig = static_cast<int32_t>(random.below(2));
      const uint64_t length = contig == 0 ? 48000 : 9000;
      const auto a = static_cast<int64_t>(random.below(length));
      intervals.push_back(
          {0, contig, a,
           std::min(static_cast<int64_t>(length), a + static_cast<int64_t>(random.below(2000)))});
    }
    return intervals;
  };
  for (int round = 0; round < 50; ++round) {
    SplitOptions options;
    options.regions = some(1 + round % 20);
    options.valid_regions = some(1 + round % 7);
    options.regions.push_back({1, 0, 0, 500});
    const Split split = make_split(genome, options);
    const auto painted = paint(genome, split);
    std::map<std::pair<int32_t, int32_t>, std::string> expected = paint(genome, {});
    for (const Interval& i : options.regions) {
      for (int64_t k = i.start; k < i.end; ++k)
        expected[{i.file, i.contig}][static_cast<size_t>(k)] = 't';
    }
    for (const Interval& i : options.valid_regions) {
      for (int64_t k = i.start; k < i.end; ++k)
        expected[{i.file, i.contig}][static_cast<size_t>(k)] = 'v';
    }
    EXPECT_EQ(painted, expected);
  }
}

TEST_F(Split3, RefusesNonsense) {
  const auto expect = [&](const SplitOptions& options, ErrorKind kind, std::string_view part) {
    const std::string message = error_of([&] { make_split(genome, options); }, kind);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  SplitOptions options;
  options.valid_contigs = {"a", "b", "c"};
  expect(options, ErrorKind::kUsage, "left to train");
  options.valid_fraction = 0.1;
  expect(options, ErrorKind::kUsage, "one of them");
  options = {};
  for (const double fraction : {-0.1, 1.0, 2.0, std::nan("")}) {
    options.valid_fraction = fraction;
    expect(options, ErrorKind::kUsage, "fraction");
  }
  options = {};
  options.block_bases = 0;
  expect(options, ErrorKind::kUsage, "blocks");
  options = {};
  options.regions = {{0, 0, 0, 10}};
  options.valid_contigs = {"b"};
  expect(options, ErrorKind::kUsage, "'b' has no bases within the regions");
  options.valid_contigs = {"zz"};
  expect(options, ErrorKind::kInput, "no contig 'zz'");
  options = {};
  options.valid_regions = {{0, 0, 0, 48001}};
  expect(options, ErrorKind::kInternal, "outside");
}

TEST(WindowSampler, PureFunctionWithinIntervals) {
  const std::vector<Interval> intervals = {{0, 0, 100, 1100}, {0, 1, 5, 15}, {1, 0, 0, 64}};
  const WindowSampler sampler(intervals, 64, true, 7);
  const WindowSampler twin(intervals, 64, true, 7);
  const WindowSampler other(intervals, 64, true, 8);
  int reversed = 0;
  int different = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    const Window window = sampler.draw(i);
    const Window again = twin.draw(i);
    EXPECT_EQ(window.interval, again.interval);
    EXPECT_EQ(window.reverse, again.reverse);
    different += other.draw(i).interval != window.interval ? 1 : 0;
    reversed += window.reverse ? 1 : 0;
    const Interval& in = window.interval;
    if (in.file == 1) {
      EXPECT_EQ(in, intervals[2]);
    }
    if (in.contig == 1) {
      EXPECT_EQ(in, intervals[1]);
    }
    if (in.file == 0 && in.contig == 0) {
      EXPECT_TRUE(in.start >= 100 && in.end <= 1100 && in.length() == 64);
    }
  }
  EXPECT_NEAR(reversed, 2000, 150);
  EXPECT_GT(different, 3000);
  EXPECT_FALSE(WindowSampler(intervals, 64, false, 7).draw(3).reverse);
}

TEST(WindowSampler, BasesAreCoveredEquallyAwayFromEnds) {
  const std::vector<Interval> intervals = {{0, 0, 0, 400}, {0, 1, 0, 3}, {0, 2, 0, 1000}};
  const WindowSampler sampler(intervals, 20, false, 3);
  std::vector<std::vector<int>> covered = {std::vector<int>(400), std::vector<int>(3),
                                           std::vector<int>(1000)};
  constexpr int kDraws = 400000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const Interval in = sampler.draw(i).interval;
    for (int64_t k = in.start; k < in.end; ++k) {
      ++covered[static_cast<size_t>(in.contig)][static_cast<size_t>(k)];
    }
  }
  // weights 400, 20, 1000: a base inside is covered by 20 of 1420 draws, nearly
  const double expected = kDraws * 20.0 / 1420;
  for (const std::vector<int>& contig : covered) {
    const size_t edge = contig.size() > 3 ? 20 : 0;
    for (size_t i = edge; i + edge < contig.size(); ++i) {
      ASSERT_NEAR(contig[i], expected, expected * 0.14) << i << " of " << contig.size();
    }
  }
  EXPECT_GT(covered[0].front(), 0);
  EXPECT_GT(covered[2].back(), 0);
}

TEST(WindowSampler, RefusesNothingToDraw) {
  error_of([] { WindowSampler({}, 5, false, 0); }, ErrorKind::kUsage);
  error_of([] { WindowSampler({{0, 0, 5, 5}}, 5, false, 0); }, ErrorKind::kUsage);
  error_of([] { WindowSampler({{0, 0, 0, 5}}, 0, false, 0); }, ErrorKind::kUsage);
}

TEST(Tile, EachBaseOnce) {
  const std::vector<Window> windows = tile({{0, 0, 0, 10}, {0, 1, 5, 8}, {0, 2, 4, 4}}, 4);
  std::vector<Interval> found;
  for (const Window& window : windows) {
    EXPECT_FALSE(window.reverse);
    found.push_back(window.interval);
  }
  EXPECT_EQ(found,
            (std::vector<Interval>{{0, 0, 0, 4}, {0, 0, 4, 8}, {0, 0, 8, 10}, {0, 1, 5, 8}}));
  error_of([] { tile({{0, 0, 0, 5}}, 0); }, ErrorKind::kUsage);
}

}  // namespace
}  // namespace gmamba
