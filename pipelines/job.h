// SPDX-License-Identifier: Apache-2.0
/// What every pipeline has: the options common to all commands, and the surroundings that the
/// command gives it (where to say things, the record to fill).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "libmamba/core/context.h"
#include "libmamba/core/log.h"
#include "libmamba/memory_plan.h"
#include "pipelines/options.h"
#include "pipelines/progress.h"
#include "pipelines/run_record.h"

namespace gmamba {

enum class Precision { kAuto, kFp32, kBf16 };

template <>
struct OptionWords<Precision> {
  static constexpr std::pair<std::string_view, Precision> kWords[] = {
      {"auto", Precision::kAuto}, {"fp32", Precision::kFp32}, {"bf16", Precision::kBf16}};
};

struct CommonOptions {
  std::string out;
  int64_t threads = 0;
  std::string device = "auto";
  Precision precision = Precision::kAuto;
  int64_t segment = 0;
  int64_t max_memory = 0;
  bool plan = false;
  int64_t seed = 0;
  ProgressMode progress = ProgressMode::kAuto;
  bool quiet = false;
  bool verbose = false;
  bool force = false;
  bool no_provenance = false;

  template <class V>
  void visit(V& v);
  /// Throws kUsage.
  void validate() const;
};

/// One call of one pipeline. The default says nothing and keeps a record that nobody reads.
struct Job {
  Job() = default;
  Job(Log* log_to, ProgressSink* sink, ProgressMode mode, RunRecord run_record)
      : log(log_to), progress(sink, mode), record(std::move(run_record)) {}

  Log* log = nullptr;
  Progress progress;
  RunRecord record;
  /// Text for stdout that is no stream of results: what `info` and `--plan` print.
  std::string report;
};

/// Where the options compute and in which type of activations. Throws kUnsupported for a device or
/// precision that is not here.
Arithmetic arithmetic_of(const CommonOptions& options);

/// The context that the options ask for; says which device it is and how many threads, and enters
/// both into the record. Throws kUnsupported for a device or precision that is not here.
std::unique_ptr<Context> open_context(const CommonOptions& options, Job& job);

/// Throws kUsage when the folder exists and `force` was not given; with it a run folder is removed
/// (a folder that holds no run is refused all the same).
void claim_run_folder(const std::string& folder, bool force);

template <class V>
void CommonOptions::visit(V& v) {
  v.heading("Common");
  v("out", out, "output; '-' or nothing is stdout where the format is a stream",
    {.value = "PATH", .shown_default = "stdout", .letter = 'o'});
  v("threads", threads, "CPU threads",
    {.value = "N", .shown_default = "all that this process may use", .letter = 't'});
  v("device", device, "auto (the first usable GPU, else the CPU), cpu, cuda or cuda:N",
    {.value = "WHERE"});
  v("precision", precision, "arithmetic of activations: fp32, bf16, or auto (bf16 on a GPU)",
    {.value = "WORD"});
  v("segment", segment, "tokens computed at once; never changes results beyond rounding",
    {.value = "N", .shown_default = "what fits"});
  v("max-memory", max_memory, "bound of the memory plan, such as 2GiB",
    {.value = "SIZE", .shown_default = "none", .bytes = true});
  v("plan", plan, "print the memory and time plan, and stop");
  v("seed", seed, "one seed for everything random", {.value = "N"});
  v("force", force, "replace an existing run folder");
  v("no-provenance", no_provenance, "write no run record beside the output");
  v("progress", progress, "auto, bar, plain (a line every 10 s) or none; on stderr",
    {.value = "WORD"});
  v("quiet", quiet, "errors only", {.letter = 'q'});
  v("verbose", verbose, "say more", {.letter = 'v'});
}

}  // namespace gmamba
