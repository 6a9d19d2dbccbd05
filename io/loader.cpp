// SPDX-License-Identifier: Apache-2.0
#include "io/loader.h"

#include <algorithm>
#include <utility>

#include "io/batch_rows.h"
#include "io/made_ahead.h"
#include "libmamba/core/error.h"
#include "libmamba/core/parallel.h"

namespace gmamba {
namespace {

/// Rows are windows drawn one after the other; those with nothing to predict are left out.
class WindowBatches final : public BatchMaker {
 public:
  WindowBatches(const Genome& genome, const WindowSampler& sampler, const Tokenizer& tokenizer,
                const LoaderOptions& options)
      : genome_(genome),
        sampler_(sampler),
        options_(options),
        readers_({}, {.threads = std::max(1, options.threads)}),
        rows_(tokenizer, options),
        cursor_(options.first_draw) {}

  Batch make(const std::atomic<bool>& stop) override {
    Batch batch = rows_.make(options_.batch);
    int64_t row = 0;
    while (row < options_.batch && !stop) {
      // as many as are surely needed, and no more letters than a few megabases
      const int64_t most = std::max<int64_t>(1, kLettersAtOnce / (options_.context + 1));
      read_next(std::min(options_.batch - row, most));
      for (size_t i = 0; i < windows_.size(); ++i) {
        const bool something = rows_.write(letters_[i], batch, static_cast<size_t>(row));
        empty_.note(something);
        if (something) {
          batch.windows.push_back(windows_[i]);
          ++row;
        } else {
          ++batch.skipped;
        }
      }
    }
    batch.next_draw = cursor_;
    return batch;
  }

 private:
  static constexpr int64_t kLettersAtOnce = int64_t{4} << 20;

  /// Draws `count` windows and reads them.
  void read_next(int64_t count) {
    windows_.clear();
    for (int64_t i = 0; i < count; ++i) windows_.push_back(sampler_.draw(cursor_++));
    letters_.resize(windows_.size());
    parallel_for(readers_, count, [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      letters_[at] = read_window(genome_, windows_[at]);
    });
  }

  const Genome& genome_;
  const WindowSampler& sampler_;
  LoaderOptions options_;
  Context readers_;
  RowWriter rows_;
  EmptyRows empty_;
  uint64_t cursor_;
  std::vector<Window> windows_;
  std::vector<std::string> letters_;
};

}  // namespace

struct BatchLoader::Impl {
  std::unique_ptr<BatchMaker> maker;
  MadeAhead<Batch> batches;

  Impl(std::unique_ptr<BatchMaker> batch_maker, int prefetch)
      : maker(std::move(batch_maker)),
        batches([this](const std::atomic<bool>& stop) { return maker->make(stop); }, prefetch) {}
};

std::string read_window(const Genome& genome, const Window& window) {
  std::string letters = genome.read(window.interval);
  return window.reverse ? reverse_complement(letters) : letters;
}

BatchLoader::BatchLoader(std::unique_ptr<BatchMaker> maker, int prefetch)
    : impl_(std::make_unique<Impl>(std::move(maker), prefetch)) {}

std::unique_ptr<BatchMaker> window_batches(const Genome& genome, const WindowSampler& sampler,
                                           const Tokenizer& tokenizer,
                                           const LoaderOptions& options) {
  return std::make_unique<WindowBatches>(genome, sampler, tokenizer, options);
}

BatchLoader::BatchLoader(const Genome& genome, const WindowSampler& sampler,
                         const Tokenizer& tokenizer, LoaderOptions options)
    : BatchLoader(window_batches(genome, sampler, tokenizer, options), options.prefetch) {}

BatchLoader::~BatchLoader() = default;

Batch BatchLoader::next() { return impl_->batches.next(); }

bool BatchLoader::ready() const { return impl_->batches.ready(); }

double BatchLoader::waited_seconds() const { return impl_->batches.waited_seconds(); }

Batch make_batch(const Genome& genome, const std::vector<Window>& windows,
                 const Tokenizer& tokenizer, const LoaderOptions& options) {
  RowWriter rows(tokenizer, options);
  Batch batch = rows.make(static_cast<int64_t>(windows.size()));
  for (size_t row = 0; row < windows.size(); ++row) {
    rows.write(read_window(genome, windows[row]), batch, row);
  }
  batch.windows = windows;
  return batch;
}

}  // namespace gmamba
