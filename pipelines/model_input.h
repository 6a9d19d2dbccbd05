// SPDX-License-Identifier: Apache-2.0
/// The model a pipeline runs, and the common words for strands.
#pragma once

#include <cstdint>
#include <string>

#include "libmamba/model.h"
#include "pipelines/job.h"
#include "pipelines/sequence_input.h"

namespace gmamba {

enum class Strands { kForward, kBoth };

template <>
struct OptionWords<Strands> {
  static constexpr std::pair<std::string_view, Strands> kWords[] = {{"forward", Strands::kForward},
                                                                    {"both", Strands::kBoth}};
};

template <>
struct OptionWords<PoolMode> {
  static constexpr std::pair<std::string_view, PoolMode> kWords[] = {
      {"mean", PoolMode::kMean}, {"last", PoolMode::kLast}, {"max", PoolMode::kMax}};
};

/// The folder that holds the model: `path` itself, or `path/model` of a run folder.
std::string model_folder_of(const std::string& path);

/// Loads a model onto the context's device and enters it into the record. Weights that are not
/// finite are warned about.
Model open_model(const std::string& path, const Context& ctx, Job& job);

/// Says how many letters were read as N, and enters it into the record.
void report_letters(const TokenSource& source, Job& job);

}  // namespace gmamba
