// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/bench.h"

namespace gmamba::app {

Command bench_command() {
  return {.name = "bench",
          .group = "Measure",
          .summary = "kernels and whole models against the machine's limits",
          .usage = "[options]",
          .details = {},
          .bind = bind_pipeline<BenchOptions>(bench)};
}

}  // namespace gmamba::app
