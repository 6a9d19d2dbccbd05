// SPDX-License-Identifier: Apache-2.0
/// For kernels/scan_ptx.cuh where kernels are emulated. Products are summed in double and rounded
/// once; what is asynchronous is done at once.
#pragma once

#include "kernels/cuda_barrier.cuh"

namespace gmamba::cuda::scan {

inline float ex2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0F / x; }

/// One of the two bf16 of a word.
inline double half_of(uint32_t word, int which) {
  return emulation::bits_of<float>(which == 0 ? word << 16 : word & 0xffff0000U);
}
/// A product of 16 rows and 8 columns, of which a lane holds a quad: from + sum over k below
/// `inner` of left(words of the row's lane, row / 8, k) * right(words of the column's lane, k).
/// Lane q of a row or column has what belongs to k with owner(k) = q.
template <class Left, class Right, class Owner>
void product(float (&to)[4], const float (&from)[4], const emulation::Block::Shown& mine, int inner,
             Left&& left, Right&& right, Owner&& owner) {
  emulation::Block& block = *emulation::Block::now();
  const emulation::Block::Shown* const all = block.show(mine);
  const int g = block.lane() / 4;
  const int q = block.lane() % 4;
  for (int i = 0; i < 4; ++i) {
    double sum = from[i];
    for (int k = 0; k < inner; ++k) {
      sum += left(all[g * 4 + owner(k)], i / 2, k) * right(all[(2 * q + i % 2) * 4 + owner(k)], k);
    }
    to[i] = static_cast<float>(sum);
  }
  block.done_looking();
}

inline void mma_k8(float (&to)[4], const float (&from)[4], const uint32_t (&left)[2],
                   uint32_t right) {
  using Words = emulation::Block::Shown;
  const float start[4] = {from[0], from[1], from[2], from[3]};
  product(
      to, start, {left[0], left[1], right}, 8,
      [](const Words& w, int row, int k) { return half_of(w[static_cast<size_t>(row)], k % 2); },
      [](const Words& w, int k) { return half_of(w[2], k % 2); }, [](int k) { return k / 2; });
}
inline void mma_k16(float (&to)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                    const uint32_t (&right)[2]) {
  using Words = emulation::Block::Shown;
  const float start[4] = {to[0], to[1], to[2], to[3]};
  product(
      to, start, {a0, a1, a2, a3, right[0], right[1]}, 16,
      [](const Words& w, int row, int k) {
        return half_of(w[static_cast<size_t>(k / 8 * 2 + row)], k % 2);
      },
      [](const Words& w, int k) { return half_of(w[static_cast<size_t>(4 + k / 8)], k % 2); },
      [](int k) { return k % 8 / 2; });
}
/// A number as tf32 has it.
inline double cut_to_tf32(uint32_t bits) { return emulation::bits_of<float>(bits & 0xffffe000U); }
inline void mma_two_sums(float (&to)[4], const float (&first)[2], const float (&second)[2],
                         uint32_t one, uint32_t other) {
  using Words = emulation::Block::Shown;
  const float start[4] = {to[0], to[1], to[2], to[3]};
  const auto word = [](float value) { return emulation::bits_of<uint32_t>(value); };
  product(
      to, start, {word(first[0]), word(first[1]), word(second[0]), word(second[1]), one, other}, 8,
      [](const Words& w, int row, int k) {
        return cut_to_tf32(w[static_cast<size_t>(k / 4 * 2 + row)]);
      },
      [](const Words& w, int k) { return cut_to_tf32(w[static_cast<size_t>(4 + k / 4)]); },
      [](int k) { return k % 4; });
}
inline void mma_sum(float (&to)[4], float x, float y) {
  for (float& value : to) value = 0.0F;
  mma_two_sums(to, {x, y}, {0.0F, 0.0F}, emulation::bits_of<uint32_t>(1.0F), 0U);
}
/// Elements of rows 2q and 2q + 1 of a column, whose element of a row is element(row).
template <class Element>
uint32_t column_pair(int q, Element&& element) {
  return static_cast<uint32_t>(element(2 * q)) | static_cast<uint32_t>(element(2 * q + 1)) << 16;
}
inline uint32_t transposed(uint32_t pair) {
  emulation::Block& block = *emulation::Block::now();
  const emulation::Block::Shown* const all = block.show({pair});
  const int g = block.lane() / 4;
  const uint32_t turned = column_pair(block.lane() % 4, [&](int row) {
    return all[row * 4 + g / 2][0] >> (16 * (g % 2)) & 0xffffU;
  });
  block.done_looking();
  return turned;
}
template <size_t kMatrices>
void load_matrices(uint32_t (&to)[kMatrices], uint32_t row) {
  emulation::Block& block = *emulation::Block::now();
  const emulation::Block::Shown* const all = block.show({row});
  const int g = block.lane() / 4;
  for (size_t i = 0; i < kMatrices; ++i) {
    to[i] = column_pair(block.lane() % 4, [&](int r) {
      const uint32_t address = all[static_cast<int>(i) * 8 + r][0];
      if (address % 16 != 0) throw std::logic_error("a row that does not lie on 16 bytes");
      uint16_t element;
      std::memcpy(&element, emulation::SharedMemory::at(address, 16) + 2 * g, sizeof element);
      return element;
    });
  }
  block.done_looking();
}

template <int kBytes>
void copy_async_or_zero(uint32_t address, const void* from, bool there) {
  unsigned char* const to = emulation::SharedMemory::at(address, kBytes);
  if (address % kBytes != 0 || (there && reinterpret_cast<uintptr_t>(from) % kBytes != 0)) {
    throw std::logic_error("a copy between places that are not aligned");
  }
  if (there) {
    std::memcpy(to, from, kBytes);
  } else {
    std::memset(to, 0, kBytes);
  }
}
template <int kBytes>
void copy_async_or_zero(void* to, const void* from, bool there) {
  copy_async_or_zero<kBytes>(shared_address(to), from, there);
}
template <int kBytes>
void copy_async(void* to, const void* from) {
  copy_async_or_zero<kBytes>(to, from, true);
}
inline void copy_if(bool there, uint32_t to, const void* from) {
  if (there) copy_async_or_zero<16>(to, from, true);
}
inline void commit_copies() {}
inline void bring_line(const void*) {}
template <int kPending>
void wait_for_copies() {}

inline void store_word(uint32_t address, uint32_t value) {
  std::memcpy(emulation::SharedMemory::at(address, 4), &value, 4);
}
inline uint32_t load_word(uint32_t address) {
  uint32_t value;
  std::memcpy(&value, emulation::SharedMemory::at(address, 4), 4);
  return value;
}
inline uint32_t take_turn(uint32_t counter) {
  uint32_t* const taken = reinterpret_cast<uint32_t*>(emulation::SharedMemory::at(counter, 4));
  return (*taken)++;
}

inline int again(int value) { return value; }
template <class T>
void move_bytes(const T*& pointer, int64_t bytes) {
  pointer = reinterpret_cast<const T*>(reinterpret_cast<const char*>(pointer) + bytes);
}
inline uint32_t warp_slot() { return 0; }

}  // namespace gmamba::cuda::scan
