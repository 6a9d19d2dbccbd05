// SPDX-License-Identifier: Apache-2.0
#include "pipelines/job.h"

#include <filesystem>

#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {

void CommonOptions::validate() const {
  require(threads <= 4096, ErrorKind::kUsage, "--threads: at most 4096, found ", threads);
  require(segment <= int64_t{1} << 31, ErrorKind::kUsage, "--segment: at most 2G tokens, found ",
          segment);
  require(!quiet || !verbose, ErrorKind::kUsage, "--quiet and --verbose exclude each other");
}

Arithmetic arithmetic_of(const CommonOptions& options) {
  const Device device = parse_device(options.device);
  require(options.precision != Precision::kBf16 || !device.is_cpu(), ErrorKind::kUnsupported,
          "--precision bf16: the CPU computes in fp32; leave the option out");
  const bool bf16 = options.precision == Precision::kBf16 ||
                    (options.precision == Precision::kAuto && !device.is_cpu());
  return {device, bf16 ? DType::kBF16 : DType::kF32};
}

std::unique_ptr<Context> open_context(const CommonOptions& options, Job& job) {
  const Arithmetic arithmetic = arithmetic_of(options);
  const Device device = arithmetic.device;
  const bool bf16 = arithmetic.activations == DType::kBF16;
  auto ctx =
      std::make_unique<Context>(device, ContextOptions{.threads = static_cast<int>(options.threads),
                                                       .log = job.log,
                                                       .activations = arithmetic.activations});
  job.record.set_device(*ctx, bf16 ? "bf16" : "fp32");
  job.record.set_seed(options.seed);
  log_line(job.log, LogLevel::kInfo,
           concat("device ", to_string(device), " (", ctx->backend().device_name(device.index),
                  "), ", ctx->threads(), ctx->threads() == 1 ? " thread, " : " threads, ",
                  bf16 ? "bf16" : "fp32"));
  return ctx;
}

void claim_run_folder(const std::string& folder, bool force) {
  require(!folder.empty() && folder != "-", ErrorKind::kUsage,
          "--out: name the run folder to write");
  if (!std::filesystem::exists(folder)) {
    return;
  }
  require(std::filesystem::is_directory(folder), ErrorKind::kUsage, "--out ", printable(folder),
          ": exists and is no folder");
  if (std::filesystem::is_empty(folder)) {
    return;
  }
  require(force, ErrorKind::kUsage, "--out ", printable(folder),
          ": the folder exists; choose another name or give --force to replace it");
  bool is_run = false;
  for (const char* part : {"run.json", "checkpoints", "model"}) {
    is_run = is_run || std::filesystem::exists(std::filesystem::path(folder) / part);
  }
  require(is_run, ErrorKind::kUsage, "--out ", printable(folder),
          ": holds files that are not of a run; --force replaces run folders only");
  remove_tree(folder);
}

}  // namespace gmamba
