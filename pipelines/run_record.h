// SPDX-License-Identifier: Apache-2.0
/// The provenance of an output: what made it, from what, with which options, where and how fast.
/// It is written as `<out>.json` beside the output, or into the run's folder.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "libmamba/core/context.h"
#include "libmamba/core/json.h"

namespace gmamba {

/// Memory and time of this process so far.
struct ProcessUsage {
  int64_t peak_memory_bytes = 0;  ///< largest resident set
  double cpu_seconds = 0;         ///< user and system, all threads
};
ProcessUsage process_usage();

class RunRecord {
 public:
  RunRecord() = default;
  RunRecord(std::string command, std::vector<std::string> command_line, Json options);

  void set_model(const std::string& path, const std::string& digest);
  void set_device(const Context& ctx, const std::string& precision);
  void set_seed(int64_t seed) { seed_ = seed; }
  /// Path and, for a regular file, its size; "-" is stdin.
  void add_input(const std::string& path);
  void add_output(const std::string& path);
  void add_bases(int64_t bases) { bases_ += bases; }
  void add_records(int64_t records) { records_ += records; }
  /// A figure or setting of the pipeline's own, under "results".
  void set_result(const std::string& key, Json value) { results_[key] = std::move(value); }

  const std::string& command() const { return command_; }
  int64_t bases() const { return bases_; }
  int64_t records() const { return records_; }
  /// Since construction.
  double seconds() const;

  Json to_json() const;
  /// Writes `<out>.json`; nothing when the output is stdout ("" or "-").
  void write_beside(const std::string& out) const;
  void write(const std::filesystem::path& path) const;

 private:
  std::string command_;
  std::vector<std::string> command_line_;
  Json options_ = Json::object();
  Json model_;
  Json device_;
  Json inputs_ = Json::array();
  Json outputs_ = Json::array();
  Json results_ = Json::object();
  int64_t seed_ = 0;
  int64_t bases_ = 0;
  int64_t records_ = 0;
  std::chrono::system_clock::time_point started_ = std::chrono::system_clock::now();
  std::chrono::steady_clock::time_point clock_ = std::chrono::steady_clock::now();
};

}  // namespace gmamba
