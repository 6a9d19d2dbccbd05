// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "libmamba/core/device.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba::detail {
namespace {

class CpuBackend final : public Backend {
 public:
  int device_count() const override { return 1; }
  std::string why_none() const override { return {}; }

  std::string device_name(int) const override {
    std::ifstream info("/proc/cpuinfo");
    std::string line;
    while (std::getline(info, line)) {
      if (line.starts_with("model name")) {
        return std::string(trim(line.substr(line.find(':') + 1)));
      }
    }
    return "CPU";
  }

  void* allocate(int index, int64_t bytes) override {
    void* data = allocate_host(index, bytes);
    note_allocated(index, data, bytes);
    return data;
  }
  void release(int index, void* data) noexcept override {
    note_released(index, data);
    std::free(data);
  }

  int64_t free_bytes(int) const override { return 0; }
  /// Of the machine, or what its control group allows.
  int64_t total_bytes(int) const override {
    const int64_t pages = ::sysconf(_SC_PHYS_PAGES);
    int64_t total = pages > 0 ? pages * ::sysconf(_SC_PAGESIZE) : 0;
    std::ifstream limit_file("/sys/fs/cgroup/memory.max");
    int64_t limit = 0;
    if (limit_file >> limit && limit > 0) total = total > 0 ? std::min(total, limit) : limit;
    return total;
  }

  void* allocate_host(int, int64_t bytes) override {
    constexpr size_t kAlignment = 64;
    const size_t rounded = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
    void* data = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
    require(data != nullptr, ErrorKind::kDevice, "out of memory: could not get ",
            format_bytes(bytes), "; use a smaller --segment or --batch-tokens");
    return data;
  }
  void release_host(int, void* data) noexcept override { std::free(data); }
  Event create_event(int) override { return nullptr; }
  void destroy_event(int, Event) noexcept override {}
  void record(int, Stream, Event) override {}
  void wait_for(int, Stream, Event) override {}
  void synchronize_event(int, Event) override {}

  void fill_zero(int, Stream, void* data, int64_t bytes) override {
    std::memset(data, 0, static_cast<size_t>(bytes));
  }
  void copy_in(int, Stream, void* to, const void* host, int64_t bytes) override {
    move(to, host, bytes);
  }
  void copy_out(int, Stream, void* host, const void* from, int64_t bytes) override {
    move(host, from, bytes);
  }
  void copy_within(int, Stream, void* to, const void* from, int64_t bytes) override {
    move(to, from, bytes);
  }
  void make_current(int) override {}
  Stream create_stream(int) override { return nullptr; }
  void destroy_stream(int, Stream) noexcept override {}
  void synchronize(int, Stream) override {}

 private:
  static void move(void* to, const void* from, int64_t bytes) {
    if (bytes > 0) {
      std::memmove(to, from, static_cast<size_t>(bytes));
    }
  }
};

}  // namespace

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

}  // namespace gmamba::detail
