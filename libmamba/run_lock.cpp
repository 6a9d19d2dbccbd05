// SPDX-License-Identifier: Apache-2.0
/// RUN/lock is held by flock, which the system releases however a process ends; the number in it is
/// for the message only.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/run_checkpoint.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

/// What the holder wrote. It takes the lock before it can write, so an empty file is asked again.
std::string holder(int descriptor) {
  std::array<char, 32> text{};
  for (int tries = 0; tries < 50; ++tries) {
    const ssize_t got = ::pread(descriptor, text.data(), text.size(), 0);
    const std::string_view read(text.data(), got > 0 ? static_cast<size_t>(got) : 0);
    if (read.ends_with('\n')) return "process " + printable(trim(read));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return "another process";
}

}  // namespace

RunLock::RunLock(const fs::path& run) {
  create_folders(run);
  const fs::path path = run / "lock";
  const std::string shown = printable(std::string_view(path.native()));
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  require(descriptor_ >= 0, ErrorKind::kIo, shown, ": cannot open: ", std::strerror(errno));
  while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    if (reason == EINTR) continue;
    const std::string who = reason == EWOULDBLOCK ? holder(descriptor_) : "";
    ::close(descriptor_);
    descriptor_ = -1;
    require(reason == EWOULDBLOCK, ErrorKind::kIo, shown, ": cannot lock: ", std::strerror(reason));
    fail(ErrorKind::kUsage, printable(std::string_view(run.native())), ": ", who,
         " is using this run folder; wait for it or choose another");
  }
  const std::string text = concat(::getpid(), '\n');
  const bool written =
      ::ftruncate(descriptor_, 0) == 0 &&
      ::pwrite(descriptor_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  if (!written) {
    const int reason = errno;
    ::close(descriptor_);
    descriptor_ = -1;
    fail(ErrorKind::kIo, shown, ": cannot write: ", std::strerror(reason));
  }
}

RunLock::~RunLock() {
  if (descriptor_ < 0) return;
  // the file stays: removing it would let two processes hold locks on two files of one name
  (void)!::ftruncate(descriptor_, 0);
  ::close(descriptor_);
}

}  // namespace gmamba
