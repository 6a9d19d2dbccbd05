// SPDX-License-Identifier: Apache-2.0
/// Where tensors live and work runs, and the few things every kind of device must be able to do.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace gmamba {

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;

  bool operator==(const Device&) const = default;
  bool is_cpu() const { return kind == DeviceKind::kCpu; }
};

/// "cpu", "cuda:0"
std::string to_string(Device device);

/// "auto" (first usable GPU, else CPU), "cpu", "cuda" or "cuda:N". Throws kUsage on other words and
/// kUnsupported when the device named is not there, saying why.
Device parse_device(std::string_view text);

/// Work queue of a device; null for the CPU.
using Stream = void*;
/// A place in a stream's work; null for the CPU, whose work is done when a call returns.
using Event = void*;

/// Memory of one device kind. Implementations: CPU, CUDA, and a stand-in that explains itself in
/// builds without CUDA.
class Backend {
 public:
  virtual ~Backend() = default;
  /// Number of usable devices of this kind, and when it is 0 the reason as one sentence.
  virtual int device_count() const = 0;
  virtual std::string why_none() const = 0;
  /// Free-text name: CPU model or GPU name.
  virtual std::string device_name(int index) const = 0;
  /// At least 64-byte aligned; throws kDevice (or kIo for host memory) naming bytes asked and free.
  virtual void* allocate(int index, int64_t bytes) = 0;
  virtual void release(int index, void* data) noexcept = 0;
  virtual void fill_zero(int index, Stream stream, void* data, int64_t bytes) = 0;
  /// Copies between host and this device, or within it; ordered on `stream`.
  virtual void copy_in(int index, Stream stream, void* to, const void* host, int64_t bytes) = 0;
  virtual void copy_out(int index, Stream stream, void* host, const void* from, int64_t bytes) = 0;
  virtual void copy_within(int index, Stream stream, void* to, const void* from, int64_t bytes) = 0;
  virtual Stream create_stream(int index) = 0;
  virtual void destroy_stream(int index, Stream stream) noexcept = 0;
  virtual void synchronize(int index, Stream stream) = 0;
  /// Makes the calling thread's next launches go to this device.
  virtual void make_current(int index) = 0;
  /// Bytes that could be allocated now, and that the device has; 0 where that isn't known.
  virtual int64_t free_bytes(int index) const = 0;
  virtual int64_t total_bytes(int index) const = 0;
  /// Share, 0 to 1, of the time since `since` in which the device was at work, as its driver
  /// samples it; `since` (0 at first) moves on. Empty where no driver says, or it has no newer
  /// sample.
  virtual std::optional<double> busy_share(int /*index*/, uint64_t& /*since*/) const { return {}; }

  /// Host memory that a device reads and writes by itself (page-locked for a GPU), so that copies
  /// run while the host goes on. At least 64-byte aligned.
  virtual void* allocate_host(int index, int64_t bytes) = 0;
  virtual void release_host(int index, void* data) noexcept = 0;

  virtual Event create_event(int index) = 0;
  virtual void destroy_event(int index, Event event) noexcept = 0;
  /// Puts the event after all work that was given to the stream so far.
  virtual void record(int index, Stream stream, Event event) = 0;
  /// What is given to the stream from now on begins after the event; the host goes on.
  virtual void wait_for(int index, Stream stream, Event event) = 0;
  /// Waits on the host; an event that was never recorded is past.
  virtual void synchronize_event(int index, Event event) = 0;

  /// Bytes that this process has of a device through allocate(): now, and at most since the start
  /// or the last reset_peak().
  int64_t allocated_bytes(int index) const;
  int64_t peak_allocated_bytes(int index) const;
  void reset_peak(int index);

 protected:
  void note_allocated(int index, void* data, int64_t bytes);
  void note_released(int index, void* data) noexcept;

 private:
  struct Account {
    std::unordered_map<const void*, int64_t> sizes;
    int64_t now = 0;
    int64_t peak = 0;
  };
  mutable std::mutex accounts_mutex_;
  std::map<int, Account> accounts_;  // by device
};

/// The backend of a device kind; lives as long as the program.
Backend& backend_for(DeviceKind kind);

namespace detail {
Backend& cpu_backend();
Backend& cuda_backend();
}  // namespace detail

}  // namespace gmamba
