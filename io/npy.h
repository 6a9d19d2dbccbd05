// SPDX-License-Identifier: Apache-2.0
/// NumPy .npy files, version 1.0: rows streamed out, the shape patched into the header at the end.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "libmamba/core/dtype.h"
#include "libmamba/core/file.h"
#include "libmamba/core/tensor.h"

namespace gmamba {

/// IEEE half precision, rounded to nearest, ties to even; too large becomes infinite.
uint16_t f16_from_f32(float value);
float f32_from_f16(uint16_t bits);

/// (rows, columns) of f32 or f16; appears whole at commit(). A finite value that f16 cannot hold is
/// an error (kInput).
class NpyWriter {
 public:
  NpyWriter(const std::filesystem::path& path, int64_t columns, DType dtype);
  void add_row(std::span<const float> row);
  int64_t rows() const { return rows_; }
  void commit();

 private:
  AtomicFile file_;
  int64_t columns_;
  DType dtype_;
  int64_t rows_ = 0;
  std::vector<uint16_t> halves_;  // a row as f16
};

/// A whole array read back; refuses pickles, structured and big-endian types, and sizes that do not
/// agree with the file. Types f16, f32, f64, i64, i32, u8; at most four dimensions, row-major.
struct NpyArray {
  Tensor values;  // on the CPU
};
NpyArray read_npy(const std::filesystem::path& path);

}  // namespace gmamba
