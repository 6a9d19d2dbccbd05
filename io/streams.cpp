// SPDX-License-Identifier: Apache-2.0
#include "io/streams.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "io/batch_rows.h"
#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr size_t kOrdersKept = 3;
constexpr int64_t kScanBases = 1 << 16;

constexpr uint64_t kWholeOrder = 0xFFFFFFFF;

/// A random stream of its own for each (part, pass, number of an interval or kWholeOrder).
uint64_t key_of(uint64_t part, int64_t pass, uint64_t number) {
  return (part << 56) ^ (static_cast<uint64_t>(pass) << 32) ^ number;
}

}  // namespace

StreamPlan::StreamPlan(std::vector<Interval> intervals, int64_t streams, bool random_strand,
                       uint64_t seed, uint64_t part)
    : intervals_(std::move(intervals)),
      streams_(streams),
      random_strand_(random_strand),
      seed_(seed),
      part_(part) {
  std::erase_if(intervals_, [](const Interval& interval) { return interval.length() <= 0; });
  for (const Interval& interval : intervals_) {
    total_ = checked_add(total_, interval.length(), "bases");
  }
  require(streams >= 1 && total_ / 2 >= streams, ErrorKind::kUsage, "there are ",
          format_count(total_), " bases to train on, too few for ", format_count(streams),
          " streams; use a smaller --batch-tokens or a larger --context");
}

int64_t StreamPlan::begin_of(int64_t stream) const {
  // total * stream / streams without the large product
  return total_ / streams_ * stream + total_ % streams_ * stream / streams_;
}

const StreamPlan::Order& StreamPlan::order_of(int64_t pass) {
  const auto found = orders_.find(pass);
  if (found != orders_.end()) return found->second;
  Order order;
  order.intervals.resize(intervals_.size());
  std::iota(order.intervals.begin(), order.intervals.end(), size_t{0});
  Random random(seed_, RandomUse::kShuffle, key_of(part_, pass, kWholeOrder));
  for (size_t i = order.intervals.size(); i > 1; --i) {
    std::swap(order.intervals[i - 1], order.intervals[random.below(i)]);
  }
  int64_t sum = 0;
  for (const size_t i : order.intervals) {
    sum += intervals_[i].length();
    order.ends.push_back(sum);
  }
  if (orders_.size() >= kOrdersKept) orders_.erase(orders_.begin());
  return orders_.emplace(pass, std::move(order)).first->second;
}

StreamPlan::Walk StreamPlan::walk(int64_t stream, int64_t pass, int64_t offset) {
  require(stream >= 0 && stream < streams_ && offset >= 0 && offset < bases(stream),
          ErrorKind::kInternal, "stream ", stream, " of ", streams_, " has no base ", offset);
  const Order& order = order_of(pass);
  const int64_t begin = begin_of(stream);
  const auto found = std::upper_bound(order.ends.begin(), order.ends.end(), begin + offset);
  const size_t number = order.intervals[static_cast<size_t>(found - order.ends.begin())];
  const Interval& whole = intervals_[number];
  // the interval's place in the order, then the part of it that is this stream's
  const int64_t from = *found - whole.length();
  const int64_t first = std::max(from, begin);
  const int64_t last = std::min(*found, begin_of(stream + 1));
  Walk walk;
  walk.start = first - begin;
  walk.window.interval = whole;
  if (random_strand_) {
    Random random(seed_, RandomUse::kAugment, key_of(part_, pass, number));
    walk.window.reverse = (random.bits() & 1) != 0;
  }
  walk.window.interval.start = whole.start + (walk.window.reverse ? *found - last : first - from);
  walk.window.interval.end = walk.window.interval.start + (last - first);
  return walk;
}

namespace {

class StreamBatches final : public BatchMaker {
 public:
  StreamBatches(const Genome& genome, StreamPlan plan, const Tokenizer& tokenizer,
                const LoaderOptions& options, const StreamOptions& stream_options)
      : genome_(genome),
        plan_(std::move(plan)),
        tokenizer_(tokenizer),
        options_(options),
        reset_bases_(stream_options.reset_bases),
        rows_(tokenizer, options),
        places_(stream_options.places) {
    require(plan_.streams() % options.batch == 0, ErrorKind::kInternal,
            "streams: ", plan_.streams(), " do not fill batches of ", options.batch);
    if (places_.empty()) places_.resize(static_cast<size_t>(plan_.streams()));
    require(places_.size() == static_cast<size_t>(plan_.streams()), ErrorKind::kInput,
            "streams: the checkpoint has ", places_.size(), " of them, the run ", plan_.streams());
    for (size_t i = 0; i < places_.size(); ++i) {
      require(places_[i].pass >= 0 && places_[i].offset >= 0 &&
                  places_[i].offset < plan_.bases(static_cast<int64_t>(i)),
              ErrorKind::kInput, "streams: stream ", i,
              " of the checkpoint is outside of its part");
    }
  }

