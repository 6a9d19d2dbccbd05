// SPDX-License-Identifier: Apache-2.0
/// The weight files of a model folder, one or many shards, as one set of named tensors.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "libmamba/safetensors.h"

namespace gmamba {

struct WeightTensor {
  const SafetensorsReader* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
  std::string path;  ///< for messages
};

class WeightFiles {
 public:
  /// Opens model.safetensors, or the shards that model.safetensors.index.json lists. Throws kInput
  /// when there is none or they do not fit each other, kUnsupported when the folder has pickled
  /// weights only.
  explicit WeightFiles(const std::filesystem::path& folder);

  /// By published name: a prefix that all tensors share (`model.`, `module.`, `_orig_mod.`) is
  /// gone, `backbone.embedding.` has become `backbone.embeddings.`.
  const std::map<std::string, WeightTensor>& tensors() const { return tensors_; }
  /// The file, or the index.
  const std::string& name() const { return name_; }

  /// The files of a folder in reading order, without opening them.
  static std::vector<std::filesystem::path> find(const std::filesystem::path& folder);

 private:
  void open(const std::filesystem::path& path);
  void check_index(const std::filesystem::path& index);
  void publish_names();

  std::string name_;
  std::vector<std::filesystem::path> paths_;
  std::deque<SafetensorsReader> files_;  // tensors point into it
  std::map<std::string, WeightTensor> tensors_;
};

}  // namespace gmamba
