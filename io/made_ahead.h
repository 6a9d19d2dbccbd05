// SPDX-License-Identifier: Apache-2.0
/// Things made by a thread of its own, a few ahead of their use.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace gmamba {

template <class T>
class MadeAhead {
 public:
  /// The next thing; may be left unfinished when the flag was set meanwhile.
  using Make = std::function<T(const std::atomic<bool>& stop)>;

  /// At most `ahead` things wait for their use; 0: each is made when it is asked for.
  MadeAhead(Make make, int ahead) : make_(std::move(make)), ahead_(ahead) {
    if (ahead_ > 0) worker_ = std::thread([this] { work(); });
  }
  MadeAhead(const MadeAhead&) = delete;
  MadeAhead& operator=(const MadeAhead&) = delete;
  ~MadeAhead() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    space_.notify_all();
    if (worker_.joinable()) worker_.join();
  }

  /// In the order of making. What `make` throws comes out here, after all that was made before it.
  T next() {
    const auto start = std::chrono::steady_clock::now();
    T thing = ahead_ > 0 ? take() : make_now();
    waited_ += std::chrono::steady_clock::now() - start;
    return thing;
  }
  /// Whether next() has one at hand.
  bool ready() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return !made_.empty();
  }
  /// Seconds that next() took so far.
  double waited_seconds() const { return waited_.count(); }

 private:
  void work() {
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        space_.wait(lock, [&] { return stop_ || made_.size() < static_cast<size_t>(ahead_); });
        if (stop_) return;
      }
      std::exception_ptr failure;
      T thing;
      try {
        thing = make_(stop_);
      } catch (...) {
        failure = std::current_exception();
      }
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (failure) {
          error_ = failure;
        } else {
          made_.push_back(std::move(thing));
        }
      }
      filled_.notify_one();
      if (failure) return;
    }
  }

  T take() {
    std::unique_lock<std::mutex> lock(mutex_);
    filled_.wait(lock, [&] { return error_ || !made_.empty(); });
    if (made_.empty()) std::rethrow_exception(error_);
    T thing = std::move(made_.front());
    made_.pop_front();
    lock.unlock();
    space_.notify_one();
    return thing;
  }

  T make_now() {
    if (error_) std::rethrow_exception(error_);
    try {
      return make_(stop_);
    } catch (...) {
      error_ = std::current_exception();
      throw;
    }
  }

  Make make_;
  int ahead_;
  std::chrono::duration<double> waited_{0};

  mutable std::mutex mutex_;
  std::condition_variable filled_;
  std::condition_variable space_;
  std::deque<T> made_;
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
  std::thread worker_;
};

}  // namespace gmamba
