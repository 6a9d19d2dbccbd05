// SPDX-License-Identifier: Apache-2.0
#include "libmamba/config.h"

#include <functional>
#include <limits>
#include <set>

#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

using test::expect_error;
using test::slurp;

Json parse(std::string_view text) {
  return parse_json(text, "config.json", {.allow_nonfinite = true});
}
ModelConfig read(std::string_view text) { return parse_config(parse(text), "x/config.json"); }

/// config.json of a published text model's conversion: both spellings, many keys that do not matter
/// here; only the vocabulary is smaller.
constexpr const char* kConverted = R"({
  "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536,
  "d_model": 768, "eos_token_id": [0, 5], "expand": 2, "fused_add_norm": true, "hidden_act": "silu",
  "hidden_size": 768, "initializer_range": 0.1, "intermediate_size": 77,
  "layer_norm_epsilon": 1e-05, "model_type": "mamba", "n_layer": 24, "num_hidden_layers": 24,
  "pad_token_id": -100, "pad_vocab_size_multiple": 8, "rescale_prenorm_residual": false,
  "residual_in_fp32": true, "rms_norm": true, "ssm_cfg": {}, "state_size": 16,
  "time_step_floor": 0.0001, "time_step_init_scheme": "random", "time_step_max": 0.1,
  "time_step_min": 0.001, "time_step_rank": 48, "time_step_scale": 1.0, "torch_dtype": "float32",
  "time_step_limit": [0.0, Infinity], "other": {"__float__": "Infinity"}, "another": NaN,
  "transformers_version": "4.39.0.dev0", "use_bias": false, "use_cache": true,
  "use_conv_bias": true, "vocab_size": 200, "auto_map": {"AutoConfig": "x.Y"}
})";

constexpr const char* kSmallest =
    R"({"model_type": "mamba", "vocab_size": 16, "hidden_size": 100, "num_hidden_layers": 3})";

constexpr const char* kMambaSsm = R"({
  "d_model": 100, "n_layer": 3, "vocab_size": 12, "ssm_cfg": {}, "rms_norm": true,
  "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8})";

/// Every field unlike its default.
ModelConfig unusual() {
  ModelConfig c;
  c.vocab_size = 24;
  c.d_model = 48;
  c.n_layers = 5;
  c.d_state = 7;
  c.d_conv = 3;
  c.expand = 3;
  c.dt_rank = 9;
  c.norm_epsilon = 2e-6;
  c.use_bias = true;
  c.use_conv_bias = false;
  c.tie_embeddings = false;
  c.residual_in_fp32 = false;
  c.dt_min = 0.0123456789;
  c.dt_max = 0.2;
  c.dt_init_floor = 1e-3;
  c.dt_scale = 1.5;
  c.pad_token = 0;
  c.bos_token = -1;
  c.eos_token = 23;
  c.task = TaskKind::kClassification;
  c.labels = {"a", "\xce\xbb", "\"quoted\" \\ \n"};
  c.pool = PoolMode::kLast;
  c.both_strands = true;
  c.trained_context = int64_t{1} << 40;
  return c;
}

TEST(ConfigTest, ReadsAConvertedPublishedModel) {
  const ModelConfig c = read(kConverted);
  EXPECT_EQ(c.dialect, ConfigDialect::kTransformers);
  EXPECT_EQ(c.vocab_size, 200);
  EXPECT_EQ(c.d_model, 768);
  EXPECT_EQ(c.n_layers, 24);
  EXPECT_EQ(c.d_inner(), 1536);  // intermediate_size is derived, a contradicting one ignored
  EXPECT_EQ(c.dt_rank, 48);
  EXPECT_EQ(c.eos_token, 0);
  EXPECT_EQ(c.pad_token, -1);
  EXPECT_TRUE(c.tie_embeddings);
}

TEST(ConfigTest, DefaultsAreThePublishedOnes) {
  ModelConfig expected;
  expected.vocab_size = 16;
  expected.d_model = 100;
  expected.n_layers = 3;
  expected.dt_rank = 7;  // ceil(100 / 16)
  expected.pad_token = expected.bos_token = expected.eos_token = 0;
  EXPECT_EQ(read(kSmallest), expected);
  EXPECT_EQ(expected.d_state, 16);
  EXPECT_EQ(expected.d_conv, 4);
  EXPECT_EQ(expected.expand, 2);
  EXPECT_EQ(expected.norm_epsilon, 1e-5);
  expected.dialect = ConfigDialect::kMambaSsm;
  expected.pad_token = expected.bos_token = expected.eos_token = -1;
  EXPECT_EQ(read(kMambaSsm), expected);  // 12 rows are padded to 16
}

