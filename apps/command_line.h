// SPDX-License-Identifier: Apache-2.0
/// Options from the command line (CLI11), the environment and a config file, and the help text.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "apps/command.h"

namespace gmamba::app {

/// What a command line asks for besides its options.
struct CommandLine {
  bool help = false;
  bool print_config = false;
};

/// Reads the arguments after the command's name into the list; throws kUsage. `commands` are all
/// command names (tables of a config file).
CommandLine read_command_line(const Command& command, std::span<const std::string> arguments,
                              std::span<const std::string> commands, OptionList& list);

/// The help of one command.
std::string help_text(const Command& command, const OptionList& list);
/// The list of all commands.
std::string usage_text(std::span<const Command> commands);

}  // namespace gmamba::app
