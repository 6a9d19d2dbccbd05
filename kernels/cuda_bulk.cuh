// SPDX-License-Identifier: Apache-2.0
/// Tiles of rows that the copy unit of an SM brings to shared memory and back (sm_90 and newer):
/// one lane asks for a whole tile, whose place in memory a map describes, and a barrier counts the
/// bytes that have come. What lies outside the array arrives as zeros and is never written.
#pragma once

#include <cuda.h>

#include "kernels/cuda_barrier.cuh"
#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {

/// Where tiles of `rows` x `width` elements of an array (outer, length, inner) lie; a parameter of
/// kernels, declared __grid_constant__ there.
using TileMap = CUtensorMap;

// ---- host side

/// An array of rank 3 whose last axis is contiguous, and a tile of it.
struct TiledArray {
  const void* data = nullptr;
  int64_t element = 2;                     // bytes: 2 (bf16) or 4 (f32)
  int64_t count = 0, rows = 0, width = 0;  // extents
  int64_t outer = 0, inner = 0;            // elements from one to the next of the first two axes
  int64_t tile_rows = 0, tile_width = 0;
};

/// The driver's function that writes maps; null where the driver has none.
inline auto tile_map_encoder() {
  using Encoder = decltype(&cuTensorMapEncodeTiled);
  static const Encoder encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                               12000, cudaEnableDefault, &result);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) cudaGetLastError();
    const bool there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<Encoder>(found) : nullptr;
  }();
  return encoder;
}

/// True when the context's device has a copy unit, and its driver writes maps.
inline bool has_copy_unit(const Context& ctx) {
  return device_attribute(ctx, cudaDevAttrComputeCapabilityMajor, "asking for the kind of a GPU") >=
             9 &&
         tile_map_encoder() != nullptr;
}

/// Writes the map of an array, zeros for one that is not there; false where the copy unit does not
/// reach it: rows that do not begin on 16 bytes, none at all, extents of 2^31.
inline bool write_tile_map(const TiledArray& a, TileMap& map) {
  map = {};
  if (a.data == nullptr) return true;
  if (reinterpret_cast<uintptr_t>(a.data) % 16 != 0) return false;
  const auto fits = [](int64_t extent) { return extent > 0 && extent < int64_t{1} << 31; };
  if (!fits(a.rows) || !fits(a.count)) return false;
  // the steps of axes of one element don't matter, but are checked
  const int64_t row = a.rows == 1 ? ceil_div(a.width * a.element, 16) * 16 : a.inner * a.element;
  const int64_t block = a.count == 1 ? a.rows * row : a.outer * a.element;
  const auto steps_fit = [](int64_t bytes) {
    return bytes > 0 && bytes % 16 == 0 && bytes < int64_t{1} << 40;
  };
  if (!steps_fit(row) || !steps_fit(block)) return false;
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(a.width), static_cast<cuuint64_t>(a.rows),
                                 static_cast<cuuint64_t>(a.count)};
  const cuuint64_t steps[2] = {static_cast<cuuint64_t>(row), static_cast<cuuint64_t>(block)};
  const cuuint32_t tile[3] = {static_cast<cuuint32_t>(a.tile_width),
                              static_cast<cuuint32_t>(a.tile_rows), 1};
  const cuuint32_t every[3] = {1, 1, 1};
  const CUresult result = tile_map_encoder()(
      &map, a.element == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3,
      const_cast<void*>(a.data), extents, steps, tile, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS;
}

// ---- device side. Addresses of shared memory are those of its own space.

/// Behind the last of several begin_barrier: the copy unit sees them.
__device__ inline void show_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
/// Reaches the barrier, which opens when so many bytes have come as well.
__device__ inline void expect_bytes(uint32_t barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}
/// True in one lane of a warp whose lanes are all here, the same one each time. Asked right before
/// fetch_tile and store_tile, which are for one lane: of a lane chosen in another way the compiler
/// does not know that it is alone, and loops over lanes at each of them.
__device__ inline bool elected() {
  uint32_t yes = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; @p mov.u32 %0, 1;}" : "+r"(yes));
#endif
  return yes != 0;
}
/// Starts bringing the tile at (outer, row, column) to `to`, which lies on 128 bytes.
__device__ inline void fetch_tile(uint32_t to, const TileMap& map, int column, int row, int outer,
                                  uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(outer), "r"(barrier)
      : "memory");
#endif
}
/// What this thread wrote to shared memory is there before a store_tile reads it or a fetch_tile
/// writes over it, also another thread's behind a barrier.
__device__ inline void show_tile() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Starts writing the tile from `from` to (outer, row, column), as a group of its own.
__device__ inline void store_tile(uint32_t from, const TileMap& map, int column, int row,
                                  int outer) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
      "cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(from), "r"(column), "r"(row), "r"(outer)
      : "memory");
#endif
}
/// Waits until shared memory has been read for all but the last kPending tiles this thread stores.
template <int kPending>
__device__ inline void wait_for_stored_reads() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#endif
}
/// Waits until all tiles this thread stores are in memory.
__device__ inline void wait_for_stored_tiles() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

}  // namespace gmamba::cuda
