// SPDX-License-Identifier: Apache-2.0
#include "apps/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "libmamba/core/text.h"
#include "pipelines/config_file.h"

namespace gmamba::app {
namespace {

constexpr size_t kHelpColumn = 28;
constexpr size_t kHelpWidth = 100;

/// "-o,--out", "--force,!--no-force", or the bare name of a positional.
std::string cli11_name(const OptionEntry& entry) {
  if (entry.meta.positional) {
    return entry.name;
  }
  std::string name = "--" + entry.name;
  if (entry.meta.letter != 0) {
    name = concat("-", entry.meta.letter, ",", name);
  }
  return entry.is_bool && entry.default_text == "true" ? name + ",!--no-" + entry.name : name;
}

/// Values as given, by option name.
using Given = std::map<std::string, std::vector<std::string>>;

/// Where the command has no positional arguments, a list option takes all values up to the next
/// option, as a shell spells out `--fasta *.fa`.
void add_option(CLI::App& app, const OptionEntry& entry, bool has_positional, Given& given) {
  const auto keep = [&given, name = entry.name](const CLI::results_t& results) {
    given[name] = results;
    return true;
  };
  CLI::Option* option = nullptr;
  if (entry.is_bool) {
    option = app.add_flag_function(cli11_name(entry), [&given, name = entry.name](int64_t count) {
      given[name] = {count > 0 ? "1" : "0"};
    });
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    return;
  }
  option = app.add_option(cli11_name(entry), keep);
  option->type_size(1)->expected(1);
  if (entry.is_list) {
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    if (entry.meta.positional || !has_positional) {
      option->expected(-1);
    }
  }
}

/// CLI11's words for its own failures, made ours.
[[noreturn]] void refuse(const CLI::ParseError& error) {
  const std::string_view what = error.what();
  const size_t colon = what.find(": ");
  if (error.get_name() == "ArgumentMismatch" && colon != std::string_view::npos) {
    const bool many = what.find("At Most", colon) != std::string_view::npos;
    fail(ErrorKind::kUsage, printable(what.substr(0, colon)),
         many ? ": given more than once" : ": expected a value after it");
  }
  fail(ErrorKind::kUsage, printable(what));
}

bool is_flag(std::string_view name, const OptionList& list) {
  if (name == "-h" || name == "--help" || name == "--print-config") return true;
  return std::any_of(list.entries().begin(), list.entries().end(), [&](const OptionEntry& entry) {
    return entry.is_bool && (name == "--" + entry.name ||
                             (entry.meta.letter != 0 && name == concat("-", entry.meta.letter)) ||
                             (entry.default_text == "true" && name == "--no-" + entry.name));
  });
}

/// Refuses a value of a flag, as in --quiet=often or -q=3, of which CLI11 would not say the flag.
/// --quiet=false is left, for what a config file has switched on.
void refuse_flag_value(const std::string& argument, const OptionList& list) {
  const size_t equals = argument.find('=');
  if (equals == std::string::npos || !argument.starts_with('-')) return;
  std::string name = argument.substr(0, equals);
  const std::string value = argument.substr(equals + 1);
  if (name.starts_with("--")) {
    if (value == "true" || value == "false") return;
  } else {
    // flags of one letter may stand together, -vq=3; the value is the last one's
    for (size_t i = 1; i + 1 < name.size(); ++i) {
      if (!is_flag(concat("-", name[i]), list)) return;
    }
    name = concat("-", name.back());
  }
  if (!is_flag(name, list)) return;
  fail(ErrorKind::kUsage, name, ": a flag, which takes no value; found '", printable(value), "'");
}

[[noreturn]] void refuse_argument(const std::string& argument, const OptionList& list) {
  if (!argument.starts_with("-") || argument == "-") {
    fail(ErrorKind::kUsage, "unexpected argument '", printable(argument), "'");
  }
  std::vector<std::string> flags = {"--help", "--config", "--print-config"};
  for (const OptionEntry& entry : list.entries()) {
    if (!entry.meta.positional) flags.push_back("--" + entry.name);
  }
  const std::string near = nearest_word(argument.substr(0, argument.find('=')), flags);
  fail(ErrorKind::kUsage, "unknown option '", printable(argument), "'",
       near.empty() ? "" : concat("; did you mean ", near, "?"));
}

std::string left_column(const OptionEntry& entry) {
  std::string value(entry.meta.value);
  if (value.empty() && !entry.is_bool) {
    value = entry.words.empty() ? "VALUE" : "WORD";
  }
  if (entry.meta.positional) {
    return concat("  ", value, entry.is_list ? "..." : "");
  }
  std::string out = entry.meta.letter != 0 ? concat("  -", entry.meta.letter, ", ") : "      ";
  out += "--";
  out += entry.is_bool && entry.default_text == "true" ? "[no-]" + entry.name : entry.name;
  return entry.is_bool ? out : concat(out, " ", value);
}

std::string right_column(const OptionEntry& entry) {
  std::string out = entry.help;
  std::string extra;
  const std::string shown =
      entry.meta.shown_default.empty() ? entry.default_text : std::string(entry.meta.shown_default);
  if (entry.meta.required) {
    extra = "required";
  } else if (!shown.empty() && !(entry.is_bool && shown == "false")) {
    extra = "default: " + shown;
  }
  if (entry.is_list && !entry.meta.positional) {
    extra += concat(extra.empty() ? "" : "; ", "repeatable");
  }
  return extra.empty() ? out : concat(out, " [", extra, "]");
}

/// `text` broken into lines, from `column` on.
std::string wrapped(std::string_view text, size_t column) {
  std::string out;
  size_t width = column;
  for (const std::string& word : split(text, ' ')) {
    if (width > column && width + 1 + word.size() > kHelpWidth) {
      out += "\n" + std::string(column, ' ');
      width = column;
    } else if (width > column) {
      out += ' ';
      ++width;
    }
    out += word;
    width += word.size();
  }
  return out;
}

std::string help_line(const std::string& left, const std::string& right) {
  const std::string gap = left.size() + 1 < kHelpColumn
                              ? std::string(kHelpColumn - left.size(), ' ')
                              : "\n" + std::string(kHelpColumn, ' ');
  return concat(left, gap, wrapped(right, kHelpColumn), "\n");
}

}  // namespace

CommandLine read_command_line(const Command& command, std::span<const std::string> arguments,
                              std::span<const std::string> commands, OptionList& list) {
  CommandLine line;
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  app.add_flag("-h,--help", line.help);
  app.add_flag("--print-config", line.print_config);
  std::string config;
  app.add_option("--config", config);
  Given given;
  const bool has_positional = std::any_of(
      list.entries().begin(), list.entries().end(),
      [](const OptionEntry& entry) { return static_cast<bool>(entry.meta.positional); });
  for (const OptionEntry& entry : list.entries()) {
    add_option(app, entry, has_positional, given);
  }
  for (const std::string& argument : arguments) {
    if (argument == "--") break;  // names of inputs follow
    refuse_flag_value(argument, list);
  }
  // CLI11 takes the arguments from the back
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    refuse(error);
  }
  if (line.help) {
    return line;
  }
  const std::vector<std::string> extras = app.remaining();
  if (!extras.empty()) {
    refuse_argument(extras.front(), list);
  }
  for (const auto& [name, texts] : given) {
    OptionEntry& entry = *list.find(name);
    list.set(entry, texts, OptionSource::kFlag,
             entry.meta.positional ? std::string(entry.meta.value) : "--" + name);
  }
  list.read_environment();
  if (!config.empty()) {
    read_config_file(config, command.name, commands, list);
  }
  if (!line.print_config) {
    list.check_required();
  }
  return line;
}

