// SPDX-License-Identifier: Apache-2.0
/// A reader of event files that shares nothing with their writer.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace gmamba::test {

/// CRC-32C bit by bit, from the definition.
inline uint32_t naive_crc32c(const std::string& bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t in = (static_cast<unsigned char>(c) >> bit) & 1U;
      const uint32_t out = (crc & 1U) ^ in;
      crc >>= 1;
      if (out != 0) crc ^= 0x82F63B78U;
    }
  }
  return ~crc;
}

/// A field of a message, by its wire type.
struct Field {
  uint64_t varint = 0;
  std::string bytes;
};

class Decoder {
 public:
  explicit Decoder(const std::string& bytes) : bytes_(bytes) {}
  bool end() const { return at_ == bytes_.size(); }
  std::string take(size_t count) {
    if (bytes_.size() - at_ < count) throw std::runtime_error("the bytes end early");
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }
  template <class T>
  T number() {
    T value;
    const std::string raw = take(sizeof(T));
    std::memcpy(&value, raw.data(), sizeof(T));  // the tests run on little-endian machines
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const auto byte = number<uint8_t>();
      value += static_cast<uint64_t>(byte % 128) << shift;
      if (byte < 128) return value;
    }
    throw std::runtime_error("a varint without end");
  }
  std::multimap<uint64_t, Field> message() {
    std::multimap<uint64_t, Field> fields;
    while (!end()) {
      const uint64_t key = varint();
      Field field;
      switch (key % 8) {
        case 0:
          field.varint = varint();
          break;
        case 1:
          field.bytes = take(8);
          break;
        case 2:
          field.bytes = take(varint());
          break;
        case 5:
          field.bytes = take(4);
          break;
        default:
          throw std::runtime_error("a wire type that is not used");
      }
      fields.emplace(key / 8, field);
    }
    return fields;
  }
  std::string record() {
    const std::string head = take(8);
    const auto head_crc = number<uint32_t>();
    uint64_t size = 0;
    std::memcpy(&size, head.data(), 8);
    std::string body = take(size);
    const auto body_crc = number<uint32_t>();
    if (head_crc != mask(head) || body_crc != mask(body)) throw std::runtime_error("bad checksum");
    return body;
  }

 private:
  static uint32_t mask(const std::string& bytes) {
    const uint32_t crc = naive_crc32c(bytes);
    return static_cast<uint32_t>(((crc >> 15) | (uint64_t{crc} << 17)) + 0xA282EAD8U);
  }
  std::string bytes_;
  size_t at_ = 0;
};

inline double as_double(const std::string& bytes) { return Decoder(bytes).number<double>(); }
inline float as_float(const std::string& bytes) { return Decoder(bytes).number<float>(); }

/// Points by tag and step, each in the order in which they were read.
using Points = std::map<std::pair<std::string, int64_t>, std::vector<float>>;

/// What TensorBoard shows of a folder: the files in the order of their times, one after the other,
/// where a session that starts at a step drops all that was read from that step on. A file that
/// was cut ends where it does.
inline Points shown_points(const std::filesystem::path& folder) {
  std::map<std::pair<double, std::string>, std::string> files;  // by time, name
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    const auto version = Decoder(Decoder(text.str()).record()).message();
    files[{as_double(version.find(1)->second.bytes), entry.path().filename()}] = text.str();
  }
  Points points;
  for (const auto& [name, bytes] : files) {
    Decoder records(bytes);
    while (!records.end()) {
      std::multimap<uint64_t, Field> event;
      try {
        event = Decoder(records.record()).message();
      } catch (const std::runtime_error&) {
        break;
      }
      const auto step_field = event.find(2);
      const auto step =
          step_field == event.end() ? 0 : static_cast<int64_t>(step_field->second.varint);
      if (event.contains(7)) {
        std::erase_if(points, [&](const auto& point) { return point.first.second >= step; });
      }
      if (!event.contains(5)) continue;
      for (const auto& [number, field] : Decoder(event.find(5)->second.bytes).message()) {
        const auto value = Decoder(field.bytes).message();
        points[{value.find(1)->second.bytes, step}].push_back(
            as_float(value.find(2)->second.bytes));
      }
    }
  }
  return points;
}

}  // namespace gmamba::test
