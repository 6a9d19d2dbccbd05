// SPDX-License-Identifier: Apache-2.0
#include "io/bgzf.h"

#include <libdeflate.h>

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

uint32_t byte_at(std::string_view bytes, size_t i) { return static_cast<unsigned char>(bytes[i]); }

uint32_t u16_at(std::string_view bytes, size_t i) {
  return byte_at(bytes, i) | (byte_at(bytes, i + 1) << 8);
}

uint32_t u32_at(std::string_view bytes, size_t i) {
  return u16_at(bytes, i) | (u16_at(bytes, i + 2) << 16);
}

}  // namespace

std::string_view bgzf_end_block() {
  static constexpr char kEnd[] =
      "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x06\x00\x42\x43\x02\x00\x1b\x00\x03\x00"
      "\x00\x00\x00\x00\x00\x00\x00\x00";
  return {kEnd, sizeof(kEnd) - 1};
}

bool looks_like_bgzf(std::string_view bytes) {
  if (bytes.size() < kBgzfFixedHeader) return false;
  const size_t header = bgzf_header_bytes(bytes);
  // the subfield may lie anywhere in the extra field; in every known file it comes first
  return header != 0 && bytes.size() >= 18 && bytes[12] == 'B' && bytes[13] == 'C' &&
         u16_at(bytes, 14) == 2;
}

size_t bgzf_header_bytes(std::string_view fixed_header) {
  if (fixed_header.size() < kBgzfFixedHeader || byte_at(fixed_header, 0) != 0x1f ||
      byte_at(fixed_header, 1) != 0x8b || byte_at(fixed_header, 2) != 8 ||
      byte_at(fixed_header, 3) != 4) {
    return 0;
  }
  const size_t extra = u16_at(fixed_header, 10);
  return extra < 6 ? 0 : kBgzfFixedHeader + extra;
}

BgzfBlock parse_bgzf_header(std::string_view header) {
  const size_t header_bytes = bgzf_header_bytes(header);
  if (header_bytes == 0 || header.size() < header_bytes) return {};
  size_t at = kBgzfFixedHeader;
  while (at + 4 <= header_bytes) {
    const size_t length = u16_at(header, at + 2);
    if (at + 4 + length > header_bytes) return {};
    if (header[at] == 'B' && header[at + 1] == 'C' && length == 2) {
      const size_t block_bytes = size_t{u16_at(header, at + 4)} + 1;
      // the smallest deflate stream has two bytes
      if (block_bytes < header_bytes + 2 + kBgzfFooter) return {};
      return {header_bytes, block_bytes};
    }
    at += 4 + length;
  }
  return {};
}

uint32_t bgzf_data_length(std::string_view block) { return u32_at(block, block.size() - 4); }

struct BgzfInflater::Impl {
  std::unique_ptr<libdeflate_decompressor, decltype(&libdeflate_free_decompressor)> inflater{
      libdeflate_alloc_decompressor(), libdeflate_free_decompressor};
};

BgzfInflater::BgzfInflater() : impl_(std::make_unique<Impl>()) {
  require(impl_->inflater != nullptr, ErrorKind::kIo, "not enough memory to decompress");
}

BgzfInflater::~BgzfInflater() = default;

size_t BgzfInflater::inflate(std::string_view block, std::span<char> to, const char** reason) {
  *reason = nullptr;
  const BgzfBlock sizes = parse_bgzf_header(block);
  if (sizes.block_bytes == 0 || sizes.block_bytes != block.size()) {
    *reason = "no BGZF block";
    return 0;
  }
  const size_t length = bgzf_data_length(block);
  if (length > kBgzfMaxBlock || length > to.size()) {
    *reason = "a BGZF block of more than 64 KiB";
    return 0;
  }
  const size_t packed = block.size() - sizes.header_bytes - kBgzfFooter;
  // a length of 0 still needs somewhere to point
  char nothing = 0;
  char* const out = length > 0 ? to.data() : &nothing;
  size_t taken = 0;
  size_t given = 0;
  const libdeflate_result result =
      libdeflate_deflate_decompress_ex(impl_->inflater.get(), block.data() + sizes.header_bytes,
                                       packed, out, length, &taken, &given);
  if (result != LIBDEFLATE_SUCCESS || taken != packed) {
    *reason = "damaged compressed data";
    return 0;
  }
  if (given != length) {
    *reason = "a BGZF block whose length is not what it says";
    return 0;
  }
  if (libdeflate_crc32(0, out, length) != u32_at(block, block.size() - kBgzfFooter)) {
    *reason = "a wrong checksum (CRC-32)";
    return 0;
  }
  return length;
}

}  // namespace gmamba
