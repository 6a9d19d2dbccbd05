// SPDX-License-Identifier: Apache-2.0
#include "libmamba/model_folder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "libmamba/atomic_folder.h"
#include "libmamba/core/file.h"
#include "libmamba/core/json.h"
#include "libmamba/safetensors.h"
#include "libmamba/tokenizer_files.h"
#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::MemoryLog;
using test::same_values;
using test::slurp;
using test::spit;
using test::tiny_config;
using test::tiny_model;

const fs::path kGolden = fs::path(GMAMBA_SOURCE_DIR) / "test_data/golden";

/// All tensors of a weight file as fp32, to write changed copies.
struct Weights {
  std::map<std::string, std::pair<Shape, std::vector<float>>> tensors;

  explicit Weights(const fs::path& path) {
    const SafetensorsReader reader(path);
    for (const auto& entry : reader.entries()) {
      int64_t size = 1;
      for (const int64_t extent : entry.shape) size *= extent;
      std::vector<float> values(static_cast<size_t>(size));
      reader.read_f32(entry, values);
      tensors[entry.name] = {entry.shape, std::move(values)};
    }
  }
  void write(const fs::path& path, const std::function<bool(const std::string&)>& keep = {}) const {
    std::vector<SafetensorsItem> items;
    for (const auto& [name, tensor] : tensors) {
      if (keep && !keep(name)) continue;
      items.push_back({name, host_view(tensor.second.data(), tensor.first), {}});
    }
    write_safetensors(path, std::move(items), {});
  }
  void rename(const std::string& from, const std::string& to) {
    auto node = tensors.extract(from);
    node.key() = to;
    tensors.insert(std::move(node));
  }
};

class ModelFolderTest : public test::FolderTest {
 protected:
  /// A saved tiny model to damage.
  fs::path saved(const ModelConfig& config = tiny_config()) {
    const fs::path path = folder_ / "model";
    save_model(tiny_model(3, config), path);
    return path;
  }
  fs::path copy_golden(const std::string& name) {
    const fs::path to = folder_ / name;
    fs::copy(kGolden / name, to, fs::copy_options::recursive);
    for (const auto& entry : fs::recursive_directory_iterator(to)) {
      fs::permissions(entry, fs::perms::owner_write, fs::perm_options::add);
    }
    fs::permissions(to, fs::perms::owner_write, fs::perm_options::add);
    return to;
  }
  void edit_config(const fs::path& model, const std::function<void(Json&)>& edit) {
    Json json = parse_json(slurp(model / "config.json"), "config");
    edit(json);
    spit(model / "config.json", json.dump());
  }
  void edit_weights(const fs::path& model, const std::function<void(Weights&)>& edit) {
    Weights weights(model / "model.safetensors");
    edit(weights);
    weights.write(model / "model.safetensors");
  }
};

TEST_F(ModelFolderTest, LoadsTheGoldenFolders) {
  for (const std::string name : {"mamba", "mamba_untied_bias"}) {
    const Model model = load_model(kGolden / name, Device{});
    const SafetensorsReader reader(kGolden / name / "model.safetensors");
    EXPECT_EQ(reader.entries().size(), model.parameters().layout().all().size());
    for (const auto& entry : reader.entries()) {
      std::vector<std::byte> bytes(static_cast<size_t>(entry.end - entry.begin));
      reader.read_bytes(entry, bytes);
      const auto loaded = model.parameters().view(entry.name);
      EXPECT_EQ(loaded.shape(), entry.shape);
      EXPECT_EQ(std::memcmp(loaded.data, bytes.data(), bytes.size()), 0) << entry.name;
    }
    EXPECT_EQ(model.vocabulary().tokens, Vocabulary::characters().tokens);
    EXPECT_EQ(model.config().pad_token, 4);
    EXPECT_EQ(model.config().d_state, name == "mamba" ? 16 : 8);
    EXPECT_EQ(model.config().tie_embeddings, name == "mamba");
  }
}

