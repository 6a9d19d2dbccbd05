// SPDX-License-Identifier: Apache-2.0
/// Scalars as TensorBoard reads them: records of the TFRecord framing
///   u64 length | u32 masked CRC-32C of it | bytes | u32 masked CRC-32C of the bytes
/// (little-endian) that hold protobuf messages Event, encoded here by hand:
///   Event    1 wall_time (double)  2 step (int64)  3 file_version (string)  5 summary  7
///   session_log Summary  1 value (repeated):   1 tag (string)  2 simple_value (float) SessionLog
///   1 status (START = 1)
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

namespace gmamba {

/// CRC-32C (Castagnoli): polynomial 0x1EDC6F41, reflected, as of RFC 3720.
uint32_t crc32c(std::string_view bytes);
/// ((crc >> 15) | (crc << 17)) + 0xa282ead8: the form in which records keep it.
uint32_t masked_crc32c(std::string_view bytes);
/// A record with its framing.
std::string tf_record(std::string_view bytes);

struct Scalar {
  std::string tag;
  double value = 0;
};

class EventFile {
 public:
  /// Makes FOLDER/events.out.tfevents.SECONDS.HOST.PID.N and writes the version record. Readers
  /// take files in the order of their names, so SECONDS is later than those of all that are there;
  /// N is the first that is free. Throws kIo.
  EventFile(const std::filesystem::path& folder, double wall_time);

  const std::filesystem::path& path() const { return path_; }
  /// One event with all scalars, flushed; nothing when there are none.
  void add(double wall_time, int64_t step, std::span<const Scalar> scalars);
  /// Says that a run goes on: what earlier files hold from `step` on is dropped by the reader.
  void restart(double wall_time, int64_t step);

 private:
  void write(std::string_view event);

  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace gmamba
