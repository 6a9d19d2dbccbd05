// SPDX-License-Identifier: Apache-2.0
#include "libmamba/tokenizer_files.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"
#include "libmamba/json_fields.h"

namespace gmamba {
namespace {

constexpr int64_t kMostTokens = 256;
constexpr std::string_view kLetters = "ACGTN";

std::string lower(char letter) { return to_lower(std::string_view(&letter, 1)); }

bool has(const Vocabulary& vocabulary, std::string_view token) {
  const auto& tokens = vocabulary.tokens;
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

/// "[PAD]", "<pad>": a token that no sequence spells.
bool is_special(std::string_view token) {
  return token.size() > 2 && ((token.front() == '[' && token.back() == ']') ||
                              (token.front() == '<' && token.back() == '>'));
}

/// Names of tokens by id while they are collected from two places of the file.
class TokenList {
 public:
  explicit TokenList(const std::string& name) : name_(name) {}

  void add(const std::string& token, int64_t id) {
    require(id >= 0 && id < kMostTokens, ErrorKind::kUnsupported, name_, ": the token '",
            printable(std::string_view(token)), "' has the id ", id,
            "; character-level vocabularies of at most ", kMostTokens, " tokens are supported");
    const auto slot = static_cast<size_t>(id);
    if (slot >= tokens_.size()) tokens_.resize(slot + 1);
    if (seen_.insert(token).second) {
      require(!taken_.contains(id), ErrorKind::kInput, name_, ": two tokens have the id ", id);
      taken_.insert(id);
      tokens_[slot] = token;
    } else {
      require(taken_.contains(id) && tokens_[slot] == token, ErrorKind::kInput, name_,
              ": the token '", printable(std::string_view(token)), "' has two ids");
    }
  }
  std::vector<std::string> take() {
    require(taken_.size() == tokens_.size(), ErrorKind::kInput, name_, ": ", taken_.size(),
            " tokens but ids up to ", tokens_.empty() ? 0 : tokens_.size() - 1,
            "; the ids must have no gaps");
    return std::move(tokens_);
  }

 private:
  const std::string& name_;
  std::vector<std::string> tokens_;
  std::set<std::string> seen_;
  std::set<int64_t> taken_;
};

/// A k-mer vocabulary cannot be read a character at a time.
void refuse_words(const std::vector<std::string>& tokens, const std::string& name) {
  for (const std::string& token : tokens) {
    const std::string folded = to_lower(token);
    const bool word = folded.size() > 1 && folded.find_first_not_of("acgtun") == std::string::npos;
    require(!word, ErrorKind::kUnsupported, name, ": the token '",
            printable(std::string_view(token)),
            "' spans several bases; only one base a token is supported");
  }
}

void add_added_tokens(const JsonFields& fields, TokenList& list) {
  const Json* added = fields.find("added_tokens");
  if (added == nullptr) return;
  if (!added->is_array()) fields.expected("a list", "added_tokens", *added);
  for (const Json& entry : *added) {
    const JsonFields token(entry, fields.name() + ": added_tokens");
    std::string content;
    token.read("content", content);
    require(!content.empty(), ErrorKind::kInput, token.name(), ": an entry without content");
    list.add(content, token.required("id"));
  }
}

/// Name in tokenizer_config.json and the token it stands for.
std::vector<std::pair<const char*, std::string>> special_roles(const Vocabulary& vocabulary) {
  constexpr std::array<std::pair<const char*, const char*>, 7> kRoles = {{{"bos_token", "[BOS]"},
                                                                          {"eos_token", "[SEP]"},
                                                                          {"sep_token", "[SEP]"},
                                                                          {"cls_token", "[CLS]"},
                                                                          {"pad_token", "[PAD]"},
                                                                          {"mask_token", "[MASK]"},
                                                                          {"unk_token", "[UNK]"}}};
  std::vector<std::pair<const char*, std::string>> roles;
  for (const auto& [role, token] : kRoles) {
    if (has(vocabulary, token)) roles.emplace_back(role, token);
  }
  return roles;
}

Json added_tokens(const Vocabulary& vocabulary) {
  Json out = Json::array();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (!is_special(vocabulary.tokens[id])) continue;
    Json entry = Json::object();
    entry["id"] = id;
    entry["content"] = vocabulary.tokens[id];
    for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) entry[flag] = false;
    entry["special"] = true;
    out.push_back(std::move(entry));
  }
  return out;
}

/// Folds case towards the letters that the vocabulary has. A vocabulary with both cases is left
/// alone: there, case is data.
Json normalizer(const Vocabulary& vocabulary) {
  const bool lower_case =
      std::all_of(vocabulary.bases.begin(), vocabulary.bases.end(), [&](int id) {
        const std::string& token = vocabulary.tokens[static_cast<size_t>(id)];
        return to_lower(token) == token;
      });
  Json out = Json::object();
  if (lower_case) {
    out["type"] = "Lowercase";
    return out;
  }
  Json steps = Json::array();
  for (const char letter : kLetters) {
    if (!has(vocabulary, std::string_view(&letter, 1)) || has(vocabulary, lower(letter))) continue;
    Json step = Json::object();
    step["type"] = "Replace";
    step["pattern"]["String"] = lower(letter);
    step["content"] = std::string(1, letter);
    steps.push_back(std::move(step));
  }
  if (steps.empty()) return nullptr;
  out["type"] = "Sequence";
  out["normalizers"] = std::move(steps);
  return out;
}

}  // namespace

