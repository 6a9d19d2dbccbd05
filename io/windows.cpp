// SPDX-License-Identifier: Apache-2.0
#include "io/windows.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "libmamba/core/error.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// Blocks are not made smaller than this to meet a fraction exactly.
constexpr int64_t kSmallestBlock = 1024;

bool same_contig(const Interval& a, const Interval& b) {
  return a.file == b.file && a.contig == b.contig;
}

/// Sorted, without empty ones; intervals that share bases or touch become one.
std::vector<Interval> merge(std::vector<Interval> intervals) {
  std::erase_if(intervals, [](const Interval& interval) { return interval.length() <= 0; });
  std::sort(intervals.begin(), intervals.end());
  std::vector<Interval> merged;
  for (const Interval& interval : intervals) {
    if (!merged.empty() && same_contig(merged.back(), interval) &&
        interval.start <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, interval.end);
    } else {
      merged.push_back(interval);
    }
  }
  return merged;
}

int64_t bases_of(const std::vector<Interval>& intervals) {
  return std::accumulate(intervals.begin(), intervals.end(), int64_t{0},
                         [](int64_t sum, const Interval& i) { return sum + i.length(); });
}

bool before(const Interval& a, const Interval& b) {
  return std::pair(a.file, a.contig) < std::pair(b.file, b.contig) ||
         (same_contig(a, b) && a.end <= b.start);
}

/// Bases of `from` that are not in `held`; both merged.
std::vector<Interval> subtract(const std::vector<Interval>& from,
                               const std::vector<Interval>& held) {
  std::vector<Interval> left;
  size_t k = 0;
  for (Interval rest : from) {
    while (k < held.size() && before(held[k], rest)) ++k;
    for (size_t i = k; i < held.size() && !before(rest, held[i]); ++i) {
      if (held[i].start > rest.start) {
        Interval piece = rest;
        piece.end = held[i].start;
        left.push_back(piece);
      }
      rest.start = std::min(rest.end, std::max(rest.start, held[i].end));
    }
    if (rest.length() > 0) left.push_back(rest);
  }
  return left;
}

std::vector<Interval> whole_genome(const Genome& genome) {
  std::vector<Interval> all;
  for (int32_t file = 0; file < genome.files(); ++file) {
    const std::vector<Contig>& contigs = genome.contigs(file);
    for (size_t i = 0; i < contigs.size(); ++i) {
      all.push_back({file, static_cast<int32_t>(i), 0, contigs[i].length});
    }
  }
  return all;
}

void check_inside(const Genome& genome, const std::vector<Interval>& intervals) {
  for (const Interval& interval : intervals) {
    const bool known = interval.file >= 0 && interval.file < genome.files() &&
                       interval.contig >= 0 &&
                       static_cast<size_t>(interval.contig) < genome.contigs(interval.file).size();
    require(known && interval.start >= 0 && interval.start <= interval.end &&
                interval.end <=
                    genome.contigs(interval.file)[static_cast<size_t>(interval.contig)].length,
            ErrorKind::kInternal, "split: an interval outside of the genome");
  }
}

std::vector<Interval> of_contigs(const Genome& genome, const std::vector<std::string>& names,
                                 const std::vector<Interval>& universe) {
  std::vector<Interval> held;
  for (const std::string& name : names) {
    const Interval contig = genome.find(name);
    const size_t had = held.size();
    std::copy_if(universe.begin(), universe.end(), std::back_inserter(held),
                 [&](const Interval& i) { return same_contig(i, contig); });
    require(held.size() > had, ErrorKind::kUsage, "validation contig '", printable(name),
            "' has no bases within the regions");
  }
  return merge(std::move(held));
}

/// Each interval cut into blocks of nearly equal size, about `block` bases each.
std::vector<Interval> cut(const std::vector<Interval>& intervals, int64_t block) {
  std::vector<Interval> blocks;
  for (const Interval& interval : intervals) {
    const int64_t count = std::max<int64_t>(1, (interval.length() + block / 2) / block);
    const int64_t size = interval.length() / count;
    const int64_t longer = interval.length() % count;  // so many blocks have one base more
    int64_t start = interval.start;
    for (int64_t i = 0; i < count; ++i) {
      Interval piece = interval;
      piece.start = start;
      piece.end = start + size + (i < longer ? 1 : 0);
      start = piece.end;
      blocks.push_back(piece);
    }
  }
  return blocks;
}

