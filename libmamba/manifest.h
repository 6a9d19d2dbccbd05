// SPDX-License-Identifier: Apache-2.0
/// manifest.json of a checkpoint: size and SHA-256 of every file beside it, and a digest of its own
/// text, so that no byte of a checkpoint can change unseen.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace gmamba {

/// Lists all files of the folder; writes it flushed to disk.
void write_manifest(const std::filesystem::path& folder, int64_t step);

/// Throws kInput naming the file that is missing or differs, or the manifest itself when its text
/// is not exactly what was written or is that of another step (-1: any). Files it does not list are
/// ignored.
void verify_manifest(const std::filesystem::path& folder, int64_t step);
/// The same of one of its files alone, which it must list.
void verify_manifest(const std::filesystem::path& folder, int64_t step, std::string_view file);

/// The same for a manifest's text: checks it without looking at files; the part that hostile bytes
/// reach first.
void check_manifest_text(std::string_view text, int64_t step, std::string_view name);

}  // namespace gmamba
