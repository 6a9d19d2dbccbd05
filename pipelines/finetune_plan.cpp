// SPDX-License-Identifier: Apache-2.0
#include "pipelines/finetune_plan.h"

#include <algorithm>
#include <limits>
#include <map>

#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr int64_t kSlotsBeforeUse = 2;  // batches on their way to a GPU beside the one in use

/// What all plans of one run are made from.
struct Given {
  const FinetuneOptions& options;
  const ModelConfig& config;
  const SequenceLengths& lengths;
  const Machine& machine;

  bool cpu() const { return machine.arithmetic.device.is_cpu(); }
};

/// Rows of a batch -> its longest sequence: nothing shorter takes more in as many rows.
std::map<int64_t, int64_t> batch_shapes(const std::vector<int64_t>& lengths, int64_t most_rows,
                                        int64_t segment) {
  std::map<int64_t, int64_t> shapes;
  for (const int64_t length : lengths) {
    const int64_t whole = std::max<int64_t>(1, length);
    int64_t& longest = shapes[std::clamp<int64_t>(segment / whole, 1, most_rows)];
    longest = std::max(longest, whole);
  }
  return shapes;
}

/// A batch of that shape, with the batches that wait for it on a GPU.
MemoryPlan plan_batch(const Given& g, int64_t rows, int64_t length, int64_t segment,
                      int64_t device_bytes) {
  const Arithmetic& arithmetic = g.machine.arithmetic;
  const bool backbone = !g.options.freeze;
  const auto plan_of = [&](int64_t extras) {
    MemoryPlan plan =
        plan_sequence_training(g.config, rows, length, segment, arithmetic, extras, backbone);
    if (!g.cpu()) {
      plan.items.push_back({"input on its way", kSlotsBeforeUse * plan.items.back().bytes});
    }
    return plan;
  };
  const MemoryPlan least = plan_of(0);
  if (g.cpu() || !backbone) return least;
  return plan_of(extras_in(device_bytes - least.total_bytes(), g.config, rows,
                           std::min(length, segment), arithmetic));
}

FinetunePlan plan_cut(const Given& g, int64_t segment) {
  FinetunePlan plan;
  plan.segment = segment;
  if (!g.cpu()) {
    plan.device_bytes = step_memory(g.options.common.max_memory, g.machine.free_bytes);
  }
  const auto take_larger = [&](MemoryPlan memory) {
    if (memory.total_bytes() > plan.memory.total_bytes()) plan.memory = std::move(memory);
  };
  int64_t input = 0;
  for (const auto& [rows, length] : batch_shapes(g.lengths.trained, g.options.batch, segment)) {
    take_larger(plan_batch(g, rows, length, segment, plan.device_bytes));
    input =
        std::max(input, sequence_input_bytes(rows, length, segment, g.machine.arithmetic.device));
  }
  // what is held out is read in batches of as many rows as a segment has room for
  for (const auto& [rows, length] :
       batch_shapes(g.lengths.held_out, std::numeric_limits<int64_t>::max(), segment)) {
    take_larger(
        plan_sequence_training(g.config, rows, length, segment, g.machine.arithmetic, 0, false));
  }
  if (!g.cpu()) {
    plan.scratch_bytes = scratch_within(plan.device_bytes, g.config, (1 + kSlotsBeforeUse) * input);
  }
  return plan;
}

}  // namespace

FinetunePlan plan_finetuning(const FinetuneOptions& options, const ModelConfig& config,
                             const SequenceLengths& lengths, const Machine& machine,
                             int64_t recorded) {
  const Given given{options, config, lengths, machine};
  const int64_t asked = options.common.segment > 0 ? options.common.segment : recorded;
  int64_t segment = asked > 0 ? asked : default_segment(machine.arithmetic.device);
  FinetunePlan plan = plan_cut(given, segment);
  const MemoryLimit lasting = lasting_limit(options.common.max_memory, machine);
  while (asked == 0 && !lasting.allows(plan.memory) && segment > kSmallestSegment) {
    segment /= 2;
    plan = plan_cut(given, segment);
  }
  const MemoryLimit limit = memory_limit(options.common.max_memory, machine);
  if (limit.allows(plan.memory)) return plan;
  const auto [smaller, bytes] =
      largest_that_fits(segment / 2, kSmallestSegment, limit,
                        [&](int64_t value) { return plan_cut(given, value).memory; });
  std::vector<FittingSetting> instead;
  if (smaller > 0) instead.push_back({concat("--segment ", smaller), bytes});
  if (options.common.segment > 0 || recorded == 0) refuse_plan(plan.memory, limit, instead);
  refuse_going_on(options.common.out, segment, plan.memory, limit, instead, "--model");
}

}  // namespace gmamba
