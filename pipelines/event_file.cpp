// SPDX-License-Identifier: Apache-2.0
#include "pipelines/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <charconv>
#include <cmath>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr uint32_t kCastagnoli = 0x82F63B78U;  // 0x1EDC6F41 with its bits reversed
constexpr uint32_t kMaskDelta = 0xA282EAD8U;
constexpr const char* kFileVersion = "brain.Event:2";
constexpr std::string_view kStem = "events.out.tfevents.";
constexpr size_t kDigits = 10;  // of the second in a name

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kCastagnoli : 0U);
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = crc_table();

template <class Word>
void put_little_endian(std::string& out, Word word) {
  for (size_t byte = 0; byte < sizeof(Word); ++byte) {
    out += static_cast<char>(static_cast<unsigned char>(word >> (8 * byte)));
  }
}

// ---- protobuf: a key is (field << 3 | wire type)

enum class Wire : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  while (value >= 0x80) {
    out += static_cast<char>(static_cast<unsigned char>(value | 0x80U));
    value >>= 7;
  }
  out += static_cast<char>(static_cast<unsigned char>(value));
}

void put_key(std::string& out, uint64_t field, Wire wire) {
  put_varint(out, field << 3 | static_cast<uint64_t>(wire));
}

void put_double(std::string& out, uint64_t field, double value) {
  put_key(out, field, Wire::kFixed64);
  put_little_endian(out, std::bit_cast<uint64_t>(value));
}

void put_float(std::string& out, uint64_t field, float value) {
  put_key(out, field, Wire::kFixed32);
  put_little_endian(out, std::bit_cast<uint32_t>(value));
}

void put_int(std::string& out, uint64_t field, int64_t value) {
  put_key(out, field, Wire::kVarint);
  put_varint(out, static_cast<uint64_t>(value));
}

void put_bytes(std::string& out, uint64_t field, std::string_view bytes) {
  put_key(out, field, Wire::kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

/// Fields 1 and 2 of an Event.
std::string event_at(double wall_time, int64_t step) {
  std::string event;
  put_double(event, 1, wall_time);
  put_int(event, 2, step);
  return event;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  std::string host(name.data());
  for (char& c : host) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.') c = '_';
  }
  return host;
}

/// The second that the name of an event file gives, in kDigits digits; -1 for another name.
int64_t second_of(std::string_view name) {
  if (!name.starts_with(kStem)) return -1;
  name.remove_prefix(kStem.size());
  if (name.size() <= kDigits || name[kDigits] != '.') return -1;
  int64_t second = -1;
  const auto [end, problem] = std::from_chars(name.data(), name.data() + kDigits, second);
  return problem == std::errc() && end == name.data() + kDigits ? second : -1;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) {
    crc = kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xFFU] ^ (crc >> 8);
  }
  return crc ^ 0xFFFFFFFFU;
}

uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + kMaskDelta; }

std::string tf_record(std::string_view bytes) {
  std::string record;
  put_little_endian(record, static_cast<uint64_t>(bytes.size()));
  put_little_endian(record, masked_crc32c(record));
  record += bytes;
  put_little_endian(record, masked_crc32c(bytes));
  return record;
}

EventFile::EventFile(const std::filesystem::path& folder, double wall_time) {
  create_folders(folder);
  int64_t second = std::llround(wall_time);
  std::error_code ignored;  // a folder that can't be listed, of which writing will tell
  for (std::filesystem::directory_iterator entry(folder, ignored), end; entry != end;
       entry.increment(ignored)) {
    second = std::max(second, second_of(entry->path().filename().string()) + 1);
  }
  std::string digits = std::to_string(second);
  if (digits.size() < kDigits) digits.insert(0, kDigits - digits.size(), '0');
  const std::string stem = concat(kStem, digits, ".", host_name(), ".", ::getpid(), ".");
  for (int n = 0; path_.empty() || path_exists(path_); ++n) path_ = folder / concat(stem, n);
  file_.open(path_, std::ios::binary | std::ios::app);
  std::string version;
  put_double(version, 1, wall_time);
  put_bytes(version, 3, kFileVersion);
  write(version);
}

void EventFile::add(double wall_time, int64_t step, std::span<const Scalar> scalars) {
  if (scalars.empty()) return;
  std::string summary;
  for (const Scalar& scalar : scalars) {
    std::string value;
    put_bytes(value, 1, scalar.tag);
    put_float(value, 2, static_cast<float>(scalar.value));
    put_bytes(summary, 1, value);
  }
  std::string event = event_at(wall_time, step);
  put_bytes(event, 5, summary);
  write(event);
}

void EventFile::restart(double wall_time, int64_t step) {
  std::string session;
  put_int(session, 1, 1);
  std::string event = event_at(wall_time, step);
  put_bytes(event, 7, session);
  write(event);
}

void EventFile::write(std::string_view event) {
  const std::string record = tf_record(event);
  file_.write(record.data(), static_cast<std::streamsize>(record.size()));
  file_.flush();
  require(file_.good(), ErrorKind::kIo, printable(path_.string()),
          ": cannot write; is the disk full?");
}

}  // namespace gmamba
