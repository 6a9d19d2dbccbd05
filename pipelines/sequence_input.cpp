// SPDX-License-Identifier: Apache-2.0
#include "pipelines/sequence_input.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "io/genome.h"
#include "libmamba/core/text.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

constexpr size_t kBlockTokens = size_t{1} << 18;
constexpr size_t kBlockParts = 4096;
constexpr size_t kBlocksAhead = 8;
constexpr int64_t kRegionPart = int64_t{1} << 18;

constexpr std::array<bool, 256> plain_letters() {
  std::array<bool, 256> plain{};
  for (const char c : std::string_view("ACGTUNacgtun")) plain[static_cast<unsigned char>(c)] = true;
  return plain;
}
constexpr std::array<bool, 256> kPlainLetter = plain_letters();

int64_t count_ambiguous(std::string_view bases) {
  int64_t count = 0;
  for (const char c : bases) count += kPlainLetter[static_cast<unsigned char>(c)] ? 0 : 1;
  return count;
}

/// A log that the reading thread may outlive.
class GuardedLog final : public Log {
 public:
  explicit GuardedLog(Log* target) : target_(target) {}
  void write(LogLevel level, std::string_view line) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    log_line(target_, level, line);
  }
  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    target_ = nullptr;
  }

 private:
  std::mutex mutex_;
  Log* target_;
};

}  // namespace

void InputOptions::validate() const {
  const auto stdins = std::count(inputs.begin(), inputs.end(), "-");
  require(stdins <= 1, ErrorKind::kUsage, "'-' (stdin) stands among the inputs ", stdins,
          " times; it can be read once");
  require(regions.empty() || stdins == 0, ErrorKind::kUsage,
          "--regions needs FASTA files; stdin cannot be indexed");
}

/// What the two threads have in common. The reading thread holds it too: while it waits in a
/// read of stdin it cannot be joined, and is left behind when the program stops.
struct TokenSource::Shared {
  Shared(const InputOptions& options_in, const Tokenizer& tokenizer_in, int threads_in, Log* log_to)
      : options(options_in), tokenizer(tokenizer_in), threads(threads_in), log(log_to) {}

  InputOptions options;
  Tokenizer tokenizer;
  int threads;
  GuardedLog log;
  std::unique_ptr<SequenceReader> reader;  // a first input that is a file is opened before the
                                           // thread starts
  std::unique_ptr<Genome> genome;
  std::vector<Interval> intervals;
  int64_t interval_bases = -1;

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::vector<TokenPart>> blocks;
  bool ended = false;
  bool closing = false;
  std::exception_ptr error;
  std::atomic<double> fraction{-1};
  std::atomic<int64_t> ambiguous{0};

  // of the reading thread alone
  std::vector<TokenPart> block;
  size_t block_tokens = 0;