std::string help_text(const Command& command, const OptionList& list) {
  std::string out = concat("Usage: gmamba ", command.name, " ", command.usage, "\n\n",
                           wrapped(command.summary, 0), "\n");
  std::string heading = "\n";
  for (const OptionEntry& entry : list.entries()) {
    if (entry.heading != heading) {
      heading = entry.heading;
      out += concat("\n", heading.empty() ? "Options" : heading, ":\n");
    }
    out += help_line(left_column(entry), right_column(entry));
  }
  out += help_line("      --config FILE",
                   "options from a TOML file with the same names as the flags; flags win");
  out += help_line("      --print-config", "print the resolved options as TOML, and stop");
  out += help_line("  -h, --help", "print this text");
  if (!command.details.empty()) {
    out += concat("\n", command.details, "\n");
  }
  return out;
}

std::string usage_text(std::span<const Command> commands) {
  std::string out =
      "Usage: gmamba <command> [options] [inputs]\n\nDNA at full length with Mamba "
      "models.\n\n";
  std::string_view group;
  for (const Command& command : commands) {
    const std::string_view shown = command.group == group ? std::string_view() : command.group;
    group = command.group;
    out += concat("  ", shown, std::string(9 - shown.size(), ' '), command.name,
                  std::string(11 - std::min<size_t>(10, command.name.size()), ' '), command.summary,
                  "\n");
  }
  out +=
      "\n  gmamba <command> --help        the command's options (also: gmamba help <command>)\n"
      "  gmamba --version               version (also: version, --version-only)\n"
      "\nExit codes: 0 done; 1 bad data, io or device failure; 2 usage; 3 not supported here;\n"
      "70 a fault of gmamba's own; 130, 143 stopped by SIGINT, SIGTERM.\n";
  return out;
}

}  // namespace gmamba::app