  Batch make(const std::atomic<bool>& stop) override {
    Batch batch = rows_.make(options_.batch);
    for (int64_t row = 0; row < options_.batch && !stop; ++row) {
      const int64_t stream = next_stream_ + row;
      StreamPlace& place = places_[static_cast<size_t>(stream)];
      while (!stop && !write_row(stream, place, batch, static_cast<size_t>(row))) {
      }
      batch.places.push_back(place);
    }
    next_stream_ = (next_stream_ + options_.batch) % plan_.streams();
    return batch;
  }

 private:
  /// What a stream reads next.
  struct Piece {
    std::string letters;        ///< tokens, and the target of the last where there is one
    bool run_too_long = false;  ///< the last letter is one unknown base too many
  };

  /// False when nothing was written and the stream only moved on.
  bool write_row(int64_t stream, StreamPlace& place, Batch& batch, size_t row) {
    const StreamPlan::Walk walk = plan_.walk(stream, place.pass, place.offset);
    const int64_t at = place.offset - walk.start;
    if (walk.length() - at < 2) {  // no base to predict
      move_to(stream, place, walk.start + walk.length(), true);
      return false;
    }
    const Piece piece = read_piece(walk, at, place.fresh);
    const bool something = rows_.write(piece.letters, batch, row);
    empty_.note(something);
    const bool fresh = place.fresh;
    const auto size = static_cast<int64_t>(piece.letters.size());
    if (piece.run_too_long) {
      move_to(stream, place, walk.start + end_of_run(walk, at + size), true);
      if (!something) {  // what would be remembered of it is forgotten after it
        ++batch.skipped;
        return false;
      }
    } else {
      const int64_t end = at + options_.context;
      const bool over = end + 1 >= walk.length();
      move_to(stream, place, walk.start + (over ? walk.length() : end), over);
    }
    batch.fresh.push_back(fresh ? 1 : 0);
    batch.windows.push_back(part_of(walk, at, at + size));
    return true;
  }

  void move_to(int64_t stream, StreamPlace& place, int64_t offset, bool fresh) {
    place.offset = offset;
    place.fresh = fresh;
    if (offset < plan_.bases(stream)) return;
    ++place.pass;
    place.offset = 0;
    place.fresh = true;
  }

  /// Bases [from, to) of a walk, in the order of reading.
  static Window part_of(const StreamPlan::Walk& walk, int64_t from, int64_t to) {
    Window window = walk.window;
    const Interval& whole = walk.window.interval;
    window.interval.start = window.reverse ? whole.end - to : whole.start + from;
    window.interval.end = window.interval.start + (to - from);
    return window;
  }

  bool is_base(char letter) const {
    const Vocabulary& vocabulary = tokenizer_.vocabulary();
    return vocabulary.is_base(vocabulary.id_of_byte[static_cast<unsigned char>(letter)]);
  }

  Piece read_piece(const StreamPlan::Walk& walk, int64_t at, bool fresh) {
    // a run of unknown bases may have begun before this row
    const int64_t before = fresh ? 0 : std::min(at, reset_bases_);
    const int64_t end = std::min(walk.length(), at + options_.context + 1);
    const std::string letters = read_window(genome_, part_of(walk, at - before, end));
    const auto tokens = static_cast<size_t>(before + std::min(options_.context, end - at));
    int64_t run = 0;
    for (size_t i = 0; i < tokens; ++i) {
      run = is_base(letters[i]) ? 0 : run + 1;
      if (run > reset_bases_ && i >= static_cast<size_t>(before)) {
        return {letters.substr(static_cast<size_t>(before), i + 1 - static_cast<size_t>(before)),
                true};
      }
    }
    return {letters.substr(static_cast<size_t>(before)), false};
  }

  /// The first known base from `from` on, or the walk's end.
  int64_t end_of_run(const StreamPlan::Walk& walk, int64_t from) const {
    while (from < walk.length()) {
      const std::string letters =
          read_window(genome_, part_of(walk, from, std::min(walk.length(), from + kScanBases)));
      const auto known = std::find_if(letters.begin(), letters.end(),
                                      [&](char letter) { return is_base(letter); });
      from += known - letters.begin();
      if (known != letters.end()) break;
    }
    return from;
  }

  const Genome& genome_;
  StreamPlan plan_;
  const Tokenizer& tokenizer_;
  LoaderOptions options_;
  int64_t reset_bases_;
  RowWriter rows_;
  EmptyRows empty_;
  std::vector<StreamPlace> places_;
  int64_t next_stream_ = 0;
};

}  // namespace

std::unique_ptr<BatchMaker> stream_batches(const Genome& genome, StreamPlan plan,
                                           const Tokenizer& tokenizer, const LoaderOptions& options,
                                           const StreamOptions& stream_options) {
  return std::make_unique<StreamBatches>(genome, std::move(plan), tokenizer, options,
                                         stream_options);
}

}  // namespace gmamba