  /// False when nobody listens any more.
  bool push() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return closing || blocks.size() < kBlocksAhead; });
    if (closing) return false;
    blocks.push_back(std::exchange(block, {}));
    changed.notify_all();
    block_tokens = 0;
    return true;
  }

  bool add(TokenPart part, std::string_view letters) {
    part.tokens.resize(letters.size());
    tokenizer.encode(letters, part.tokens);
    ambiguous.fetch_add(count_ambiguous(letters), std::memory_order_relaxed);
    block_tokens += letters.size();
    block.push_back(std::move(part));
    return (block_tokens < kBlockTokens && block.size() < kBlockParts) || push();
  }

  std::unique_ptr<SequenceReader> open(const std::string& path) {
    return open_sequences(path, {.threads = threads, .invalid = options.invalid, .log = &log});
  }

  bool read_file(size_t index) {
    if (index > 0 || reader == nullptr) reader = open(options.inputs[index]);
    const auto count = static_cast<double>(options.inputs.size());
    SequencePart part;
    while (reader->next(part)) {
      const int64_t total = reader->bytes_total();
      if (total > 0) {
        const double share = static_cast<double>(reader->bytes_read()) / static_cast<double>(total);
        fraction = (static_cast<double>(index) + share) / count;
      }
      TokenPart out;
      if (part.first) out.id = part.id;
      out.first = part.first;
      out.last = part.last;
      if (!add(std::move(out), part.bases)) return false;
    }
    return true;
  }

  bool read_interval(const Interval& interval) {
    const std::string& contig =
        genome->contigs(interval.file)[static_cast<size_t>(interval.contig)].name;
    const std::string id = concat(contig, ":", interval.start + 1, "-", interval.end);
    int64_t at = interval.start;
    do {
      Interval piece = interval;
      piece.start = at;
      piece.end = std::min(interval.end, at + kRegionPart);
      TokenPart out;
      out.first = at == interval.start;
      out.last = piece.end == interval.end;
      if (out.first) out.id = id;
      out.start = interval.start;
      std::string bases = genome->read(piece);
      if (!add(std::move(out), bases)) return false;
      at = piece.end;
    } while (at < interval.end);
    return true;
  }

  void read_all() {
    if (genome != nullptr) {
      for (const Interval& interval : intervals) {
        if (!read_interval(interval)) return;
      }
    } else {
      for (size_t i = 0; i < options.inputs.size(); ++i) {
        if (!read_file(i)) return;
      }
    }
    if (!block.empty()) push();
  }

  void run() {
    std::exception_ptr caught;
    try {
      read_all();
    } catch (...) {
      caught = std::current_exception();
      if (!block.empty()) push();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    error = caught;
    ended = true;
    changed.notify_all();
  }
};

TokenSource::TokenSource(const InputOptions& options, const Tokenizer& tokenizer, int threads,
                         Log* log)
    : shared_(std::make_shared<Shared>(options, tokenizer, threads, log)) {
  Shared& shared = *shared_;
  require(!options.inputs.empty(), ErrorKind::kUsage, "no input is named");
  if (options.regions.empty()) {
    // stdin may be silent for hours: that is for the thread to wait for
    if (options.inputs.front() != "-") shared.reader = shared.open(options.inputs.front());
  } else {
    shared.genome = std::make_unique<Genome>(
        options.inputs, GenomeOptions{.log = &shared.log, .invalid = options.invalid});
    shared.intervals = shared.genome->parse_regions(options.regions);
    shared.interval_bases = 0;
    for (const Interval& interval : shared.intervals) shared.interval_bases += interval.length();
  }
  thread_ = std::thread([state = shared_] { state->run(); });
}

TokenSource::~TokenSource() {
  shared_->log.close();
  if (!thread_.joinable()) return;
  bool ended = false;
  {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    shared_->closing = true;
    shared_->changed.notify_all();
    ended = shared_->changed.wait_for(lock, std::chrono::milliseconds(500),
                                      [&] { return shared_->ended; });
  }
  // a thread that waits for stdin never ends by itself; it holds what it uses
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

bool TokenSource::next(TokenPart& part) {
  if (at_ == block_.size()) {
    at_ = 0;
    block_.clear();
    std::unique_lock<std::mutex> lock(shared_->mutex);
    while (shared_->blocks.empty() && !shared_->ended) {
      check_stop();
      shared_->changed.wait_for(lock, std::chrono::milliseconds(100));
    }
    check_stop();
    if (shared_->blocks.empty()) {
      if (shared_->error) std::rethrow_exception(shared_->error);
      return false;
    }
    block_ = std::move(shared_->blocks.front());
    shared_->blocks.pop_front();
    shared_->changed.notify_all();
  }
  part = std::move(block_[at_++]);
  return true;
}

double TokenSource::fraction() const { return shared_->fraction; }
int64_t TokenSource::total_bases() const { return shared_->interval_bases; }
int64_t TokenSource::ambiguous_letters() const { return shared_->ambiguous; }

}  // namespace gmamba
