// SPDX-License-Identifier: Apache-2.0
/// Everything an operation needs besides its arguments: device, stream, threads, scratch and log,
/// in one object that is passed along. No globals, no hidden default stream.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "libmamba/core/device.h"
#include "libmamba/core/log.h"
#include "libmamba/core/staging.h"
#include "libmamba/core/tensor.h"

namespace gmamba {

/// Scratch memory of one device, given out by bumping a pointer and taken back at scope end. It
/// keeps what it once got, so that a step loop allocates nothing after its first step.
class Arena {
 public:
  explicit Arena(Device device) : device_(device) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  /// Uninitialised memory valid until the enclosing Scope ends; 256-byte aligned.
  TensorView tensor(DType dtype, const Shape& shape);
  TensorView f32(const Shape& shape) { return tensor(DType::kF32, shape); }
  TensorView zeros(DType dtype, const Shape& shape, Stream stream = nullptr);

  /// Makes one block of at least `bytes` ahead of use, in place of all others if none is in use.
  void reserve(int64_t bytes);
  /// Gives everything back to the device; nothing may be in use.
  void release_all();
  /// Bytes in use now, the most ever in use, held from the device, and device allocations made.
  int64_t used_bytes() const { return used_; }
  int64_t peak_bytes() const { return peak_; }
  int64_t held_bytes() const { return held_; }
  int64_t largest_block() const;
  int64_t allocations() const { return allocations_; }

  /// Returns everything taken since its construction.
  class Scope {
   public:
    explicit Scope(Arena& arena);
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

   private:
    Arena& arena_;
    size_t block_;
    int64_t offset_;
    int64_t used_;
  };

 private:
  struct Block {
    std::byte* data;
    int64_t bytes;
  };
  void add_block(int64_t bytes);

  Device device_;
  std::vector<Block> blocks_;
  size_t block_ = 0;    // block being filled
  int64_t offset_ = 0;  // first free byte in it
  int64_t used_ = 0;
  int64_t peak_ = 0;
  int64_t held_ = 0;
  int64_t allocations_ = 0;
};

struct ContextOptions {
  int threads = 0;  ///< CPU threads; 0 = all that this process may use
  Log* log = nullptr;
  /// Element type of activations: kF32, or kBF16 on a GPU (sums, states and the residual stream
  /// are fp32 all the same).
  DType activations = DType::kF32;
};

class Context {
 public:
  explicit Context(Device device = {}, ContextOptions options = {});
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context();

  Device device() const { return device_; }
  Stream stream() const { return stream_; }
  int threads() const { return threads_; }
  DType activations() const { return activations_; }
  Arena& arena() { return arena_; }
  Log* log() const { return log_; }
  Backend& backend() const { return backend_for(device_.kind); }
  void synchronize() { backend().synchronize(device_.index, stream_); }

  /// Owned tensors on this context's device.
  Tensor make(DType dtype, const Shape& shape) const { return Tensor(device_, dtype, shape); }
  /// Host-to-device and device-to-host copies of contiguous views; wait until done.
  void upload(ConstTensorView host, TensorView to);
  /// Host arrays on this device, brought there while earlier work computes; on the CPU the arrays
  /// themselves, which then must outlive what is returned.
  Staged stage(std::span<const ConstTensorView> host) { return staging_->stage(host, stream_); }
  void download(ConstTensorView from, TensorView host);
  /// Copy within the device, ordered on the stream.
  void copy(ConstTensorView from, TensorView to);
  void fill_zero(TensorView view);
  /// What the kernels of a device keep from call to call (library handles, plans by shape): made by
  /// them at first use, gone with the context.
  std::shared_ptr<void>& companion() { return companion_; }

 private:
  Device device_;
  int threads_;
  DType activations_;
  Log* log_;
  Stream stream_;
  Arena arena_;
  std::unique_ptr<StagingPool> staging_;
  std::shared_ptr<void> companion_;
};

/// CPUs this process may run on (affinity, then OMP_NUM_THREADS as an upper bound).
int available_threads();

}  // namespace gmamba
