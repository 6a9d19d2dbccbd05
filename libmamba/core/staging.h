// SPDX-License-Identifier: Apache-2.0
/// The way of input to a device: page-locked host memory and a stream of its own, so that the next
/// arrays travel while the device computes on those before them.
///
///   const Staged batch = ctx.stage(std::array{tokens, targets, weights});   // host views
///   use(ctx, batch.view(0));   // waits for the copy on the device's stream, not on the host
///
/// A slot is a piece of page-locked memory and one of the device. It serves one Staged at a time,
/// and after that the next one, whose copy begins when the work that was given to the stream before
/// the first one's end is done. Slots are kept: a step loop allocates nothing after its first
/// steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "libmamba/core/tensor.h"

namespace gmamba {

class StagingPool;

/// Arrays that are, or will be when the stream comes to them, on the device. Move-only.
class Staged {
 public:
  Staged() = default;
  Staged(Staged&& other) noexcept;
  Staged& operator=(Staged&& other) noexcept;
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;
  /// What was given to the stream so far may still read the arrays; nothing after it.
  ~Staged();

  bool empty() const { return views_.empty(); }
  ConstTensorView view(size_t i) const { return views_.at(i); }

 private:
  friend class StagingPool;
  StagingPool* pool_ = nullptr;  // null: the views are of the host arrays themselves
  size_t slot_ = 0;
  Stream stream_ = nullptr;
  std::vector<ConstTensorView> views_;
};

/// Must outlive what it gives out. Not for several threads at once.
class StagingPool {
 public:
  /// Without `copies` the host arrays serve as they are: for a device that is the host.
  StagingPool(Device device, bool copies);
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;
  ~StagingPool();

  /// Host arrays for work on `stream`, contiguous or matrices whose rows lie apart; copies are
  /// contiguous. With copies the arrays may change once this returns.
  Staged stage(std::span<const ConstTensorView> host, Stream stream);
  int64_t slots() const { return static_cast<int64_t>(slots_.size()); }
  /// Of the device.
  int64_t held_bytes() const;

 private:
  friend class Staged;
  struct Slot {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    int64_t bytes = 0;
    Event copied = nullptr;    // on the way to the device
    Event released = nullptr;  // by the work that read it
    uint64_t last_use = 0;
    bool busy = false;
  };
  size_t take_slot(int64_t bytes);
  void resize(Slot& slot, int64_t bytes);
  void free_memory(Slot& slot) noexcept;
  void release(size_t slot, Stream stream) noexcept;

  Device device_;
  bool copies_;
  Stream copying_ = nullptr;
  std::vector<Slot> slots_;
  uint64_t uses_ = 0;
};

}  // namespace gmamba