TEST(ConfigTest, ReadsAllOfMambaSsm) {
  const ModelConfig c = read(R"({"model_type": "mamba", "d_model": 64, "n_layer": 2,
    "vocab_size": 13, "pad_vocab_size_multiple": 16, "tie_embeddings": false, "d_intermediate": 0,
    "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": false,
    "ssm_cfg": {"layer": "Mamba1", "d_state": 8, "d_conv": 2, "expand": 4, "dt_rank": "auto",
    "dt_min": 0.002, "dt_max": 0.2, "dt_init": "constant", "dt_scale": 2, "dt_init_floor": 1e-3,
    "conv_bias": false, "bias": true, "use_fast_path": false}})");
  ModelConfig expected;
  expected.dialect = ConfigDialect::kMambaSsm;
  expected.vocab_size = 16;
  expected.d_model = 64;
  expected.n_layers = 2;
  expected.tie_embeddings = false;
  expected.residual_in_fp32 = false;
  expected.d_state = 8;
  expected.d_conv = 2;
  expected.expand = 4;
  expected.dt_rank = 4;
  expected.dt_min = 0.002;
  expected.dt_max = 0.2;
  expected.dt_scale = 2;
  expected.dt_init_floor = 1e-3;
  expected.use_conv_bias = false;
  expected.use_bias = true;
  expected.pad_token = expected.bos_token = expected.eos_token = -1;
  EXPECT_EQ(c, expected);
}

TEST(ConfigTest, RoundTripsBothDialects) {
  for (const ModelConfig& c : {unusual(), ModelConfig(), read(kSmallest), read(kConverted)}) {
    EXPECT_EQ(parse_config(parse(to_json(c).dump(2)), "f"), c);
  }
  ModelConfig c = unusual();
  c.dialect = ConfigDialect::kMambaSsm;
  c.norm_epsilon = 1e-5;
  c.pad_token = c.bos_token = c.eos_token = -1;
  EXPECT_EQ(parse_config(parse(to_json(c).dump()), "f"), c);
  c.vocab_size = 13;  // no multiple of 8: not padded again
  EXPECT_EQ(parse_config(parse(to_json(c).dump()), "f"), c);
  EXPECT_EQ(to_json(read(kMambaSsm)).contains("gmamba"), false);
  c.norm_epsilon = 1e-6;
  expect_error(ErrorKind::kUnsupported, {"norm_epsilon", "transformers"}, [&] { to_json(c); });
}

TEST(ConfigTest, WritesStrictTypes) {
  ModelConfig c = unusual();
  c.dt_scale = 1;
  const Json json = parse_json(to_json(c).dump(2), "f");
  for (const char* key :
       {"conv_kernel", "eos_token_id", "expand", "hidden_size", "intermediate_size",
        "num_hidden_layers", "pad_token_id", "state_size", "time_step_rank", "vocab_size"}) {
    EXPECT_TRUE(json.at(key).is_number_integer()) << key;
  }
  for (const char* key : {"initializer_range", "layer_norm_epsilon", "time_step_floor",
                          "time_step_max", "time_step_min", "time_step_scale"}) {
    EXPECT_TRUE(json.at(key).is_number_float()) << key;
  }
  for (const char* key : {"rescale_prenorm_residual", "residual_in_fp32", "tie_word_embeddings",
                          "use_bias", "use_cache", "use_conv_bias", "use_mambapy"}) {
    EXPECT_TRUE(json.at(key).is_boolean()) << key;
  }
  EXPECT_TRUE(json.at("bos_token_id").is_null());
  EXPECT_EQ(json.at("architectures"), Json::array({"MambaForCausalLM"}));
  EXPECT_EQ(json.at("model_type"), "mamba");
  EXPECT_EQ(json.at("intermediate_size"), 144);
  EXPECT_EQ(json.at("torch_dtype"), "float32");
  EXPECT_TRUE(json.at("gmamba").is_object());
  // nothing beyond the published keys and the one of ours
  const std::set<std::string> published = {"architectures",        "gmamba",       "model_type",
                                           "torch_dtype",          "bos_token_id", "hidden_act",
                                           "time_step_init_scheme"};
  EXPECT_EQ(json.size(), 10u + 6 + 7 + published.size());
}

struct Refusal {
  const char* change;  ///< merged into the smallest config; null removes a key
  ErrorKind kind;
  std::vector<std::string> parts;
};

void expect_refusals(const char* base, const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    Json json = parse(base);
    json.merge_patch(parse(refusal.change));
    std::vector<std::string> parts = refusal.parts;
    parts.push_back("x/config.json");
    expect_error(
        refusal.kind, parts, [&] { parse_config(json, "x/config.json"); }, refusal.change);
  }
}

