// SPDX-License-Identifier: Apache-2.0
#include "io/random_bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "io/bgzf.h"
#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// A regular file read by position.
class PositionFile {
 public:
  PositionFile(const std::string& path) : name_(printable(path)) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail_errno("open");
    struct stat status = {};
    if (::fstat(descriptor_, &status) != 0) fail_errno("look at");
    if (!S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      fail(ErrorKind::kInput, name_, ": random access needs a regular file");
    }
    size_ = status.st_size;
  }
  PositionFile(const PositionFile&) = delete;
  PositionFile& operator=(const PositionFile&) = delete;
  ~PositionFile() { ::close(descriptor_); }

  const std::string& name() const { return name_; }
  int64_t size() const { return size_; }
  /// Up to `to.size()` bytes; fewer only at the end of the file.
  size_t read_some(int64_t offset, std::span<char> to) const {
    size_t done = 0;
    while (done < to.size()) {
      const ssize_t got = ::pread(descriptor_, to.data() + done, to.size() - done,
                                  static_cast<off_t>(offset) + static_cast<off_t>(done));
      if (got == 0) break;
      if (got > 0) {
        done += static_cast<size_t>(got);
      } else if (errno != EINTR) {
        fail_errno("read");
      }
    }
    return done;
  }
  void read(int64_t offset, std::span<char> to) const {
    require(read_some(offset, to) == to.size(), ErrorKind::kInput, name_,
            ": became shorter while it was read");
  }

 private:
  [[noreturn]] void fail_errno(std::string_view action) const {
    const int code = errno;
    if (descriptor_ >= 0 && size_ < 0) ::close(descriptor_);
    fail(ErrorKind::kIo, name_, ": cannot ", action, ": ", std::strerror(code));
  }

  std::string name_;
  int descriptor_ = -1;
  int64_t size_ = -1;
};

class PlainBytes final : public RandomBytes {
 public:
  explicit PlainBytes(std::unique_ptr<PositionFile> file) : file_(std::move(file)) {}
  int64_t size() const override { return file_->size(); }
  void read(int64_t offset, std::span<char> to) const override {
    require(offset >= 0 && static_cast<int64_t>(to.size()) <= size() - offset, ErrorKind::kInternal,
            file_->name(), ": read outside of the file");
    file_->read(offset, to);
  }
  const std::vector<BlockOffset>& blocks() const override { return blocks_; }

 private:
  std::unique_ptr<PositionFile> file_;
  std::vector<BlockOffset> blocks_;
};

class BgzfBytes final : public RandomBytes {
 public:
  explicit BgzfBytes(std::unique_ptr<PositionFile> file) : file_(std::move(file)) { walk(); }

  int64_t size() const override { return size_; }
  const std::vector<BlockOffset>& blocks() const override { return blocks_; }

  void read(int64_t offset, std::span<char> to) const override {
    require(offset >= 0 && static_cast<int64_t>(to.size()) <= size() - offset, ErrorKind::kInternal,
            file_->name(), ": read outside of the file");
    if (to.empty()) return;
    const auto after = std::upper_bound(
        blocks_.begin(), blocks_.end(), offset,
        [](int64_t wanted, const BlockOffset& block) { return wanted < block.text; });
    auto block = static_cast<size_t>(after - blocks_.begin()) - 1;
    std::unique_ptr<Worker> worker = borrow(block);
    size_t done = 0;
    while (done < to.size()) {
      load(*worker, block);
      const auto from =
          static_cast<size_t>(offset + static_cast<int64_t>(done) - blocks_[block].text);
      const size_t take = std::min(to.size() - done, worker->length - from);
      std::memcpy(to.data() + done, worker->data.data() + from, take);
      done += take;
      ++block;
    }
    give_back(std::move(worker));
  }

 private:
  /// What one thread needs to read a block; keeps the last one.
  struct Worker {
    BgzfInflater inflater;
    std::array<char, kBgzfMaxBlock> packed;
    std::array<char, kBgzfMaxBlock> data;
    size_t length = 0;
    size_t block = SIZE_MAX;
  };

