// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/recording.h"

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

std::shared_mutex& recording_mutex() {
  static std::shared_mutex mutex;
  return mutex;
}

thread_local bool recording_here = false;

}  // namespace

RecordingLock::RecordingLock() {
  require(!recording_here, ErrorKind::kInternal, "a recording within a recording");
  lock_ = std::unique_lock(recording_mutex());
  recording_here = true;
}

RecordingLock::~RecordingLock() { recording_here = false; }

bool RecordingLock::held_here() { return recording_here; }

UnrecordedCall::UnrecordedCall(const char* what) {
  require(!recording_here, ErrorKind::kInternal, what, " while the stream's work is recorded");
  lock_ = std::shared_lock(recording_mutex());
}

}  // namespace gmamba
