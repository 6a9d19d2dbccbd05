// SPDX-License-Identifier: Apache-2.0
/// The table of subcommands. To add one: its function here, its row in commands.cpp, its file
/// cmd_<name>.cpp.
#pragma once

#include <vector>

#include "apps/command.h"

namespace gmamba::app {

Command pretrain_command();
Command finetune_command();
Command embed_command();
Command classify_command();
Command evaluate_command();
Command bench_command();
Command info_command();
Command doctor_command();

std::vector<Command> all_commands();

}  // namespace gmamba::app
