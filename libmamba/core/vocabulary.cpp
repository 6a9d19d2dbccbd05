// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/vocabulary.h"

#include <map>
#include <string_view>

#include "libmamba/core/error.h"

namespace gmamba {

Vocabulary Vocabulary::characters() {
  return from_tokens({"[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C",
                      "G", "T", "N"});
}

Vocabulary Vocabulary::from_tokens(const std::vector<std::string>& tokens) {
  require(tokens.size() <= 256, ErrorKind::kUnsupported, "a vocabulary of ", tokens.size(),
          " tokens; at most 256 are supported");
  Vocabulary vocabulary;
  vocabulary.tokens = tokens;
  std::map<std::string, int> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    vocabulary.complement.push_back(static_cast<uint8_t>(i));
    ids[tokens[i]] = static_cast<int>(i);
  }
  const auto find = [&](const std::string& name) {
    const auto found = ids.find(name);
    return found == ids.end() ? -1 : found->second;
  };
  // upper or lower case letters, as the tokenizer normalises them
  const auto base = [&](char letter) {
    const int upper = find(std::string(1, letter));
    return upper >= 0 ? upper : find(std::string(1, static_cast<char>(letter - 'A' + 'a')));
  };
  constexpr std::string_view kBases = "ACGT";
  for (size_t i = 0; i < kBases.size(); ++i) {
    vocabulary.bases[i] = base(kBases[i]);
    require(vocabulary.bases[i] >= 0, ErrorKind::kInput, "tokenizer: no token for the base ",
            kBases[i]);
  }
  for (size_t i = 0; i < 4; ++i) {
    vocabulary.complement[static_cast<size_t>(vocabulary.bases[i])] =
        static_cast<uint8_t>(vocabulary.bases[3 - i]);
  }
  vocabulary.pad = find("[PAD]");
  vocabulary.unk = find("[UNK]");
  vocabulary.mask = find("[MASK]");
  vocabulary.bos = find("[BOS]");
  vocabulary.eos = find("[SEP]");
  vocabulary.n = base('N') >= 0 ? base('N') : vocabulary.unk;
  require(vocabulary.n >= 0, ErrorKind::kInput, "tokenizer: neither N nor [UNK] is in it");

  vocabulary.id_of_byte.fill(-1);
  const auto set = [&](char letter, int id) {
    vocabulary.id_of_byte[static_cast<unsigned char>(letter)] = static_cast<int16_t>(id);
    vocabulary.id_of_byte[static_cast<unsigned char>(letter - 'A' + 'a')] =
        static_cast<int16_t>(id);
  };
  for (size_t i = 0; i < 4; ++i) set(kBases[i], vocabulary.bases[i]);
  set('U', vocabulary.bases[3]);
  for (const char letter : std::string_view("NRYKMSWBDHV")) set(letter, vocabulary.n);
  return vocabulary;
}

}  // namespace gmamba
