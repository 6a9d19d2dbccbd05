// SPDX-License-Identifier: Apache-2.0
/// While the work of a GPU's stream is recorded instead of done, no thread may use the default
/// stream, which orders itself with all others, nor take or return the device's memory. Such calls
/// of other threads wait for the recording's end; one of the recording thread is an error, which
/// ends the recording.
#pragma once

#include <mutex>
#include <shared_mutex>

namespace gmamba {

/// Held while a thread records.
class RecordingLock {
 public:
  RecordingLock();
  RecordingLock(const RecordingLock&) = delete;
  RecordingLock& operator=(const RecordingLock&) = delete;
  ~RecordingLock();

  /// True between the two on the calling thread.
  static bool held_here();

 private:
  std::unique_lock<std::shared_mutex> lock_;
};

/// Held during a call that may not be made while any thread records.
class UnrecordedCall {
 public:
  /// Throws kInternal, naming the call, on a thread that records.
  explicit UnrecordedCall(const char* what);

 private:
  std::shared_lock<std::shared_mutex> lock_;
};

}  // namespace gmamba
