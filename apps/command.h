// SPDX-License-Identifier: Apache-2.0
/// A subcommand as the command knows it: a row of the table in main.cpp. make_command turns an
/// options struct and a pipeline into one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "pipelines/job.h"
#include "pipelines/options.h"

namespace gmamba::app {

/// Options of one call: the struct behind `list` lives inside the closures.
struct BoundCommand {
  OptionList list;
  const CommonOptions* common = nullptr;
  std::function<void()> validate;
  std::function<void(Job&)> run;
};

struct Command {
  std::string_view name;
  std::string_view group;    ///< heading in the list of commands
  std::string_view summary;  ///< one line
  std::string_view usage;    ///< what follows "gmamba NAME"
  std::string_view details;  ///< paragraphs after the options, may be empty
  std::function<BoundCommand()> bind;
};

/// `Options` has visit, validate and a CommonOptions named `common`.
template <class Options>
std::function<BoundCommand()> bind_pipeline(void (*pipeline)(const Options&, Job&)) {
  return [pipeline] {
    const auto options = std::make_shared<Options>();
    BoundCommand bound;
    options->visit(bound.list);
    bound.common = &options->common;
    bound.validate = [options] {
      options->common.validate();
      options->validate();
    };
    bound.run = [options, pipeline](Job& job) { pipeline(*options, job); };
    return bound;
  };
}

}  // namespace gmamba::app
