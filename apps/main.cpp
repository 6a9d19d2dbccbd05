// SPDX-License-Identifier: Apache-2.0
/// The command `gmamba`: picks the subcommand, turns errors into one line and an exit code.
#include <cstdio>
#include <iostream>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/console.h"
#include "apps/surroundings.h"
#include "io/htslib_version.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"
#include "libmamba/core/version.h"
#include "pipelines/stop.h"

namespace gmamba::app {
namespace {

constexpr int kDone = 0, kFailure = 1, kUsage = 2, kUnsupported = 3, kFault = 70;

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return kUsage;
    case ErrorKind::kInput:
    case ErrorKind::kIo:
    case ErrorKind::kDevice:
      return kFailure;
    case ErrorKind::kUnsupported:
      return kUnsupported;
    case ErrorKind::kShape:
    case ErrorKind::kInternal:
      return kFault;
  }
  return kFault;
}

/// Runs `body`; whatever leaves it becomes lines on stderr and an exit code.
template <class Body>
int guarded(Console& console, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    console.error(error);
    return exit_code(error.kind());
  } catch (const Stopped& stopped) {
    console.error(concat("stopped by signal ", stopped.signal, "; unfinished output was dropped"));
    return 128 + stopped.signal;
  } catch (const std::bad_alloc&) {
    console.error("out of memory; use a smaller --segment or --max-memory");
    return kFailure;
  } catch (const std::exception& exception) {
    // the text of a library's exception may repeat raw input
    console.error(concat("internal fault (", typeid(exception).name(),
                         "); please report it with the command line"));
    return kFault;
  } catch (...) {
    console.error("internal fault; please report it with the command line");
    return kFault;
  }
}

void put_stdout(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

int print(std::string_view text) {
  put_stdout(text);
  finish_stdout();
  return kDone;
}

std::string long_version() {
  return concat("gmamba ", version(), "\nhtslib ", htslib_version(), "\ncompiled with ",
#ifdef __clang__
                "clang ",
#else
                "gcc ",
#endif
                __VERSION__, "\n");
}

/// Time, memory and rate: the last line of a run.
std::string summary(const Job& job) {
  const ProcessUsage usage = process_usage();
  const double seconds = job.record.seconds();
  std::string out =
      concat("done in ", format_duration(seconds), ", CPU ", format_duration(usage.cpu_seconds),
             ", peak memory ", format_bytes(usage.peak_memory_bytes));
  if (job.record.bases() > 0 && seconds > 0) {
    out += concat(", ", format_short(static_cast<double>(job.record.bases())), " bases, ",
                  format_short(static_cast<double>(job.record.bases()) / seconds), " bases/s");
  }
  return out;
}

int run_command(const Command& command, std::span<const std::string> arguments,
                std::span<const std::string> command_line, std::span<const std::string> names) {
  Console console(concat("gmamba ", command.name));
  return guarded(console, [&] {
    BoundCommand bound = command.bind();
    const CommandLine line = read_command_line(command, arguments, names, bound.list);
    if (line.help) {
      return print(help_text(command, bound.list));
    }
    bound.validate();
    if (line.print_config) {
      return print(bound.list.to_toml());
    }
    const CommonOptions& common = *bound.common;
    console.set_verbosity(common.quiet     ? Verbosity::kQuiet
                          : common.verbose ? Verbosity::kVerbose
                                           : Verbosity::kNormal);
    Job job(&console, &console, common.quiet ? ProgressMode::kNone : common.progress,
            RunRecord(std::string(command.name), {command_line.begin(), command_line.end()},
                      bound.list.to_json()));
    bound.run(job);
    job.progress.finish();
    put_stdout(job.report);
    finish_stdout();
    console.summarise_warnings();
    console.write(LogLevel::kInfo, summary(job));
    return stop_requested() ? 128 + stop_signal() : kDone;
  });
}

int refuse_command(Console& console, const std::string& word, std::span<const std::string> names) {
  const std::string near = nearest_word(word, names);
  console.error(
      concat("unknown command '", printable(word), "'",
             near.empty() ? "; gmamba --help lists them" : concat("; did you mean '", near, "'?")));
  return kUsage;
}

int dispatch(const std::vector<std::string>& line) {
  const std::vector<Command> commands = all_commands();
  std::vector<std::string> names;
  for (const Command& command : commands) {
    names.emplace_back(command.name);
  }
  const auto find = [&](const std::string& name) -> const Command* {
    for (const Command& command : commands) {
      if (command.name == name) return &command;
    }
    return nullptr;
  };
  Console console("gmamba");
  if (line.size() < 2) {
    std::cerr << usage_text(commands);
    return kUsage;
  }
  const std::string& word = line[1];
  const bool alone = line.size() == 2;
  if (word == "help" && line.size() == 3) {
    const Command* command = find(line[2]);
    if (command == nullptr) return refuse_command(console, line[2], names);
    const std::vector<std::string> help = {"--help"};
    return run_command(*command, help, line, names);
  }
  if (alone && (word == "--help" || word == "-h" || word == "help")) {
    return guarded(console, [&] { return print(usage_text(commands)); });
  }
  if (alone && word == "--version") {
    return guarded(console, [] { return print(concat("gmamba ", version(), "\n")); });
  }
  if (alone && word == "--version-only") {
    return guarded(console, [] { return print(concat(version(), "\n")); });
  }
  if (alone && word == "version") {
    return guarded(console, [] { return print(long_version()); });
  }
  if (const Command* command = find(word)) {
    return run_command(*command, std::span(line).subspan(2), line, names);
  }
  return refuse_command(console, word, names);
}

}  // namespace
}  // namespace gmamba::app

int main(int argc, char** argv) {
  gmamba::app::prepare_process();
  return gmamba::app::dispatch({argv, argv + argc});
}
