// SPDX-License-Identifier: Apache-2.0
#include "libmamba/json_fields.h"

#include <limits>
#include <utility>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {

std::string printable(const Json& value) { return printable(std::string_view(value.dump())); }

JsonFields::JsonFields(const Json& json, std::string name) : json_(json), name_(std::move(name)) {
  require(json.is_object(), ErrorKind::kInput, name_, ": expected a JSON object, found ",
          json.type_name());
}

const Json* JsonFields::find(const char* key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

void JsonFields::read(const char* key, int64_t& value) const {
  if (const Json* found = find(key)) value = whole(key, *found);
}

void JsonFields::read(const char* key, bool& value) const {
  const Json* found = find(key);
  if (found == nullptr) return;
  if (!found->is_boolean()) expected("true or false", key, *found);
  value = found->get<bool>();
}

void JsonFields::read(const char* key, std::string& value) const {
  const Json* found = find(key);
  if (found == nullptr) return;
  if (!found->is_string()) expected("a string", key, *found);
  value = found->get<std::string>();
}

void JsonFields::read(const char* key, double& value) const {
  const Json* found = find(key);
  if (found == nullptr) return;
  if (found->is_number()) {
    value = found->get<double>();
    return;
  }
  // {"__float__": "Infinity"} is transformers 5; a bare Infinity arrives here as a string
  const bool wrapped = found->is_object() && found->size() == 1 && found->contains("__float__");
  const Json& word = wrapped ? (*found)["__float__"] : *found;
  if (word == "Infinity") {
    value = std::numeric_limits<double>::infinity();
  } else if (word == "-Infinity") {
    value = -std::numeric_limits<double>::infinity();
  } else if (word == "NaN") {
    value = std::numeric_limits<double>::quiet_NaN();
  } else {
    expected("a number", key, *found);
  }
}

int64_t JsonFields::required(const char* key) const {
  require(has(key), ErrorKind::kInput, name_, ": the key ", key, " is missing");
  int64_t value = 0;
  read(key, value);
  return value;
}

int64_t JsonFields::whole(const char* key, const Json& value) const {
  constexpr uint64_t kLargest = std::numeric_limits<int64_t>::max();
  const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= kLargest;
  if (!value.is_number_integer() || !fits) expected("a whole number", key, value);
  return value.get<int64_t>();
}

void JsonFields::expected(std::string_view what, const char* key, const Json& found) const {
  fail(ErrorKind::kInput, name_, ": expected ", what, " for ", key, ", found ", printable(found));
}

}  // namespace gmamba
