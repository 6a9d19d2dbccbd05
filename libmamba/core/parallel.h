// SPDX-License-Identifier: Apache-2.0
/// The one place that starts CPU threads for a loop. Work is cut into pieces whose number and
/// borders depend on shapes only, never on the number of threads, so results have the same bits on
/// any machine width.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "libmamba/core/context.h"

namespace gmamba {

/// Carries the first exception out of an OpenMP region.
class ErrorTrap {
 public:
  template <class Body>
  void run(Body&& body) noexcept {
    if (tripped_.load(std::memory_order_relaxed)) return;
    try {
      body();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      tripped_.store(true, std::memory_order_relaxed);
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
  std::atomic<bool> tripped_{false};
};

/// Runs body(i) for i in [0, count) on the context's threads; order is free, exceptions come back.
template <class Body>
void parallel_for(const Context& ctx, int64_t count, Body&& body) {
  const int threads = static_cast<int>(count < ctx.threads() ? count : ctx.threads());
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  ErrorTrap trap;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    trap.run([&] { body(i); });
  }
  trap.rethrow();
}

/// Number of pieces of at most `size` that cover `count`.
inline int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace gmamba
