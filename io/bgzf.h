// SPDX-License-Identifier: Apache-2.0
/// BGZF: gzip members of at most 64 KiB that tell their own size, so that they can be found and
/// inflated one by one (SAM specification, section 4.1). Blocks are parsed and checked here; the
/// stream and the random access of io/ are built on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "io/byte_source.h"

namespace gmamba {

constexpr size_t kBgzfMaxBlock = 65536;  ///< bytes of a block, compressed and not
constexpr size_t kBgzfFixedHeader = 12;  ///< up to and including the length of the extra field
constexpr size_t kBgzfFooter = 8;        ///< CRC-32 and length

/// The empty block that ends every whole BGZF file.
std::string_view bgzf_end_block();

/// Sizes of the block that starts at `bytes`.
struct BgzfBlock {
  size_t header_bytes = 0;
  size_t block_bytes = 0;  ///< all of it: header, data, footer
};

/// Whether the bytes (at least 18, fewer give false) begin a BGZF block rather than plain gzip.
bool looks_like_bgzf(std::string_view bytes);
/// Bytes of the header whose first kBgzfFixedHeader bytes are given; 0 when this is no BGZF block.
size_t bgzf_header_bytes(std::string_view fixed_header);
/// Sizes from a whole header; block_bytes is 0 when this is no BGZF block.
BgzfBlock parse_bgzf_header(std::string_view header);
/// Length of the data, from the last bytes of a block.
uint32_t bgzf_data_length(std::string_view block);

/// Inflates blocks; one per thread.
class BgzfInflater {
 public:
  BgzfInflater();
  ~BgzfInflater();
  BgzfInflater(const BgzfInflater&) = delete;
  BgzfInflater& operator=(const BgzfInflater&) = delete;
  /// Writes exactly bgzf_data_length(block) <= to.size() bytes and returns that; nullptr `reason`
  /// on success, else what is wrong with the block.
  size_t inflate(std::string_view block, std::span<char> to, const char** reason);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The decompressed stream of `raw`, whose blocks must be whole, right by CRC and length, and end
/// with the empty block. `name` goes into messages.
std::unique_ptr<ByteSource> make_bgzf_source(std::unique_ptr<ByteSource> raw, std::string name,
                                             int threads);

}  // namespace gmamba
