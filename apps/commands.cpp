// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"

namespace gmamba::app {

std::vector<Command> all_commands() {
  return {
      pretrain_command(),
      finetune_command(),
  };
}

}  // namespace gmamba::app
