// SPDX-License-Identifier: Apache-2.0
#include "libmamba/model_folder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "libmamba/atomic_folder.h"
#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/tokenizer_files.h"
#include "libmamba/weight_files.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLongestConfig = int64_t{16} << 20;  // tens of thousands of labels fit
constexpr int64_t kLongestTokenizer = int64_t{32} << 20;
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "backbone.embeddings.weight";

std::string shown(const fs::path& path) { return printable(std::string_view(path.native())); }

Json read_json(const fs::path& path, int64_t limit) {
  return parse_json(read_file(path, limit), shown(path), {.allow_nonfinite = true});
}

// --- reading ---

/// What kind of layers these are, told by the tensors alone.
void refuse_other_families(const WeightFiles& weights) {
  const auto refuse = [&](const std::string& name, std::string_view family) {
    fail(ErrorKind::kUnsupported, weights.name(), ": the tensor '",
         printable(std::string_view(name)), "' belongs to ", family,
         ", which this version does not read; it reads Mamba-1");
  };
  std::set<std::string> mixers;
  std::set<std::string> inner;
  for (const auto& [name, tensor] : weights.tensors()) {
    // a named capture, because clang 14 cannot capture a structured binding by [&]
    const auto has = [&name = name](std::string_view part) {
      return name.find(part) != std::string::npos;
    };
    if (has(".mamba_fwd.") || has(".submodule.") || name.starts_with("caduceus.")) {
      refuse(name, "a Caduceus model");
    }
    if (has(".mixer.B_bias") || has(".mixer.C_bias")) refuse(name, "a Mamba-3 layer");
    if (has(".mixer.dt_bias") || has(".mixer.norm.weight")) refuse(name, "a Mamba-2 layer");
    if (has(".mlp.")) refuse(name, "an MLP block");
    if (name.ends_with("norm.bias") || name.ends_with("norm_f.bias")) refuse(name, "a LayerNorm");
    const size_t mixer = name.find(".mixer.");
    if (mixer == std::string::npos) continue;
    const std::string_view part = std::string_view(name).substr(mixer + 7);
    const bool projection = part.starts_with("in_proj.") || part.starts_with("out_proj.");
    (projection ? mixers : inner).insert(name.substr(0, mixer));
  }
  for (const std::string& layer : mixers) {
    if (!inner.contains(layer)) refuse(layer + ".mixer.in_proj.weight", "an attention layer");
  }
}

void check_tensors(const WeightFiles& weights, const ParameterLayout& layout, bool tied) {
  for (const ParameterInfo& info : layout.all()) {
    const auto found = weights.tensors().find(info.name);
    require(found != weights.tensors().end(), ErrorKind::kInput, weights.name(), ": the tensor ",
            info.name, " of shape ", to_string(info.shape),
            ", which config.json asks for, is missing");
    require(found->second.entry->shape == info.shape, ErrorKind::kInput, found->second.path,
            ": the tensor ", info.name, " has the shape ", to_string(found->second.entry->shape),
            ", config.json asks for ", to_string(info.shape));
  }
  for (const auto& [name, tensor] : weights.tensors()) {
    require(layout.find(name) >= 0 || (tied && name == kHead), ErrorKind::kInput, tensor.path,
            ": the tensor '", printable(std::string_view(name)), "' of shape ",
            to_string(tensor.entry->shape), " has no place in a model of this config.json");
  }
}

/// Counts values that are not finite, to say so once.
class FiniteCheck {
 public:
  void add(const std::string& name, std::span<const float> values) {
    const auto bad = std::count_if(values.begin(), values.end(),
                                   [](float value) { return !std::isfinite(value); });
    if (bad > 0 && count_ == 0) first_ = name;
    count_ += bad;
  }
  void report(const std::string& file, Log* log) const {
    if (count_ == 0) return;
    log_line(log, LogLevel::kWarning,
             concat(file, ": ", count_, " weights are not finite, the first in ", first_,
                    "; results of this model will not be either"));
  }

 private:
  int64_t count_ = 0;
  std::string first_;
};

