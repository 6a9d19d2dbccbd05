// SPDX-License-Identifier: Apache-2.0
/// Typed reading of the members of one JSON object. Messages say "FILE: expected a whole number for
/// KEY, found ...".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "libmamba/core/json.h"

namespace gmamba {

class JsonFields {
 public:
  /// `json` must outlive this. Throws kInput when it is not an object.
  JsonFields(const Json& json, std::string name);

  const std::string& name() const { return name_; }
  const Json& json() const { return json_; }

  /// The value of a key; null counts as absent, as it does in transformers.
  const Json* find(const char* key) const;
  bool has(const char* key) const { return find(key) != nullptr; }

  /// Each leaves `value` as it is when the key is absent and throws kInput on another type. Whole
  /// numbers must be JSON integers that fit int64. Numbers may be infinities or NaN in the forms
  /// that Python's json and transformers 5 write.
  void read(const char* key, int64_t& value) const;
  void read(const char* key, double& value) const;
  void read(const char* key, bool& value) const;
  void read(const char* key, std::string& value) const;
  /// A whole number that must be there.
  int64_t required(const char* key) const;

  /// A whole number out of any value, `key` for messages.
  int64_t whole(const char* key, const Json& value) const;
  [[noreturn]] void expected(std::string_view what, const char* key, const Json& found) const;

 private:
  const Json& json_;
  std::string name_;
};

/// A value as short text for messages.
std::string printable(const Json& value);

}  // namespace gmamba