TEST_F(ModelFolderTest, WritesTheBytesOfTheReferenceWriter) {
  for (const std::string name : {"mamba", "mamba_untied_bias"}) {
    save_model(load_model(kGolden / name, Device{}), folder_ / name);
    EXPECT_EQ(sha256_file(folder_ / name / "model.safetensors"),
              sha256_file(kGolden / name / "model.safetensors"));
    EXPECT_EQ(model_digest(folder_ / name), model_digest(kGolden / name));
    const auto json = [&](const fs::path& path) { return parse_json(slurp(path), "f"); };
    EXPECT_EQ(json(folder_ / name / "tokenizer.json"), json(kGolden / name / "tokenizer.json"));
    const Json ours = json(folder_ / name / "config.json");
    const Json golden = json(kGolden / name / "config.json");
    for (const auto& [key, value] : golden.items()) {
      if (key == "dtype" || key == "transformers_version" || key == "use_associative_scan")
        continue;
      EXPECT_EQ(ours.value(key, Json()), value) << key;
    }
    EXPECT_EQ(ours["torch_dtype"], "float32");
  }
}

TEST_F(ModelFolderTest, RoundTripIsBitIdenticalAndStable) {
  ModelConfig config = tiny_config();
  config.tie_embeddings = false;
  config.use_bias = true;
  config.task = TaskKind::kClassification;
  config.labels = {"Vibrio \"cholerae\"", "\xce\xbb phage", "b"};
  config.pool = PoolMode::kMax;
  config.both_strands = true;
  config.trained_context = 1 << 20;
  const Model model = tiny_model(5, config);
  save_model(model, folder_ / "a", {{"step", "12"}, {"note", "a\nb"}});
  const Model loaded = load_model(folder_ / "a", Device{});
  EXPECT_TRUE(same_values(model.parameters(), loaded.parameters()));
  EXPECT_EQ(to_json(loaded.config()), to_json(config));
  const SafetensorsReader reader(folder_ / "a" / "model.safetensors");
  EXPECT_EQ(reader.metadata().at("step"), "12");
  EXPECT_EQ(reader.metadata().at("note"), "a\nb");
  EXPECT_EQ(reader.metadata().at("format"), "pt");
  save_model(loaded, folder_ / "b", {{"note", "a\nb"}, {"step", "12"}});
  for (const auto& entry : fs::directory_iterator(folder_ / "a")) {
    EXPECT_EQ(slurp(entry.path()), slurp(folder_ / "b" / entry.path().filename()))
        << entry.path().filename();
  }
  const std::set<std::string> expected = {"config.json",           "generation_config.json",
                                          "model.safetensors",     "special_tokens_map.json",
                                          "tokenizer_config.json", "tokenizer.json"};
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "a")) {
    names.insert(entry.path().filename().string());
  }
  EXPECT_EQ(names, expected);
}

TEST_F(ModelFolderTest, KeepsTheMambaSsmDialect) {
  const fs::path path = saved();
  spit(path / "config.json",
       R"({"d_model": 8, "n_layer": 2, "vocab_size": 12, "ssm_cfg": {"d_state": 4, "dt_rank": 1},
           "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
           "pad_vocab_size_multiple": 8})");
  edit_weights(path, [](Weights& weights) {
    weights.rename("backbone.embeddings.weight", "backbone.embedding.weight");
    // mamba_ssm stores the tied head too
    weights.tensors["lm_head.weight"] = weights.tensors["backbone.embedding.weight"];
  });
  const Model model = load_model(path, Device{});
  EXPECT_EQ(model.config().dialect, ConfigDialect::kMambaSsm);
  EXPECT_EQ(model.config().vocab_size, 16);
  EXPECT_EQ(model.config().pad_token, 4);
  EXPECT_TRUE(same_values(model.parameters(), tiny_model(3).parameters()));
  save_model(model, folder_ / "again");
  const SafetensorsReader reader(folder_ / "again" / "model.safetensors");
  EXPECT_NE(reader.find("backbone.embedding.weight"), nullptr);
  EXPECT_EQ(reader.find("lm_head.weight"), nullptr);
  const Json json = parse_json(slurp(folder_ / "again" / "config.json"), "f");
  EXPECT_TRUE(json.contains("d_model"));
  EXPECT_FALSE(json.contains("hidden_size"));
  EXPECT_FALSE(json.contains("gmamba"));  // mamba_ssm refuses keys it does not know
  EXPECT_TRUE(
      same_values(load_model(folder_ / "again", Device{}).parameters(), model.parameters()));
}

