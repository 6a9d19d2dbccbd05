// SPDX-License-Identifier: Apache-2.0
/// Tiles of time in shared memory of one warp, filled asynchronously a tile ahead of their use, so
/// that the walking loops have no global loads, no addresses and no tests in them.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/scan_common.cuh"

namespace gmamba::cuda::scan {

/// Starts copying `rows` of kRows rows of kWidth elements, of which the first `valid` exist, in
/// pieces of kBytes when `vector` (then `valid` is a multiple of a piece), else at once by element.
template <int kRows, int kWidth, int kBytes, class T>
__device__ inline void fetch_rows(T* to, const T* from, int stride, int rows, int valid,
                                  bool vector, int lane) {
  constexpr int kPiece = kBytes / static_cast<int>(sizeof(T));
  constexpr int kPieces = kWidth / kPiece;  // of a row
  if (vector) {
#pragma unroll
    for (int i = 0; i < (kRows * kPieces + 31) / 32; ++i) {
      const int piece = lane + i * 32;
      const int row = piece / kPieces;
      const int column = piece % kPieces * kPiece;
      if (row < rows && column < valid) {
        copy_async<kBytes>(to + row * kWidth + column,
                           from + static_cast<int64_t>(row) * stride + column);
      }
    }
  } else {
#pragma unroll 1
    for (int i = lane; i < rows * kWidth; i += 32) {
      const int row = i / kWidth;
      const int column = i % kWidth;
      if (column < valid) to[i] = from[static_cast<int64_t>(row) * stride + column];
    }
  }
}

/// Two elements of minus infinity, or one: softplus makes a delta of zero of it.
template <class T>
constexpr uint32_t kMinusInfinity = sizeof(T) == 4 ? 0xff800000U : 0xff80ff80U;

/// As fetch_rows, by kThreads threads, with the words `fill` in rows that don't exist and, when
/// kWhole, in columns that don't.
template <int kRows, int kWidth, int kBytes, int kThreads, bool kWhole = false, class T>
__device__ inline void fetch_block(T* to, const T* from, int stride, int rows, int valid,
                                   uint32_t fill, bool vector, int thread) {
  constexpr int kPiece = kBytes / static_cast<int>(sizeof(T));
  constexpr int kPieces = kWidth / kPiece;  // of a row
  if (vector) {
#pragma unroll
    for (int i = 0; i < (kRows * kPieces + kThreads - 1) / kThreads; ++i) {
      const int piece = thread + i * kThreads;
      if (kRows * kPieces % kThreads != 0 && piece >= kRows * kPieces) break;
      const int row = piece / kPieces;
      const int column = piece % kPieces * kPiece;
      T* const target = to + row * kWidth + column;
      if (row < rows && column < valid) {
        copy_async<kBytes>(target, from + static_cast<int64_t>(row) * stride + column);
      } else if (kWhole || column < valid) {
#pragma unroll
        for (int k = 0; k < kBytes / 4; ++k) reinterpret_cast<uint32_t*>(target)[k] = fill;
      }
    }
  } else {
    T empty;
    memcpy(&empty, &fill, sizeof(T));
#pragma unroll 1
    for (int i = thread; i < kRows * kWidth; i += kThreads) {
      const int row = i / kWidth;
      const int column = i % kWidth;
      const bool there = row < rows && column < valid;
      to[i] = there ? from[static_cast<int64_t>(row) * stride + column] : empty;
    }
  }
}

/// The pieces of a tile of kRows x kWidth elements that thread `thread` of kThreads copies, and how
/// it does that for a tile whose rows all exist. Addresses cost one instruction per piece: a byte
/// distance of 32 bits times a row, added to a base that is computed once.
template <int kRows, int kWidth, int kBytes, int kThreads, class T>
struct Pieces {
  static constexpr int kPiece = kBytes / static_cast<int>(sizeof(T));
  static constexpr int kPerRow = kWidth / kPiece;
  static constexpr int kStep = kThreads / kPerRow;  // rows between two pieces of a thread
  static constexpr int kCount = (kRows + kStep - 1) / kStep;
  static_assert(kThreads % kPerRow == 0);

  int row, column;

  __device__ explicit Pieces(int thread)
      : row(thread / kPerRow), column(thread % kPerRow * kPiece) {}
  /// Whether the thread has something to copy where the first `valid` columns exist.
  __device__ bool any(int valid) const { return row < kRows && column < valid; }
  /// Copies rows t, t + 1, ... from `from`, which points to the thread's column in row 0.
  __device__ void fetch(T* to, const T* from, int stride, int t) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (kRows % kStep != 0 && row + i * kStep >= kRows) break;
      copy_async<kBytes>(to + (row + i * kStep) * kWidth + column, at(from, stride, t + i * kStep));
    }
  }
  __device__ void store(T* to, const T* from, int stride, int t) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (kRows % kStep != 0 && row + i * kStep >= kRows) break;
      *reinterpret_cast<uint4*>(at(to, stride, t + i * kStep)) =
          *reinterpret_cast<const uint4*>(from + (row + i * kStep) * kWidth + column);
    }
  }

 private:
  template <class U>
  __device__ U* at(U* base, int stride, int t) const {
    using Byte = std::conditional_t<std::is_const_v<U>, const char, char>;
    const auto bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
    return reinterpret_cast<U*>(reinterpret_cast<Byte*>(base) +
                                static_cast<uint64_t>(bytes) * static_cast<uint32_t>(t + row));
  }
};

