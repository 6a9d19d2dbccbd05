// SPDX-License-Identifier: Apache-2.0
#include "pipelines/memory_limit.h"

#include <algorithm>

#include "libmamba/core/text.h"

namespace gmamba {

Machine machine_of(const Arithmetic& arithmetic) {
  const Device device = arithmetic.device;
  const Backend& backend = backend_for(device.kind);
  const int64_t total = backend.total_bytes(device.index);
  return {arithmetic, total, device.is_cpu() ? total : backend.free_bytes(device.index)};
}

std::string MemoryLimit::text() const {
  return concat(whose, " ", format_bytes(bytes),
                of_bytes > 0 ? concat(" of its ", format_bytes(of_bytes)) : "");
}

MemoryLimit memory_limit(int64_t max_memory, const Machine& machine) {
  const int64_t has = machine.free_bytes;
  if (max_memory > 0 && (has == 0 || max_memory <= has)) {
    return {max_memory, "--max-memory allows"};
  }
  if (machine.arithmetic.device.is_cpu()) return {has, "this machine has"};
  return {has, "the GPU has free", machine.total_bytes};
}

MemoryLimit memory_limit(const CommonOptions& options) {
  return memory_limit(options.max_memory, machine_of(arithmetic_of(options)));
}

MemoryLimit lasting_limit(int64_t max_memory, const Machine& machine) {
  const bool cpu = machine.arithmetic.device.is_cpu();
  if (cpu || machine.total_bytes == 0) return memory_limit(max_memory, machine);
  return {step_memory(max_memory, machine.total_bytes), "the GPU has beside a reserve"};
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
  fail(ErrorKind::kUsage, "the job needs ", format_bytes(plan.total_bytes()), ", ", limit.text(),
       "; ",
       fitting.empty() ? concat("no setting of this model fits (", largest->what, " alone take ",
                                format_bytes(largest->bytes), "); use a smaller model")
                       : concat("what fits: ", fitting));
}

void refuse_going_on(const std::string& run, int64_t tokens, const MemoryPlan& plan,
                     const MemoryLimit& limit, const std::vector<FittingSetting>& instead,
                     const std::string& from) {
  const bool by_segment = !instead.empty() && instead.front().flags.starts_with("--segment");
  fail(ErrorKind::kUsage, "--resume: ", printable(run), " goes on as it began, ",
       format_count(tokens), " tokens at once, which needs ", format_bytes(plan.total_bytes()),
       ", ", limit.text(), "; go on where there is as much",
       by_segment
           ? concat(", or start a new run from its weights: ", from, " ", printable(run), " ",
                    instead.front().flags, " (", format_bytes(instead.front().bytes), ")")
           : "");
}

}  // namespace gmamba
