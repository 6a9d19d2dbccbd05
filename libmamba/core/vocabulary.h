// SPDX-License-Identifier: Apache-2.0
/// What tokens a model knows: names, ids, the byte each base is read from, complements. Both io/
/// (which encodes) and libmamba/ (which reads and writes tokenizer files) need it, so it lives
/// here.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace gmamba {

struct Vocabulary {
  std::vector<std::string> tokens;  ///< name of each id
  /// Id that a sequence byte is read as (case folded, U as T, IUPAC as N or unknown); -1: an error.
  std::array<int16_t, 256> id_of_byte{};
  /// Id of the complement of each id; specials map to themselves.
  std::vector<uint8_t> complement;
  int pad = -1, unk = -1, mask = -1, bos = -1, eos = -1;
  int n = -1;                                ///< id of N (may equal unk)
  std::array<int, 4> bases{-1, -1, -1, -1};  ///< ids of A, C, G, T

  int size() const { return static_cast<int>(tokens.size()); }
  bool is_base(int id) const {
    return id == bases[0] || id == bases[1] || id == bases[2] || id == bases[3];
  }

  /// The character vocabulary of HyenaDNA and Caduceus: [CLS] 0 ... [UNK] 6 A 7 C 8 G 9 T 10 N 11.
  static Vocabulary characters();
  /// Built from token names and ids as found in a tokenizer.json; throws kInput when A, C, G or T
  /// is missing. Single-letter tokens become bases; N falls back to the unknown token.
  static Vocabulary from_tokens(const std::vector<std::string>& tokens);
};

}  // namespace gmamba
