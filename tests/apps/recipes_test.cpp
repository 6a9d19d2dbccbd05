// SPDX-License-Identifier: Apache-2.0
/// Every recipe of recipes/ is taken by the command, and is of the size that it states.
#include <algorithm>
#include <cmath>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"
#include "tests/apps/command_runner.h"

namespace gmamba::test {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> recipes() {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(fs::path(GMAMBA_SOURCE_DIR) / "recipes")) {
    if (entry.path().extension() == ".toml") found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string words(const fs::path& recipe) {
  return "pretrain --config '" + recipe.string() + "' --fasta '" + GMAMBA_SOURCE_DIR +
         "/test_data/lambda.fa.gz' --out run --device cpu";
}

/// The value of `key` in what --print-config says.
double value_of(const std::string& toml, const std::string& key) {
  for (const std::string& line : split(toml, '\n')) {
    if (line.starts_with(key + " = ")) {
      return std::stod(line.substr(key.size() + 3));
    }
  }
  ADD_FAILURE() << key << " is not in:\n" << toml;
  return 0;
}

TEST(Recipes, AreTheFourThatAreDescribed) {
  std::vector<std::string> names;
  for (const fs::path& path : recipes()) names.push_back(path.stem().string());
  EXPECT_EQ(names, (std::vector<std::string>{"1.4M", "40M", "7M", "tiny"}));
}

TEST(Recipes, EachIsPrintedAndPlanned) {
  const fs::path folder = test_folder();
  for (const fs::path& recipe : recipes()) {
    const Outcome printed = run(words(recipe) + " --print-config", folder);
    ASSERT_EQ(printed.code, 0) << recipe << printed.err;
    EXPECT_EQ(value_of(printed.out, "lr"), 8e-3) << recipe;
    EXPECT_EQ(value_of(printed.out, "context"), 1024) << recipe;
    const double steps = value_of(printed.out, "tokens") / value_of(printed.out, "batch-tokens");
    const Outcome planned = run(words(recipe) + " --plan -q", folder);
    ASSERT_EQ(planned.code, 0) << recipe << planned.err;
    EXPECT_TRUE(contains(planned.out, concat("steps ", std::llround(steps), ", each")));
    EXPECT_FALSE(fs::exists(folder / "run")) << "a plan writes nothing";
  }
}

TEST(Recipes, StateDataBudgetAndResult) {
  for (const fs::path& recipe : recipes()) {
    const std::string text = slurp(recipe);
    for (const char* part : {"# Data ", "# Size ", "# Budget ", "# Result "}) {
      EXPECT_TRUE(contains(text, part)) << recipe;
    }
  }
}

}  // namespace
}  // namespace gmamba::test
