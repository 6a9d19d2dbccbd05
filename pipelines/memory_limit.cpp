// SPDX-License-Identifier: Apache-2.0
#include "pipelines/memory_limit.h"

#include <algorithm>

#include "libmamba/core/text.h"

namespace gmamba {

MemoryLimit memory_limit(const CommonOptions& options) {
  const Device device = arithmetic_of(options).device;
  const Backend& backend = backend_for(device.kind);
  const int64_t has =
      device.is_cpu() ? backend.total_bytes(device.index) : backend.free_bytes(device.index);
  if (options.max_memory > 0 && (has == 0 || options.max_memory <= has)) {
    return {options.max_memory, "--max-memory allows"};
  }
  return {has, device.is_cpu() ? "this machine has" : "the GPU has free"};
}

void refuse_plan(const MemoryPlan& plan, const MemoryLimit& limit,
                 const std::vector<FittingSetting>& instead) {
  std::string fitting;
  for (const FittingSetting& setting : instead) {
    fitting += concat(fitting.empty() ? "" : ", or ", setting.flags, " (",
                      format_bytes(setting.bytes), ")");
  }
  const auto largest = std::max_element(
      plan.items.begin(), plan.items.end(),
      [](const MemoryPlan::Item& a, const MemoryPlan::Item& b) { return a.bytes < b.bytes; });
  fail(ErrorKind::kUsage, "the job needs ", format_bytes(plan.total_bytes()), ", ", limit.whose,
       " ", format_bytes(limit.bytes), "; ",
       fitting.empty() ? concat("no setting of this model fits (", largest->what, " alone take ",
                                format_bytes(largest->bytes), "); use a smaller model")
                       : concat("what fits: ", fitting));
}

}  // namespace gmamba
