// SPDX-License-Identifier: Apache-2.0
/// For kernels/cuda_bulk.cuh where kernels are emulated: tiles come and go at once.
#pragma once

#include "kernels/cuda_barrier.cuh"

namespace gmamba::cuda {

struct TileMap {
  char* data = nullptr;
  int64_t element = 2;
  int64_t count = 0, rows = 0, width = 0;
  int64_t outer = 0, inner = 0;
  int64_t tile_rows = 0, tile_width = 0;
};

/// Bytes that barriers still expect; zero when a kernel has ended.
inline int64_t& bytes_to_come() {
  static int64_t bytes = 0;
  return bytes;
}

inline void show_barriers() {}
inline void show_tile() {}
inline bool elected() { return emulation::Block::now()->lane() == 0; }
inline void expect_bytes(uint32_t barrier, int bytes) {
  bytes_to_come() += bytes;
  reach_barrier(barrier);
}
/// Calls body(element in memory or null outside the array, element of the tile).
template <class Body>
void over_tile(uint32_t tile, const TileMap& map, int column, int row, int outer, Body&& body) {
  if (tile % 128 != 0) throw std::logic_error("a tile that does not lie on 128 bytes");
  const int64_t bytes = map.tile_rows * map.tile_width * map.element;
  unsigned char* to = emulation::SharedMemory::at(tile, static_cast<size_t>(bytes));
  for (int64_t r = row; r < row + map.tile_rows; ++r) {
    for (int64_t c = column; c < column + map.tile_width; ++c, to += map.element) {
      const bool there = r < map.rows && c < map.width && outer < map.count;
      const int64_t at = (outer * map.outer + r * map.inner + c) * map.element;
      body(there ? map.data + at : nullptr, to);
    }
  }
}
inline void fetch_tile(uint32_t to, const TileMap& map, int column, int row, int outer, uint32_t) {
  over_tile(to, map, column, row, outer, [&](const char* from, unsigned char* place) {
    const auto bytes = static_cast<size_t>(map.element);
    if (from != nullptr) {
      std::memcpy(place, from, bytes);
    } else {
      std::memset(place, 0, bytes);
    }
    bytes_to_come() -= map.element;
  });
}
inline void store_tile(uint32_t from, const TileMap& map, int column, int row, int outer) {
  over_tile(from, map, column, row, outer, [&](char* to, const unsigned char* place) {
    if (to != nullptr) std::memcpy(to, place, static_cast<size_t>(map.element));
  });
}
template <int kPending>
void wait_for_stored_reads() {}
inline void wait_for_stored_tiles() {}

}  // namespace gmamba::cuda
