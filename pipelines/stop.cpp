// SPDX-License-Identifier: Apache-2.0
#include "pipelines/stop.h"

#include <atomic>

namespace gmamba {
namespace {

std::atomic<int> asked_by{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may not take a lock");

}  // namespace

void request_stop(int signal) noexcept { asked_by.store(signal); }
bool stop_requested() noexcept { return asked_by.load() != 0; }
int stop_signal() noexcept { return asked_by.load(); }

void check_stop() {
  if (const int signal = stop_signal(); signal != 0) {
    throw Stopped{signal};
  }
}

}  // namespace gmamba
