// SPDX-License-Identifier: Apache-2.0
/// Runs the command as a user's shell would.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace gmamba::test {

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// A fresh folder of the running test.
inline std::filesystem::path test_folder() {
  const auto* info = testing::UnitTest::GetInstance()->current_test_info();
  const auto folder =
      std::filesystem::path(testing::TempDir()) / "gmamba_command" /
      (std::to_string(::getpid()) + "." + info->test_suite_name() + "." + info->name());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

/// `gmamba ARGUMENTS` by the shell, in `folder`. Redirections in the arguments come after ours and
/// win.
inline Outcome run(const std::string& arguments, const std::filesystem::path& folder) {
  const std::string command = "cd '" + folder.string() + "' && '" + GMAMBA_COMMAND +
                              "' >stdout.txt 2>stderr.txt " + arguments;
  const int status = std::system(command.c_str());
  Outcome outcome;
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.out = slurp(folder / "stdout.txt");
  outcome.err = slurp(folder / "stderr.txt");
  return outcome;
}

inline testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in:\n" << text;
}

}  // namespace gmamba::test