/// One tensor to its place, by way of the host when the model lives elsewhere.
void read_parameter(const WeightTensor& tensor, const std::string& name, TensorView to,
                    FiniteCheck& finite) {
  if (to.device.is_cpu()) {
    tensor.file->read_f32(*tensor.entry, to.flat<float>());
    finite.add(name, to.flat<float>());
    return;
  }
  std::vector<float> host(static_cast<size_t>(to.size()));
  tensor.file->read_f32(*tensor.entry, host);
  finite.add(name, host);
  Backend& backend = backend_for(to.device.kind);
  backend.copy_in(to.device.index, nullptr, to.data, host.data(),
                  static_cast<int64_t>(host.size() * sizeof(float)));
  backend.synchronize(to.device.index, nullptr);
}

std::vector<float> read_values(const WeightTensor& tensor, const Shape& shape) {
  require(tensor.entry->shape == shape, ErrorKind::kInput, tensor.path, ": the tensor ", kHead,
          " has the shape ", to_string(tensor.entry->shape), ", config.json asks for ",
          to_string(shape));
  std::vector<float> values(static_cast<size_t>(shape[0] * shape[1]));
  tensor.file->read_f32(*tensor.entry, values);
  return values;
}

/// A tied head may be stored beside the embedding, as mamba_ssm does, if it says the same.
void check_tied_head(const WeightFiles& weights, const ModelConfig& config) {
  const auto head = weights.tensors().find(kHead);
  if (!config.tie_embeddings || head == weights.tensors().end()) return;
  const Shape shape = {config.vocab_size, config.d_model};
  const auto a = read_values(head->second, shape);
  const auto b = read_values(weights.tensors().at(kEmbedding), shape);
  require(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0, ErrorKind::kInput,
          head->second.path, ": config.json ties ", kHead, " to ", kEmbedding,
          " but they differ; set tie_word_embeddings to false if the head is its own");
}

Vocabulary read_vocabulary(const fs::path& folder, const ModelConfig& config, Log* log) {
  const fs::path path = folder / "tokenizer.json";
  if (path_exists(path)) {
    Vocabulary vocabulary = parse_tokenizer(read_json(path, kLongestTokenizer), shown(path));
    require(vocabulary.size() <= config.vocab_size, ErrorKind::kInput, shown(path), ": ",
            vocabulary.size(), " tokens, but config.json has a vocab_size of ", config.vocab_size);
    return vocabulary;
  }
  Vocabulary vocabulary = Vocabulary::characters();
  require(config.vocab_size >= vocabulary.size(), ErrorKind::kInput, shown(folder),
          ": no tokenizer.json, and a vocab_size of ", config.vocab_size,
          " is too small for the character vocabulary; add the tokenizer.json of the model");
  log_line(log, LogLevel::kInfo,
           concat(shown(folder),
                  ": no tokenizer.json; using the character vocabulary (A 7, C 8, "
                  "G 9, T 10, N 11)"));
  return vocabulary;
}

/// mamba_ssm configs name no special tokens; the vocabulary does.
void fill_tokens(ModelConfig& config, const Vocabulary& vocabulary) {
  if (config.dialect != ConfigDialect::kMambaSsm) return;
  if (config.pad_token < 0) config.pad_token = vocabulary.pad;
  if (config.bos_token < 0) config.bos_token = vocabulary.bos;
  if (config.eos_token < 0) config.eos_token = vocabulary.eos;
}

Model load_checked(const fs::path& folder, Device device, Log* log) {
  const fs::path config_path = folder / "config.json";
  ModelConfig config = parse_config(read_json(config_path, kLongestConfig), shown(config_path));
  const WeightFiles weights(folder);
  refuse_other_families(weights);
  // all shapes agree before a byte is set aside for them
  check_tensors(weights, ParameterLayout(config), config.tie_embeddings);
  check_tied_head(weights, config);
  Vocabulary vocabulary = read_vocabulary(folder, config, log);
  fill_tokens(config, vocabulary);
  Model model(std::move(config), device);
  model.set_vocabulary(std::move(vocabulary));
  ParameterBuffer& values = model.parameters();
  FiniteCheck finite;
  for (const ParameterInfo& info : values.layout().all()) {
    read_parameter(weights.tensors().at(info.name), info.name, values.view(info.name), finite);
  }
  finite.report(weights.name(), log);
  return model;
}

// --- writing ---

