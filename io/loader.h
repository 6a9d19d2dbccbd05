// SPDX-License-Identifier: Apache-2.0
/// Batches for language-model training, made in the background so that compute never waits for
/// input.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/genome.h"
#include "io/tokenizer.h"
#include "io/windows.h"

namespace gmamba {

/// How far a stream of rows has come; see io/streams.h.
struct StreamPlace {
  int64_t pass = 0;    ///< times that its part of the sequence was read before
  int64_t offset = 0;  ///< bases of that part read in this pass
  bool fresh = true;   ///< what comes next is read with nothing before it
  bool operator==(const StreamPlace&) const = default;
};

/// Row-major (batch, length). Position t of a row is predicted from tokens 0..t: targets[t] is the
/// next base, kIgnoreTarget (-100) where that is N, unknown, or past the window.
struct Batch {
  int64_t batch = 0;
  int64_t length = 0;
  std::vector<uint8_t> tokens;   // (B, L); padded with the pad token
  std::vector<int32_t> targets;  // (B, L)
  std::vector<float> weights;    // (B, L); repeat_weight where the target base is soft-masked
  std::vector<int64_t> valid;    // (B) tokens of each row that are not padding
  std::vector<Window> windows;   // (B)
  double weight_sum = 0;         // of predicted positions
  int64_t predicted = 0;         // positions with a target
  uint64_t next_draw = 0;        // first draw index after this batch: the data cursor to save
  int64_t skipped = 0;  // windows drawn but with nothing to predict, while making this batch
  // of rows that go on from batch to batch, else empty:
  std::vector<uint8_t> fresh;       // (B) whether the row begins with nothing read before it
  std::vector<StreamPlace> places;  // (B) where its stream goes on
};

/// One window into row `row` of a batch: reads length + 1 bases where they exist within the
/// window's interval limits, so that the last token has a target too.
struct LoaderOptions {
  int64_t batch = 1;
  int64_t context = 1024;   ///< tokens per row
  float repeat_weight = 1;  ///< loss weight of soft-masked (lower-case) bases
  int prefetch = 4;         ///< batches made ahead
  int threads = 1;          ///< that read windows; a window of a BGZF file costs whole blocks
  uint64_t first_draw = 0;  ///< data cursor to start from
};

/// Makes batches one after the other, for one thread.
class BatchMaker {
 public:
  virtual ~BatchMaker() = default;
  /// The next batch; unfinished when `stop` was set meanwhile. Throws kInput when 10,000 rows in
  /// succession have nothing to predict.
  virtual Batch make(const std::atomic<bool>& stop) = 0;
};

/// A maker at work in the background.
class BatchLoader {
 public:
  BatchLoader(std::unique_ptr<BatchMaker> maker, int prefetch);
  /// Of window_batches.
  BatchLoader(const Genome& genome, const WindowSampler& sampler, const Tokenizer& tokenizer,
              LoaderOptions options);
  ~BatchLoader();
  /// The next batch, in the maker's order whatever the threads. Errors of the background thread
  /// come out here.
  Batch next();
  /// Whether next() has one at hand.
  bool ready() const;
  /// Seconds that next() waited for data so far.
  double waited_seconds() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Batches of windows of context + 1 bases drawn from a sampler (built with that length), which
/// must outlive the maker; those with nothing to predict are left out and counted.
std::unique_ptr<BatchMaker> window_batches(const Genome& genome, const WindowSampler& sampler,
                                           const Tokenizer& tokenizer,
                                           const LoaderOptions& options);

/// Its letters, as it is read.
std::string read_window(const Genome& genome, const Window& window);

/// The same batch layout from given windows (each at most context + 1 bases), for evaluation.
Batch make_batch(const Genome& genome, const std::vector<Window>& windows,
                 const Tokenizer& tokenizer, const LoaderOptions& options);

}  // namespace gmamba
