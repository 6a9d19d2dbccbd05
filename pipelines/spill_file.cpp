// SPDX-License-Identifier: Apache-2.0
#include "pipelines/spill_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

[[noreturn]] void fail_errno(const std::filesystem::path& folder, std::string_view action) {
  const int code = errno;
  fail(ErrorKind::kIo, "cannot ", action, " a temporary file in ", printable(folder.string()), ": ",
       std::strerror(code), "; TMPDIR names another folder");
}

}  // namespace

SpillFile::SpillFile(const std::filesystem::path& folder) : folder_(folder) {
  if (folder_.empty()) {
    const char* chosen = std::getenv("TMPDIR");
    folder_ = chosen != nullptr && *chosen != '\0' ? chosen : "/tmp";
  }
  std::string name = (folder_ / "gmamba.XXXXXX").string();
  descriptor_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (descriptor_ < 0) fail_errno(folder_, "create");
  ::unlink(name.c_str());
}

SpillFile::~SpillFile() { ::close(descriptor_); }

void SpillFile::append(std::span<const std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done,
                                 static_cast<off_t>(size_) + static_cast<off_t>(done));
    if (put < 0) {
      if (errno == EINTR) continue;
      fail_errno(folder_, "write");
    }
    done += static_cast<size_t>(put);
  }
  size_ += static_cast<int64_t>(bytes.size());
}

void SpillFile::read(int64_t offset, std::span<std::byte> to) const {
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t got = ::pread(descriptor_, to.data() + done, to.size() - done,
                                static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (got < 0) {
      if (errno == EINTR) continue;
      fail_errno(folder_, "read");
    }
    require(got > 0, ErrorKind::kInternal, "a temporary file is shorter than what was written");
    done += static_cast<size_t>(got);
  }
}

void SpillFile::clear() {
  if (::ftruncate(descriptor_, 0) != 0) fail_errno(folder_, "empty");
  size_ = 0;
}

}  // namespace gmamba
