// SPDX-License-Identifier: Apache-2.0
/// Files, compressed bytes and random sequences for the tests of io/.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/log.h"
#include "libmamba/core/random.h"

namespace gmamba::test {

/// A folder that is removed at scope end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "gmamba_test.XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view bytes) const {
    overwrite(file(name), bytes);
    return file(name);
  }
  /// Without the flush to disk that write_file does.
  static void overwrite(const std::string& path, std::string_view bytes) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + path);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Remembers what was said.
class MemoryLog final : public Log {
 public:
  void write(LogLevel level, std::string_view line) override {
    lines.emplace_back(line);
    warnings += level == LogLevel::kWarning ? 1 : 0;
  }
  bool contains(std::string_view text) const {
    for (const std::string& line : lines) {
      if (line.find(text) != std::string::npos) return true;
    }
    return false;
  }
  std::vector<std::string> lines;
  int warnings = 0;
};

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

inline std::string random_bases(int64_t length, uint64_t seed,
                                std::string_view letters = "ACGTacgtNnRY") {
  Random random(seed, RandomUse::kTest);
  std::string out(static_cast<size_t>(length), '\0');
  for (char& base : out) base = letters[random.below(letters.size())];
  return out;
}

/// `bases` cut into lines of `width` (0: one line).
inline std::string wrap(std::string_view bases, size_t width, std::string_view ending = "\n") {
  std::string out;
  if (bases.empty()) return out;
  const size_t step = width == 0 ? bases.size() : width;
  for (size_t at = 0; at < bases.size(); at += step) {
    out.append(bases.substr(at, step)).append(ending);
  }
  return out;
}

/// Runs `body` and returns the message of the Error that it must throw.
template <class Body>
std::string error_of(Body&& body, ErrorKind kind = ErrorKind::kInput) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.message();
    return error.message();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

/// ../shared/data beside the sources, where it is present; else an empty path.
inline std::filesystem::path shared_data() {
  const std::filesystem::path path = std::filesystem::path(GMAMBA_SOURCE_DIR) / "../shared/data";
  return std::filesystem::exists(path) ? path : std::filesystem::path();
}

}  // namespace gmamba::test
