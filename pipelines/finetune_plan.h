// SPDX-License-Identifier: Apache-2.0
/// How a fine-tuning run is cut, and the memory that its largest batch takes.
#pragma once

#include <cstdint>
#include <vector>

#include "libmamba/memory_plan.h"
#include "pipelines/finetune.h"
#include "pipelines/memory_limit.h"

namespace gmamba {

struct FinetunePlan {
  int64_t segment = 0;
  int64_t device_bytes = 0;   ///< of a GPU that a step may take; 0 on a CPU
  int64_t scratch_bytes = 0;  ///< of these for activations (Trainer::limit_scratch); 0 on a CPU
  MemoryPlan memory;          ///< of the batch that needs most
};

/// Lengths that sequences have.
struct SequenceLengths {
  std::vector<int64_t> trained;
  std::vector<int64_t> held_out;
};

/// `config` with its head. Without --segment a run that goes on takes `recorded` tokens at once; a
/// new one the device's usual number, halved until the plan fits --max-memory or the whole device
/// but a reserve. Throws kUsage when what is free is not enough.
FinetunePlan plan_finetuning(const FinetuneOptions& options, const ModelConfig& config,
                             const SequenceLengths& lengths, const Machine& machine,
                             int64_t recorded = 0);

}  // namespace gmamba
