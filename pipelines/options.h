// SPDX-License-Identifier: Apache-2.0
/// Options of a pipeline, listed once. A pipeline has one struct with defaults, a `validate()` that
/// throws kUsage, and a `visit` that names each member; from that list come the flags, the keys of
/// a config file, the environment variables, the help text and the JSON record.
///
///   struct EmbedOptions {
///     std::string model;
///     int64_t bin = 0;
///     CommonOptions common;
///     template <class V>
///     void visit(V& v) {
///       v("model", model, "model or run folder", {.value = "DIR", .required = true});
///       v("bin", bin, "one row for each N bases", {.value = "N", .shown_default = "off"});
///       common.visit(v);
///     }
///     void validate() const;
///   };
///
/// Members may be int64_t (written 4096, 16k, 1.5M; or bytes such as 2GiB), double, bool (a flag),
/// std::string, an enum with OptionWords, std::optional of these, and vectors of int64_t, double or
/// std::string (a repeatable flag; with `comma` also a list in one value).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/json.h"

namespace gmamba {

struct OptionMeta {
  std::string_view value = {};          ///< the value's word in help: "FILE", "N"
  std::string_view shown_default = {};  ///< help shows this in place of the default
  char letter = 0;                      ///< short flag
  bool required = false;
  bool positional = false;  ///< an input, given without a flag
  bool bytes = false;       ///< an int64_t read as a size in bytes
  bool comma = false;       ///< a vector whose values may also be joined by commas
  bool flag_only = false;   ///< neither in config files nor in the record
  /// Another option that says the same in another way: the one from the stronger source stands, and
  /// the other is as if it weren't given.
  std::string_view in_place_of = {};
};

/// The words of an enum, by specialisation:
///   template <> struct OptionWords<Pool> {
///     static constexpr std::pair<std::string_view, Pool> kWords[] = {{"mean", Pool::kMean}, ...};
///   };
template <class E>
struct OptionWords;

/// Who set a value; a later one wins over an earlier one, whatever the order of setting.
enum class OptionSource { kDefault, kConfig, kEnvironment, kFlag };

struct OptionEntry {
  std::string name;  ///< without dashes: "max-memory"
  std::string help;
  std::string heading;  ///< section of the help text
  OptionMeta meta;
  bool is_bool = false;
  bool is_list = false;
  std::vector<std::string> words;  ///< choices of an enum
  std::string default_text;
  OptionSource source = OptionSource::kDefault;
  /// Reads texts into the member; `what` names the option in messages ("--bin", "x.toml:3: bin").
  std::function<void(const std::vector<std::string>&, std::string_view what)> read;
  std::function<Json()> json;
  std::function<void()> reset;  ///< back to the default
};

/// The visitor that collects entries. It refers to the struct that it visited, which must outlive
/// it at the same address.
class OptionList {
 public:
  /// Heading of the options that follow.
  void heading(std::string_view text) { heading_ = text; }

  template <class T>
  void operator()(std::string_view name, T& member, std::string_view help, OptionMeta meta = {});

  const std::vector<OptionEntry>& entries() const { return entries_; }
  /// nullptr when there is none.
  OptionEntry* find(std::string_view name);
  /// Sets an option from texts unless a stronger source set it or what it is in place of; throws
  /// kUsage naming `what`.
  void set(OptionEntry& entry, const std::vector<std::string>& texts, OptionSource source,
           std::string_view what);
  /// Reads GMAMBA_<NAME> (upper case, dashes as underscores) for every option that has one.
  void read_environment();
  /// Throws kUsage naming the required options that nobody set.
  void check_required() const;
  /// All values by name, in the order of the list.
  Json to_json() const;
  /// All values as a config file that sets them.
  std::string to_toml() const;

 private:
  std::vector<OptionEntry> entries_;
  std::string heading_;
};

/// The candidate nearest to a misspelt word, or "" when none is near.
std::string nearest_word(std::string_view word, std::span<const std::string> candidates);

namespace detail {

int64_t read_integer(std::string_view text, std::string_view what, bool bytes);
double read_number(std::string_view text, std::string_view what);
bool read_bool(std::string_view text, std::string_view what);
[[noreturn]] void refuse_word(std::string_view text, std::string_view what,
                              const std::vector<std::string>& words);
std::string value_text(const Json& value);

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <class T>
std::vector<std::string> words_of() {
  std::vector<std::string> words;
  if constexpr (std::is_enum_v<T>) {
    for (const auto& [word, value] : OptionWords<T>::kWords) words.emplace_back(word);
  }
  return words;
}

template <class T>
T read_value(std::string_view text, std::string_view what, bool bytes) {
  if constexpr (std::is_same_v<T, bool>) {
    return read_bool(text, what);
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return read_integer(text, what, bytes);
  } else if constexpr (std::is_same_v<T, double>) {
    return read_number(text, what);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return std::string(text);
  } else {
    static_assert(std::is_enum_v<T>, "an option of a type that options.h does not know");
    for (const auto& [word, value] : OptionWords<T>::kWords) {
      if (word == text) return value;
    }
    refuse_word(text, what, words_of<T>());
  }
}

template <class T>
Json value_json(const T& value) {
  if constexpr (IsOptional<T>::value) {
    return value ? value_json(*value) : Json();
  } else if constexpr (IsVector<T>::value) {
    Json list = Json::array();
    for (const auto& item : value) list.push_back(value_json(item));
    return list;
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& [word, candidate] : OptionWords<T>::kWords) {
      if (candidate == value) return std::string(word);
    }
    fail(ErrorKind::kInternal, "an option holds an enumerator without a word");
  } else {
    return value;
  }
}

/// The one text of an option that takes one value.
const std::string& single_text(const std::vector<std::string>& texts, std::string_view what);
/// The values of a list option, split at commas where it allows that.
std::vector<std::string> list_texts(const std::vector<std::string>& texts, bool comma);

template <class T>
void read_member(T& member, const std::vector<std::string>& texts, std::string_view what,
                 const OptionMeta& meta) {
  if constexpr (IsVector<T>::value) {
    T values;
    for (const std::string& text : list_texts(texts, meta.comma)) {
      values.push_back(read_value<typename T::value_type>(text, what, meta.bytes));
    }
    member = std::move(values);
  } else if constexpr (IsOptional<T>::value) {
    member = read_value<typename T::value_type>(single_text(texts, what), what, meta.bytes);
  } else {
    member = read_value<T>(single_text(texts, what), what, meta.bytes);
  }
}

template <class T>
std::vector<std::string> member_words() {
  if constexpr (IsVector<T>::value || IsOptional<T>::value) {
    return words_of<typename T::value_type>();
  } else {
    return words_of<T>();
  }
}

}  // namespace detail

template <class T>
void OptionList::operator()(std::string_view name, T& member, std::string_view help,
                            OptionMeta meta) {
  require(find(name) == nullptr, ErrorKind::kInternal, "option '", name, "' is listed twice");
  OptionEntry entry;
  entry.name = name;
  entry.help = help;
  entry.heading = heading_;
  entry.meta = meta;
  entry.is_bool = std::is_same_v<T, bool>;
  entry.is_list = detail::IsVector<T>::value;
  entry.words = detail::member_words<T>();
  entry.default_text = detail::value_text(detail::value_json(member));
  entry.read = [&member, meta](const std::vector<std::string>& texts, std::string_view what) {
    detail::read_member(member, texts, what, meta);
  };
  entry.json = [&member] { return detail::value_json(member); };
  entry.reset = [&member, initial = member] { member = initial; };
  entries_.push_back(std::move(entry));
}

}  // namespace gmamba
