// SPDX-License-Identifier: Apache-2.0
/// What a job may take, and the refusal of one that would take more.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "libmamba/memory_plan.h"
#include "pipelines/job.h"

namespace gmamba {

/// Where a job computes and the memory of that: of a CPU all counts as free. 0: not known.
struct Machine {
  Arithmetic arithmetic;
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};
Machine machine_of(const Arithmetic& arithmetic);

struct MemoryLimit {
  int64_t bytes = 0;         ///< 0: not known
  std::string whose;         ///< "--max-memory allows", "the GPU has free"
  int64_t of_bytes = 0;      ///< of which it is a part; 0: no need to say so
  std::string text() const;  ///< "the GPU has free 1.1 GiB of its 79.1 GiB"
  bool allows(const MemoryPlan& plan) const { return bytes <= 0 || plan.total_bytes() <= bytes; }
};

/// --max-memory, and what the device has: free memory of a GPU, all memory of the machine.
MemoryLimit memory_limit(int64_t max_memory, const Machine& machine);
MemoryLimit memory_limit(const CommonOptions& options);
/// The same whatever other programs hold: of a GPU all but a reserve. By it work is cut whose
/// result depends on the cut.
MemoryLimit lasting_limit(int64_t max_memory, const Machine& machine);

/// A setting that fits: "--segment 512" and what it needs.
struct FittingSetting {
  std::string flags;
  int64_t bytes = 0;
};

/// Throws kUsage when the plan is not within the limit, naming the settings that `instead` found.
[[noreturn]] void refuse_plan(const MemoryPlan& plan, const MemoryLimit& limit,
                              const std::vector<FittingSetting>& instead);

/// The same of a run that goes on with `tokens` at once, as it began: another cut would change
/// roundings, and with them all bits. `from` is the flag that names a run to begin a new one with.
[[noreturn]] void refuse_going_on(const std::string& run, int64_t tokens, const MemoryPlan& plan,
                                  const MemoryLimit& limit,
                                  const std::vector<FittingSetting>& instead,
                                  const std::string& from);

/// The largest of `first`, `first` / 2, ... >= `least` whose plan (by plan_of) is within the limit,
/// and its bytes; 0 when there is none.
template <class PlanOf>
std::pair<int64_t, int64_t> largest_that_fits(int64_t first, int64_t least,
                                              const MemoryLimit& limit, PlanOf&& plan_of) {
  for (int64_t value = first; value >= least; value /= 2) {
    const MemoryPlan plan = plan_of(value);
    if (limit.allows(plan)) return {value, plan.total_bytes()};
  }
  return {0, 0};
}

}  // namespace gmamba
