// SPDX-License-Identifier: Apache-2.0
/// A nameless file for what a long record leaves behind until its other strand was read. It is
/// gone with the program, however that ends.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace gmamba {

class SpillFile {
 public:
  /// In `folder`; "" is $TMPDIR, else /tmp. Throws kIo.
  explicit SpillFile(const std::filesystem::path& folder);
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;
  ~SpillFile();

  void append(std::span<const std::byte> bytes);
  void read(int64_t offset, std::span<std::byte> to) const;
  int64_t size() const { return size_; }
  void clear();

 private:
  std::filesystem::path folder_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

}  // namespace gmamba
