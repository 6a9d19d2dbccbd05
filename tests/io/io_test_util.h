// SPDX-License-Identifier: Apache-2.0
/// Files, compressed bytes and random sequences for the tests of io/.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/log.h"
#include "libmamba/core/random.h"
#include "tests/io/packing.h"

namespace gmamba::test {

/// A folder that is removed at scope end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "gmamba_test.XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::string write(const std::string& name, std::string_view bytes) const {
    overwrite_file(file(name), bytes);
    return file(name);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Remembers what was said.
class MemoryLog final : public Log {
 public:
  void write(LogLevel level, std::string_view line) override {
    lines.emplace_back(line);
    warnings += level == LogLevel::kWarning ? 1 : 0;
  }
  bool contains(std::string_view text) const {
    for (const std::string& line : lines) {
      if (line.find(text) != std::string::npos) return true;
    }
    return false;
  }
  std::vector<std::string> lines;
  int warnings = 0;
};

inline std::string random_bases(int64_t length, uint64_t seed,
                                std::string_view letters = "ACGTacgtNnRY") {
  Random random(seed, RandomUse::kTest);
  std::string out(static_cast<size_t>(length), '\0');
  for (char& base : out) base = letters[random.below(letters.size())];
  return out;
}

/// `bases` cut into lines of `width` (0: one line).
inline std::string wrap(std::string_view bases, size_t width, std::string_view ending = "\n") {
  std::string out;
  if (bases.empty()) return out;
  const size_t step = width == 0 ? bases.size() : width;
  for (size_t at = 0; at < bases.size(); at += step) {
    out.append(bases.substr(at, step)).append(ending);
  }
  return out;
}

/// Runs `body` and returns the message of the Error that it must throw.
template <class Body>
std::string error_of(Body&& body, ErrorKind kind = ErrorKind::kInput) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.message();
    return error.message();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

/// ../shared/data beside the sources, where it is present; else an empty path.
inline std::filesystem::path shared_data() {
  const std::filesystem::path path = std::filesystem::path(GMAMBA_SOURCE_DIR) / "../shared/data";
  return std::filesystem::exists(path) ? path : std::filesystem::path();
}

}  // namespace gmamba::test