TEST_F(ModelFolderTest, AcceptsOnePrefixAndRunFolders) {
  for (const std::string prefix : {"model.", "module.", "_orig_mod."}) {
    const fs::path path = saved();
    edit_weights(path, [&](Weights& weights) {
      std::map<std::string, std::pair<Shape, std::vector<float>>> renamed;
      for (auto& [name, tensor] : weights.tensors) renamed[prefix + name] = tensor;
      weights.tensors = renamed;
    });
    EXPECT_TRUE(same_values(load_model(path, Device{}).parameters(), tiny_model(3).parameters()));
    // the folder above holds model/
    EXPECT_TRUE(
        same_values(load_model(folder_, Device{}).parameters(), tiny_model(3).parameters()));
    edit_weights(path, [&](Weights& weights) {
      weights.rename(prefix + "backbone.norm_f.weight", "backbone.norm_f.weight");
    });
    expect_error(ErrorKind::kInput, {"model.safetensors", "missing"},
                 [&] { load_model(path, Device{}); });
  }
}

TEST_F(ModelFolderTest, ConvertsEveryFloatingType) {
  const fs::path path = saved();
  edit_weights(path, [](Weights& weights) {
    for (auto& [name, tensor] : weights.tensors) {
      for (float& value : tensor.second) value = std::round(value * 16) / 16 + 0.0F;
    }
  });
  const Model expected = load_model(path, Device{});
  const Weights weights(path / "model.safetensors");
  // halves and bf16 of multiples of 1/16 below 16 are exact; written by hand, bit by bit
  const auto half = [](float value) {
    if (value == 0) return uint16_t{0};
    int exponent = 0;
    const float fraction = std::frexp(std::abs(value), &exponent);  // in [0.5, 1)
    const auto bits = static_cast<uint16_t>(std::lround((fraction * 2 - 1) * 1024));
    return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | ((exponent - 1 + 15) << 10) | bits);
  };
  const auto brain = [](float value) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(bits >> 16);
  };
  for (const DType dtype : {DType::kF64, DType::kF16, DType::kBF16}) {
    std::map<std::string, std::vector<double>> wide;
    std::map<std::string, std::vector<uint16_t>> narrow;
    std::vector<SafetensorsItem> items;
    for (const auto& [name, tensor] : weights.tensors) {
      for (const float value : tensor.second) {
        wide[name].push_back(value);
        narrow[name].push_back(dtype == DType::kF16 ? half(value) : brain(value));
      }
      const void* data = dtype == DType::kF64 ? static_cast<const void*>(wide[name].data())
                                              : static_cast<const void*>(narrow[name].data());
      items.push_back({name, make_view(data, dtype, Device{}, tensor.first), {}});
    }
    write_safetensors(path / "model.safetensors", items, {});
    EXPECT_TRUE(same_values(load_model(path, Device{}).parameters(), expected.parameters()))
        << to_string(dtype);
  }
}

TEST_F(ModelFolderTest, ReadsShardsAndChecksTheirIndex) {
  const fs::path path = saved();
  const Weights weights(path / "model.safetensors");
  fs::remove(path / "model.safetensors");
  const auto first = [](const std::string& name) { return name.find("layers.0") < name.size(); };
  const std::string one = "model-00001-of-00002.safetensors";
  const std::string two = "model-00002-of-00002.safetensors";
  weights.write(path / one, first);
  weights.write(path / two, [&](const std::string& name) { return !first(name); });
  Json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", Json::object()}};
  for (const auto& [name, tensor] : weights.tensors) {
    index["weight_map"][name] = first(name) ? one : two;
  }
  const fs::path index_path = path / "model.safetensors.index.json";
  const auto put = [&](const Json& json) { spit(index_path, json.dump()); };
  put(index);
  EXPECT_TRUE(same_values(load_model(path, Device{}).parameters(), tiny_model(3).parameters()));
  const std::string digest = model_digest(path);
  EXPECT_EQ(digest.size(), 64u);

  const auto load = [&] { load_model(path, Device{}); };
  for (const char* bad : {"../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors",
                          "..", "", "model.bin", ".hidden.safetensors", "a\\b.safetensors"}) {
    Json hostile = index;
    hostile["weight_map"]["backbone.norm_f.weight"] = bad;
    put(hostile);
    expect_error(ErrorKind::kInput, {"index.json", "plain name"}, load, bad);
  }
  Json wrong = index;
  wrong["weight_map"]["backbone.norm_f.weight"] = one;
  put(wrong);
  expect_error(ErrorKind::kInput, {"backbone.norm_f.weight", "is not in", one}, load);
  Json less = index;
  less["weight_map"].erase("backbone.norm_f.weight");
  put(less);
  expect_error(ErrorKind::kInput, {two, "backbone.norm_f.weight", "not listed"}, load);
  Json more = index;
  more["weight_map"]["ghost"] = one;
  put(more);
  expect_error(ErrorKind::kInput, {"ghost", "is not in"}, load);
  Json absent = index;
  absent["weight_map"]["backbone.norm_f.weight"] = "model-00003-of-00003.safetensors";
  put(absent);
  expect_error(ErrorKind::kInput, {"00003", "not in the folder"}, load);
  put({{"weight_map", 3}});
  expect_error(ErrorKind::kInput, {"weight_map"}, load);
  put({{"weight_map", {{"a", 3}}}});
  expect_error(ErrorKind::kInput, {"weight_map"}, load);
  spit(index_path, "{");
  expect_error(ErrorKind::kInput, {"index.json", "JSON"}, load);
  put(index);
  weights.write(path / two);
  expect_error(ErrorKind::kInput, {"stands in", one}, load);
}