std::string weight_name(const std::string& name, ConfigDialect dialect) {
  return dialect == ConfigDialect::kMambaSsm && name == kEmbedding ? "backbone.embedding.weight"
                                                                   : name;
}

void write_json(const fs::path& path, const Json& json) { write_file(path, json.dump(2) + "\n"); }

bool is_model_file(const std::string& name) {
  constexpr std::array<std::string_view, 7> kKnown = {"config.json",
                                                      "generation_config.json",
                                                      "model.safetensors",
                                                      "tokenizer.json",
                                                      "tokenizer_config.json",
                                                      "special_tokens_map.json",
                                                      "model.safetensors.index.json"};
  const bool shard = name.starts_with("model-") && name.ends_with(".safetensors");
  return shard || std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end();
}

/// Saving replaces the folder, so nothing of the user's may be in it.
void check_replaceable(const fs::path& folder) {
  if (!path_exists(folder)) return;
  for (const fs::path& path : list_folder(folder)) {
    const std::string name = path.filename().string();
    require(is_model_file(name) || is_temporary(path), ErrorKind::kUsage, shown(folder),
            ": holds '", printable(std::string_view(name)),
            "', which is no part of a model; saving would remove it, so choose another folder");
  }
}

}  // namespace

void require_finite(const ParameterBuffer& values, std::string_view what) {
  const HostParameters host(values);
  for (const ParameterInfo& info : values.layout().all()) {
    const auto flat = host.get().view(info.name).flat<const float>();
    const auto bad =
        std::find_if(flat.begin(), flat.end(), [](float value) { return !std::isfinite(value); });
    require(bad == flat.end(), ErrorKind::kInput, what, ": ", info.name,
            " is not finite at element ", bad - flat.begin());
  }
}

fs::path find_model_folder(const fs::path& folder) {
  std::error_code code;
  require(fs::is_directory(folder, code), ErrorKind::kIo, shown(folder),
          fs::exists(folder, code) ? ": is a file; expected the folder of a model or run"
                                   : ": no such folder");
  if (path_exists(folder / "config.json")) return folder;
  require(path_exists(folder / "model" / "config.json"), ErrorKind::kInput, shown(folder),
          ": holds neither config.json nor model/config.json; expected a model folder or a run "
          "folder");
  return folder / "model";
}

Model load_model(const fs::path& folder, Device device, Log* log) {
  const fs::path found = find_model_folder(folder);
  return with_frame([&] { return load_checked(found, device, log); },
                    [&] { return concat("while loading the model ", shown(found)); });
}

void write_model_files(const Model& model, const fs::path& folder,
                       const std::map<std::string, std::string>& metadata) {
  require_finite(model.parameters(), "not saved: the model");
  const ModelConfig& config = model.config();
  const Vocabulary& vocabulary = model.vocabulary();
  write_json(folder / "config.json", to_json(config));
  if (config.dialect == ConfigDialect::kTransformers) {
    write_json(folder / "generation_config.json", generation_config_json(config));
  }
  write_json(folder / "tokenizer.json", tokenizer_json(vocabulary));
  write_json(folder / "tokenizer_config.json", tokenizer_config_json(vocabulary));
  write_json(folder / "special_tokens_map.json", special_tokens_json(vocabulary));
  const HostParameters host(model.parameters());
  std::vector<SafetensorsItem> items;
  for (const ParameterInfo& info : host.get().layout().all()) {
    items.push_back(
        {weight_name(info.name, config.dialect), host.get().view(info.name), info.shape});
  }
  write_safetensors(folder / "model.safetensors", std::move(items), metadata);
}

void save_model(const Model& model, const fs::path& folder,
                const std::map<std::string, std::string>& metadata) {
  with_frame(
      [&] {
        check_replaceable(resolve_folder(folder));
        AtomicFolder writing(folder);
        write_model_files(model, writing.temporary(), metadata);
        writing.commit();
      },
      [&] { return concat("while saving the model ", shown(folder)); });
}

std::string model_digest(const fs::path& folder) {
  const std::vector<fs::path> files = WeightFiles::find(find_model_folder(folder));
  if (files.size() == 1) return sha256_file(files[0]);
  std::string lines;
  for (const fs::path& file : files) lines += sha256_file(file) + "\n";
  return sha256_bytes(lines);
}

}  // namespace gmamba
