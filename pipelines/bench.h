// SPDX-License-Identifier: Apache-2.0
/// Kernels and whole models against the limits of this machine, which are measured first: memory
/// copy, matrix product, exponentials. What stands far above its floor can be made faster.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "libmamba/config.h"
#include "pipelines/job.h"

namespace gmamba {

enum class BenchPart { kAll, kKernels, kModels };

template <>
struct OptionWords<BenchPart> {
  static constexpr std::pair<std::string_view, BenchPart> kWords[] = {
      {"all", BenchPart::kAll}, {"kernels", BenchPart::kKernels}, {"models", BenchPart::kModels}};
};

struct BenchOptions {
  BenchPart part = BenchPart::kAll;
  int64_t tokens = 0;
  int64_t stream = 0;
  int64_t train = 0;
  int64_t d_model = 256;
  int64_t layers = 8;
  int64_t d_state = 16;
  int64_t repeats = 10;
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    v.heading("What");
    v("part", part, "kernels, models or all", {.value = "WORD"});
    v("tokens", tokens, "positions that each measurement works on",
      {.value = "N", .shown_default = "1048576 on a GPU, 16384 on a CPU"});
    v("stream", stream, "also read one sequence of N tokens, a segment at a time", {.value = "N"});
    v("train", train,
      "also take one training step over a sequence of N tokens, a segment at a time; with "
      "--max-memory cut as pretrain would within that",
      {.value = "N"});
    v("d-model", d_model, "width of the model; its inner width is twice that", {.value = "N"});
    v("layers", layers, "blocks of the model", {.value = "N"});
    v("d-state", d_state, "states of each inner channel", {.value = "N"});
    v("repeats", repeats, "timings of each, of which the median is printed", {.value = "N"});
    common.visit(v);
  }
  /// Throws kUsage.
  void validate() const;
};

/// What the machine can do at best, per second.
struct MachineRates {
  double copy_bytes = 0;  ///< read and written
  double gemm_flops = 0;  ///< in the type of the activations
  double exps = 0;
};

/// "copy 3TB/s, matrix product 700TFLOP/s, exponentials 3.6T/s".
std::string to_text(const MachineRates& rates);
/// What to say of a machine some of whose rates fell by more than a twentieth, by heat, power or
/// other programs: a sentence, else nothing.
std::string slowdown(const MachineRates& before, const MachineRates& after);

/// Work that no implementation avoids.
struct Work {
  double bytes = 0;
  double flops = 0;
  double exps = 0;

  Work& operator+=(const Work& other);
  /// Seconds on a machine of these rates. A GPU's units work side by side, a CPU core does flops
  /// and exponentials in turn.
  double floor(const MachineRates& rates, bool gpu) const;
};

struct BenchRow {
  std::string name;
  std::string shape;
  double tokens = 0;
  double seconds = 0;  ///< median
  double floor = 0;
  int64_t memory = 0;   ///< bytes held: parameters, states, scratch; 0 when not counted
  int64_t planned = 0;  ///< bytes of the memory plan, of which `memory` is then the measured peak
};

/// What to measure of whole models.
struct ModelBenchOptions {
  int64_t tokens = 0;
  int64_t stream = 0;      ///< tokens of one sequence read in segments; 0: not
  int64_t train = 0;       ///< tokens of one step's sequence in segments; 0: not
  int64_t segment = 0;     ///< 0: the device's default
  int64_t max_memory = 0;  ///< of the step of `train` tokens; 0: no bound
  int64_t repeats = 1;
};

/// Seconds of one call of `body`.
double seconds_of(Context& ctx, const std::function<void()>& body);
/// Median seconds of one call of `body`, warmed up; short bodies are repeated inside a timing.
double median_seconds(Context& ctx, int64_t repeats, const std::function<void()>& body);
/// Fills with reproducible numbers in (-scale, scale).
void fill_random(Context& ctx, TensorView view, float scale, uint64_t seed);

MachineRates measure_rates(Context& ctx);
std::vector<BenchRow> bench_kernels(Context& ctx, const ModelConfig& config, int64_t tokens,
                                    int64_t repeats, const MachineRates& rates);
/// Each row has a context of its own, so that its memory is its own. What the device has no memory
/// for is left out and named in `left_out`.
std::vector<BenchRow> bench_models(Device device, const ContextOptions& context,
                                   const ModelConfig& config, const ModelBenchOptions& options,
                                   const MachineRates& rates, std::vector<std::string>& left_out);

/// Prints the table; with `-o` the same as JSON.
void bench(const BenchOptions& options, Job& job);

}  // namespace gmamba
