// SPDX-License-Identifier: Apache-2.0
#include "io/byte_source.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "io/bgzf.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr size_t kPeek = 64;  ///< bytes looked at to tell formats apart

/// A source whose first bytes can be looked at before they are read.
class RawSource : public ByteSource {
 public:
  size_t read(char* to, size_t size) override {
    if (peeked_ < head_.size()) {
      const size_t take = std::min(size, head_.size() - peeked_);
      std::memcpy(to, head_.data() + peeked_, take);
      peeked_ += take;
      return take;
    }
    return read_raw(to, size);
  }
  std::string_view peek() {
    head_.resize(kPeek);
    size_t done = 0;
    while (done < kPeek) {
      const size_t got = read_raw(head_.data() + done, kPeek - done);
      if (got == 0) break;
      done += got;
    }
    head_.resize(done);
    return head_;
  }

 protected:
  virtual size_t read_raw(char* to, size_t size) = 0;

 private:
  std::string head_;
  size_t peeked_ = 0;
};

class FileSource final : public RawSource {
 public:
  FileSource(int descriptor, bool owned, std::string name)
      : descriptor_(descriptor), owned_(owned), name_(std::move(name)) {
    struct stat status = {};
    if (::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) {
      total_ = status.st_size;
      ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_SEQUENTIAL);
    }
  }
  ~FileSource() override {
    if (owned_) ::close(descriptor_);
  }
  int64_t consumed() const override { return consumed_; }
  int64_t total() const override { return total_; }

 protected:
  size_t read_raw(char* to, size_t size) override {
    while (true) {
      const ssize_t got = ::read(descriptor_, to, size);
      if (got >= 0) {
        consumed_ += got;
        return static_cast<size_t>(got);
      }
      const int code = errno;
      if (code == EINTR) continue;
      if (code == EAGAIN) {  // someone made the pipe non-blocking
        struct pollfd ready = {descriptor_, POLLIN, 0};
        ::poll(&ready, 1, -1);
        continue;
      }
      fail(ErrorKind::kIo, name_, ": cannot read: ", std::strerror(code));
    }
  }

 private:
  int descriptor_;
  bool owned_;
  std::string name_;
  int64_t consumed_ = 0;
  int64_t total_ = -1;
};

class MemorySource final : public RawSource {
 public:
  explicit MemorySource(std::string_view data) : data_(data) {}
  int64_t consumed() const override { return static_cast<int64_t>(next_); }
  int64_t total() const override { return static_cast<int64_t>(data_.size()); }

 protected:
  size_t read_raw(char* to, size_t size) override {
    const size_t take = std::min(size, data_.size() - next_);
    if (take > 0) std::memcpy(to, data_.data() + next_, take);
    next_ += take;
    return take;
  }

 private:
  std::string_view data_;
  size_t next_ = 0;
};

/// gzip of one or more members, checked by zlib to the end of the last one.
class GzipSource final : public ByteSource {
 public:
  GzipSource(std::unique_ptr<ByteSource> raw, std::string name)
      : raw_(std::move(raw)), name_(std::move(name)), input_(size_t{1} << 17) {
    require(::inflateInit2(&stream_, 15 + 16) == Z_OK, ErrorKind::kIo,
            "not enough memory to decompress");
  }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;
  ~GzipSource() override { ::inflateEnd(&stream_); }

  size_t read(char* to, size_t size) override {
    if (ended_) return 0;
    constexpr size_t kLargest = size_t{1} << 30;  // zlib counts in 32 bits
    const auto wanted = static_cast<uInt>(std::min(size, kLargest));
    stream_.next_out = reinterpret_cast<Bytef*>(to);
    stream_.avail_out = wanted;
    while (stream_.avail_out == wanted) {
      if (stream_.avail_in == 0 && !fill()) {
        require(!in_member_, ErrorKind::kInput, name_,
                ": truncated: the gzip data ends before its end mark; copy or download it again");
        ended_ = true;
        return 0;
      }
      in_member_ = true;
      const int result = ::inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_STREAM_END) {
        in_member_ = false;
        ++members_;
        ::inflateReset(&stream_);
      } else {
        check(result);
      }
    }
    return wanted - stream_.avail_out;
  }
  int64_t consumed() const override { return raw_->consumed() - stream_.avail_in; }
  int64_t total() const override { return raw_->total(); }

 private:
  bool fill() {
    const size_t got = raw_->read(input_.data(), input_.size());
    stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
    stream_.avail_in = static_cast<uInt>(got);
    return got > 0;
  }
  void check(int result) const {
    if (result == Z_OK || result == Z_BUF_ERROR) return;
    require(result != Z_MEM_ERROR, ErrorKind::kIo, "not enough memory to decompress");
    const bool between = stream_.total_out == 0 && members_ > 0;
    fail(ErrorKind::kInput, name_, ": near byte ", consumed(), ": ",
         between ? "what follows the gzip data is no gzip" : "damaged gzip data", " (",
         stream_.msg == nullptr ? "invalid" : stream_.msg, ")");
  }

  std::unique_ptr<ByteSource> raw_;
  std::string name_;
  std::vector<char> input_;
  z_stream stream_ = {};
  bool in_member_ = false;
  bool ended_ = false;
  int64_t members_ = 0;
};

