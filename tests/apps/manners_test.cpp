// SPDX-License-Identifier: Apache-2.0
/// What the command does before any pipeline runs: usage, help, versions, unknown words.
#include <gtest/gtest.h>

#include "libmamba/core/version.h"
#include "tests/apps/command_runner.h"

namespace gmamba::test {
namespace {

TEST(Manners, AloneItPrintsUsageOnStderrAndFails) {
  const Outcome got = run("", test_folder());
  EXPECT_EQ(got.code, 2);
  EXPECT_EQ(got.out, "");
  EXPECT_TRUE(contains(got.err, "Usage: gmamba <command>"));
}

TEST(Manners, HelpGoesToStdout) {
  for (const char* words : {"--help", "-h", "help"}) {
    const Outcome got = run(words, test_folder());
    EXPECT_EQ(got.code, 0) << words;
    EXPECT_EQ(got.err, "") << words;
    EXPECT_TRUE(contains(got.out, "Usage: gmamba <command>"));
    EXPECT_TRUE(contains(got.out, "Exit codes"));
  }
}

TEST(Manners, VersionsAreBare) {
  const std::string number(version());
  EXPECT_EQ(run("--version", test_folder()).out, "gmamba " + number + "\n");
  EXPECT_EQ(run("--version-only", test_folder()).out, number + "\n");
  const Outcome full = run("version", test_folder());
  EXPECT_EQ(full.code, 0);
  EXPECT_TRUE(contains(full.out, "gmamba " + number + "\nhtslib "));
}

TEST(Manners, UnknownCommandsAreRefused) {
  const Outcome got = run("zzz", test_folder());
  EXPECT_EQ(got.code, 2);
  EXPECT_EQ(got.out, "");
  EXPECT_TRUE(contains(got.err, "gmamba: error: unknown command 'zzz'"));
  EXPECT_TRUE(contains(run("\"$(printf 'a\\033[31mb')\"", test_folder()).err, "\\x1b"))
      << "terminal codes are shown, not sent";
}

TEST(Manners, AFullDiskIsAnError) {
  const Outcome got = run("--help >/dev/full", test_folder());
  EXPECT_EQ(got.code, 1);
  EXPECT_TRUE(contains(got.err, "cannot write to standard output: No space left on device"));
}

TEST(Manners, AClosedStdoutIsAnError) {
  const Outcome got = run("--version >&-", test_folder());
  EXPECT_EQ(got.code, 1);
  EXPECT_TRUE(contains(got.err, "cannot write to standard output"));
}

}  // namespace
}  // namespace gmamba::test
