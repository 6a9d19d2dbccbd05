// SPDX-License-Identifier: Apache-2.0
/// The wish to end early (SIGINT, SIGTERM), as a flag that long loops look at.
#pragma once

namespace gmamba {

/// Thrown by check_stop: what was being written is dropped on the way up.
struct Stopped {
  int signal;
};

/// Safe to call from a signal handler.
void request_stop(int signal) noexcept;
bool stop_requested() noexcept;
/// The signal that asked, 0 for none.
int stop_signal() noexcept;
/// Throws Stopped when a stop was asked for.
void check_stop();

}  // namespace gmamba
