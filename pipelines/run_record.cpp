// SPDX-License-Identifier: Apache-2.0
#include "pipelines/run_record.h"

#include <sys/resource.h>

#include <array>
#include <ctime>

#include "io/htslib_version.h"
#include "libmamba/core/file.h"
#include "libmamba/core/version.h"

namespace gmamba {
namespace {

std::string utc_time(std::chrono::system_clock::time_point when) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(when);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  std::array<char, 32> text{};
  const size_t size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text.data(), size};
}

double seconds_of(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

}  // namespace

ProcessUsage process_usage() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {int64_t{1024} * usage.ru_maxrss, seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime)};
}

RunRecord::RunRecord(std::string command, std::vector<std::string> command_line, Json options)
    : command_(std::move(command)),
      command_line_(std::move(command_line)),
      options_(std::move(options)) {}

void RunRecord::set_model(const std::string& path, const std::string& digest) {
  model_ = Json{{"path", path}, {"sha256", digest}};
}

void RunRecord::set_device(const Context& ctx, const std::string& precision) {
  device_ = Json{{"name", to_string(ctx.device())},
                 {"hardware", ctx.backend().device_name(ctx.device().index)},
                 {"threads", ctx.threads()},
                 {"precision", precision}};
}

void RunRecord::add_input(const std::string& path) {
  Json input{{"path", path}};
  std::error_code code;
  if (std::filesystem::is_regular_file(path, code)) {
    if (const auto bytes = std::filesystem::file_size(path, code); !code) input["bytes"] = bytes;
  }
  inputs_.push_back(std::move(input));
}

void RunRecord::add_output(const std::string& path) { outputs_.push_back(path); }

double RunRecord::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - clock_).count();
}

Json RunRecord::to_json() const {
  const ProcessUsage usage = process_usage();
  const double elapsed = seconds();
  Json json = Json::object();
  json["gmamba"] = std::string(version());
  json["htslib"] = htslib_version();
  json["command"] = command_;
  json["command_line"] = command_line_;
  json["options"] = options_;
  json["model"] = model_;
  json["device"] = device_;
  json["seed"] = seed_;
  json["inputs"] = inputs_;
  json["outputs"] = outputs_;
  json["started"] = utc_time(started_);
  json["seconds"] = elapsed;
  json["cpu_seconds"] = usage.cpu_seconds;
  json["records"] = records_;
  json["bases"] = bases_;
  json["bases_per_second"] = elapsed > 0 ? static_cast<double>(bases_) / elapsed : 0.0;
  json["peak_memory_bytes"] = usage.peak_memory_bytes;
  json["results"] = results_;
  return json;
}

void RunRecord::write_beside(const std::string& out) const {
  if (!out.empty() && out != "-") {
    write(out + ".json");
  }
}

void RunRecord::write(const std::filesystem::path& path) const {
  // file names may hold any bytes; JSON holds UTF-8 only
  write_file(path, to_json().dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace gmamba