TEST_F(ModelFolderTest, NamesTheTensorThatDoesNotFit) {
  const std::string name = "backbone.layers.1.mixer.x_proj.weight";
  const auto load = [&] { load_model(folder_ / "model", Device{}); };
  edit_weights(saved(), [&](Weights& weights) { weights.tensors.erase(name); });
  expect_error(ErrorKind::kInput, {"model.safetensors", name, "(9, 16)", "missing"}, load);
  edit_weights(saved(), [&](Weights& weights) { weights.tensors[name].first = {16, 9}; });
  expect_error(ErrorKind::kInput, {"model.safetensors", name, "(9, 16)", "(16, 9)"}, load);
  edit_weights(saved(), [&](Weights& weights) {
    weights.tensors["backbone.layers.2.norm.weight"] = {{8}, std::vector<float>(8)};
  });
  expect_error(ErrorKind::kInput, {"backbone.layers.2.norm.weight", "(8)", "no place"}, load);
  edit_weights(saved(), [&](Weights& weights) {
    weights.tensors["a\x1b[31mb"] = {{1}, std::vector<float>(1)};
  });
  expect_error(ErrorKind::kInput, {"a\\x1b[31mb"}, load);

  std::vector<int32_t> integers(9 * 16);
  const fs::path path = saved();
  const Weights weights(path / "model.safetensors");
  std::vector<SafetensorsItem> items;
  for (const auto& [other, tensor] : weights.tensors) {
    items.push_back({other, host_view(tensor.second.data(), tensor.first), {}});
    if (other == name) items.back().values = host_view(integers.data(), {9, 16});
  }
  write_safetensors(path / "model.safetensors", items, {});
  expect_error(ErrorKind::kInput, {name, "I32"}, load);
}

TEST_F(ModelFolderTest, TiedHeadMustEqualTheEmbedding) {
  const auto add_head = [](float change) {
    return [change](Weights& weights) {
      weights.tensors["lm_head.weight"] = weights.tensors["backbone.embeddings.weight"];
      weights.tensors["lm_head.weight"].second[17] += change;
    };
  };
  const auto load = [&] { load_model(folder_ / "model", Device{}); };
  edit_weights(saved(), add_head(0));
  load();
  edit_weights(saved(), add_head(1e-3F));
  expect_error(ErrorKind::kInput, {"lm_head.weight", "differ", "tie_word_embeddings"}, load);
  edit_weights(saved(), [](Weights& weights) {
    weights.tensors["lm_head.weight"] = {{8, 16}, std::vector<float>(128)};
  });
  expect_error(ErrorKind::kInput, {"lm_head.weight", "(8, 16)", "(16, 8)"}, load);
  edit_config(saved(), [](Json& json) { json["tie_word_embeddings"] = false; });
  expect_error(ErrorKind::kInput, {"lm_head.weight", "missing"}, load);
}

