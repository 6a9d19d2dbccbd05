// SPDX-License-Identifier: Apache-2.0
/// The safetensors format, version of the 0.8 reference: reader with every check made before data
/// is touched, and writer in the reference order.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "libmamba/core/tensor.h"

namespace gmamba {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  ///< as in the file: "F32", "BF16", ...
  Shape shape;        ///< up to rank 16
  int64_t begin = 0;  ///< byte range in the data buffer
  int64_t end = 0;
};

class SafetensorsReader {
 public:
  /// Opens and checks the header against the file; throws kInput naming the file and what is wrong.
  explicit SafetensorsReader(const std::filesystem::path& path);
  ~SafetensorsReader();

  const std::vector<SafetensorsEntry>& entries() const;  ///< in file order
  const SafetensorsEntry* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const;
  /// A floating tensor (F64, F32, F16, BF16) as fp32; sizes must agree.
  void read_f32(const SafetensorsEntry& entry, std::span<float> to) const;
  /// The raw bytes.
  void read_bytes(const SafetensorsEntry& entry, std::span<std::byte> to) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Checks a header against the size of the data buffer; the part of the reader that hostile bytes
/// reach.
std::vector<SafetensorsEntry> parse_safetensors_header(
    std::string_view header, int64_t data_bytes, std::string_view name,
    std::map<std::string, std::string>& metadata);

struct SafetensorsItem {
  std::string name;
  ConstTensorView values;  ///< contiguous, on the CPU
  Shape shape;             ///< written shape; empty: that of values
};
/// Written whole (temporary name, fsync, rename). "format": "pt" is always in the metadata.
void write_safetensors(const std::filesystem::path& path, std::vector<SafetensorsItem> items,
                       std::map<std::string, std::string> metadata);

}  // namespace gmamba
