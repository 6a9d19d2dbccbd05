// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/json.h"

#include <set>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// Replaces bare NaN and infinities outside strings by the strings nlohmann-json can hold. The text
/// keeps its meaning: readers of numbers accept these three strings.
std::string quote_nonfinite(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\' && i + 1 < text.size()) {
        out.append(text.substr(i, 2));
        i += 2;
        continue;
      }
      in_string = c != '"';
      out += c;
      ++i;
      continue;
    }
    bool replaced = false;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (text.substr(i).starts_with(word)) {
        out += concat('"', word, '"');
        i += word.size();
        replaced = true;
        break;
      }
    }
    if (!replaced) {
      in_string = c == '"';
      out += c;
      ++i;
    }
  }
  return out;
}

/// Walks the text without building anything, so that depth and duplicates are refused before a tree
/// exists.
class Inspector final : public nlohmann::json_sax<Json> {
 public:
  Inspector(std::string_view name, const JsonLimits& limits) : name_(name), limits_(limits) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    enter();
    keys_.emplace_back();
    return true;
  }
  bool key(string_t& key) override {
    require(keys_.back().insert(key).second || !limits_.reject_duplicate_keys, ErrorKind::kInput,
            name_, ": the key '", printable(key), "' stands twice in one object");
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(size_t) override {
    enter();
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // the library's text repeats raw input; only its number and our position are safe to show
    fail(ErrorKind::kInput, name_, ": not valid JSON at byte ", position, " (nlohmann-json error ",
         error.id, ")");
  }

 private:
  void enter() {
    require(++depth_ <= limits_.depth, ErrorKind::kInput, name_, ": nested deeper than ",
            limits_.depth, " levels");
  }

  std::string_view name_;
  const JsonLimits& limits_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view name, JsonLimits limits) {
  std::string quoted;
  if (limits.allow_nonfinite) {
    quoted = quote_nonfinite(text);
    text = quoted;
  }
  Inspector inspector(name, limits);
  require(Json::sax_parse(text, &inspector), ErrorKind::kInput, name, ": not valid JSON");
  return Json::parse(text);
}

}  // namespace gmamba
