// SPDX-License-Identifier: Apache-2.0
/// JSON in and out, nlohmann-json behind it, with the limits that hostile files need.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace gmamba {

/// Keys keep the order they came in.
using Json = nlohmann::ordered_json;

struct JsonLimits {
  int depth = 32;
  bool allow_nonfinite = false;  ///< accept bare NaN, Infinity, -Infinity (Python writes them)
};

/// Whole text, nothing after it but white space; a key that stands twice in an object is refused.
/// Throws kInput with `name` and the byte position.
Json parse_json(std::string_view text, std::string_view name, JsonLimits limits = {});

}  // namespace gmamba
