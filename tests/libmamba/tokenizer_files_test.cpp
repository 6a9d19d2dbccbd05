// SPDX-License-Identifier: Apache-2.0
#include "libmamba/tokenizer_files.h"

#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

using test::expect_error;
using test::slurp;

/// tokenizer.json as GPN and PlantCAD publish it: lower case, seven tokens.
constexpr const char* kLowerCase = R"({
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [
    {"id": 0, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 1, "content": "[MASK]", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true},
    {"id": 2, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false,
     "normalized": false, "special": true}],
  "normalizer": {"type": "Lowercase"},
  "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated",
                    "invert": false},
  "post_processor": null, "decoder": null,
  "model": {"type": "WordLevel",
            "vocab": {"[PAD]": 0, "[MASK]": 1, "[UNK]": 2, "a": 3, "c": 4, "g": 5, "t": 6},
            "unk_token": "[UNK]"}})";

Vocabulary read(const Json& json) { return parse_tokenizer(json, "x/tokenizer.json"); }

TEST(TokenizerFilesTest, ReadsTheLowerCaseOne) {
  const Vocabulary v = read(parse_json(kLowerCase, "f"));
  EXPECT_EQ(v.tokens, (std::vector<std::string>{"[PAD]", "[MASK]", "[UNK]", "a", "c", "g", "t"}));
  EXPECT_EQ(v.bases, (std::array<int, 4>{3, 4, 5, 6}));
  EXPECT_EQ(v.id_of_byte['A'], 3);
  EXPECT_EQ(v.id_of_byte['a'], 3);
  EXPECT_EQ(v.id_of_byte['N'], 2);  // no N: the unknown token
  EXPECT_EQ(v.complement[3], 6);
  EXPECT_EQ(v.pad, 0);
  EXPECT_EQ(v.bos, -1);
  // what is written reads the same and folds to lower case
  const Json written = tokenizer_json(v);
  EXPECT_EQ(read(written).tokens, v.tokens);
  EXPECT_EQ(written["normalizer"]["type"], "Lowercase");
  EXPECT_EQ(special_tokens_json(v),
            Json({{"pad_token", "[PAD]"}, {"mask_token", "[MASK]"}, {"unk_token", "[UNK]"}}));
}

TEST(TokenizerFilesTest, WritesTheCharacterTokenizer) {
  const Vocabulary v = Vocabulary::characters();
  const Json json = tokenizer_json(v);
  const std::string golden = slurp(GMAMBA_SOURCE_DIR "/test_data/golden/mamba/tokenizer.json");
  EXPECT_EQ(json, parse_json(golden, "f"));  // same members in the same order
  EXPECT_EQ(read(json).tokens, v.tokens);
  EXPECT_TRUE(json["post_processor"].is_null());
  ASSERT_EQ(json["normalizer"]["normalizers"].size(), 5u);
  EXPECT_EQ(json["normalizer"]["normalizers"][4]["pattern"]["String"], "n");

  const Json config = tokenizer_config_json(v);
  EXPECT_EQ(config["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(config["eos_token"], "[SEP]");
  EXPECT_EQ(config["padding_side"], "left");
  EXPECT_EQ(config["model_input_names"], Json({"input_ids", "attention_mask"}));
  EXPECT_EQ(config["clean_up_tokenization_spaces"], false);
  EXPECT_EQ(special_tokens_json(v).size(), 7u);
  EXPECT_EQ(special_tokens_json(v)["bos_token"], "[BOS]");
}

TEST(TokenizerFilesTest, BothCasesAreLeftAlone) {
  const Vocabulary v = Vocabulary::from_tokens({"A", "C", "G", "T", "N", "a", "c", "g", "t"});
  const Json json = tokenizer_json(v);
  ASSERT_EQ(json["normalizer"]["normalizers"].size(), 1u);  // n has no token of its own
  EXPECT_EQ(json["normalizer"]["normalizers"][0]["pattern"]["String"], "n");
  EXPECT_EQ(read(json).tokens, v.tokens);
  const Vocabulary full =
      Vocabulary::from_tokens({"A", "C", "G", "T", "N", "a", "c", "g", "t", "n"});
  EXPECT_TRUE(tokenizer_json(full)["normalizer"].is_null());
}

TEST(TokenizerFilesTest, AddedTokensMayStandAlone) {
  const Vocabulary v = read(parse_json(R"({"added_tokens": [{"id": 5, "content": "<pad>"}],
      "model": {"type": "WordLevel", "vocab": {"T": 3, "A": 0, "N": 4, "C": 1, "G": 2}}})",
                                       "f"));
  EXPECT_EQ(v.tokens, (std::vector<std::string>{"A", "C", "G", "T", "N", "<pad>"}));
  EXPECT_EQ(tokenizer_json(v)["added_tokens"][0]["content"], "<pad>");
}

