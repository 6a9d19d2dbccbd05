// SPDX-License-Identifier: Apache-2.0
/// Bytes of a file at any offset, by threads at once: plain files as they are, BGZF files at
/// offsets of their decompressed text. The table of BGZF blocks comes from the blocks themselves,
/// never from an index beside the file.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/byte_source.h"

namespace gmamba {

/// Where the data of a BGZF block is: offset in the file, and of its first byte in the text.
struct BlockOffset {
  int64_t packed = 0;
  int64_t text = 0;
  auto operator<=>(const BlockOffset&) const = default;
};

class RandomBytes {
 public:
  virtual ~RandomBytes() = default;
  /// Bytes of text.
  virtual int64_t size() const = 0;
  /// Fills `to` from `offset`; the range must lie within size(). Thread-safe. Throws kInput when
  /// the file is damaged or was cut since it was opened.
  virtual void read(int64_t offset, std::span<char> to) const = 0;
  /// Blocks of a BGZF file without the end block; empty for a plain file.
  virtual const std::vector<BlockOffset>& blocks() const = 0;
};

/// Opens a regular file. Throws kInput for plain gzip (it has no random access) and for a BGZF file
/// whose blocks do not follow each other to the end block; kIo and kUnsupported as open_bytes.
std::unique_ptr<RandomBytes> open_random_bytes(const std::string& path);

}  // namespace gmamba
