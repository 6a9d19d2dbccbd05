// SPDX-License-Identifier: Apache-2.0
/// BGZF as a stream. The caller's thread reads whole blocks; they are inflated in place, or in
/// groups by worker threads whose results are handed out in file order.
#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "io/bgzf.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr size_t kRawBuffer = size_t{1} << 18;
constexpr size_t kBlocksPerJob = 16;

/// Cuts the raw stream into blocks and checks that the last one is the end block.
class BlockReader {
 public:
  BlockReader(std::unique_ptr<ByteSource> raw, std::string name)
      : raw_(std::move(raw)),
        name_(std::move(name)),
        buffer_(std::make_unique_for_overwrite<char[]>(kRawBuffer)) {}

  /// The next whole block, valid until the next call; empty at the checked end.
  std::string_view next() {
    if (!need(1)) {
      require(ended_, ErrorKind::kInput, name_,
              ": truncated: the BGZF end-of-file block is missing; the copy or the program that "
              "wrote it was cut short");
      return {};
    }
    const int64_t offset = offset_;
    if (!need(kBgzfFixedHeader)) fail_cut(offset);
    const size_t header_bytes = bgzf_header_bytes(view());
    require(header_bytes != 0, ErrorKind::kInput, name_, ": byte ", offset,
            ": no BGZF block starts here, after whole ones; remove what follows or compress again "
            "with bgzip");
    if (!need(header_bytes)) fail_cut(offset);
    const BgzfBlock sizes = parse_bgzf_header(view());
    require(sizes.block_bytes != 0, ErrorKind::kInput, name_, ": byte ", offset,
            ": damaged BGZF header");
    if (!need(sizes.block_bytes)) fail_cut(offset);
    const std::string_view block = view().substr(0, sizes.block_bytes);
    start_ += sizes.block_bytes;
    offset_ += static_cast<int64_t>(sizes.block_bytes);
    ended_ = block == bgzf_end_block();
    return block;
  }

  /// Offset in the file just after the last block given.
  int64_t offset() const { return offset_; }
  const std::string& name() const { return name_; }
  int64_t total() const { return raw_->total(); }

 private:
  [[noreturn]] void fail_cut(int64_t offset) const {
    fail(ErrorKind::kInput, name_, ": truncated: the BGZF block at byte ", offset,
         " is cut short; copy or download it again");
  }
  std::string_view view() const { return {buffer_.get() + start_, end_ - start_}; }
  /// Makes at least `bytes` visible, if the stream has them.
  bool need(size_t bytes) {
    if (end_ - start_ >= bytes) return true;
    std::memmove(buffer_.get(), buffer_.get() + start_, end_ - start_);
    end_ -= start_;
    start_ = 0;
    while (end_ < bytes) {
      const size_t got = raw_->read(buffer_.get() + end_, kRawBuffer - end_);
      if (got == 0) return false;
      end_ += got;
    }
    return true;
  }

  std::unique_ptr<ByteSource> raw_;
  std::string name_;
  std::unique_ptr<char[]> buffer_;  // more than any block
  size_t start_ = 0;
  size_t end_ = 0;
  int64_t offset_ = 0;
  bool ended_ = false;
};

void inflate_or_throw(BgzfInflater& inflater, std::string_view block, std::span<char> to,
                      size_t& length, const std::string& name, int64_t offset) {
  const char* reason = nullptr;
  length = inflater.inflate(block, to, &reason);
  require(reason == nullptr, ErrorKind::kInput, name, ": the BGZF block at byte ", offset, " has ",
          reason == nullptr ? "" : reason);
}

class SerialSource final : public ByteSource {
 public:
  SerialSource(std::unique_ptr<ByteSource> raw, std::string name)
      : blocks_(std::move(raw), std::move(name)) {}

  size_t read(char* to, size_t size) override {
    size_t done = 0;
    while (done < size) {
      if (next_ < length_) {
        const size_t take = std::min(size - done, length_ - next_);
        std::memcpy(to + done, data_.data() + next_, take);
        next_ += take;
        done += take;
        continue;
      }
      const int64_t offset = blocks_.offset();
      const std::string_view block = blocks_.next();
      if (block.empty()) break;
      // a block that fits is inflated where it is wanted
      const bool in_place = size - done >= kBgzfMaxBlock;
      const std::span<char> target = in_place ? std::span<char>(to + done, size - done) : data_;
      size_t length = 0;
      inflate_or_throw(inflater_, block, target, length, blocks_.name(), offset);
      if (in_place) {
        done += length;
      } else {
        next_ = 0;
        length_ = length;
      }
    }
    return done;
  }
  int64_t consumed() const override { return blocks_.offset(); }
  int64_t total() const override { return blocks_.total(); }

