// SPDX-License-Identifier: Apache-2.0
/// Compressed bytes made by zlib and by hand, for tests and fuzz targets.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace gmamba::test {

/// Without the flush to disk that write_file does.
inline void overwrite_file(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) throw std::runtime_error("cannot write " + path);
}

/// Raw deflate (window_bits -15) or gzip (31), by zlib.
inline std::string deflate(std::string_view data, int window_bits) {
  z_stream stream = {};
  if (::deflateInit2(&stream, 6, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
    throw std::runtime_error("deflateInit2 failed");
  }
  std::string out(::deflateBound(&stream, data.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = ::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  if (result != Z_STREAM_END) throw std::runtime_error("deflate failed");
  return out;
}

inline std::string gzip(std::string_view data) { return deflate(data, 31); }

inline std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>((value >> (8 * i)) & 255);
  return out;
}

/// One BGZF block, written out by hand from the SAM specification.
inline std::string bgzf_block(std::string_view data) {
  const std::string packed = deflate(data, -15);
  const auto checksum =
      ::crc32(0, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(data.size()));
  using namespace std::string_literals;
  return "\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0"s +
         little_endian(packed.size() + 18 + 8 - 1, 2) + packed + little_endian(checksum, 4) +
         little_endian(data.size(), 4);
}

inline std::string bgzip(std::string_view data, size_t block_bytes = 65280) {
  std::string out;
  for (size_t at = 0; at < data.size(); at += block_bytes) {
    out += bgzf_block(data.substr(at, block_bytes));
  }
  return out + bgzf_block("");
}

}  // namespace gmamba::test
