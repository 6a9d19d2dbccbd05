// SPDX-License-Identifier: Apache-2.0
/// A scratch folder per test, small models, and checks of errors, for the tests of files.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/log.h"
#include "libmamba/model.h"

namespace gmamba::test {

class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(info->test_suite_name()) + "." + info->name();
    for (char& c : name) c = c == '/' ? '_' : c;
    folder_ = std::filesystem::temp_directory_path() / concat("gmamba_", ::getpid(), "_", name);
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

/// Remembers lines.
class MemoryLog final : public Log {
 public:
  void write(LogLevel level, std::string_view line) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.push_back({level, std::string(line)});
  }
  int count(LogLevel level, std::string_view part) const {
    int found = 0;
    for (const auto& [at, line] : lines_) {
      if (at == level && line.find(part) != std::string::npos) ++found;
    }
    return found;
  }
  std::string text() const {
    std::string out;
    for (const auto& [at, line] : lines_) out += line + "\n";
    return out;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<LogLevel, std::string>> lines_;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void spit(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// Runs `body`, which must throw an Error of this kind whose message has all the parts.
template <class Body>
void expect_error(ErrorKind kind, const std::vector<std::string>& parts, Body&& body,
                  std::string_view label = "") {
  try {
    body();
    ADD_FAILURE() << "accepted: " << label;
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << label << ": " << error.message();
    for (const std::string& part : parts) {
      EXPECT_NE(error.message().find(part), std::string::npos)
          << label << ": expected '" << part << "' in: " << error.message();
    }
    EXPECT_EQ(error.message().find('\n'), std::string::npos) << label;
  }
}

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab_size = 16;
  config.d_model = 8;
  config.n_layers = 2;
  config.d_state = 4;
  config.dt_rank = 1;
  return config;
}

inline Model tiny_model(uint64_t seed = 1, const ModelConfig& config = tiny_config()) {
  Model model(config, Device{});
  initialize(model.parameters(), config, seed);
  return model;
}

/// Bit for bit.
inline bool same_values(const ParameterBuffer& a, const ParameterBuffer& b) {
  const auto x = a.flat().flat<const float>();
  const auto y = b.flat().flat<const float>();
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size_bytes()) == 0;
}

}  // namespace gmamba::test
