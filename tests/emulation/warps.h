// SPDX-License-Identifier: Apache-2.0
/// Runs kernels on a CPU as they are written: every thread of a block is a context of its own, and
/// what threads do together (barriers, shuffles, votes) lets the others run until all have come.
/// One block at a time, in order. Included before anything else of the kernels; the headers of
/// tests/emulation/kernels stand in for those that hold instructions of a GPU.
/// Of shared memory it knows arrays that a test defines, not those a kernel defines for itself.
/// Says nothing of races: a thread runs until it waits for others, and copies are done at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <type_traits>
#include <vector>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#define __CUDA_ARCH__ 900  // what needs a copy unit has one: kernels/cuda_bulk.cuh beside this

inline dim3 blockIdx;
inline dim3 gridDim;
inline dim3 blockDim;
inline uint3 threadIdx;

namespace gmamba::emulation {

constexpr int kWarp = 32;
constexpr int kWords = 8;  // that a lane may show to its warp at once

/// The block that runs.
class Block {
 public:
  explicit Block(int threads)
      : threads_(threads),
        live_(threads_),
        contexts_(static_cast<size_t>(threads_)),
        stacks_(static_cast<size_t>(threads_), std::vector<char>(kStack)),
        done_(static_cast<size_t>(threads_)),
        warps_(static_cast<size_t>(threads_ / kWarp)),
        teams_(static_cast<size_t>(threads_ / kWarp)),
        shown_(static_cast<size_t>(threads_)) {}

  void run(const std::function<void()>& body) {
    body_ = &body;
    now() = this;
    for (int i = 0; i < threads_; ++i) {
      ucontext_t& context = contexts_[static_cast<size_t>(i)];
      getcontext(&context);
      context.uc_stack.ss_sp = stacks_[static_cast<size_t>(i)].data();
      context.uc_stack.ss_size = kStack;
      context.uc_link = nullptr;
      makecontext(&context, &Block::enter, 0);
    }
    long idle = 0;  // turns in which nobody got further
    while (live_ > 0) {
      const long before = steps_;
      for (current_ = 0; current_ < threads_; ++current_) {
        if (done_[static_cast<size_t>(current_)]) continue;
        threadIdx.x = static_cast<unsigned>(current_);
        swapcontext(&main_, &contexts_[static_cast<size_t>(current_)]);
      }
      idle = steps_ == before ? idle + 1 : 0;
      if (idle > 3) throw std::logic_error("threads wait for others that never come");
    }
    now() = nullptr;
  }

  static Block*& now() {
    static Block* block = nullptr;
    return block;
  }
  int lane() const { return current_ % kWarp; }

  void wait_for_block() {
    const long turn = turn_;
    ++come_;
    open_if_all();
    while (turn_ == turn) others();
  }
  void wait_for_warp() { wait_for(warps_[static_cast<size_t>(current_ / kWarp)], kWarp); }
  /// Waits for the `threads` threads of team `team`.
  void wait_for_team(int team, int threads) {
    wait_for(teams_[static_cast<size_t>(team)], threads);
  }
  /// Waits until `open` is true.
  template <class Open>
  void wait_until(Open&& open) {
    while (!open()) others();
    ++steps_;
  }
  using Shown = std::array<uint32_t, kWords>;
  /// What all lanes of the warp show, by lane; to be read before done_looking.
  const Shown* show(const Shown& mine) {
    shown_[static_cast<size_t>(current_)] = mine;
    wait_for_warp();
    return &shown_[static_cast<size_t>(current_ / kWarp * kWarp)];
  }
  void done_looking() { wait_for_warp(); }
  void step() { ++steps_; }

 private:
  static constexpr size_t kStack = size_t{1} << 17;
  struct Meeting {
    int come = 0;
    long turn = 0;
  };
  void wait_for(Meeting& meeting, int threads) {
    const long turn = meeting.turn;
    if (++meeting.come == threads) {
      meeting.come = 0;
      ++meeting.turn;
      ++steps_;
    }
    while (meeting.turn == turn) others();
  }

  static void enter() {
    Block& block = *now();
    (*block.body_)();
    block.done_[static_cast<size_t>(block.current_)] = 1;
    --block.live_;
    ++block.steps_;
    block.open_if_all();
    swapcontext(&block.contexts_[static_cast<size_t>(block.current_)], &block.main_);
  }
  void others() { swapcontext(&contexts_[static_cast<size_t>(current_)], &main_); }
  void open_if_all() {
    if (come_ == 0 || come_ < live_) return;
    come_ = 0;
    ++turn_;
    ++steps_;
  }

