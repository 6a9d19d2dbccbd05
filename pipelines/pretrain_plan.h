// SPDX-License-Identifier: Apache-2.0
/// How a pretraining run is cut: the contexts that it grows through, the micro-batches of a step,
/// and the memory that the largest of them takes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "libmamba/memory_plan.h"
#include "pipelines/memory_limit.h"
#include "pipelines/pretrain.h"

namespace gmamba {

/// Steps of one context: `micro_batches` batches of `rows` x `context` tokens each, of which
/// `segment` tokens of a row are computed at once.
struct PretrainStage {
  int64_t first_step = 0;  ///< steps made before it
  int64_t context = 0;
  int64_t segment = 0;
  int64_t rows = 0;
  int64_t micro_batches = 0;
  int64_t extra_bytes = 0;  ///< of carried states and of input on its way to a GPU

  int64_t step_rows() const { return rows * micro_batches; }
  int64_t step_tokens() const { return step_rows() * context; }
};

struct PretrainPlan {
  int64_t computed = 0;  ///< most tokens computed at once: with the options it makes the stages
  std::vector<PretrainStage> stages;  ///< by growing context; the last has the whole context
  int64_t steps = 0;
  int64_t device_bytes = 0;  ///< of a GPU that a step may take; 0 on a CPU
  int64_t extras = 0;        ///< ForwardSaved's of the stage that has the fewest
  MemoryPlan memory;         ///< of the stage that needs most

  /// Of the step that comes after `step` finished ones.
  size_t stage_of(int64_t step) const;
  const PretrainStage& last() const { return stages.back(); }
  /// What a step's activations may take (Trainer::limit_scratch); 0 on a CPU.
  int64_t scratch_bytes(const PretrainStage& stage, const ModelConfig& config) const;
  /// Tokens of the steps after the first `step` ones.
  int64_t tokens_left(int64_t step) const;
  std::string text() const;
};

/// The contexts that a run grows through: the first one doubled until the whole is reached.
std::vector<int64_t> warmup_contexts(int64_t from, int64_t context);

using MakeConfig = std::function<ModelConfig(const PretrainOptions&)>;

/// Without --segment a run that goes on takes `recorded` tokens at once, which are those of its
/// beginning (PretrainPlan::computed), whatever the device has now. A new one takes the device's
/// usual number, halved until the plan fits --max-memory or the whole device but a reserve: other
/// programs there have no say in it. Throws kUsage when what is free is not enough: the message
/// names settings with which it is.
PretrainPlan plan_pretraining(const PretrainOptions& options, const MakeConfig& config_of,
                              const Machine& machine, int64_t recorded = 0);

}  // namespace gmamba
