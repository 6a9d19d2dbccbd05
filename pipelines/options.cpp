// SPDX-License-Identifier: Apache-2.0
#include "pipelines/options.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// Runs a parser of core/text.h; what it refuses is here the fault of whoever gave the option.
template <class Parse>
auto as_usage(Parse&& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    fail(ErrorKind::kUsage, error.message());
  }
}

std::string joined(const std::vector<std::string>& words, std::string_view separator) {
  std::string out;
  for (const std::string& word : words) {
    out += (out.empty() ? "" : std::string(separator)) + word;
  }
  return out;
}

/// Number of single-letter edits (insert, delete, replace, swap of neighbours) between two words.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        cost[i][j] = i + j;
        continue;
      }
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1,
                             cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
      }
    }
  }
  return cost[a.size()][b.size()];
}

}  // namespace

OptionEntry* OptionList::find(std::string_view name) {
  const auto at = std::find_if(entries_.begin(), entries_.end(),
                               [&](const OptionEntry& entry) { return entry.name == name; });
  return at == entries_.end() ? nullptr : &*at;
}

void OptionList::set(OptionEntry& entry, const std::vector<std::string>& texts, OptionSource source,
                     std::string_view what) {
  if (source < entry.source) {
    return;
  }
  for (OptionEntry& other : entries_) {
    if (entry.meta.in_place_of != other.name && other.meta.in_place_of != entry.name) continue;
    if (source < other.source) return;
    if (source > other.source) {
      other.reset();
      other.source = OptionSource::kDefault;
    }
  }
  entry.read(texts, what);
  entry.source = source;
}

void OptionList::read_environment() {
  for (OptionEntry& entry : entries_) {
    if (entry.meta.flag_only || entry.meta.positional) {
      continue;
    }
    std::string variable = "GMAMBA_" + entry.name;
    for (char& c : variable) {
      c = c == '-' ? '_' : c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    }
    if (const char* value = std::getenv(variable.c_str())) {
      set(entry, {value}, OptionSource::kEnvironment, variable);
    }
  }
}

void OptionList::check_required() const {
  std::vector<std::string> missing;
  for (const OptionEntry& entry : entries_) {
    if (entry.meta.required && entry.source == OptionSource::kDefault) {
      missing.push_back(entry.meta.positional ? std::string(entry.meta.value) : "--" + entry.name);
    }
  }
  require(missing.empty(), ErrorKind::kUsage, "missing ", joined(missing, ", "));
}

Json OptionList::to_json() const {
  Json json = Json::object();
  for (const OptionEntry& entry : entries_) {
    if (!entry.meta.flag_only) {
      json[entry.name] = entry.json();
    }
  }
  return json;
}

std::string OptionList::to_toml() const {
  std::string out;
  for (const OptionEntry& entry : entries_) {
    const Json value = entry.json();
    if (entry.meta.flag_only) {
      continue;
    }
    // a JSON text of these types is a TOML value too; TOML has no null
    if (value.is_null()) {
      out += concat("# ", entry.name, " is not set\n");
    } else {
      out += concat(entry.name, " = ", value.dump(), "\n");
    }
  }
  return out;
}

std::string nearest_word(std::string_view word, std::span<const std::string> candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, std::min<size_t>(3, word.size() / 2)) + 1;
  if (word.size() > 64) {
    return best;
  }
  for (const std::string& candidate : candidates) {
    size_t distance = edit_distance(word, candidate);
    if (word.size() >= 3 && candidate.starts_with(word)) {
      distance = std::min<size_t>(distance, 1);
    }
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

namespace detail {

int64_t read_integer(std::string_view text, std::string_view what, bool bytes) {
  return as_usage([&] { return bytes ? parse_bytes(text, what) : parse_count(text, what); });
}

double read_number(std::string_view text, std::string_view what) {
  return as_usage([&] { return parse_double(text, what); });
}

bool read_bool(std::string_view text, std::string_view what) {
  const std::string word = to_lower(text);
  if (word == "true" || word == "yes" || word == "on" || word == "1") return true;
  if (word == "false" || word == "no" || word == "off" || word == "0") return false;
  fail(ErrorKind::kUsage, what, ": expected true or false, found '", printable(text), "'");
}

void refuse_word(std::string_view text, std::string_view what,
                 const std::vector<std::string>& words) {
  const std::string near = nearest_word(text, words);
  fail(ErrorKind::kUsage, what, ": expected ", joined(words, ", "), "; found '", printable(text),
       "'", near.empty() ? "" : concat("; did you mean '", near, "'?"));
}

const std::string& single_text(const std::vector<std::string>& texts, std::string_view what) {
  require(texts.size() == 1, ErrorKind::kUsage, what, ": expected one value, found ", texts.size());
  return texts.front();
}

std::vector<std::string> list_texts(const std::vector<std::string>& texts, bool comma) {
  if (!comma) {
    return texts;
  }
  std::vector<std::string> out;
  for (const std::string& text : texts) {
    for (const std::string& part : split(text, ',')) {
      if (!trim(part).empty()) out.emplace_back(trim(part));
    }
  }
  return out;
}

std::string value_text(const Json& value) {
  if (value.is_null()) return {};
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    std::vector<std::string> parts;
    for (const Json& item : value) parts.push_back(value_text(item));
    return joined(parts, ",");
  }
  if (value.is_number_float()) return format_number(value.get<double>(), 6);
  return value.dump();
}

}  // namespace detail
}  // namespace gmamba