struct Known {
  std::string_view magic;
  std::string_view what;
  std::string_view remedy;
};

/// Formats that people pass by mistake.
void refuse_known(std::string_view head, const std::string& name) {
  using namespace std::string_view_literals;
  constexpr std::array<Known, 7> kKnown = {{
      {"\xFD\x37zXZ\0"sv, "xz", "decompress it first"},
      {"\x28\xB5\x2F\xFD"sv, "Zstandard", "decompress it first"},
      {"PK\x03\x04"sv, "zip", "unpack it first"},
      {"CRAM\x03"sv, "CRAM", "convert it with samtools fasta or fastq"},
      {"BAM\x01"sv, "uncompressed BAM", "convert it with samtools fasta or fastq"},
      {"\x43\x27\x41\x1A"sv, "2bit", "convert it with twoBitToFa"},
      {"\x93NUMPY"sv, "NumPy", "give sequences or text"},
  }};
  const bool bzip2 = head.starts_with("BZh") &&
                     head.substr(std::min<size_t>(4, head.size())).starts_with("1AY&SY");
  require(!bzip2, ErrorKind::kUnsupported, name,
          ": this is a bzip2 file, which is not read; decompress it first");
  for (const Known& known : kKnown) {
    if (head.starts_with(known.magic)) {
      fail(ErrorKind::kUnsupported, name, ": this is a ", known.what, " file, which is not read; ",
           known.remedy);
    }
  }
}

OpenedBytes wrap(std::unique_ptr<RawSource> raw, std::string name, int threads) {
  const std::string_view head = raw->peek();
  if (looks_like_bgzf(head)) {
    auto bytes = make_bgzf_source(std::move(raw), name, threads);
    return {std::move(bytes), std::move(name), Packing::kBgzf};
  }
  if (head.starts_with("\x1f\x8b")) {
    auto bytes = std::make_unique<GzipSource>(std::move(raw), name);
    return {std::move(bytes), std::move(name), Packing::kGzip};
  }
  refuse_known(head, name);
  return {std::move(raw), std::move(name), Packing::kPlain};
}

}  // namespace

OpenedBytes open_bytes(const std::string& path, int threads) {
  if (path == "-") {
    return wrap(std::make_unique<FileSource>(STDIN_FILENO, false, "standard input"),
                "standard input", threads);
  }
  std::string name = printable(path);
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int code = errno;
    fail(ErrorKind::kIo, name, ": cannot open: ", std::strerror(code));
  }
  auto raw = std::make_unique<FileSource>(descriptor, true, name);
  return wrap(std::move(raw), std::move(name), threads);
}

OpenedBytes open_bytes_memory(std::string_view data, const std::string& name, int threads) {
  return wrap(std::make_unique<MemorySource>(data), printable(name), threads);
}

void refuse_other_text(std::string_view start, const std::string& name) {
  const bool bam = start.starts_with("BAM\x01");
  if (bam || start.starts_with("@HD\tVN:") || start.starts_with("@SQ\tSN:")) {
    fail(ErrorKind::kUnsupported, name, ": this is a ", bam ? "BAM" : "SAM",
         " file, which is not read; convert it with samtools fasta or fastq");
  }
  require(!start.starts_with("\xEF\xBB\xBF"), ErrorKind::kInput, name,
          ": line 1: starts with a byte-order mark; remove its first three bytes");
}

}  // namespace gmamba
