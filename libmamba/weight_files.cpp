// SPDX-License-Identifier: Apache-2.0
#include "libmamba/weight_files.h"

#include <array>
#include <set>
#include <string_view>
#include <utility>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/json_fields.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLongestIndex = int64_t{64} << 20;
constexpr size_t kMostShards = 512;
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string shown(const fs::path& path) { return printable(std::string_view(path.native())); }

/// Tensor to file name, as the index says.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const std::string name = shown(path);
  const Json json = parse_json(read_file(path, kLongestIndex), name);
  const JsonFields fields(json, name);
  const Json* map = fields.find("weight_map");
  require(map != nullptr && map->is_object() && !map->empty(), ErrorKind::kInput, name,
          ": expected an object weight_map with the file of each tensor");
  std::map<std::string, std::string> out;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) fields.expected("file names", "weight_map", file);
    const auto text = file.get<std::string>();
    const bool plain = !text.empty() && text.find('/') == std::string::npos &&
                       text.find('\\') == std::string::npos && text.ends_with(".safetensors") &&
                       !text.starts_with('.') && text.find('\0') == std::string::npos;
    require(plain, ErrorKind::kInput, name, ": '", printable(std::string_view(text)),
            "' is not the plain name of a .safetensors file in the same folder");
    out.emplace(tensor, text);
  }
  return out;
}

[[noreturn]] void fail_without_weights(const fs::path& folder) {
  for (const char* pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    require(!path_exists(folder / pickled), ErrorKind::kUnsupported, shown(folder / pickled),
            ": pickled weights are not read; convert them once in Python with torch.load(..., "
            "weights_only=True) and safetensors.torch.save_file to model.safetensors");
  }
  fail(ErrorKind::kInput, shown(folder), ": holds no weights; expected ", kSingle, " or ", kIndex);
}

}  // namespace

std::vector<fs::path> WeightFiles::find(const fs::path& folder) {
  if (path_exists(folder / kSingle)) return {folder / kSingle};
  if (!path_exists(folder / kIndex)) fail_without_weights(folder);
  std::set<std::string> names;
  for (const auto& [tensor, file] : read_index(folder / kIndex)) names.insert(file);
  require(names.size() <= kMostShards, ErrorKind::kUnsupported, shown(folder / kIndex), ": ",
          names.size(), " shards; at most ", kMostShards, " are read");
  std::vector<fs::path> paths;
  for (const std::string& name : names) {
    require(path_exists(folder / name), ErrorKind::kInput, shown(folder / kIndex), ": the shard ",
            printable(std::string_view(name)), " is not in the folder");
    paths.push_back(folder / name);
  }
  return paths;
}

WeightFiles::WeightFiles(const fs::path& folder) : paths_(find(folder)) {
  const bool single = paths_.size() == 1 && paths_[0].filename() == kSingle;
  name_ = shown(folder / (single ? kSingle : kIndex));
  for (const fs::path& path : paths_) open(path);
  if (!single) check_index(folder / kIndex);
  publish_names();
}

void WeightFiles::open(const fs::path& path) {
  files_.emplace_back(path);
  for (const SafetensorsEntry& entry : files_.back().entries()) {
    const auto [at, added] =
        tensors_.emplace(entry.name, WeightTensor{&files_.back(), &entry, shown(path)});
    require(added, ErrorKind::kInput, shown(path), ": the tensor '",
            printable(std::string_view(entry.name)), "' stands in ", at->second.path, " too");
  }
}

void WeightFiles::check_index(const fs::path& index) {
  const auto listed = read_index(index);
  for (const auto& [tensor, file] : listed) {
    const auto found = tensors_.find(tensor);
    const bool there =
        found != tensors_.end() && found->second.path == shown(index.parent_path() / file);
    require(there, ErrorKind::kInput, name_, ": the tensor '", printable(std::string_view(tensor)),
            "' is not in ", printable(std::string_view(file)));
  }
  for (const auto& [tensor, where] : tensors_) {
    require(listed.contains(tensor), ErrorKind::kInput, where.path, ": the tensor '",
            printable(std::string_view(tensor)), "' is not listed in ", kIndex);
  }
}

void WeightFiles::publish_names() {
  size_t strip = 0;
  for (const std::string_view prefix : {"model.", "module.", "_orig_mod."}) {
    bool all = !tensors_.empty();
    for (const auto& [name, where] : tensors_) all = all && name.starts_with(prefix);
    if (all) strip = prefix.size();
  }
  constexpr std::string_view kOther = "backbone.embedding.";
  std::map<std::string, WeightTensor> published;
  for (auto& [name, where] : tensors_) {
    std::string known = name.substr(strip);
    if (known.starts_with(kOther)) {
      known = "backbone.embeddings." + known.substr(kOther.size());
    }
    const std::string path = where.path;
    require(published.emplace(known, std::move(where)).second, ErrorKind::kInput, path,
            ": the tensor '", printable(std::string_view(known)), "' stands under two names");
  }
  tensors_ = std::move(published);
}

}  // namespace gmamba