TEST_F(ModelFolderTest, RefusesOtherFamiliesByTheirTensors) {
  struct Case {
    std::string added;
    std::string family;
  };
  for (const Case& c :
       {Case{"backbone.layers.0.mixer.dt_bias", "Mamba-2"},
        Case{"backbone.layers.0.mixer.norm.weight", "Mamba-2"},
        Case{"backbone.layers.0.mixer.B_bias", "Mamba-3"},
        Case{"backbone.layers.0.mlp.fc1.weight", "MLP"},
        Case{"backbone.layers.0.norm.bias", "LayerNorm"}, Case{"backbone.norm_f.bias", "LayerNorm"},
        Case{"backbone.layers.0.mixer.mamba_fwd.D", "Caduceus"},
        Case{"backbone.layers.0.mixer.submodule.D", "Caduceus"},
        Case{"backbone.layers.2.mixer.in_proj.weight", "attention"}}) {
    const fs::path path = saved();
    edit_weights(path, [&](Weights& weights) {
      weights.tensors[c.added] = {{1}, std::vector<float>(1)};
    });
    expect_error(
        ErrorKind::kUnsupported, {"model.safetensors", c.added, c.family},
        [&] { load_model(path, Device{}); }, c.added);
  }
}

TEST_F(ModelFolderTest, SaysWhatAFolderLacks) {
  expect_error(ErrorKind::kIo, {"absent", "no such folder"},
               [&] { load_model(folder_ / "absent", Device{}); });
  expect_error(ErrorKind::kInput, {"config.json", "model/config.json"},
               [&] { load_model(folder_, Device{}); });
  const fs::path path = saved();
  expect_error(ErrorKind::kIo, {"model.safetensors: is a file; expected the folder"},
               [&] { load_model(path / "model.safetensors", Device{}); });
  const auto load = [&] { load_model(path, Device{}); };
  fs::remove(path / "model.safetensors");
  expect_error(ErrorKind::kInput, {"no weights", "model.safetensors"}, load);
  spit(path / "pytorch_model.bin", "\x80\x02");
  expect_error(ErrorKind::kUnsupported, {"pytorch_model.bin", "pickled", "save_file"}, load);
  expect_error(ErrorKind::kUnsupported, {"pickled"}, [&] { model_digest(path); });
  spit(path / "config.json", "{\"model_type\": \"mamba\", }");
  expect_error(ErrorKind::kInput, {"config.json", "byte"}, load);
  spit(path / "config.json", std::string(17 << 20, ' '));
  expect_error(ErrorKind::kInput, {"config.json", "longer"}, load);
}

TEST_F(ModelFolderTest, HugeSizesInTheConfigCostNothing) {
  const fs::path path = saved();
  edit_config(path, [](Json& json) {
    json["hidden_size"] = 1 << 20;
    json["num_hidden_layers"] = 2;
    json["time_step_rank"] = 1;
  });
  // the shapes are compared before terabytes are asked for
  expect_error(ErrorKind::kInput, {"shape"}, [&] { load_model(path, Device{}); });
}

TEST_F(ModelFolderTest, TokenizerMayBeAbsentOrAnother) {
  const fs::path path = saved();
  MemoryLog log;
  fs::remove(path / "tokenizer.json");
  EXPECT_EQ(load_model(path, Device{}, &log).vocabulary().bases[0], 7);
  EXPECT_EQ(log.count(LogLevel::kInfo, "tokenizer.json"), 1);
  const auto load = [&] { load_model(path, Device{}); };

  const Vocabulary lower_case =
      Vocabulary::from_tokens({"[PAD]", "[MASK]", "[UNK]", "a", "c", "g", "t"});
  ModelConfig config = tiny_config();
  config.vocab_size = 8;
  Model model = tiny_model(2, config);
  model.set_vocabulary(lower_case);
  save_model(model, path);
  const Model loaded = load_model(path, Device{});
  EXPECT_EQ(loaded.vocabulary().tokens, lower_case.tokens);
  EXPECT_EQ(loaded.vocabulary().id_of_byte, lower_case.id_of_byte);
  EXPECT_EQ(loaded.vocabulary().n, 2);
  fs::remove(path / "tokenizer.json");
  expect_error(ErrorKind::kInput, {"tokenizer.json", "vocab_size of 8"}, load);
  spit(path / "tokenizer.json", tokenizer_json(Vocabulary::characters()).dump());
  expect_error(ErrorKind::kInput, {"tokenizer.json", "12 tokens", "vocab_size of 8"}, load);
}

