// SPDX-License-Identifier: Apache-2.0
/// The tokenizer files of a model folder: tokenizer.json (character level, WordLevel), read and
/// written, and the small files beside it that make transformers pick it up.
#pragma once

#include <string>

#include "libmamba/config.h"
#include "libmamba/core/json.h"
#include "libmamba/core/vocabulary.h"

namespace gmamba {

/// From a parsed tokenizer.json, `name` for messages. The vocabulary is what the file says, lower
/// case included. Throws kUnsupported for other kinds of tokenizers (BPE, k-mers), kInput for
/// malformed ones.
Vocabulary parse_tokenizer(const Json& json, const std::string& name);

/// tokenizer.json: case folded, one character a token, nothing added around a sequence.
Json tokenizer_json(const Vocabulary& vocabulary);
/// tokenizer_config.json: PreTrainedTokenizerFast with the special tokens that there are.
Json tokenizer_config_json(const Vocabulary& vocabulary);
/// special_tokens_map.json
Json special_tokens_json(const Vocabulary& vocabulary);
/// generation_config.json
Json generation_config_json(const ModelConfig& config);

}  // namespace gmamba
