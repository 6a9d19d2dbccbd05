// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/context.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>

#include "libmamba/core/checked.h"

namespace gmamba {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kSmallestBlock = int64_t{1} << 20;
/// A block holds what is asked for, or half of what there is, up to this much, so that many small
/// requests make few blocks.
constexpr int64_t kMostGrowth = int64_t{256} << 20;

int64_t round_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Arena::~Arena() {
  for (const Block& block : blocks_) {
    backend_for(device_.kind).release(device_.index, block.data);
  }
}

void Arena::release_all() {
  require(used_ == 0, ErrorKind::kInternal, "scratch memory is given back while ", used_,
          " bytes are in use");
  for (const Block& block : blocks_) {
    backend_for(device_.kind).release(device_.index, block.data);
  }
  blocks_.clear();
  block_ = 0;
  offset_ = 0;
  held_ = 0;
}

void Arena::add_block(int64_t bytes) {
  const int64_t size = std::max(kSmallestBlock, round_up(bytes) + kAlignment);
  auto* data = static_cast<std::byte*>(backend_for(device_.kind).allocate(device_.index, size));
  blocks_.push_back({data, size});
  held_ += size;
  ++allocations_;
}

int64_t Arena::largest_block() const {
  int64_t largest = 0;
  for (const Block& block : blocks_) {
    largest = std::max(largest, block.bytes);
  }
  return largest;
}

void Arena::reserve(int64_t bytes) {
  if (largest_block() >= bytes) return;
  // a job whose requests grow keeps the largest block, not all of them
  if (used_ == 0 && block_ == 0) release_all();
  add_block(bytes);
}

TensorView Arena::tensor(DType dtype, const Shape& shape) {
  const int64_t bytes =
      round_up(checked_mul(checked_product(shape, "scratch"), size_of(dtype), "scratch"));
  while (true) {
    if (block_ == blocks_.size()) {
      add_block(std::max(bytes, std::min(held_ / 2, kMostGrowth)));
    }
    const Block& block = blocks_[block_];
    const auto address = reinterpret_cast<uintptr_t>(block.data) + static_cast<uintptr_t>(offset_);
    const auto skip = static_cast<int64_t>((kAlignment - address % kAlignment) % kAlignment);
    if (offset_ + skip + bytes <= block.bytes) {
      std::byte* data = block.data + offset_ + skip;
      offset_ += skip + bytes;
      used_ += bytes;
      peak_ = std::max(peak_, used_);
      return make_view(data, dtype, device_, shape);
    }
    ++block_;
    offset_ = 0;
  }
}

TensorView Arena::zeros(DType dtype, const Shape& shape, Stream stream) {
  TensorView view = tensor(dtype, shape);
  backend_for(device_.kind)
      .fill_zero(device_.index, stream, view.data, view.size() * size_of(dtype));
  return view;
}

Arena::Scope::Scope(Arena& arena)
    : arena_(arena), block_(arena.block_), offset_(arena.offset_), used_(arena.used_) {}

Arena::Scope::~Scope() {
  arena_.block_ = block_;
  arena_.offset_ = offset_;
  arena_.used_ = used_;
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int count = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    count = std::max(1, CPU_COUNT(&set));
  }
  // cgroup v2 quota: "max 100000" or "200000 100000" (microseconds of quota and period)
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0) {
    count = std::min(count,
                     std::max(1, static_cast<int>(std::lround(std::atof(quota.c_str()) / period))));
  }
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int asked = std::atoi(text);
    if (asked > 0) {
      count = std::min(count, asked);
    }
  }
  return count;
}

Context::Context(Device device, ContextOptions options)
    : device_(device),
      threads_(options.threads > 0 ? options.threads : available_threads()),
      activations_(options.activations),
      log_(options.log),
      stream_(backend_for(device.kind).create_stream(device.index)),
      arena_(device),
      staging_(std::make_unique<StagingPool>(device, !device.is_cpu())) {
  require(activations_ == DType::kF32 || (activations_ == DType::kBF16 && !device.is_cpu()),
          ErrorKind::kUnsupported, "activations of type ", to_string(activations_), " on ",
          to_string(device), ": the CPU computes in f32, a GPU in f32 or bf16");
}

Context::~Context() {
  companion_.reset();
  staging_.reset();
  backend().destroy_stream(device_.index, stream_);
}

void Context::upload(ConstTensorView host, TensorView to) {
  require(
      host.dtype == to.dtype && host.size() == to.size() && host.contiguous() && to.contiguous(),
      ErrorKind::kInternal, "upload of ", to_string(host.shape()), " to ", to_string(to.shape()));
  backend().copy_in(device_.index, stream_, to.data, host.data, host.size() * size_of(host.dtype));
  synchronize();
}

void Context::download(ConstTensorView from, TensorView host) {
  require(host.dtype == from.dtype && host.size() == from.size() && host.contiguous() &&
              from.contiguous(),
          ErrorKind::kInternal, "download of ", to_string(from.shape()), " to ",
          to_string(host.shape()));
  backend().copy_out(device_.index, stream_, host.data, from.data,
                     from.size() * size_of(from.dtype));
  synchronize();
}

void Context::copy(ConstTensorView from, TensorView to) {
  require(
      from.dtype == to.dtype && from.size() == to.size() && from.contiguous() && to.contiguous(),
      ErrorKind::kInternal, "copy of ", to_string(from.shape()), " to ", to_string(to.shape()));
  backend().copy_within(device_.index, stream_, to.data, from.data,
                        from.size() * size_of(from.dtype));
}

void Context::fill_zero(TensorView view) {
  require(view.contiguous(), ErrorKind::kInternal, "fill_zero of a strided view");
  backend().fill_zero(device_.index, stream_, view.data, view.size() * size_of(view.dtype));
}

}  // namespace gmamba
