// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "libmamba/core/checked.h"

namespace gmamba {
namespace {

constexpr int64_t kAlignment = 256;
/// Slots that take turns while nobody holds them: one is read, one is being filled, one is ready.
constexpr size_t kTurns = 3;
/// Larger arrays, whose computation takes long against their copy, get no turns.
constexpr int64_t kLargestWithTurns = int64_t{32} << 20;

int64_t round_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t bytes_of(ConstTensorView view) {
  return checked_mul(view.size(), size_of(view.dtype), "input");
}

bool rows_apart(ConstTensorView view) {
  return view.rank == 2 && (view.dim(1) <= 1 || view.stride[1] == 1);
}

/// The elements one after the other.
void gather(ConstTensorView view, std::byte* to) {
  const bool whole = view.contiguous();
  const int64_t rows = whole ? 1 : view.dim(0);
  const int64_t bytes = whole ? bytes_of(view) : view.dim(1) * size_of(view.dtype);
  if (bytes == 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    const std::byte* from = view.data + row * view.stride[0] * size_of(view.dtype);
    std::memcpy(to + row * bytes, from, static_cast<size_t>(bytes));
  }
}

}  // namespace

Staged::Staged(Staged&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      slot_(other.slot_),
      stream_(other.stream_),
      views_(std::exchange(other.views_, {})) {}

Staged& Staged::operator=(Staged&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(slot_, other.slot_);
  std::swap(stream_, other.stream_);
  std::swap(views_, other.views_);
  return *this;
}

Staged::~Staged() {
  if (pool_ != nullptr) pool_->release(slot_, stream_);
}

StagingPool::StagingPool(Device device, bool copies) : device_(device), copies_(copies) {
  if (copies_) copying_ = backend_for(device_.kind).create_stream(device_.index);
}

StagingPool::~StagingPool() {
  if (!copies_) return;
  Backend& backend = backend_for(device_.kind);
  for (Slot& slot : slots_) {
    free_memory(slot);
    backend.destroy_event(device_.index, slot.copied);
    backend.destroy_event(device_.index, slot.released);
  }
  backend.destroy_stream(device_.index, copying_);
}

int64_t StagingPool::held_bytes() const {
  int64_t held = 0;
  for (const Slot& slot : slots_) held += slot.bytes;
  return held;
}

void StagingPool::free_memory(Slot& slot) noexcept {
  Backend& backend = backend_for(device_.kind);
  if (slot.host != nullptr) backend.release_host(device_.index, slot.host);
  if (slot.device != nullptr) backend.release(device_.index, slot.device);
  slot.host = nullptr;
  slot.device = nullptr;
  slot.bytes = 0;
}

void StagingPool::resize(Slot& slot, int64_t bytes) {
  Backend& backend = backend_for(device_.kind);
  // nobody may be reading or writing what goes
  backend.synchronize_event(device_.index, slot.copied);
  backend.synchronize_event(device_.index, slot.released);
  free_memory(slot);
  slot.host = static_cast<std::byte*>(backend.allocate_host(device_.index, bytes));
  slot.device = static_cast<std::byte*>(backend.allocate(device_.index, bytes));
  slot.bytes = bytes;
}

/// The slot that was given back first, so that its copy need not wait; a further one while there
/// are too few for taking turns.
size_t StagingPool::take_slot(int64_t bytes) {
  size_t best = slots_.size();
  size_t idle = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].busy) continue;
    ++idle;
    const bool fits = slots_[i].bytes >= bytes;
    const bool best_fits = best < slots_.size() && slots_[best].bytes >= bytes;
    if (best == slots_.size() || (fits && !best_fits) ||
        (fits == best_fits && slots_[i].last_use < slots_[best].last_use)) {
      best = i;
    }
  }
  const size_t turns = bytes <= kLargestWithTurns ? kTurns : 1;
  if (idle == 0 || slots_.size() < turns) {
    Backend& backend = backend_for(device_.kind);
    best = slots_.size();
    Slot& slot = slots_.emplace_back();
    slot.copied = backend.create_event(device_.index);
    slot.released = backend.create_event(device_.index);
  }
  Slot& slot = slots_[best];
  if (slot.bytes < bytes) resize(slot, bytes);
  slot.busy = true;
  return best;
}

Staged StagingPool::stage(std::span<const ConstTensorView> host, Stream stream) {
  Staged staged;
  int64_t total = 0;
  for (const ConstTensorView& view : host) {
    require((view.contiguous() || rows_apart(view)) && view.device.is_cpu(), ErrorKind::kInternal,
            "staging: expected contiguous host arrays or rows, found ", to_string(view.shape()),
            " on ", to_string(view.device));
    total = checked_add(total, round_up(bytes_of(view)), "input");
  }
  if (!copies_) {
    staged.views_.assign(host.begin(), host.end());
    return staged;
  }
  Backend& backend = backend_for(device_.kind);
  const size_t number = take_slot(std::max<int64_t>(total, kAlignment));
  staged.pool_ = this;
  staged.slot_ = number;
  staged.stream_ = stream;
  const Slot& slot = slots_[number];
  backend.synchronize_event(device_.index, slot.copied);
  int64_t offset = 0;
  for (const ConstTensorView& view : host) {
    gather(view, slot.host + offset);
    staged.views_.push_back(make_view(static_cast<const std::byte*>(slot.device) + offset,
                                      view.dtype, device_, view.shape()));
    offset += round_up(bytes_of(view));
  }
  backend.wait_for(device_.index, copying_, slot.released);
  backend.copy_in(device_.index, copying_, slot.device, slot.host, offset);
  backend.record(device_.index, copying_, slot.copied);
  backend.wait_for(device_.index, stream, slot.copied);
  return staged;
}

void StagingPool::release(size_t number, Stream stream) noexcept {
  Slot& slot = slots_[number];
  slot.busy = false;
  slot.last_use = ++uses_;
  try {
    backend_for(device_.kind).record(device_.index, stream, slot.released);
  } catch (const Error&) {
    // the device has failed, and the next call to it says so
  }
}

}  // namespace gmamba
