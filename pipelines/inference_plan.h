// SPDX-License-Identifier: Apache-2.0
/// Memory and time of reading sequences with a model, before the work: the segment that fits, the
/// items, and what one segment took on this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "libmamba/memory_plan.h"
#include "libmamba/model.h"
#include "pipelines/job.h"

namespace gmamba {

/// States that a batch of short records may hold together.
constexpr int64_t kBatchStateBytes = int64_t{64} << 20;

struct InferencePlan {
  int64_t segment = 0;  ///< tokens computed at once
  MemoryPlan memory;
};

/// The segment that the options ask for, else the usual one halved until the plan is within
/// --max-memory. `extra` is what the pipeline itself needs. Throws kUsage when nothing fits.
InferencePlan plan_inference(const ModelConfig& config, const CommonOptions& options,
                             const std::vector<MemoryPlan::Item>& extra = {});

/// The plan for people, with the rate measured on one segment now.
std::string plan_report(Context& ctx, const Model& model, const InferencePlan& plan);

}  // namespace gmamba
