// SPDX-License-Identifier: Apache-2.0
#include "io/loader.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// Marks positions without a target, as the losses know it.
constexpr int32_t kNoTarget = -100;
constexpr int64_t kMostSkipped = 10000;

/// Writes windows into the rows of a batch.
class RowWriter {
 public:
  RowWriter(const Genome& genome, const Tokenizer& tokenizer, const LoaderOptions& options)
      : genome_(genome), tokenizer_(tokenizer), options_(options) {
    const Vocabulary& vocabulary = tokenizer.vocabulary();
    for (int id = 0; id < 256; ++id) {
      target_[static_cast<size_t>(id)] = vocabulary.is_base(id) ? id : kNoTarget;
    }
    pad_ = static_cast<uint8_t>(vocabulary.pad >= 0 ? vocabulary.pad : vocabulary.n);
  }

  Batch make(int64_t rows) const {
    Batch batch;
    batch.batch = rows;
    batch.length = options_.context;
    const auto size = static_cast<size_t>(checked_mul(rows, options_.context, "batch"));
    batch.tokens.resize(size);
    batch.targets.resize(size);
    batch.weights.resize(size);
    batch.valid.resize(static_cast<size_t>(rows));
    return batch;
  }

  /// Whether the window has anything to predict; then it was counted in the batch's sums. Every
  /// element of the row is written in any case.
  bool write(const Window& window, Batch& batch, size_t row) {
    require(window.interval.length() <= options_.context + 1, ErrorKind::kInternal,
            "loader: a window of ", window.interval.length(), " bases for rows of ",
            options_.context, " tokens");
    std::string letters = genome_.read(window.interval);
    if (window.reverse) letters = reverse_complement(letters);
    ids_.resize(letters.size());
    tokenizer_.encode(letters, ids_);

    const auto length = static_cast<size_t>(options_.context);
    const size_t valid = std::min(letters.size(), length);
    const size_t predictable = letters.empty() ? 0 : letters.size() - 1;
    uint8_t* const tokens = batch.tokens.data() + row * length;
    int32_t* const targets = batch.targets.data() + row * length;
    float* const weights = batch.weights.data() + row * length;
    std::copy_n(ids_.data(), valid, tokens);
    std::fill(tokens + valid, tokens + length, pad_);
    std::fill(targets + predictable, targets + length, kNoTarget);
    std::fill(weights + predictable, weights + length, 0.0F);
    int64_t plain = 0;
    int64_t masked = 0;
    for (size_t t = 0; t < predictable; ++t) {
      const int32_t target = target_[ids_[t + 1]];
      const bool lower = (static_cast<unsigned char>(letters[t + 1]) & 32) != 0;
      targets[t] = target;
      weights[t] = target == kNoTarget ? 0.0F : lower ? options_.repeat_weight : 1.0F;
      plain += target != kNoTarget && !lower ? 1 : 0;
      masked += target != kNoTarget && lower ? 1 : 0;
    }
    batch.valid[row] = static_cast<int64_t>(valid);
    const double weight =
        static_cast<double>(plain) + static_cast<double>(masked) * double{options_.repeat_weight};
    if (!(weight > 0)) return false;
    batch.weight_sum += weight;
    batch.predicted += plain + masked;
    return true;
  }

 private:
  const Genome& genome_;
  const Tokenizer& tokenizer_;
  LoaderOptions options_;
  std::array<int32_t, 256> target_{};
  uint8_t pad_ = 0;
  std::vector<uint8_t> ids_;
};

void check(const LoaderOptions& options) {
  require(options.batch >= 1 && options.context >= 1, ErrorKind::kUsage,
          "a batch needs at least 1 row and 1 token, found ", options.batch, " and ",
          options.context);
  require(options.repeat_weight >= 0 && options.repeat_weight <= 1e6F, ErrorKind::kUsage,
          "the weight of repeats must be between 0 and 1,000,000, found ", options.repeat_weight);
}

}  // namespace

struct BatchLoader::Impl {
  Impl(const Genome& genome, const WindowSampler& window_sampler, const Tokenizer& tokenizer,
       const LoaderOptions& loader_options)
      : sampler(window_sampler),
        options(loader_options),
        rows(genome, tokenizer, loader_options),
        cursor(loader_options.first_draw) {}

  /// Called by one thread only.
  Batch make_next() {
    Batch batch = rows.make(options.batch);
    size_t row = 0;
    while (row < static_cast<size_t>(options.batch) && !stop) {
      const Window window = sampler.draw(cursor++);
      if (rows.write(window, batch, row)) {
        batch.windows.push_back(window);
        skipped_in_a_row = 0;
        ++row;
        continue;
      }
      ++batch.skipped;
      ++skipped_in_a_row;
      require(skipped_in_a_row < kMostSkipped, ErrorKind::kInput, "the last ",
              format_count(kMostSkipped),
              " windows had nothing to predict: the sequence is N, or soft-masked with weight 0");
    }
    batch.next_draw = cursor;
    return batch;
  }

  void work() {
    const auto capacity = static_cast<size_t>(options.prefetch);
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        space.wait(lock, [&] { return stop || ready.size() < capacity; });
        if (stop) return;
      }
      std::exception_ptr failure;
      Batch batch;
      try {
        batch = make_next();
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
    if (options.prefetch <= 0) {
      if (error) std::rethrow_exception(error);
      try {
        batch = make_next();
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

  const WindowSampler& sampler;
  LoaderOptions options;
  RowWriter rows;
  uint64_t cursor;
  int64_t skipped_in_a_row = 0;
  std::chrono::duration<double> waited{0};

  std::mutex mutex;
  std::condition_variable filled;
  std::condition_variable space;
  std::deque<Batch> ready;
  std::exception_ptr error;
  std::atomic<bool> stop{false};
  std::thread worker;
};

BatchLoader::BatchLoader(const Genome& genome, const WindowSampler& sampler,
                         const Tokenizer& tokenizer, LoaderOptions options) {
  check(options);
  impl_ = std::make_unique<Impl>(genome, sampler, tokenizer, options);
  if (options.prefetch > 0) {
    impl_->worker = std::thread([impl = impl_.get()] { impl->work(); });
  }
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->space.notify_all();
  if (impl_->worker.joinable()) impl_->worker.join();
}

Batch BatchLoader::next() { return impl_->take(); }

double BatchLoader::waited_seconds() const { return impl_->waited.count(); }

Batch make_batch(const Genome& genome, const std::vector<Window>& windows,
                 const Tokenizer& tokenizer, const LoaderOptions& options) {
  check(options);
  RowWriter rows(genome, tokenizer, options);
  Batch batch = rows.make(static_cast<int64_t>(windows.size()));
  for (size_t row = 0; row < windows.size(); ++row) rows.write(windows[row], batch, row);
  batch.windows = windows;
  return batch;
}

}  // namespace gmamba
