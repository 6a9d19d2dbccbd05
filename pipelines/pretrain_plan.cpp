// SPDX-License-Identifier: Apache-2.0
#include "pipelines/pretrain_plan.h"

#include <algorithm>
#include <cmath>

#include "libmamba/core/text.h"
#include "libmamba/state.h"

namespace gmamba {
namespace {

constexpr int64_t kSlotsBeforeUse = 2;  // batches on their way to a GPU beside the one in use
constexpr int64_t kSmallestContext = 64;
constexpr int64_t kSmallestWidth = 16;

/// Rows of one context cut into micro-batches of at most `computed` tokens.
PretrainStage stage_of_context(const PretrainOptions& options, const ModelConfig& config,
                               Device device, int64_t context, int64_t computed) {
  PretrainStage stage;
  stage.context = context;
  stage.segment = std::min(context, computed);
  // a step has no fewer tokens than the whole context, so that all its stages have as many
  const int64_t tokens = std::max(options.training.batch_tokens, options.context);
  const int64_t rows = tokens / context;
  const int64_t most = std::max<int64_t>(1, computed / context);
  stage.micro_batches = (rows + most - 1) / most;
  stage.rows = (rows + stage.micro_batches - 1) / stage.micro_batches;
  if (options.carry) stage.extra_bytes += SequenceState::bytes(config, stage.step_rows());
  if (!device.is_cpu()) {
    stage.extra_bytes += kSlotsBeforeUse * kTokenBytes * stage.rows * stage.segment;
  }
  return stage;
}

MemoryPlan memory_of(const PretrainStage& stage, const PretrainOptions& options,
                     const ModelConfig& config, const Arithmetic& arithmetic, int64_t extras) {
  MemoryPlan plan =
      plan_training(config, stage.rows, stage.context, stage.segment, arithmetic, extras);
  if (stage.extra_bytes > 0) {
    plan.items.push_back({options.carry ? "carried states, input on its way" : "input on its way",
                          stage.extra_bytes});
  }
  return plan;
}

/// The first steps of the stages: those before the last share `share` of all steps equally.
void set_steps(PretrainPlan& plan, const PretrainOptions& options) {
  const int64_t step_tokens = plan.last().step_tokens();
  plan.steps = options.training.steps > 0
                   ? options.training.steps
                   : std::max<int64_t>(1, (options.tokens + step_tokens / 2) / step_tokens);
  const auto before_last = static_cast<double>(plan.stages.size() - 1);
  const double share = options.context_warmup_share.value_or(before_last / (before_last + 1));
  const double steps_each =
      before_last > 0 ? share * static_cast<double>(plan.steps) / before_last : 0;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    plan.stages[i].first_step = std::llround(steps_each * static_cast<double>(i));
  }
  // what got no step in a short run is left out
  for (size_t i = plan.stages.size() - 1; i-- > 0;) {
    if (plan.stages[i].first_step == plan.stages[i + 1].first_step) {
      plan.stages.erase(plan.stages.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
}

PretrainPlan plan_cut(const PretrainOptions& options, const ModelConfig& config,
                      const Machine& machine, int64_t computed) {
  const Arithmetic& arithmetic = machine.arithmetic;
  PretrainPlan plan;
  plan.computed = computed;
  plan.device_bytes =
      arithmetic.device.is_cpu() ? 0 : step_memory(options.common.max_memory, machine.free_bytes);
  const std::vector<int64_t> contexts =
      options.context_warmup ? warmup_contexts(options.context_warmup_from, options.context)
                             : std::vector<int64_t>{options.context};
  for (const int64_t context : contexts) {
    plan.stages.push_back(stage_of_context(options, config, arithmetic.device, context, computed));
  }
  set_steps(plan, options);
  plan.extras = 2 * config.n_layers;
  for (const PretrainStage& stage : plan.stages) {
    const int64_t extras = extras_within(plan.device_bytes - stage.extra_bytes, config, stage.rows,
                                         stage.context, stage.segment, arithmetic);
    plan.extras = std::min(plan.extras, extras);
    MemoryPlan memory = memory_of(stage, options, config, arithmetic, extras);
    if (memory.total_bytes() > plan.memory.total_bytes()) plan.memory = std::move(memory);
  }
  return plan;
}

int64_t power_below(int64_t value) {
  int64_t power = 1;
  while (power * 2 < value) power *= 2;
  return power;
}

/// One setting of each kind that fits, the others being as they are but for a smaller --segment.
std::vector<FittingSetting> fitting_settings(const PretrainOptions& options,
                                             const MakeConfig& config_of, const Machine& machine) {
  std::vector<FittingSetting> found;
  const MemoryLimit limit = memory_limit(options.common.max_memory, machine);
  const int64_t usual = default_training_segment(machine.arithmetic.device);
  const int64_t computed = options.common.segment > 0 ? options.common.segment : usual;
  const auto add = [&](const PretrainOptions& changed, const std::string& flags, int64_t first) {
    const ModelConfig config = config_of(changed);
    const auto [segment, bytes] = largest_that_fits(
        first, kSmallestSegment, limit,
        [&](int64_t value) { return plan_cut(changed, config, machine, value).memory; });
    if (segment == 0) return false;
    found.push_back({concat(flags, flags.empty() ? "" : " ", "--segment ", segment), bytes});
    return true;
  };
  if (add(options, "", power_below(computed))) return found;
  PretrainOptions changed = options;
  for (changed.context = power_below(options.context); changed.context >= kSmallestContext;
       changed.context /= 2) {
    changed.context_warmup =
        options.context_warmup && changed.context > options.context_warmup_from;
    if (add(changed, concat("--context ", changed.context), computed)) break;
  }
  if (!options.init.empty()) return found;  // its size is given
  changed = options;
  for (changed.d_model = power_below(options.d_model); changed.d_model >= kSmallestWidth;
       changed.d_model /= 2) {
    if (add(changed, concat("--d-model ", changed.d_model), computed)) break;
  }
  return found;
}

/// Of a new run to which no --segment was given: the usual cut, halved until it fits, or on a GPU
/// half as much again or a quarter less: the largest of them with which all layers keep the scan's
/// steps, for to compute those again costs more than shorter segments do.
PretrainPlan plan_usual_cut(const PretrainOptions& options, const ModelConfig& config,
                            const Machine& machine) {
  const Device device = machine.arithmetic.device;
  const MemoryLimit limit = lasting_limit(options.common.max_memory, machine);
  Machine alone = machine;  // without other programs
  if (machine.total_bytes > 0) alone.free_bytes = machine.total_bytes;
  const auto fits = [&](int64_t computed, int64_t extras) {
    const PretrainPlan plan = plan_cut(options, config, alone, computed);
    return limit.allows(plan.memory) && plan.extras >= extras;
  };
  const int64_t usual = default_training_segment(device);
  int64_t computed = usual;
  while (!fits(computed, 0) && computed > kSmallestSegment) computed /= 2;
  if (computed < usual && fits(computed, 0)) {
    for (const int64_t quarters : {6, 4, 3}) {
      const int64_t near = computed / 4 * quarters;
      if (!fits(near, device.is_cpu() ? 0 : config.n_layers)) continue;
      computed = near;
      break;
    }
  }
  return plan_cut(options, config, machine, computed);
}

}  // namespace

size_t PretrainPlan::stage_of(int64_t step) const {
  size_t found = 0;
  while (found + 1 < stages.size() && stages[found + 1].first_step <= step) ++found;
  return found;
}

int64_t PretrainPlan::scratch_bytes(const PretrainStage& stage, const ModelConfig& config) const {
  if (device_bytes == 0) return 0;
  return scratch_within(device_bytes - stage.extra_bytes, config, stage.rows, stage.segment);
}

int64_t PretrainPlan::tokens_left(int64_t step) const {
  int64_t tokens = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const int64_t end = i + 1 < stages.size() ? stages[i + 1].first_step : steps;
    tokens +=
        std::max<int64_t>(0, end - std::max(step, stages[i].first_step)) * stages[i].step_tokens();
  }
  return tokens;
}

std::string PretrainPlan::text() const {
  std::string out = memory.text();
  for (size_t i = 0; i + 1 < stages.size(); ++i) {
    const PretrainStage& stage = stages[i];
    out +=
        concat("context ", format_count(stage.context), " in steps ",
               format_count(stage.first_step + 1), " to ", format_count(stages[i + 1].first_step),
               ": ", stage.micro_batches, " micro-batches of ", stage.rows, " rows\n");
  }
  return concat(out, "steps ", steps, ", each ", last().micro_batches, " micro-batches of ",
                last().rows, " x ", last().context, " tokens");
}

std::vector<int64_t> warmup_contexts(int64_t from, int64_t context) {
  std::vector<int64_t> contexts;
  for (int64_t shorter = from; shorter < context; shorter *= 2) contexts.push_back(shorter);
  contexts.push_back(context);
  return contexts;
}

PretrainPlan plan_pretraining(const PretrainOptions& options, const MakeConfig& config_of,
                              const Machine& machine, int64_t recorded) {
  const ModelConfig config = config_of(options);
  const int64_t asked = options.common.segment > 0 ? options.common.segment : recorded;
  PretrainPlan plan = asked > 0 ? plan_cut(options, config, machine, asked)
                                : plan_usual_cut(options, config, machine);
  const MemoryLimit limit = memory_limit(options.common.max_memory, machine);
  if (limit.allows(plan.memory)) return plan;
  const std::vector<FittingSetting> instead = fitting_settings(options, config_of, machine);
  if (options.common.segment > 0 || recorded == 0) refuse_plan(plan.memory, limit, instead);
  refuse_going_on(options.common.out, plan.last().rows * plan.last().segment, plan.memory, limit,
                  instead, "--init");
}

}  // namespace gmamba
