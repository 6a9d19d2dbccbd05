// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"

namespace gmamba::app {

std::vector<Command> all_commands() {
  return {
      pretrain_command(), finetune_command(), embed_command(), classify_command(),
      evaluate_command(), bench_command(),    info_command(),  doctor_command(),
  };
}

}  // namespace gmamba::app
