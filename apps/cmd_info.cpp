// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/info.h"

namespace gmamba::app {

Command info_command() {
  return {.name = "info",
          .group = "Look",
          .summary = "what a model folder or a run is; what it would need",
          .usage = "MODEL|RUN [options]",
          .details = {},
          .bind = bind_pipeline<InfoOptions>(info)};
}

}  // namespace gmamba::app