  int threads_, live_;
  int current_ = 0, come_ = 0;
  long turn_ = 0, steps_ = 0;
  const std::function<void()>* body_ = nullptr;
  ucontext_t main_{};
  std::vector<ucontext_t> contexts_;
  std::vector<std::vector<char>> stacks_;
  std::vector<char> done_;
  std::vector<Meeting> warps_, teams_;
  std::vector<Shown> shown_;
};

/// Arrays that kernels declare as shared memory of their block, and where they lie in its space.
struct SharedMemory {
  static constexpr uint32_t kApart = 1U << 20;
  struct Region {
    unsigned char* begin;
    size_t bytes;
  };
  static std::vector<Region>& regions() {
    static std::vector<Region> all;
    return all;
  }
  static uint32_t address(const void* pointer) {
    const auto* const at = static_cast<const unsigned char*>(pointer);
    for (size_t i = 0; i < regions().size(); ++i) {
      const Region& region = regions()[i];
      if (at >= region.begin && at <= region.begin + region.bytes) {
        return static_cast<uint32_t>(i + 1) * kApart + static_cast<uint32_t>(at - region.begin);
      }
    }
    throw std::logic_error("not an address of shared memory");
  }
  static unsigned char* at(uint32_t address, size_t bytes) {
    const size_t i = address / kApart - 1;
    const size_t offset = address % kApart;
    if (i >= regions().size() || offset + bytes > regions()[i].bytes) {
      throw std::logic_error("outside of shared memory");
    }
    return regions()[i].begin + offset;
  }
};

/// Runs `blocks` blocks of `threads` threads; shared memory is NaN before each.
inline void launch(int64_t blocks, int threads, const std::function<void()>& kernel) {
  gridDim = dim3(static_cast<unsigned>(blocks));
  blockDim = dim3(static_cast<unsigned>(threads));
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx = dim3(static_cast<unsigned>(i));
    for (const SharedMemory::Region& region : SharedMemory::regions()) {
      std::memset(region.begin, 0xff, region.bytes);
    }
    Block(threads).run(kernel);
  }
}

template <class To, class From>
To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
/// `choose` of what the lanes of the warp show.
template <class T, class Choose>
T among_lanes(T value, Choose&& choose) {
  Block& block = *Block::now();
  const Block::Shown* const all = block.show({bits_of<uint32_t>(value)});
  const T chosen = bits_of<T>(choose(all));
  block.done_looking();
  return chosen;
}

}  // namespace gmamba::emulation

// ---- what CUDA gives to device code

inline void __syncthreads() { gmamba::emulation::Block::now()->wait_for_block(); }
inline void __syncwarp() { gmamba::emulation::Block::now()->wait_for_warp(); }
template <class T>
T __shfl_sync(unsigned, T value, int from, int width = gmamba::emulation::kWarp) {
  const int first = gmamba::emulation::Block::now()->lane() / width * width;
  return gmamba::emulation::among_lanes(
      value, [&](const auto* all) { return all[first + from % width][0]; });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int from = gmamba::emulation::Block::now()->lane() ^ mask;
  return gmamba::emulation::among_lanes(value, [&](const auto* all) { return all[from][0]; });
}
inline int __all_sync(unsigned, bool value) {
  return gmamba::emulation::among_lanes(static_cast<int>(value), [](const auto* all) {
    uint32_t every = 1;
    for (int i = 0; i < gmamba::emulation::kWarp; ++i) every &= all[i][0];
    return every;
  });
}
inline int __any_sync(unsigned mask, bool value) { return !__all_sync(mask, !value); }
inline int __syncthreads_or(bool) { throw std::logic_error("__syncthreads_or is not emulated"); }
inline float __uint_as_float(uint32_t bits) { return gmamba::emulation::bits_of<float>(bits); }
inline uint32_t __float_as_uint(float value) { return gmamba::emulation::bits_of<uint32_t>(value); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selectors) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint64_t byte = bytes >> (8 * (selectors >> (4 * i) & 7U)) & 0xffU;
    out |= static_cast<uint32_t>(byte) << (8 * i);
  }
  return out;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
template <class A, class B>
auto min(A a, B b) {
  using Both = std::common_type_t<A, B>;
  return static_cast<Both>(a) < static_cast<Both>(b) ? static_cast<Both>(a) : static_cast<Both>(b);
}
template <class A, class B>
auto max(A a, B b) {
  using Both = std::common_type_t<A, B>;
  return static_cast<Both>(a) > static_cast<Both>(b) ? static_cast<Both>(a) : static_cast<Both>(b);
}
