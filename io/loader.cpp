// SPDX-License-Identifier: Apache-2.0
#include "io/loader.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "io/batch_rows.h"
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
  Impl(std::unique_ptr<BatchMaker> batch_maker, int batches_ahead)
      : maker(std::move(batch_maker)), prefetch(batches_ahead) {}

  void work() {
    const auto capacity = static_cast<size_t>(prefetch);
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        space.wait(lock, [&] { return stop || ready.size() < capacity; });
        if (stop) return;
      }
      std::exception_ptr failure;
      Batch batch;
      try {
        batch = maker->make(stop);
      } catch (...) {
        failure = std::current_exception();
      }
      {
        const std::lock_guard<std::mutex> lock(mutex);
        if (failure) {
          error = failure;
        } else {
          ready.push_back(std::move(batch));
        }
      }
      filled.notify_one();
      if (failure) return;
    }
  }

  Batch take() {
    const auto start = std::chrono::steady_clock::now();
    Batch batch;
    if (prefetch <= 0) {
      if (error) std::rethrow_exception(error);
      try {
        batch = maker->make(stop);
      } catch (...) {
        error = std::current_exception();
        throw;
      }
    } else {
      std::unique_lock<std::mutex> lock(mutex);
      filled.wait(lock, [&] { return error || !ready.empty(); });
      // batches made before the error still come out first
      if (ready.empty()) std::rethrow_exception(error);
      batch = std::move(ready.front());
      ready.pop_front();
      lock.unlock();
      space.notify_one();
    }
    waited += std::chrono::steady_clock::now() - start;
    return batch;
  }

  bool is_ready() {
    const std::lock_guard<std::mutex> lock(mutex);
    return !ready.empty();
  }

  std::unique_ptr<BatchMaker> maker;
  int prefetch;
  std::chrono::duration<double> waited{0};

  std::mutex mutex;
  std::condition_variable filled;
  std::condition_variable space;
  std::deque<Batch> ready;
  std::exception_ptr error;
  std::atomic<bool> stop{false};
  std::thread worker;
};

std::string read_window(const Genome& genome, const Window& window) {
  std::string letters = genome.read(window.interval);
  return window.reverse ? reverse_complement(letters) : letters;
}

BatchLoader::BatchLoader(std::unique_ptr<BatchMaker> maker, int prefetch)
    : impl_(std::make_unique<Impl>(std::move(maker), prefetch)) {
  if (prefetch > 0) {
    impl_->worker = std::thread([impl = impl_.get()] { impl->work(); });
  }
}

std::unique_ptr<BatchMaker> window_batches(const Genome& genome, const WindowSampler& sampler,
                                           const Tokenizer& tokenizer,
                                           const LoaderOptions& options) {
  return std::make_unique<WindowBatches>(genome, sampler, tokenizer, options);
}

BatchLoader::BatchLoader(const Genome& genome, const WindowSampler& sampler,
                         const Tokenizer& tokenizer, LoaderOptions options)
    : BatchLoader(window_batches(genome, sampler, tokenizer, options), options.prefetch) {}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->space.notify_all();
  if (impl_->worker.joinable()) impl_->worker.join();
}

Batch BatchLoader::next() { return impl_->take(); }

bool BatchLoader::ready() const { return impl_->is_ready(); }

double BatchLoader::waited_seconds() const { return impl_->waited.count(); }

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
