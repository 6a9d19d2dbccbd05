// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/doctor.h"

namespace gmamba::app {

Command doctor_command() {
  return {.name = "doctor",
          .group = "Look",
          .summary = "self-test: does this machine compute what the equations say?",
          .usage = "[options]",
          .details = {},
          .bind = bind_pipeline<DoctorOptions>(doctor)};
}

}  // namespace gmamba::app
