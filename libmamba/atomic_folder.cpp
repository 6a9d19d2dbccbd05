// SPDX-License-Identifier: Apache-2.0
#include "libmamba/atomic_folder.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMark = ".tmp.";
constexpr std::string_view kAside = ".old";

std::string shown(const fs::path& path) { return printable(std::string_view(path.native())); }

[[noreturn]] void fail_errno(const fs::path& path, std::string_view action) {
  const int code = errno;
  fail(ErrorKind::kIo, shown(path), ": cannot ", action, ": ", std::strerror(code));
}

/// The process in a temporary name, or 0.
int64_t writer_of(const fs::path& path) {
  const std::string name = path.filename().string();
  const size_t mark = name.rfind(kMark);
  if (mark == std::string::npos || mark == 0) return 0;
  const std::string digits = name.substr(mark + kMark.size());
  const bool number = !digits.empty() && digits.size() < 10 &&
                      digits.find_first_not_of("0123456789") == std::string::npos;
  return number ? parse_int(digits, "process") : 0;
}

fs::path temporary_of(const fs::path& path) {
  fs::path temporary = path;
  temporary += concat(kMark, ::getpid());
  return temporary;
}

/// Removes what killed processes left beside `path`.
void remove_leftovers(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const fs::path& candidate : list_folder(path.parent_path())) {
    const int64_t writer = writer_of(candidate);
    const std::string text = candidate.filename().string();
    const bool ours = text.starts_with(name + std::string(kMark)) ||
                      text.starts_with(name + std::string(kAside) + std::string(kMark));
    if (writer == 0 || !ours) continue;
    // a process of our own number is gone too: this one is not writing here any more
    const bool gone =
        writer == ::getpid() || (::kill(static_cast<pid_t>(writer), 0) != 0 && errno == ESRCH);
    // what cannot be removed now is tried again by the next save
    std::error_code ignored;
    if (gone) fs::remove_all(candidate, ignored);
  }
}

/// True when the file system can exchange two names in one step and did.
bool exchange(const fs::path& a, const fs::path& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  fail_errno(b, "replace");
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_errno(to, "put in its place");
}

}  // namespace

fs::path resolve_folder(const fs::path& path) {
  require(!path.empty(), ErrorKind::kUsage, "the name of a folder is empty");
  std::error_code code;
  fs::path full = fs::weakly_canonical(path, code);
  require(!code, ErrorKind::kIo, shown(path), ": cannot resolve the path: ", code.message());
  if (!full.is_absolute()) full = fs::current_path() / full;
  if (!full.has_filename()) full = full.parent_path();
  require(full.has_filename(), ErrorKind::kUsage, shown(path), ": not a place for a folder");
  return full;
}

bool is_temporary(const fs::path& path) { return writer_of(path) != 0; }

AtomicFolder::AtomicFolder(const fs::path& path)
    : path_(resolve_folder(path)), temporary_(temporary_of(path_)) {
  std::error_code code;
  require(fs::is_directory(path_.parent_path(), code), ErrorKind::kIo, shown(path_.parent_path()),
          ": no such folder; create it first");
  require(!path_exists(path_) || fs::is_directory(path_, code), ErrorKind::kIo, shown(path_),
          ": is a file; expected a folder or nothing there");
  // while nothing stands in the place, a left-over may be the only copy: it waits for commit
  if (path_exists(path_)) remove_leftovers(path_);
  remove_tree(temporary_);
  fs::create_directory(temporary_, code);
  require(!code, ErrorKind::kIo, shown(temporary_), ": cannot create: ", code.message());
}

AtomicFolder::~AtomicFolder() {
  if (done_) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  sync_path(temporary_);
  if (!path_exists(path_)) {
    rename_or_fail(temporary_, path_);
  } else if (!exchange(temporary_, path_)) {
    fs::path aside = path_;
    aside += concat(kAside, kMark, ::getpid());
    rename_or_fail(path_, aside);
    rename_or_fail(temporary_, path_);
  }
  done_ = true;
  sync_path(path_.parent_path());
  remove_leftovers(path_);
}

void remove_folder_atomically(const fs::path& path) {
  const fs::path full = resolve_folder(path);
  const fs::path temporary = temporary_of(full);
  remove_tree(temporary);
  rename_or_fail(full, temporary);
  sync_path(full.parent_path());
  remove_tree(temporary);
}

}  // namespace gmamba