 private:
  BlockReader blocks_;
  BgzfInflater inflater_;
  std::array<char, kBgzfMaxBlock> data_;
  size_t next_ = 0;
  size_t length_ = 0;
};

/// A run of blocks that one worker inflates.
struct Job {
  std::vector<char> raw;
  std::array<size_t, kBlocksPerJob> block_bytes{};
  size_t blocks = 0;
  int64_t offset = 0;  ///< of the first block in the file
  std::vector<char> data;
  size_t length = 0;
  std::exception_ptr error;
  bool done = false;
};

class ParallelSource final : public ByteSource {
 public:
  ParallelSource(std::unique_ptr<ByteSource> raw, std::string name, int threads)
      : blocks_(std::move(raw), std::move(name)), jobs_(static_cast<size_t>(threads) * 3) {
    for (int i = 0; i < threads; ++i) {
      workers_.emplace_back([this] { work(); });
    }
  }

  ~ParallelSource() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  size_t read(char* to, size_t size) override {
    while (true) {
      if (current_ != nullptr && next_ < current_->length) {
        const size_t take = std::min(size, current_->length - next_);
        std::memcpy(to, current_->data.data() + next_, take);
        next_ += take;
        return take;
      }
      if (current_ != nullptr) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++handed_out_;
      }
      current_ = nullptr;
      submit();
      if (handed_out_ == submitted_) {
        if (read_error_) std::rethrow_exception(read_error_);
        return 0;
      }
      Job& job = jobs_[handed_out_ % jobs_.size()];
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ready_.wait(lock, [&] { return job.done; });
      }
      if (job.error) std::rethrow_exception(job.error);
      current_ = &job;
      next_ = 0;
    }
  }
  int64_t consumed() const override { return blocks_.offset(); }
  int64_t total() const override { return blocks_.total(); }

 private:
  /// Fills every free job. An error in the raw stream waits until the blocks before it are read.
  void submit() {
    while (!ended_ && submitted_ - handed_out_ < jobs_.size()) {
      Job& job = jobs_[submitted_ % jobs_.size()];
      job.raw.clear();
      job.blocks = 0;
      job.offset = blocks_.offset();
      job.error = nullptr;
      job.done = false;
      try {
        while (job.blocks < kBlocksPerJob) {
          const std::string_view block = blocks_.next();
          if (block.empty()) {
            ended_ = true;
            break;
          }
          job.raw.insert(job.raw.end(), block.begin(), block.end());
          job.block_bytes[job.blocks++] = block.size();
        }
      } catch (...) {
        read_error_ = std::current_exception();
        ended_ = true;
      }
      if (job.blocks == 0) break;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++submitted_;
      }
      wake_.notify_one();
    }
  }

  void work() {
    BgzfInflater inflater;
    while (true) {
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || taken_ < submitted_; });
        if (stop_) return;
        job = &jobs_[taken_ % jobs_.size()];
        ++taken_;
      }
      try {
        run(*job, inflater);
      } catch (...) {
        job->error = std::current_exception();
      }
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        job->done = true;
      }
      ready_.notify_one();
    }
  }

  void run(Job& job, BgzfInflater& inflater) const {
    job.data.resize(kBlocksPerJob * kBgzfMaxBlock);
    job.length = 0;
    size_t at = 0;
    for (size_t i = 0; i < job.blocks; ++i) {
      const std::string_view block(job.raw.data() + at, job.block_bytes[i]);
      size_t length = 0;
      inflate_or_throw(inflater, block, std::span<char>(job.data).subspan(job.length), length,
                       blocks_.name(), job.offset + static_cast<int64_t>(at));
      job.length += length;
      at += block.size();
    }
  }

  BlockReader blocks_;
  std::vector<Job> jobs_;  // a ring: [handed_out_, taken_) in work, [taken_, submitted_) waiting
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable ready_;
  size_t submitted_ = 0;
  size_t taken_ = 0;
  size_t handed_out_ = 0;
  bool stop_ = false;
  // of the caller's thread only
  bool ended_ = false;
  std::exception_ptr read_error_;
  Job* current_ = nullptr;
  size_t next_ = 0;
};

}  // namespace

std::unique_ptr<ByteSource> make_bgzf_source(std::unique_ptr<ByteSource> raw, std::string name,
                                             int threads) {
  if (threads > 1) {
    return std::make_unique<ParallelSource>(std::move(raw), std::move(name), threads);
  }
  return std::make_unique<SerialSource>(std::move(raw), std::move(name));
}

}  // namespace gmamba