TEST(TokenizerFilesTest, GenerationConfigNamesTheTokens) {
  ModelConfig config;
  config.bos_token = -1;
  EXPECT_EQ(generation_config_json(config), Json({{"_from_model_config", true},
                                                  {"eos_token_id", 1},
                                                  {"pad_token_id", 4},
                                                  {"use_cache", true}}));
}

TEST(TokenizerFilesTest, OthersAreRefused) {
  struct Case {
    const char* text;
    ErrorKind kind;
    std::vector<std::string> parts;
  };
  constexpr ErrorKind kBad = ErrorKind::kInput;
  constexpr ErrorKind kNo = ErrorKind::kUnsupported;
  const std::vector<Case> cases = {
      {"[]", kBad, {"object"}},
      {"{}", kBad, {"model is missing"}},
      {R"({"model": 3})", kBad, {"model", "object"}},
      {R"({"model": {}})", kNo, {"WordLevel"}},
      {R"({"model": {"type": "BPE", "vocab": {}}})", kNo, {"'BPE'", "WordLevel"}},
      {R"({"model": {"type": 3}})", kBad, {"type"}},
      {R"({"model": {"type": "WordLevel"}})", kBad, {"vocab"}},
      {R"({"model": {"type": "WordLevel", "vocab": []}})", kBad, {"vocab"}},
      {R"({"model": {"type": "WordLevel", "vocab": {}}})", kBad, {"base A"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": "0"}}})", kBad, {"vocab", "\"0\""}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 0.5}}})", kBad, {"vocab"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": -1}}})", kNo, {"'A'", "-1"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 256}}})", kNo, {"'A'", "256"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 9223372036854775807}}})", kNo, {"'A'"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 0, "C": 0}}})", kBad, {"id 0"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 0, "C": 2}}})", kBad, {"no gaps"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 0, "C": 1, "G": 2, "N": 3}}})",
       kBad,
       {"base T"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"A": 0, "C": 1, "G": 2, "T": 3}}})",
       kBad,
       {"neither N"}},
      {R"({"model": {"type": "WordLevel", "vocab": {"AAA": 0, "AAC": 1}}})",
       kNo,
       {"'AAA'", "several bases"}},
      {R"({"added_tokens": 3, "model": {"type": "WordLevel", "vocab": {"A": 0}}})",
       kBad,
       {"added_tokens"}},
      {R"({"added_tokens": [3], "model": {"type": "WordLevel", "vocab": {"A": 0}}})",
       kBad,
       {"added_tokens"}},
      {R"({"added_tokens": [{"id": 0}], "model": {"type": "WordLevel", "vocab": {"A": 0}}})",
       kBad,
       {"without content"}},
      {R"({"added_tokens": [{"content": "x"}], "model": {"type": "WordLevel", "vocab": {"A": 0}}})",
       kBad,
       {"id is missing"}},
      {R"({"added_tokens": [{"content": "A", "id": 1}],
           "model": {"type": "WordLevel", "vocab": {"A": 0, "C": 1}}})",
       kBad,
       {"'A'", "two ids"}},
      {R"({"added_tokens": [{"content": "x", "id": 0}],
           "model": {"type": "WordLevel", "vocab": {"A": 0}}})",
       kBad,
       {"id 0"}},
  };
  for (const Case& c : cases) {
    std::vector<std::string> parts = c.parts;
    parts.push_back("x/tokenizer.json");
    expect_error(
        c.kind, parts, [&] { read(parse_json(c.text, "f")); }, c.text);
  }
}

}  // namespace
}  // namespace gmamba
