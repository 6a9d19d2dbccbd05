// SPDX-License-Identifier: Apache-2.0
/// safetensors: the bytes as a file, and as a header alone beside data of a size they choose. What
/// is accepted must keep the promises of the format and be readable to its last byte.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/safetensors.h"

namespace {

using gmamba::Error;
using gmamba::ErrorKind;
using gmamba::SafetensorsEntry;

void insist(bool promise) {
  if (!promise) std::abort();
}

void check_entries(const std::vector<SafetensorsEntry>& entries, int64_t data_bytes) {
  int64_t reached = 0;
  for (const SafetensorsEntry& entry : entries) {
    insist(entry.begin == reached && entry.end >= entry.begin);
    reached = entry.end;
    for (const int64_t extent : entry.shape) insist(extent >= 0);
    insist(entry.shape.size() <= 16 && entry.name.size() <= 4096);
  }
  insist(reached == data_bytes);
}

template <class Body>
void refuse_or_pass(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    insist(error.kind() == ErrorKind::kInput || error.kind() == ErrorKind::kUnsupported);
    insist(error.message().find("input") != std::string::npos ||
           error.message().find("/proc/self/fd/") != std::string::npos);
    insist(error.message().find('\n') == std::string::npos);
  }
}

void run_header(std::string_view bytes) {
  if (bytes.size() < 2) return;
  const int64_t data_bytes = static_cast<unsigned char>(bytes[0]) +
                             256 * static_cast<int64_t>(static_cast<unsigned char>(bytes[1]));
  std::map<std::string, std::string> metadata;
  check_entries(gmamba::parse_safetensors_header(bytes.substr(2), data_bytes, "input", metadata),
                data_bytes);
}

/// One memory file serves all runs.
std::string memory_file(std::string_view bytes) {
  static const int descriptor = ::memfd_create("safetensors", MFD_CLOEXEC);
  insist(descriptor >= 0 && ::ftruncate(descriptor, 0) == 0);
  insist(::pwrite(descriptor, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  return "/proc/self/fd/" + std::to_string(descriptor);
}

void run_file(std::string_view bytes) {
  const gmamba::SafetensorsReader reader(memory_file(bytes));
  int64_t total = 0;
  for (const SafetensorsEntry& entry : reader.entries()) {
    const auto size = static_cast<size_t>(entry.end - entry.begin);
    total += entry.end - entry.begin;
    insist(reader.find(entry.name) == &entry);
    std::vector<std::byte> data(size);
    reader.read_bytes(entry, data);
    const size_t width = entry.dtype == "F64" ? 8 : entry.dtype == "F32" ? 4 : 2;
    if (!entry.dtype.starts_with("F8") && (entry.dtype.starts_with('F') || entry.dtype == "BF16")) {
      std::vector<float> values(size / width);
      reader.read_f32(entry, values);
    }
  }
  check_entries(reader.entries(), total);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  refuse_or_pass([&] { run_header(bytes); });
  refuse_or_pass([&] { run_file(bytes); });
  return 0;
}