/// Blocks in random order until about `fraction` of all bases is held out: at least one block, and
/// never all of them.
std::vector<Interval> random_blocks(const std::vector<Interval>& universe, double fraction,
                                    int64_t block_bases, uint64_t seed) {
  const int64_t total = bases_of(universe);
  const auto target = static_cast<int64_t>(std::llround(fraction * static_cast<double>(total)));
  // little sequence gets smaller blocks, so that both parts have some
  const int64_t fitting = std::max(kSmallestBlock, std::min(target, total - target));
  const int64_t block = std::max<int64_t>(1, std::min({block_bases, fitting, total / 2}));
  std::vector<Interval> blocks = cut(universe, block);
  Random random(seed, RandomUse::kShuffle);
  for (size_t i = blocks.size(); i > 1; --i) {
    std::swap(blocks[i - 1], blocks[random.below(i)]);
  }
  std::vector<Interval> held;
  int64_t sum = 0;
  for (const Interval& candidate : blocks) {
    if (held.size() + 1 == blocks.size()) break;
    const bool closer = sum + candidate.length() / 2 <= target;
    if (!held.empty() && !closer) continue;
    held.push_back(candidate);
    sum += candidate.length();
    if (sum >= target) break;
  }
  return merge(std::move(held));
}

void check_disjoint(const Split& split) {
  std::vector<std::pair<Interval, bool>> all;
  for (const Interval& interval : split.train) all.emplace_back(interval, false);
  for (const Interval& interval : split.valid) all.emplace_back(interval, true);
  std::sort(all.begin(), all.end());
  for (size_t i = 1; i < all.size(); ++i) {
    const Interval& a = all[i - 1].first;
    const Interval& b = all[i].first;
    require(!same_contig(a, b) || a.end <= b.start, ErrorKind::kInternal,
            "training and validation share bases of contig number ", a.contig, " at ", b.start);
  }
}

}  // namespace

Split make_split(const Genome& genome, const SplitOptions& options) {
  const int ways = (options.valid_regions.empty() ? 0 : 1) +
                   (options.valid_contigs.empty() ? 0 : 1) + (options.valid_fraction != 0 ? 1 : 0);
  require(ways <= 1, ErrorKind::kUsage,
          "hold out sequence by regions, by contigs or by a fraction: one of them");
  require(options.valid_fraction >= 0 && options.valid_fraction < 1, ErrorKind::kUsage,
          "the validation fraction must be at least 0 and less than 1, found ",
          options.valid_fraction);
  require(options.block_bases >= 1, ErrorKind::kUsage, "blocks must have at least 1 base, found ",
          options.block_bases);
  check_inside(genome, options.regions);
  check_inside(genome, options.valid_regions);

  const std::vector<Interval> universe =
      merge(options.regions.empty() ? whole_genome(genome) : options.regions);
  Split split;
  if (!options.valid_regions.empty()) {
    split.valid = merge(options.valid_regions);
  } else if (!options.valid_contigs.empty()) {
    split.valid = of_contigs(genome, options.valid_contigs, universe);
  } else if (options.valid_fraction > 0) {
    split.valid =
        random_blocks(universe, options.valid_fraction, options.block_bases, options.seed);
  }
  split.train = subtract(universe, split.valid);
  split.train_bases = bases_of(split.train);
  split.valid_bases = bases_of(split.valid);
  require(split.train_bases > 0, ErrorKind::kUsage,
          "no sequence is left to train on: all of it is held out for validation");
  check_disjoint(split);
  return split;
}

WindowSampler::WindowSampler(std::vector<Interval> intervals, int64_t length, bool random_strand,
                             uint64_t seed)
    : intervals_(std::move(intervals)),
      length_(length),
      random_strand_(random_strand),
      seed_(seed) {
  require(length >= 1, ErrorKind::kUsage, "windows must have at least 1 base, found ", length);
  std::erase_if(intervals_, [](const Interval& interval) { return interval.length() <= 0; });
  require(!intervals_.empty(), ErrorKind::kUsage, "there is no sequence to draw windows from");
  int64_t sum = 0;
  for (const Interval& interval : intervals_) {
    // a window covers `length` bases however long its interval is, so that an interval drawn in
    // proportion to its own length covers each of its bases as often as any other does; one that
    // is shorter than a window is covered whole every time
    sum += std::max(interval.length(), length);
    cumulative_.push_back(sum);
  }
}

Window WindowSampler::draw(uint64_t index) const {
  Random random(seed_, RandomUse::kSample, index);
  const auto place = static_cast<int64_t>(random.below(static_cast<uint64_t>(cumulative_.back())));
  const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), place);
  Window window;
  window.interval = intervals_[static_cast<size_t>(found - cumulative_.begin())];
  const int64_t starts = window.interval.length() - length_ + 1;
  if (starts > 1) {
    window.interval.start += static_cast<int64_t>(random.below(static_cast<uint64_t>(starts)));
  }
  window.interval.end = std::min(window.interval.end, window.interval.start + length_);
  window.reverse = random_strand_ && (random.bits() & 1) != 0;
  return window;
}

std::vector<Window> tile(const std::vector<Interval>& intervals, int64_t length) {
  require(length >= 1, ErrorKind::kUsage, "windows must have at least 1 base, found ", length);
  std::vector<Window> windows;
  for (const Interval& interval : intervals) {
    for (int64_t start = interval.start; start < interval.end; start += length) {
      Window window;
      window.interval = interval;
      window.interval.start = start;
      window.interval.end = std::min(interval.end, start + length);
      windows.push_back(window);
    }
  }
  return windows;
}

}  // namespace gmamba
