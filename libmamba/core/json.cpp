// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/json.h"

#include <unordered_set>
#include <utility>
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

/// Builds the tree while the text is read, so that depth and duplicates are refused as they appear
/// and a million keys in one object cost a million steps (ordered_json alone searches them all for
/// each).
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view name, const JsonLimits& limits) : name_(name), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool key(string_t& key) override {
    require(open_.back().keys.insert(key).second, ErrorKind::kInput, name_, ": the key '",
            printable(key), "' stands twice in one object");
    open_.back().key = std::move(key);
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // the library's text repeats raw input; only its number and our position are safe to show
    fail(ErrorKind::kInput, name_, ": not valid JSON at byte ", position, " (nlohmann-json error ",
         error.id, ")");
  }

 private:
  struct Open {
    Json* value;
    std::string key;  ///< of the member that comes next
    std::unordered_set<std::string> keys;
  };

  /// Places a value as root, element or member. Only the last child of an open container ever
  /// grows, so pointers to open containers stay valid.
  template <class Value>
  bool put(Value&& value) {
    last_ = &place(Json(std::forward<Value>(value)));
    return true;
  }
  Json& place(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    Open& parent = open_.back();
    if (parent.value->is_array()) {
      parent.value->push_back(std::move(value));
      return parent.value->back();
    }
    auto& members = parent.value->get_ref<Json::object_t&>();
    members.emplace_back(std::move(parent.key), std::move(value));
    return members.back().second;
  }
  bool open(Json container) {
    require(static_cast<int>(open_.size()) < limits_.depth, ErrorKind::kInput, name_,
            ": nested deeper than ", limits_.depth, " levels");
    put(std::move(container));
    open_.push_back({last_, {}, {}});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view name_;
  const JsonLimits& limits_;
  Json root_;
  Json* last_ = nullptr;
  std::vector<Open> open_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view name, JsonLimits limits) {
  // nlohmann-json takes a zero byte for the end of the text and skips a byte order mark
  const size_t zero = text.find('\0');
  require(zero == std::string_view::npos, ErrorKind::kInput, name,
          ": not valid JSON: a zero byte at byte ", zero);
  require(!text.starts_with("\xef\xbb\xbf"), ErrorKind::kInput, name,
          ": begins with a byte order mark; save it as plain UTF-8");
  std::string quoted;
  if (limits.allow_nonfinite) {
    quoted = quote_nonfinite(text);
    text = quoted;
  }
  Builder builder(name, limits);
  require(Json::sax_parse(text, &builder), ErrorKind::kInput, name, ": not valid JSON");
  return builder.take();
}

}  // namespace gmamba
