// SPDX-License-Identifier: Apache-2.0
/// Options from a TOML file: keys are the flags' names. Keys at the top are for every command; a
/// table named after a command ([embed]) is for that command alone, so that one file can describe a
/// whole job.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "pipelines/options.h"

namespace gmamba {

/// Sets what the file gives for `command`. `commands` are the names that tables may have. Throws
/// kUsage with file and line for an unknown key or a value that the option refuses, kInput for a
/// file that is no TOML.
void read_config_file(const std::filesystem::path& path, std::string_view command,
                      std::span<const std::string> commands, OptionList& options);

}  // namespace gmamba