/// A pointer kept in shared memory, read anew where it is used.
template <class T>
__device__ inline T* kept(T* const& pointer) {
  return *const_cast<T* const volatile*>(&pointer);
}

template <class T, int kRows, int kWidth, int kThreads = 32>
using RowPieces = Pieces<kRows, kWidth, 16, kThreads, T>;
template <class T, int kRows, int kColumns, int kThreads = 32>
using TokenPieces = Pieces<kRows, kColumns, 8, kThreads, T>;

/// Stores what lies in a tile as fetch_rows would have read it.
template <int kRows, int kWidth, class T>
__device__ inline void store_rows(T* to, const T* from, int stride, int rows, int valid,
                                  bool vector, int lane) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  constexpr int kPieces = kWidth / kPiece;
  if (vector) {
#pragma unroll
    for (int i = 0; i < (kRows * kPieces + 31) / 32; ++i) {
      const int piece = lane + i * 32;
      const int row = piece / kPieces;
      const int column = piece % kPieces * kPiece;
      if (row < rows && column < valid) {
        *reinterpret_cast<uint4*>(to + static_cast<int64_t>(row) * stride + column) =
            *reinterpret_cast<const uint4*>(from + row * kWidth + column);
      }
    }
  } else {
#pragma unroll 1
    for (int i = lane; i < rows * kWidth; i += 32) {
      const int row = i / kWidth;
      const int column = i % kWidth;
      if (column < valid) to[static_cast<int64_t>(row) * stride + column] = from[i];
    }
  }
}

/// Widens kCount elements of shared memory by a warp, times `factor`.
template <int kCount, class T>
__device__ inline void widen_tile(float* to, const T* from, int lane, float factor = 1.0F) {
#pragma unroll
  for (int i = 0; i < (kCount / 4 + 31) / 32; ++i) {
    const int quad = lane + i * 32;
    if (kCount / 4 % 32 != 0 && quad >= kCount / 4) break;
    float v[4];
    reinterpret_cast<const Packed<T, 4>*>(from)[quad].widen(v);
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] *= factor;
    store_shared(to + quad * 4, v);
  }
}

/// Extents of the kernels that keep kChannels channels x kStates states per thread, kSplit groups
/// of lanes to a channel.
template <class T, int kStates, int kSplit, int kChannels = 2>
struct WalkShape {
  static constexpr int kColumns = kStates * kSplit;
  static constexpr int kGroups = 32 / kSplit;
  static constexpr int kWidth = kChannels * kGroups;  // channels of a warp
  static constexpr int kRows =
      (kSplit == 1 ? 16 : 8) * 4 / (kChannels * static_cast<int>(sizeof(T)));
  static constexpr int kRowsBytes = kRows * kWidth * static_cast<int>(sizeof(T));     // u, ...
  static constexpr int kTokenBytes = kRows * kColumns * static_cast<int>(sizeof(T));  // B or C
};

/// Which accesses of a call may be whole vectors.
struct Vectors {
  bool rows = false;         // u, delta, z, y, dy: 16 bytes
  bool tokens = false;       // B, C: 8 bytes
  bool wide_tokens = false;  // 16 bytes
  bool states = false;       // A and states: 16 bytes
};

/// Count states from `from`, zeros from `valid` on; 16 bytes at a time when `vector`, for which
/// `valid` is a multiple of four.
template <int kCount>
__device__ inline void load_states(const float* from, int valid, bool vector, float (&to)[kCount]) {
#pragma unroll
  for (int n = 0; n < kCount; n += 4) {
    float quad[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    if (vector) {
      if (n < valid) load_shared(from + n, quad);
    } else {
      load_state<4, false>(from + n, valid - n, quad);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) to[n + k] = quad[k];
  }
}
template <int kCount>
__device__ inline void store_states(float* to, int valid, bool vector,
                                    const float (&from)[kCount]) {
#pragma unroll
  for (int n = 0; n < kCount; n += 4) {
    const float quad[4] = {from[n], from[n + 1], from[n + 2], from[n + 3]};
    if (vector) {
      if (n < valid) store_shared(to + n, quad);
    } else {
      store_state<4, false>(to + n, valid - n, quad);
    }
  }
}

/// Zeros in kBytes of shared memory, by kThreads threads.
template <int kBytes, int kThreads = 32>
__device__ inline void clear(void* to, int thread) {
  for (int i = thread; i < kBytes / 16; i += kThreads) reinterpret_cast<uint4*>(to)[i] = uint4{};
}

}  // namespace gmamba::cuda::scan
