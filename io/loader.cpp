// SPDX-License-Identifier: Apache-2.0
#include "io/loader.h"

#include <utility>

#include "io/batch_rows.h"
#include "io/made_ahead.h"
#include "libmamba/core/error.h"

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
        rows_(tokenizer, options),
        cursor_(options.first_draw) {}

  Batch make(const std::atomic<bool>& stop) override {
    Batch batch = rows_.make(options_.batch);
    size_t row = 0;
    while (row < static_cast<size_t>(options_.batch) && !stop) {
      const Window window = sampler_.draw(cursor_++);
      const bool something = rows_.write(read_window(genome_, window), batch, row);
      empty_.note(something);
      if (something) {
        batch.windows.push_back(window);
        ++row;
      } else {
        ++batch.skipped;
      }
    }
    batch.next_draw = cursor_;
    return batch;
  }

 private:
  const Genome& genome_;
  const WindowSampler& sampler_;
  LoaderOptions options_;
  RowWriter rows_;
  EmptyRows empty_;
  uint64_t cursor_;
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
