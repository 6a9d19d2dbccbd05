// SPDX-License-Identifier: Apache-2.0
/// Sequences as the baselines read them: A, C, G, T are 0..3, anything else breaks a context.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "libmamba/core/vocabulary.h"

namespace gmamba {

constexpr uint8_t kNoBase = 4;

/// codes[i] of each letter: case folded, U as T, all else kNoBase. Sizes must agree.
void encode_bases(std::string_view letters, std::span<uint8_t> codes);
std::vector<uint8_t> encode_bases(std::string_view letters);

/// codes[i] of each token of a model's vocabulary. Sizes must agree; `codes` may be `tokens`.
void tokens_to_bases(const Vocabulary& vocabulary, std::span<const uint8_t> tokens,
                     std::span<uint8_t> codes);

}  // namespace gmamba
