// SPDX-License-Identifier: Apache-2.0
/// A stream of bytes out of a file, stdin or memory, decompressed by content. Everything that io/
/// reads front to back starts here. The end of the stream is reported only after the compressed
/// form was checked to its last byte, so a cut file is never taken for a whole one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace gmamba {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Up to `size` bytes (size >= 1); 0 only at the end. Throws kIo and kInput naming the file.
  virtual size_t read(char* to, size_t size) = 0;
  /// Bytes taken from the file so far, as it is on disk, and its size (-1 when unknown).
  virtual int64_t consumed() const = 0;
  virtual int64_t total() const = 0;
};

enum class Packing { kPlain, kGzip, kBgzf };

struct OpenedBytes {
  std::unique_ptr<ByteSource> bytes;
  std::string name;  ///< printable, for messages
  Packing packing = Packing::kPlain;
};

/// Opens a path, or stdin for "-". Plain, gzip (several members too) and BGZF, told apart by their
/// first bytes; `threads` > 1 inflates BGZF blocks in parallel. Throws kUnsupported for other
/// compressed or binary formats that it recognises.
OpenedBytes open_bytes(const std::string& path, int threads = 1);

/// The same over bytes in memory, which must outlive the source.
OpenedBytes open_bytes_memory(std::string_view data, const std::string& name, int threads = 1);

/// Throws where `start`, the first decompressed bytes of what should be FASTA or FASTQ, is that of
/// something known that people pass by mistake: BAM and SAM (kUnsupported), a byte-order mark
/// (kInput).
void refuse_other_text(std::string_view start, const std::string& name);

}  // namespace gmamba
