// SPDX-License-Identifier: Apache-2.0
/// Model folders as Hugging Face users know them: config.json, model.safetensors, tokenizer files.
/// Folders of transformers (mamba) and mamba_ssm (Mamba-1) load as they are; what is written here
/// loads there.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "libmamba/model.h"

namespace gmamba {

/// Reads config, weights and tokenizer. Accepts the folder, or a run folder holding `model/`.
/// Weights of any floating type are converted to fp32. Throws kInput naming the tensor and both
/// shapes for a missing, extra or misshapen tensor; kUnsupported for other families.
Model load_model(const std::filesystem::path& folder, Device device, Log* log = nullptr);

/// Writes the folder through a temporary name beside it and renames; `metadata` goes into the
/// weight file (strings), e.g. training step.
/// Refuses to save values that are not finite (kInput) and to replace a folder that holds anything
/// but a model (kUsage).
void save_model(const Model& model, const std::filesystem::path& folder,
                const std::map<std::string, std::string>& metadata = {});

/// Writes the files of a model folder into a folder that exists, each flushed to disk.
void write_model_files(const Model& model, const std::filesystem::path& folder,
                       const std::map<std::string, std::string>& metadata = {});

/// Where config.json stands: the folder itself or `model/` in it; throws kInput when neither.
std::filesystem::path find_model_folder(const std::filesystem::path& folder);

/// Throws kInput naming the first parameter with a value that is not finite; the message begins
/// with `what`.
void require_finite(const ParameterBuffer& values, std::string_view what);

/// Id of a model for provenance: SHA-256 of its weight file; of several, SHA-256 of the lines of
/// their digests in the order of their names.
std::string model_digest(const std::filesystem::path& folder);

}  // namespace gmamba