Vocabulary parse_tokenizer(const Json& json, const std::string& name) {
  const JsonFields fields(json, name);
  const Json* object = fields.find("model");
  require(object != nullptr, ErrorKind::kInput, name, ": the key model is missing");
  const JsonFields model(*object, name + ": model");
  std::string type;
  model.read("type", type);
  require(type == "WordLevel", ErrorKind::kUnsupported, name, ": a tokenizer of the type '",
          printable(std::string_view(type)),
          "' is not supported; expected WordLevel with one base a token");
  const Json* vocab = model.find("vocab");
  require(vocab != nullptr && vocab->is_object(), ErrorKind::kInput, model.name(),
          ": the object vocab is missing");
  TokenList list(name);
  for (const auto& [token, id] : vocab->items()) {
    list.add(token, model.whole("vocab", id));
  }
  add_added_tokens(fields, list);
  const std::vector<std::string> tokens = list.take();
  refuse_words(tokens, name);
  try {
    return Vocabulary::from_tokens(tokens);
  } catch (const Error& error) {
    fail(error.kind(), name, ": ", error.message());
  }
}

Json tokenizer_json(const Vocabulary& vocabulary) {
  Json out = Json::object();
  out["version"] = "1.0";
  out["truncation"] = nullptr;
  out["padding"] = nullptr;
  out["added_tokens"] = added_tokens(vocabulary);
  out["normalizer"] = normalizer(vocabulary);
  Json split = Json::object();
  split["type"] = "Split";
  split["pattern"]["Regex"] = ".";
  split["behavior"] = "Isolated";
  split["invert"] = false;
  out["pre_tokenizer"] = std::move(split);
  out["post_processor"] = nullptr;
  out["decoder"]["type"] = "Fuse";
  Json model = Json::object();
  model["type"] = "WordLevel";
  Json vocab = Json::object();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) vocab[vocabulary.tokens[id]] = id;
  model["vocab"] = std::move(vocab);
  // the library wants a name here even if no token bears it
  model["unk_token"] = "[UNK]";
  out["model"] = std::move(model);
  return out;
}

Json tokenizer_config_json(const Vocabulary& vocabulary) {
  Json out = Json::object();
  out["tokenizer_class"] = "PreTrainedTokenizerFast";
  for (const auto& [role, token] : special_roles(vocabulary)) out[role] = token;
  out["padding_side"] = "left";
  out["clean_up_tokenization_spaces"] = false;
  out["model_input_names"] = {"input_ids", "attention_mask"};
  return out;
}

Json special_tokens_json(const Vocabulary& vocabulary) {
  Json out = Json::object();
  for (const auto& [role, token] : special_roles(vocabulary)) out[role] = token;
  return out;
}

Json generation_config_json(const ModelConfig& config) {
  Json out = Json::object();
  out["_from_model_config"] = true;
  const auto put = [&](const char* key, int token) {
    if (token >= 0) out[key] = token;
  };
  put("bos_token_id", config.bos_token);
  put("eos_token_id", config.eos_token);
  put("pad_token_id", config.pad_token);
  out["use_cache"] = true;
  return out;
}

}  // namespace gmamba