TEST(ConfigTest, OtherModelsAreRefusedInOneSentence) {
  constexpr ErrorKind kNo = ErrorKind::kUnsupported;
  const std::vector<Refusal> refusals = {
      {R"({"model_type": "mamba2"})", kNo, {"Mamba-2", "Mamba-1"}},
      {R"({"model_type": "falcon_mamba"})", kNo, {"FalconMamba"}},
      {R"({"model_type": "caduceus"})", kNo, {"Caduceus"}},
      {R"({"model_type": "llama"})", kNo, {"'llama'"}},
      {R"({"model_type": "\u001b[31m"})", kNo, {"\\x1b[31m"}},
      {R"({"rcps": true})", kNo, {"Caduceus", "rcps"}},
      {R"({"bidirectional": false})", kNo, {"Caduceus", "bidirectional"}},
      {R"({"rms_norm": false})", kNo, {"LayerNorm"}},
      {R"({"d_intermediate": 64})", kNo, {"MLP"}},
      {R"({"attn_layer_idx": [1]})", kNo, {"attention"}},
      {R"({"quantization_config": {"bits": 4}})", kNo, {"quantised"}},
      {R"({"hidden_act": "gelu"})", kNo, {"gelu"}},
  };
  expect_refusals(kSmallest, refusals);
  expect_refusals(kMambaSsm, refusals);
  expect_refusals(kMambaSsm, {
                                 {R"({"ssm_cfg": {"layer": "Mamba2"}})", kNo, {"Mamba2"}},
                                 {R"({"ssm_cfg": {"layer": "Mamba3"}})", kNo, {"Mamba3"}},
                                 {R"({"ssm_cfg": {"headdim": 64}})", kNo, {"headdim"}},
                             });
  // silu has two names
  Json json = parse(kSmallest);
  json["hidden_act"] = "swish";
  parse_config(json, "f");
}

TEST(ConfigTest, MalformedKeysAreNamed) {
  constexpr ErrorKind kBad = ErrorKind::kInput;
  expect_refusals(
      kSmallest,
      {
          {R"({"model_type": null})", kBad, {"model_type is missing"}},
          {R"({"model_type": 3})", kBad, {"model_type", "string"}},
          {R"({"vocab_size": null})", kBad, {"vocab_size is missing"}},
          {R"({"num_hidden_layers": null})", kBad, {"num_hidden_layers is missing"}},
          {R"({"hidden_size": null})", kBad, {"hidden_size"}},
          {R"({"hidden_size": null, "d_model": 8})", kBad, {"n_layer"}},
          {R"({"vocab_size": 16.0})", kBad, {"whole number", "vocab_size", "16.0"}},
          {R"({"vocab_size": "16"})", kBad, {"whole number", "vocab_size"}},
          {R"({"vocab_size": true})", kBad, {"vocab_size", "true"}},
          {R"({"vocab_size": [16]})", kBad, {"vocab_size", "[16]"}},
          {R"({"vocab_size": -16})", kBad, {"vocab_size", "-16"}},
          {R"({"vocab_size": 0})", kBad, {"vocab_size"}},
          {R"({"vocab_size": 257})", kBad, {"vocab_size", "256"}},
          {R"({"hidden_size": 9223372036854775807})", kBad, {"d_model"}},
          {R"({"hidden_size": 9223372036854775808})", kBad, {"hidden_size"}},
          {R"({"hidden_size": 18446744073709551616})", kBad, {"hidden_size"}},
          {R"({"hidden_size": -9223372036854775808})", kBad, {"d_model"}},
          {R"({"hidden_size": 1e3})", kBad, {"hidden_size"}},
          {R"({"hidden_size": 16777217})", kBad, {"d_model"}},
          {R"({"num_hidden_layers": 0})", kBad, {"n_layers"}},
          {R"({"num_hidden_layers": 4294967297})", kBad, {"n_layers"}},
          {R"({"state_size": 65})", kBad, {"d_state"}},
          {R"({"state_size": 0})", kBad, {"d_state"}},
          {R"({"conv_kernel": 5})", kBad, {"d_conv"}},
          {R"({"expand": 2.5})", kBad, {"expand"}},
          {R"({"expand": 16777216})", kBad, {"d_inner"}},
          {R"({"expand": -2})", kBad, {"expand"}},
          {R"({"time_step_rank": "max"})", kBad, {"time_step_rank"}},
          {R"({"time_step_rank": 0})", kBad, {"dt_rank"}},
          {R"({"layer_norm_epsilon": "1e-5"})", kBad, {"layer_norm_epsilon"}},
          {R"({"layer_norm_epsilon": "Infinity"})", kBad, {"norm_epsilon"}},
          {R"({"layer_norm_epsilon": {"__float__": "NaN"}})", kBad, {"norm_epsilon"}},
          {R"({"layer_norm_epsilon": {"__float__": "Infinity", "x": 1}})", kBad, {"epsilon"}},
          {R"({"layer_norm_epsilon": -1e-5})", kBad, {"norm_epsilon"}},
          {R"({"time_step_min": NaN})", kBad, {"dt_min"}},
          {R"({"time_step_max": -Infinity})", kBad, {"dt_max"}},
          {R"({"time_step_min": 0.5})", kBad, {"dt_min", "dt_max"}},
          {R"({"time_step_floor": -1})", kBad, {"dt_init_floor"}},
          {R"({"time_step_scale": 0})", kBad, {"dt_scale"}},
          {R"({"time_step_init_scheme": "other"})", kBad, {"time_step_init_scheme", "other"}},
          {R"({"use_bias": 1})", kBad, {"use_bias", "true or false"}},
          {R"({"use_conv_bias": "yes"})", kBad, {"use_conv_bias"}},
          {R"({"tie_word_embeddings": 0})", kBad, {"tie_word_embeddings"}},
          {R"({"pad_token_id": 16})", kBad, {"pad_token"}},
          {R"({"pad_token_id": 99999999999})", kBad, {"pad_token"}},
          {R"({"eos_token_id": "x"})", kBad, {"eos_token_id"}},
          {R"({"eos_token_id": []})", kBad, {"eos_token_id"}},
          {R"({"hidden_act": 3})", kBad, {"hidden_act"}},
          {R"({"d_model": 99})", kBad, {"hidden_size", "100", "d_model", "99"}},
          {R"({"n_layer": 4})", kBad, {"num_hidden_layers", "n_layer"}},
          {R"({"tie_embeddings": false, "tie_word_embeddings": true})", kBad, {"tie_embeddings"}},
          {R"({"gmamba": 3})", kBad, {"gmamba", "object"}},
          {R"({"gmamba": {"labels": "a"}})", kBad, {"labels"}},
          {R"({"gmamba": {"labels": [1]}})", kBad, {"labels"}},
          {R"({"gmamba": {"labels": ["a"]}})", kBad, {"without a task"}},
          {R"({"gmamba": {"task": "classification"}})", kBad, {"labels"}},
          {R"({"gmamba": {"task": "classification", "labels": ["a", "a"]}})", kBad, {"twice"}},
          {R"({"gmamba": {"task": "regression", "labels": [""]}})", kBad, {"empty"}},
          {R"({"gmamba": {"trained_context": -1}})", kBad, {"trained_context"}},
          {R"({"gmamba": {"both_strands": 1}})", kBad, {"both_strands"}},
          {R"({"gmamba": {"task": "poetry"}})", ErrorKind::kUnsupported, {"poetry"}},
          {R"({"gmamba": {"pool": "median"}})", ErrorKind::kUnsupported, {"median"}},
          {R"({"gmamba": {"invented": 1}})", ErrorKind::kUnsupported, {"invented", "newer"}},
      });
  expect_refusals(kMambaSsm,
                  {
                      {R"({"d_model": null})", kBad, {"hidden_size, or d_model"}},
                      {R"({"n_layer": null})", kBad, {"n_layer"}},
                      {R"({"vocab_size": null})", kBad, {"vocab_size is missing"}},
                      {R"({"vocab_size": 9223372036854775807})", kBad, {"vocab_size"}},
                      {R"({"pad_vocab_size_multiple": 0})", kBad, {"pad_vocab_size_multiple"}},
                      {R"({"pad_vocab_size_multiple": 512})", kBad, {"vocab_size", "512"}},
                      {R"({"ssm_cfg": 3})", kBad, {"ssm_cfg", "object"}},
                      {R"({"ssm_cfg": {"d_state": "x"}})", kBad, {"ssm_cfg", "d_state"}},
                      {R"({"ssm_cfg": {"dt_rank": 1.5}})", kBad, {"dt_rank"}},
                      {R"({"ssm_cfg": {"dt_init": "other"}})", kBad, {"dt_init"}},
                      {R"({"tie_embeddings": "x"})", kBad, {"tie_embeddings"}},
                  });
  for (const char* text : {"[]", "3", "\"x\"", "null"}) {
    expect_error(
        kBad, {"x/config.json", "object"}, [&] { read(text); }, text);
  }
  expect_error(kBad, {"x/config.json"}, [] { read("{}"); });
}

}  // namespace
}  // namespace gmamba