  /// Steps over the blocks by their headers. Each read takes one footer and the next header.
  void walk() {
    std::array<char, kBgzfFooter + 18> bytes;
    std::string long_header;
    int64_t at = 0;
    bool ended = false;
    std::string_view header;
    while (at < file_->size()) {
      if (at == 0) {
        header = {bytes.data(), file_->read_some(0, std::span<char>(bytes).first(18))};
      }
      const size_t header_bytes = bgzf_header_bytes(header);
      require(header_bytes != 0, ErrorKind::kInput, file_->name(), ": byte ", at,
              header.size() < kBgzfFixedHeader
                  ? ": truncated: a BGZF header is cut short; copy or download it again"
                  : ": no BGZF block starts here, after whole ones");
      if (header_bytes > header.size()) {
        long_header.resize(header_bytes);
        long_header.resize(file_->read_some(at, long_header));
        header = long_header;
      }
      const auto block_bytes = static_cast<int64_t>(parse_bgzf_header(header).block_bytes);
      require(block_bytes != 0, ErrorKind::kInput, file_->name(), ": byte ", at,
              ": damaged BGZF header");
      require(block_bytes <= file_->size() - at, ErrorKind::kInput, file_->name(),
              ": truncated: the BGZF block at byte ", at,
              " is cut short; copy or download it again");
      const int64_t footer_at = at + block_bytes - static_cast<int64_t>(kBgzfFooter);
      const std::string_view tail(bytes.data(), file_->read_some(footer_at, bytes));
      require(tail.size() >= kBgzfFooter, ErrorKind::kInput, file_->name(),
              ": became shorter while it was read");
      const int64_t length = bgzf_data_length(tail.substr(0, kBgzfFooter));
      require(length <= static_cast<int64_t>(kBgzfMaxBlock), ErrorKind::kInput, file_->name(),
              ": the BGZF block at byte ", at, " says that it holds more than 64 KiB");
      if (length > 0) blocks_.push_back({at, size_});
      size_ += length;
      ended = is_end_block(at, block_bytes);
      at += block_bytes;
      header = tail.substr(kBgzfFooter);
    }
    require(ended, ErrorKind::kInput, file_->name(),
            ": truncated: the BGZF end-of-file block is missing; the copy or the program that "
            "wrote it was cut short");
  }

  bool is_end_block(int64_t at, int64_t bytes) const {
    if (bytes != static_cast<int64_t>(bgzf_end_block().size())) return false;
    std::array<char, 28> block;
    file_->read(at, block);
    return std::string_view(block.data(), block.size()) == bgzf_end_block();
  }

  void load(Worker& worker, size_t block) const {
    if (worker.block == block) return;
    worker.block = SIZE_MAX;
    const int64_t at = blocks_[block].packed;
    // the walk has seen the header; it is read again because the file may have changed
    const auto most = static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(kBgzfMaxBlock), file_->size() - at));
    const int64_t next = block + 1 < blocks_.size() ? blocks_[block + 1].packed : file_->size();
    const size_t wanted = std::min(most, static_cast<size_t>(next - at));
    file_->read(at, std::span<char>(worker.packed).first(wanted));
    const std::string_view bytes(worker.packed.data(), wanted);
    const size_t block_bytes = parse_bgzf_header(bytes).block_bytes;
    const char* reason = "no BGZF block";
    if (block_bytes != 0 && block_bytes <= wanted) {
      worker.length = worker.inflater.inflate(bytes.substr(0, block_bytes), worker.data, &reason);
    }
    require(reason == nullptr, ErrorKind::kInput, file_->name(), ": the BGZF block at byte ", at,
            " has ", reason == nullptr ? "" : reason);
    const int64_t length =
        (block + 1 < blocks_.size() ? blocks_[block + 1].text : size_) - blocks_[block].text;
    require(static_cast<int64_t>(worker.length) == length, ErrorKind::kInput, file_->name(),
            ": the BGZF block at byte ", at, " changed while the file was in use");
    worker.block = block;
  }

  std::unique_ptr<Worker> borrow(size_t block) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (workers_.empty()) return std::make_unique<Worker>();
    const auto found = std::find_if(workers_.begin(), workers_.end(),
                                    [&](const auto& worker) { return worker->block == block; });
    const auto chosen = found == workers_.end() ? workers_.end() - 1 : found;
    std::unique_ptr<Worker> worker = std::move(*chosen);
    workers_.erase(chosen);
    return worker;
  }
  void give_back(std::unique_ptr<Worker> worker) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    workers_.push_back(std::move(worker));
  }

  std::unique_ptr<PositionFile> file_;
  std::vector<BlockOffset> blocks_;
  int64_t size_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace

std::unique_ptr<RandomBytes> open_random_bytes(const std::string& path) {
  const std::string name = printable(path);
  require(path != "-", ErrorKind::kInput,
          "standard input: random access needs a file; save the sequences first");
  auto file = std::make_unique<PositionFile>(path);
  const OpenedBytes opened = open_bytes(path);  // tells the format apart and refuses foreign ones
  switch (opened.packing) {
    case Packing::kPlain:
      return std::make_unique<PlainBytes>(std::move(file));
    case Packing::kBgzf:
      return std::make_unique<BgzfBytes>(std::move(file));
    case Packing::kGzip:
      break;
  }
  fail(ErrorKind::kInput, name,
       ": plain gzip gives no random access; decompress it, or use bgzip: gunzip -c ", name,
       " | bgzip > new.fa.gz");
}

}  // namespace gmamba
