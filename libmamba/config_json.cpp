// SPDX-License-Identifier: Apache-2.0
/// The two dialects of config.json: transformers (`hidden_size`, ...) and mamba_ssm (`d_model`,
/// `ssm_cfg`, ...). What gmamba adds stands under one key, "gmamba". Keys that do not change the
/// function are ignored; those that would make it another model are refused.
#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "libmamba/config.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"
#include "libmamba/json_fields.h"

namespace gmamba {
namespace {

constexpr int64_t kLargest = int64_t{1} << 40;

template <class Value, size_t N>
using Names = std::array<std::pair<Value, const char*>, N>;

constexpr Names<TaskKind, 3> kTasks = {{{TaskKind::kNone, "none"},
                                        {TaskKind::kClassification, "classification"},
                                        {TaskKind::kRegression, "regression"}}};
constexpr Names<PoolMode, 3> kPools = {
    {{PoolMode::kMean, "mean"}, {PoolMode::kLast, "last"}, {PoolMode::kMax, "max"}}};

template <class Value, size_t N>
const char* name_of(const Names<Value, N>& names, Value value) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  fail(ErrorKind::kInternal, "config: a value without a name");
}

template <class Value, size_t N>
void read_name(const JsonFields& fields, const char* key, const Names<Value, N>& names,
               Value& value) {
  std::string text = name_of(names, value);
  fields.read(key, text);
  for (const auto& [known, name] : names) {
    if (text == name) {
      value = known;
      return;
    }
  }
  fail(ErrorKind::kUnsupported, fields.name(), ": this version knows no ", key, " '",
       printable(std::string_view(text)), "'");
}

// --- what is refused ---

void check_model_type(const JsonFields& fields) {
  std::string type;
  fields.read("model_type", type);
  if (type.empty() || type == "mamba") return;
  constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kFamilies = {
      {{"mamba2", "Mamba-2"}, {"falcon_mamba", "FalconMamba"}, {"caduceus", "Caduceus"}}};
  for (const auto& [name, family] : kFamilies) {
    require(type != name, ErrorKind::kUnsupported, fields.name(), ": ", family,
            " models are not read by this version; it reads Mamba-1 (model_type mamba)");
  }
  fail(ErrorKind::kUnsupported, fields.name(), ": the model_type '",
       printable(std::string_view(type)), "' is not read; this version reads Mamba-1 (mamba)");
}

/// Parts that make another function out of the same sizes.
void check_parts(const JsonFields& fields) {
  const auto refuse = [&](bool found, std::string_view what, const char* key) {
    require(!found, ErrorKind::kUnsupported, fields.name(), ": ", what,
            " are not read by this version (", key, ")");
  };
  bool flag = false;
  fields.read("rcps", flag);
  refuse(flag || fields.has("rcps"), "Caduceus models", "rcps");
  refuse(fields.has("bidirectional"), "Caduceus models", "bidirectional");
  bool rms_norm = true;
  fields.read("rms_norm", rms_norm);
  refuse(!rms_norm, "models with LayerNorm", "rms_norm");
  int64_t mlp_width = 0;
  fields.read("d_intermediate", mlp_width);
  refuse(mlp_width != 0, "models with MLP blocks", "d_intermediate");
  const Json* attention = fields.find("attn_layer_idx");
  refuse(attention != nullptr && !attention->empty(), "models with attention layers",
         "attn_layer_idx");
  refuse(fields.has("quantization_config"), "quantised models", "quantization_config");
  std::string activation = "silu";
  fields.read("hidden_act", activation);
  refuse(activation != "silu" && activation != "swish",
         concat("models with the activation ", printable(std::string_view(activation))),
         "hidden_act");
}

void check_same(const JsonFields& fields, const char* key, const char* other) {
  const Json* a = fields.find(key);
  const Json* b = fields.find(other);
  if (a == nullptr || b == nullptr || *a == *b) return;
  fail(ErrorKind::kInput, fields.name(), ": ", key, " is ", printable(*a), " but ", other, " is ",
       printable(*b));
}

// --- shared pieces ---

/// A token id: null and negative ones are none, of a list the first counts.
int read_token(const JsonFields& fields, const char* key) {
  if (!fields.json().contains(key)) return 0;  // the default of transformers
  const Json* value = fields.find(key);
  if (value == nullptr) return -1;
  if (value->is_array() && !value->empty()) value = &value->front();
  return static_cast<int>(std::clamp<int64_t>(fields.whole(key, *value), -1, 1 << 24));
}

/// "auto" or a whole number.
int64_t read_rank(const JsonFields& fields, const char* key, int64_t d_model) {
  const Json* value = fields.find(key);
  if (value == nullptr || *value == "auto") {
    return ModelConfig::auto_dt_rank(std::clamp<int64_t>(d_model, 1, kLargest));
  }
  return fields.whole(key, *value);
}

void read_init_scheme(const JsonFields& fields, const char* key) {
  std::string scheme = "random";
  fields.read(key, scheme);
  require(scheme == "random" || scheme == "constant", ErrorKind::kInput, fields.name(),
          ": expected random or constant for ", key, ", found '",
          printable(std::string_view(scheme)), "'");
}

void read_labels(const JsonFields& fields, std::vector<std::string>& labels) {
  const Json* list = fields.find("labels");
  if (list == nullptr) return;
  if (!list->is_array()) fields.expected("a list of strings", "labels", *list);
  for (const Json& label : *list) {
    if (!label.is_string()) fields.expected("a list of strings", "labels", label);
    labels.push_back(label.get<std::string>());
  }
}

void read_additions(const JsonFields& parent, ModelConfig& config) {
  const Json* object = parent.find("gmamba");
  if (object == nullptr) return;
  const JsonFields fields(*object, parent.name() + ": gmamba");
  constexpr std::array<std::string_view, 5> kKnown = {"task", "labels", "pool", "both_strands",
                                                      "trained_context"};
  for (const auto& [key, value] : object->items()) {
    require(std::find(kKnown.begin(), kKnown.end(), key) != kKnown.end(), ErrorKind::kUnsupported,
            fields.name(), ": the key '", printable(std::string_view(key)),
            "' is not known; the model may come from a newer gmamba");
  }
  read_name(fields, "task", kTasks, config.task);
  read_labels(fields, config.labels);
  read_name(fields, "pool", kPools, config.pool);
  fields.read("both_strands", config.both_strands);
  fields.read("trained_context", config.trained_context);
}

Json additions(const ModelConfig& config) {
  Json out = Json::object();
  out["task"] = name_of(kTasks, config.task);
  out["labels"] = config.labels;
  out["pool"] = name_of(kPools, config.pool);
  out["both_strands"] = config.both_strands;
  out["trained_context"] = config.trained_context;
  return out;
}

// --- transformers ---

ModelConfig parse_transformers(const JsonFields& fields) {
  check_same(fields, "hidden_size", "d_model");
  check_same(fields, "num_hidden_layers", "n_layer");
  check_same(fields, "tie_word_embeddings", "tie_embeddings");
  ModelConfig config;
  config.dialect = ConfigDialect::kTransformers;
  config.vocab_size = fields.required("vocab_size");
  config.d_model = fields.required("hidden_size");
  config.n_layers = fields.required("num_hidden_layers");
  fields.read("state_size", config.d_state);
  fields.read("conv_kernel", config.d_conv);
  fields.read("expand", config.expand);
  config.dt_rank = read_rank(fields, "time_step_rank", config.d_model);
  fields.read("layer_norm_epsilon", config.norm_epsilon);
  fields.read("use_bias", config.use_bias);
  fields.read("use_conv_bias", config.use_conv_bias);
  fields.read("tie_word_embeddings", config.tie_embeddings);
  fields.read("residual_in_fp32", config.residual_in_fp32);
  fields.read("time_step_min", config.dt_min);
  fields.read("time_step_max", config.dt_max);
  fields.read("time_step_floor", config.dt_init_floor);
  fields.read("time_step_scale", config.dt_scale);
  read_init_scheme(fields, "time_step_init_scheme");
  config.pad_token = read_token(fields, "pad_token_id");
  config.bos_token = read_token(fields, "bos_token_id");
  config.eos_token = read_token(fields, "eos_token_id");
  return config;
}

Json token_json(int token) { return token < 0 ? Json() : Json(token); }

Json to_transformers(const ModelConfig& c) {
  Json out = Json::object();
  out["architectures"] = {"MambaForCausalLM"};
  out["bos_token_id"] = token_json(c.bos_token);
  out["conv_kernel"] = c.d_conv;
  out["eos_token_id"] = token_json(c.eos_token);
  out["expand"] = c.expand;
  out["gmamba"] = additions(c);
  out["hidden_act"] = "silu";
  out["hidden_size"] = c.d_model;
  out["initializer_range"] = 0.1;
  out["intermediate_size"] = c.d_inner();
  out["layer_norm_epsilon"] = c.norm_epsilon;
  out["model_type"] = "mamba";
  out["num_hidden_layers"] = c.n_layers;
  out["pad_token_id"] = token_json(c.pad_token);
  out["rescale_prenorm_residual"] = false;
  out["residual_in_fp32"] = c.residual_in_fp32;
  out["state_size"] = c.d_state;
  out["tie_word_embeddings"] = c.tie_embeddings;
  out["time_step_floor"] = c.dt_init_floor;
  out["time_step_init_scheme"] = "random";
  out["time_step_max"] = c.dt_max;
  out["time_step_min"] = c.dt_min;
  out["time_step_rank"] = c.dt_rank;
  out["time_step_scale"] = c.dt_scale;
  out["torch_dtype"] = "float32";
  out["use_bias"] = c.use_bias;
  out["use_cache"] = true;
  out["use_conv_bias"] = c.use_conv_bias;
  out["use_mambapy"] = false;
  out["vocab_size"] = c.vocab_size;
  return out;
}

// --- mamba_ssm ---

/// Arguments of the mixer. An unknown one would be an error in mamba_ssm too.
void read_mixer(const JsonFields& parent, ModelConfig& config) {
  static const Json kNone = Json::object();
  const Json* object = parent.find("ssm_cfg");
  const JsonFields fields(object == nullptr ? kNone : *object, parent.name() + ": ssm_cfg");
  constexpr std::array<std::string_view, 13> kKnown = {
      "layer",   "d_state",  "d_conv",        "expand",    "dt_rank", "dt_min",       "dt_max",
      "dt_init", "dt_scale", "dt_init_floor", "conv_bias", "bias",    "use_fast_path"};
  std::string layer = "Mamba1";
  fields.read("layer", layer);
  require(layer == "Mamba1", ErrorKind::kUnsupported, fields.name(), ": layers of the kind '",
          printable(std::string_view(layer)), "' are not read by this version, only Mamba1");
  for (const auto& [key, value] : fields.json().items()) {
    require(std::find(kKnown.begin(), kKnown.end(), key) != kKnown.end(), ErrorKind::kUnsupported,
            fields.name(), ": '", printable(std::string_view(key)),
            "' is not an argument of a Mamba-1 layer");
  }
  fields.read("d_state", config.d_state);
  fields.read("d_conv", config.d_conv);
  fields.read("expand", config.expand);
  config.dt_rank = read_rank(fields, "dt_rank", config.d_model);
  fields.read("dt_min", config.dt_min);
  fields.read("dt_max", config.dt_max);
  fields.read("dt_scale", config.dt_scale);
  fields.read("dt_init_floor", config.dt_init_floor);
  read_init_scheme(fields, "dt_init");
  fields.read("conv_bias", config.use_conv_bias);
  fields.read("bias", config.use_bias);
}

ModelConfig parse_mamba_ssm(const JsonFields& fields) {
  ModelConfig config;
  config.dialect = ConfigDialect::kMambaSsm;
  const int64_t rows = fields.required("vocab_size");
  int64_t multiple = 8;
  fields.read("pad_vocab_size_multiple", multiple);
  require(multiple >= 1 && multiple <= kLargest && rows >= 1 && rows <= kLargest, ErrorKind::kInput,
          fields.name(), ": vocab_size ", rows, " with pad_vocab_size_multiple ", multiple,
          " is out of range");
  config.vocab_size = (rows + multiple - 1) / multiple * multiple;
  config.d_model = fields.required("d_model");
  config.n_layers = fields.required("n_layer");
  read_mixer(fields, config);
  fields.read("norm_epsilon", config.norm_epsilon);
  fields.read("residual_in_fp32", config.residual_in_fp32);
  fields.read("tie_embeddings", config.tie_embeddings);
  // the vocabulary names the special tokens of this dialect
  config.pad_token = config.bos_token = config.eos_token = -1;
  return config;
}

Json to_mamba_ssm(const ModelConfig& c) {
  require(c.norm_epsilon == 1e-5, ErrorKind::kUnsupported,
          "config: the mamba_ssm dialect always means norm_epsilon 1e-5, this model has ",
          c.norm_epsilon, "; write it in the transformers dialect");
  Json mixer = Json::object();
  mixer["layer"] = "Mamba1";
  mixer["d_state"] = c.d_state;
  mixer["d_conv"] = c.d_conv;
  mixer["expand"] = c.expand;
  mixer["dt_rank"] = c.dt_rank;
  mixer["dt_min"] = c.dt_min;
  mixer["dt_max"] = c.dt_max;
  mixer["dt_scale"] = c.dt_scale;
  mixer["dt_init_floor"] = c.dt_init_floor;
  mixer["conv_bias"] = c.use_conv_bias;
  mixer["bias"] = c.use_bias;
  Json out = Json::object();
  out["d_model"] = c.d_model;
  out["d_intermediate"] = 0;
  out["n_layer"] = c.n_layers;
  out["vocab_size"] = c.vocab_size;
  out["ssm_cfg"] = std::move(mixer);
  out["attn_layer_idx"] = Json::array();
  out["attn_cfg"] = Json::object();
  out["rms_norm"] = true;
  out["residual_in_fp32"] = c.residual_in_fp32;
  out["fused_add_norm"] = true;
  out["pad_vocab_size_multiple"] = c.vocab_size % 8 == 0 ? 8 : 1;
  out["tie_embeddings"] = c.tie_embeddings;
  // mamba_ssm refuses keys it does not know, so ours appear only when they say something
  const Json ours = additions(c);
  if (ours != additions(ModelConfig())) out["gmamba"] = ours;
  return out;
}

ModelConfig parse_dialect(const JsonFields& fields) {
  check_model_type(fields);
  check_parts(fields);
  if (fields.has("hidden_size")) {
    require(fields.has("model_type"), ErrorKind::kInput, fields.name(),
            ": the key model_type is missing; a Mamba-1 model has \"model_type\": \"mamba\"");
    return parse_transformers(fields);
  }
  require(fields.has("d_model") && fields.has("n_layer"), ErrorKind::kInput, fields.name(),
          ": expected hidden_size, or d_model and n_layer; this is no configuration of a Mamba "
          "model");
  return parse_mamba_ssm(fields);
}

}  // namespace

ModelConfig parse_config(const Json& json, const std::string& name) {
  const JsonFields fields(json, name);
  ModelConfig config = parse_dialect(fields);
  read_additions(fields, config);
  try {
    config.validate();
  } catch (const Error& error) {
    fail(error.kind(), name, ": ", error.message());
  }
  return config;
}

Json to_json(const ModelConfig& config) {
  return config.dialect == ConfigDialect::kTransformers ? to_transformers(config)
                                                        : to_mamba_ssm(config);
}

}  // namespace gmamba
