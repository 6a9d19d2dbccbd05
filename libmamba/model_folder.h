// SPDX-License-Identifier: Apache-2.0
/// Model folders as Hugging Face users know them: config.json, model.safetensors, tokenizer files.
/// Folders of transformers (mamba) and mamba_ssm (Mamba-1) load as they are; what is written here
/// loads there.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "libmamba/model.h"

namespace gmamba {

/// Reads config, weights and tokenizer. Accepts the folder, or a run folder holding `model/`.
/// Weights of any floating type are converted to fp32. Throws kInput naming the tensor and both
/// shapes for a missing, extra or misshapen tensor; kUnsupported for other families.
Model load_model(const std::filesystem::path& folder, Device device, Log* log = nullptr);

/// Writes the folder through a temporary name beside it and renames; `metadata` goes into the
/// weight file (strings), e.g. training step.
void save_model(const Model& model, const std::filesystem::path& folder,
                const std::map<std::string, std::string>& metadata = {});

/// Id of a model for provenance: SHA-256 of its weight file.
std::string model_digest(const std::filesystem::path& folder);

}  // namespace gmamba
