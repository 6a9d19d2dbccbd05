// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBufferBytes = size_t{1} << 20;

std::string shown(const fs::path& path) { return printable(path.string()); }

[[noreturn]] void fail_errno(const fs::path& path, std::string_view action) {
  const int code = errno;
  fail(ErrorKind::kIo, shown(path), ": cannot ", action, ": ", std::strerror(code));
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_;
};

/// read(2) until `size` bytes or the end of the file.
size_t read_some(int descriptor, char* to, size_t size, const fs::path& path) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(descriptor, to + done, size - done);
    if (got < 0) {
      if (errno == EINTR) continue;
      fail_errno(path, "read");
    }
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    require(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1,
            ErrorKind::kInternal, "SHA-256 is not available from libcrypto");
  }
  void add(std::string_view bytes) {
    require(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1, ErrorKind::kInternal,
            "SHA-256 update failed");
  }
  std::string hex() {
    std::array<unsigned char, 32> digest{};
    require(EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) == 1, ErrorKind::kInternal,
            "SHA-256 failed");
    std::string out;
    constexpr std::string_view kHex = "0123456789abcdef";
    for (const unsigned char byte : digest) {
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
    return out;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string read_file(const fs::path& path, int64_t limit_bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail_errno(path, "open");
  std::string out;
  while (true) {
    const size_t start = out.size();
    out.resize(start + kBufferBytes);
    const size_t got = read_some(file.get(), out.data() + start, kBufferBytes, path);
    out.resize(start + got);
    require(static_cast<int64_t>(out.size()) <= limit_bytes, ErrorKind::kInput, shown(path),
            ": longer than the ", format_bytes(limit_bytes), " that such a file may have");
    if (got < kBufferBytes) return out;
  }
}

std::string sha256_file(const fs::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail_errno(path, "open");
  Sha256 digest;
  std::string buffer(kBufferBytes, '\0');
  while (true) {
    const size_t got = read_some(file.get(), buffer.data(), buffer.size(), path);
    digest.add(std::string_view(buffer).substr(0, got));
    if (got < buffer.size()) return digest.hex();
  }
}

std::string sha256_bytes(std::string_view bytes) {
  Sha256 digest;
  digest.add(bytes);
  return digest.hex();
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), target_(path_) {
  struct stat status = {};
  std::error_code code;
  if (::stat(path_.c_str(), &status) == 0) {
    // a link is kept and what it points to is written
    if (fs::is_symlink(path_, code)) target_ = fs::canonical(path_, code);
    if (code) target_ = path_;
    in_place_ = !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
  }
  if (in_place_) {
    // devices and pipes (/dev/null, /dev/stdout) must not be replaced by a file
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail_errno(path_, "open");
    return;
  }
  temporary_ = target_;
  temporary_ += concat(".tmp.", ::getpid());
  descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_errno(path_, "create");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    if (!in_place_) ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(std::string_view bytes) {
  buffer_.append(bytes);
  written_ += static_cast<int64_t>(bytes.size());
  if (buffer_.size() >= kBufferBytes) flush();
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void AtomicFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t put = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
    if (put < 0) {
      if (errno == EINTR) continue;
      fail_errno(path_, "write");
    }
    done += static_cast<size_t>(put);
  }
  buffer_.clear();
}

void AtomicFile::overwrite(int64_t offset, std::string_view bytes) {
  flush();
  require(offset >= 0 && offset + static_cast<int64_t>(bytes.size()) <= written_,
          ErrorKind::kInternal, shown(path_), ": overwrite outside of what was written");
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done,
                                 static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (put < 0) {
      if (errno == EINTR) continue;
      fail_errno(path_, "write");
    }
    done += static_cast<size_t>(put);
  }
}

void AtomicFile::commit() {
  flush();
  // what cannot be synced, such as a pipe, says EINVAL
  if (::fsync(descriptor_) != 0 && !(in_place_ && errno == EINVAL)) {
    fail_errno(path_, "flush to disk");
  }
  const int closed = ::close(descriptor_);
  descriptor_ = -1;
  if (in_place_) {
    if (closed != 0) fail_errno(path_, "finish writing");
    return;
  }
  if (closed != 0 || ::rename(temporary_.c_str(), target_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    errno = code;
    fail_errno(path_, "finish writing");
  }
  sync_path(target_.has_parent_path() ? target_.parent_path() : fs::path("."));
}

void write_file(const fs::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void sync_path(const fs::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail_errno(path, "open");
  // some file systems cannot sync a folder and say EINVAL; their renames need no sync
  if (::fsync(file.get()) != 0 && errno != EINVAL) fail_errno(path, "flush to disk");
}

bool path_exists(const fs::path& path) {
  std::error_code code;
  const bool there = fs::exists(path, code);
  require(!code, ErrorKind::kIo, shown(path), ": cannot examine: ", code.message());
  return there;
}

std::vector<fs::path> list_folder(const fs::path& path) {
  std::vector<fs::path> entries;
  std::error_code code;
  fs::directory_iterator at(path, code);
  while (!code && at != fs::directory_iterator()) {
    entries.push_back(at->path());
    at.increment(code);
  }
  require(!code, ErrorKind::kIo, shown(path), ": cannot list the folder: ", code.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

void create_folders(const fs::path& path) {
  const fs::path parent =
      path.has_filename() ? path.parent_path() : path.parent_path().parent_path();
  if (path.empty() || path_exists(path)) {
    std::error_code code;
    require(path.empty() || fs::is_directory(path, code), ErrorKind::kIo, shown(path),
            ": is a file; expected a folder");
    return;
  }
  create_folders(parent);
  std::error_code code;
  fs::create_directory(path, code);
  require(!code, ErrorKind::kIo, shown(path), ": cannot create: ", code.message());
  sync_path(parent.empty() ? fs::path(".") : parent);
}

void remove_tree(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  require(!code, ErrorKind::kIo, shown(path), ": cannot remove: ", code.message());
}

}  // namespace gmamba
