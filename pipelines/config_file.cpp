// SPDX-License-Identifier: Apache-2.0
#include "pipelines/config_file.h"

#include <toml++/toml.h>

#include <algorithm>

#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr int64_t kLongestConfig = int64_t{4} << 20;

std::string place(const std::string& name, const toml::source_region& source) {
  return concat(printable(name), ":", source.begin.line);
}

/// The text that a flag would be given for a value that is no array.
std::string scalar_text(const toml::node& node, const std::string& what) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* number = node.as_floating_point()) return format_number(number->get(), 17);
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  fail(ErrorKind::kUsage, what, ": expected a string, a number, true or false");
}

std::vector<std::string> value_texts(const toml::node& node, const OptionEntry& entry,
                                     const std::string& what) {
  const toml::array* array = node.as_array();
  if (array == nullptr) {
    return {scalar_text(node, what)};
  }
  require(entry.is_list, ErrorKind::kUsage, what, ": takes one value, not a list");
  std::vector<std::string> texts;
  for (const toml::node& item : *array) {
    texts.push_back(scalar_text(item, what));
  }
  return texts;
}

class ConfigReader {
 public:
  ConfigReader(const std::filesystem::path& path, std::string_view command,
               std::span<const std::string> commands, OptionList& options)
      : name_(path.string()), command_(command), commands_(commands), options_(options) {}

  void read_table(const toml::table& table, bool top) {
    for (const auto& [key_node, node] : table) {
      const std::string key(key_node.str());
      const std::string where = place(name_, node.source());
      if (const toml::table* inner = node.as_table()) {
        require(top && std::find(commands_.begin(), commands_.end(), key) != commands_.end(),
                ErrorKind::kUsage, where, ": [", printable(key), "] is not a command");
        if (key == command_) read_table(*inner, false);
        continue;
      }
      OptionEntry* entry = options_.find(key);
      if (entry == nullptr || entry->meta.flag_only) {
        refuse(key, where);
      }
      const std::string what = concat(where, ": ", key);
      options_.set(*entry, value_texts(node, *entry, what), OptionSource::kConfig, what);
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& key, const std::string& where) const {
    std::vector<std::string> names;
    for (const OptionEntry& entry : options_.entries()) {
      if (!entry.meta.flag_only) names.push_back(entry.name);
    }
    const std::string near = nearest_word(key, names);
    fail(ErrorKind::kUsage, where, ": '", printable(key), "' is not an option of ", command_,
         near.empty() ? "" : concat("; did you mean '", near, "'?"));
  }

  std::string name_;
  std::string_view command_;
  std::span<const std::string> commands_;
  OptionList& options_;
};

}  // namespace

void read_config_file(const std::filesystem::path& path, std::string_view command,
                      std::span<const std::string> commands, OptionList& options) {
  const std::string text = read_file(path, kLongestConfig);
  toml::table table;
  try {
    table = toml::parse(text, path.string());
  } catch (const toml::parse_error& error) {
    fail(ErrorKind::kInput, place(path.string(), error.source()),
         ": not valid TOML: ", printable(error.description()));
  }
  ConfigReader(path, command, commands, options).read_table(table, true);
}

}  // namespace gmamba