TEST_F(ModelFolderTest, ValuesThatAreNotFiniteAreNamed) {
  const float bad = std::numeric_limits<float>::quiet_NaN();
  edit_weights(saved(), [&](Weights& weights) {
    weights.tensors["backbone.norm_f.weight"].second[3] = bad;
    weights.tensors["backbone.norm_f.weight"].second[5] = -INFINITY;
  });
  MemoryLog log;
  const Model model = load_model(folder_ / "model", Device{}, &log);
  EXPECT_EQ(log.count(LogLevel::kWarning, "2 weights are not finite"), 1) << log.text();
  EXPECT_EQ(log.count(LogLevel::kWarning, "backbone.norm_f.weight"), 1);
  expect_error(ErrorKind::kInput, {"backbone.norm_f.weight", "not finite", "element 3"},
               [&] { save_model(model, folder_ / "other"); });
  EXPECT_FALSE(fs::exists(folder_ / "other"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(ModelFolderTest, SavingReplacesModelsAndNothingElse) {
  const fs::path path = saved();
  save_model(tiny_model(9), path / "");  // a separator at the end changes nothing
  EXPECT_TRUE(same_values(load_model(path, Device{}).parameters(), tiny_model(9).parameters()));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
  spit(path / "thesis.tex", "years");
  expect_error(ErrorKind::kUsage, {"thesis.tex"}, [&] { save_model(tiny_model(10), path); });
  EXPECT_EQ(slurp(path / "thesis.tex"), "years");
  fs::remove(path / "thesis.tex");
  EXPECT_TRUE(same_values(load_model(path, Device{}).parameters(), tiny_model(9).parameters()));
  expect_error(ErrorKind::kIo, {"no such folder"},
               [&] { save_model(tiny_model(), folder_ / "a" / "b"); });
  spit(folder_ / "file", "x");
  expect_error(ErrorKind::kIo, {"file"}, [&] { save_model(tiny_model(), folder_ / "file"); });
  EXPECT_EQ(slurp(folder_ / "file"), "x");
  // the working folder by any name is not to be swept away
  const fs::path before = fs::current_path();
  spit(folder_ / "notes", "x");
  fs::current_path(folder_);
  for (const char* here : {".", "./", "../", "model/.."}) {
    EXPECT_THROW(save_model(tiny_model(), here), Error) << here;
  }
  expect_error(ErrorKind::kUsage, {"empty"}, [] { save_model(tiny_model(), ""); });
  expect_error(ErrorKind::kUsage, {"not a place"}, [] { save_model(tiny_model(), "/"); });
  save_model(tiny_model(11), "model");  // a relative name is fine
  fs::current_path(before);
  EXPECT_EQ(slurp(folder_ / "notes"), "x");
  EXPECT_EQ(slurp(path / "config.json").empty(), false);
}

TEST_F(ModelFolderTest, SavingThroughALinkReplacesWhatItPointsTo) {
  saved();
  fs::create_directory_symlink(folder_ / "model", folder_ / "latest");
  save_model(tiny_model(9), folder_ / "latest");
  EXPECT_TRUE(fs::is_symlink(folder_ / "latest"));
  EXPECT_TRUE(same_values(load_model(folder_ / "model", Device{}).parameters(),
                          tiny_model(9).parameters()));
}

TEST_F(ModelFolderTest, LeftoversOfKilledProcessesGo) {
  const fs::path path = saved();
  // process numbers end below 2^22 here, so this one is gone
  fs::create_directory(folder_ / "model.tmp.99999999");
  fs::create_directory(folder_ / "other.tmp.99999999");
  fs::create_directory(folder_ / "model.tmp.1");  // alive, whoever it is
  spit(folder_ / "model.tmp.99999999" / "config.json", "{");
  save_model(tiny_model(4), path);
  EXPECT_FALSE(fs::exists(folder_ / "model.tmp.99999999"));
  EXPECT_TRUE(fs::exists(folder_ / "other.tmp.99999999"));
  EXPECT_TRUE(fs::exists(folder_ / "model.tmp.1"));
  EXPECT_TRUE(is_temporary(folder_ / "model.tmp.1"));
  for (const char* name : {"model", ".tmp.1", "a.tmp.", "a.tmp.x", "a.tmp.1x", "tmp.1"}) {
    EXPECT_FALSE(is_temporary(name)) << name;
  }
}

}  // namespace
}  // namespace gmamba
