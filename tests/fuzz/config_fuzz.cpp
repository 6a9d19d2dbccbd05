// SPDX-License-Identifier: Apache-2.0
/// config.json and tokenizer.json: whatever is accepted must come back equal after it is written
/// and read again.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "libmamba/config.h"
#include "libmamba/core/error.h"
#include "libmamba/core/json.h"
#include "libmamba/tokenizer_files.h"

namespace {

using gmamba::Error;
using gmamba::ErrorKind;
using gmamba::Json;

constexpr gmamba::JsonLimits kLimits = {.allow_nonfinite = true};

void insist(bool promise) {
  if (!promise) std::abort();
}

template <class Body>
void refuse_or_pass(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    insist(error.kind() == ErrorKind::kInput || error.kind() == ErrorKind::kUnsupported);
    insist(error.message().starts_with("input"));
    insist(error.message().find('\n') == std::string::npos);
  }
}

void run_config(const Json& json) {
  const gmamba::ModelConfig config = gmamba::parse_config(json, "input");
  // the mamba_ssm dialect has no place for another epsilon and says so
  if (config.dialect == gmamba::ConfigDialect::kMambaSsm && config.norm_epsilon != 1e-5) return;
  const std::string text = gmamba::to_json(config).dump(2);
  const gmamba::ModelConfig again =
      gmamba::parse_config(gmamba::parse_json(text, "written"), "written");
  insist(again == config);
  insist(gmamba::to_json(again).dump(2) == text);
}

void run_tokenizer(const Json& json) {
  const gmamba::Vocabulary vocabulary = gmamba::parse_tokenizer(json, "input");
  const std::string text = gmamba::tokenizer_json(vocabulary).dump();
  const gmamba::Vocabulary again =
      gmamba::parse_tokenizer(gmamba::parse_json(text, "written"), "written");
  insist(again.tokens == vocabulary.tokens && again.id_of_byte == vocabulary.id_of_byte &&
         again.complement == vocabulary.complement);
  insist(vocabulary.size() <= 256);
  gmamba::tokenizer_config_json(vocabulary).dump();
  gmamba::special_tokens_json(vocabulary).dump();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Json json;
  bool parsed = false;
  refuse_or_pass([&] {
    json = gmamba::parse_json(text, "input", kLimits);
    parsed = true;
  });
  if (!parsed) return 0;
  refuse_or_pass([&] { run_config(json); });
  refuse_or_pass([&] { run_tokenizer(json); });
  return 0;
}
