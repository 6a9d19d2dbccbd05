// SPDX-License-Identifier: Apache-2.0
#include "pipelines/options.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "pipelines/config_file.h"
#include "pipelines/job.h"

namespace gmamba {

enum class Fruit { kApple, kPear };
template <>
struct OptionWords<Fruit> {
  static constexpr std::pair<std::string_view, Fruit> kWords[] = {{"apple", Fruit::kApple},
                                                                  {"pear", Fruit::kPear}};
};

namespace {

struct Sample {
  int64_t context = 1024;
  int64_t memory = 0;
  double rate = 0.5;
  double pace = 0;
  bool carry = false;
  std::string name = "x";
  Fruit fruit = Fruit::kApple;
  std::optional<double> limit;
  std::vector<int64_t> orders = {3, 12};
  std::vector<std::string> inputs;

  template <class V>
  void visit(V& v) {
    v("context", context, "tokens");
    v("memory", memory, "bytes", {.bytes = true});
    v("rate", rate, "a rate");
    v("pace", pace, "the same in another way", {.in_place_of = "rate"});
    v("carry", carry, "a flag");
    v("name", name, "a name");
    v("fruit", fruit, "a fruit");
    v("limit", limit, "perhaps");
    v("orders", orders, "a list", {.comma = true});
    v("inputs", inputs, "inputs", {.value = "INPUT", .required = true, .positional = true});
  }
};

class OptionsTest : public testing::Test {
 protected:
  OptionsTest() { sample.visit(list); }
  void set(std::string_view name, const std::vector<std::string>& texts,
           OptionSource source = OptionSource::kFlag) {
    list.set(*list.find(name), texts, source, name);
  }
  std::string refusal(std::string_view name, const std::vector<std::string>& texts) {
    try {
      set(name, texts);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.message();
    }
    ADD_FAILURE() << name << " took a bad value";
    return {};
  }
  /// Reads `text` as a config file of command "embed"; returns the refusal, "" for none.
  std::string config(const std::string& text) {
    const auto path = std::filesystem::path(testing::TempDir()) /
                      (std::to_string(::getpid()) + "_options_test.toml");
    std::ofstream(path) << text;
    const std::vector<std::string> commands = {"embed", "classify"};
    try {
      read_config_file(path, "embed", commands, list);
    } catch (const Error& error) {
      return error.message();
    }
    return {};
  }

  Sample sample;
  OptionList list;
};

TEST_F(OptionsTest, ReadsEveryType) {
  set("context", {"16k"});
  set("memory", {"2GiB"});
  set("rate", {"-1.5e-3"});
  set("carry", {"true"});
  set("name", {"a b"});
  set("fruit", {"pear"});
  set("limit", {"0.25"});
  set("orders", {"1,2", "7"});
  set("inputs", {"a,b.fa", "c.fa"});
  EXPECT_EQ(sample.context, 16000);
  EXPECT_EQ(sample.memory, int64_t{2} << 30);
  EXPECT_DOUBLE_EQ(sample.rate, -1.5e-3);
  EXPECT_TRUE(sample.carry);
  EXPECT_EQ(sample.name, "a b");
  EXPECT_EQ(sample.fruit, Fruit::kPear);
  EXPECT_EQ(sample.limit, 0.25);
  EXPECT_EQ(sample.orders, (std::vector<int64_t>{1, 2, 7}));
  EXPECT_EQ(sample.inputs, (std::vector<std::string>{"a,b.fa", "c.fa"}));
}

TEST_F(OptionsTest, RefusalsNameTheOptionAndTheValue) {
  EXPECT_NE(refusal("context", {"12x"}).find("context: expected"), std::string::npos);
  EXPECT_NE(refusal("context", {"-3"}).find("'-3'"), std::string::npos);
  EXPECT_NE(refusal("rate", {"nan"}).find("'nan'"), std::string::npos);
  EXPECT_NE(refusal("carry", {"maybe"}).find("true or false"), std::string::npos);
  EXPECT_NE(refusal("fruit", {"paer"}).find("did you mean 'pear'"), std::string::npos);
  EXPECT_NE(refusal("name", {"a", "b"}).find("expected one value"), std::string::npos);
}

TEST_F(OptionsTest, StrongerSourcesWinInAnyOrder) {
  set("context", {"7"}, OptionSource::kFlag);
  set("context", {"8"}, OptionSource::kConfig);
  EXPECT_EQ(sample.context, 7);
  set("rate", {"1"}, OptionSource::kConfig);
  set("rate", {"2"}, OptionSource::kEnvironment);
  set("rate", {"3"}, OptionSource::kFlag);
  EXPECT_EQ(sample.rate, 3);
}

TEST_F(OptionsTest, OfTwoWaysToSayTheSameTheStrongerSourceStands) {
  set("pace", {"3"}, OptionSource::kConfig);
  set("rate", {"2"}, OptionSource::kFlag);
  EXPECT_EQ(sample.rate, 2);
  EXPECT_EQ(sample.pace, 0) << "the file's is as if it weren't there";
  set("pace", {"4"}, OptionSource::kEnvironment);
  EXPECT_EQ(sample.pace, 0);
  set("pace", {"5"}, OptionSource::kFlag);
  EXPECT_EQ(sample.pace, 5);
  EXPECT_EQ(sample.rate, 2) << "both were asked for on the command line: validate() will refuse";
}

TEST_F(OptionsTest, ReadsTheEnvironment) {
  setenv("GMAMBA_CONTEXT", "99", 1);
  list.read_environment();
  unsetenv("GMAMBA_CONTEXT");
  EXPECT_EQ(sample.context, 99);
}

TEST_F(OptionsTest, RequiredOptionsAreNamed) {
  try {
    list.check_required();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "missing INPUT");
  }
  set("inputs", {"x.fa"});
  EXPECT_NO_THROW(list.check_required());
}

TEST_F(OptionsTest, JsonAndTomlHoldTheResolvedValues) {
  set("fruit", {"pear"});
  const Json json = list.to_json();
  EXPECT_EQ(json["context"], 1024);
  EXPECT_EQ(json["fruit"], "pear");
  EXPECT_TRUE(json["limit"].is_null());
  EXPECT_EQ(json["orders"].dump(), "[3,12]");
  const std::string toml = list.to_toml();
  Sample other;
  OptionList other_list;
  other.visit(other_list);
  const auto path = std::filesystem::path(testing::TempDir()) /
                    (std::to_string(::getpid()) + "_options_round.toml");
  std::ofstream(path) << toml;
  read_config_file(path, "embed", {}, other_list);
  EXPECT_EQ(other_list.to_json(), json);
}

TEST_F(OptionsTest, ConfigFileSetsTopAndOwnTableOnly) {
  EXPECT_EQ(config("context = 512\nfruit = \"pear\"\norders = [1, 2]\ncarry = true\n"
                   "[embed]\nrate = 2\n[classify]\nunknown_here = 1\n"),
            "");
  EXPECT_EQ(sample.context, 512);
  EXPECT_EQ(sample.fruit, Fruit::kPear);
  EXPECT_EQ(sample.orders, (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(sample.carry);
  EXPECT_EQ(sample.rate, 2);
}

TEST_F(OptionsTest, ConfigFileRefusesWithFileAndLine) {
  EXPECT_NE(config("rate = 1\ncontxt = 5\n").find("options_test.toml:2: 'contxt' is not an option"),
            std::string::npos);
  EXPECT_NE(config("rate = 1\ncontxt = 5\n").find("did you mean 'context'"), std::string::npos);
  EXPECT_NE(config("\nfruit = 3\n").find("options_test.toml:2: fruit: expected apple, pear"),
            std::string::npos);
  EXPECT_NE(config("[paint]\nx = 1\n").find("[paint] is not a command"), std::string::npos);
  EXPECT_NE(config("name = [\"a\"]\n").find("takes one value"), std::string::npos);
  EXPECT_NE(config("name = 1979-05-27\n").find("options_test.toml:1: name"), std::string::npos);
  EXPECT_NE(config("a = = 1\n").find("options_test.toml:1: not valid TOML"), std::string::npos);
}

TEST(NearestWord, FindsNearOnesOnly) {
  const std::vector<std::string> words = {"embed", "classify", "evaluate", "info"};
  EXPECT_EQ(nearest_word("embde", words), "embed");
  EXPECT_EQ(nearest_word("emb", words), "embed");
  EXPECT_EQ(nearest_word("clasify", words), "classify");
  EXPECT_EQ(nearest_word("zzz", words), "");
  EXPECT_EQ(nearest_word(std::string(1000, 'a'), words), "");
}

TEST(RunFolder, IsNeverReplacedUnasked) {
  const auto folder =
      std::filesystem::path(testing::TempDir()) / (std::to_string(::getpid()) + "_claim_me");
  std::filesystem::remove_all(folder);
  EXPECT_NO_THROW(claim_run_folder(folder, false));
  std::filesystem::create_directory(folder);
  EXPECT_NO_THROW(claim_run_folder(folder, false)) << "an empty folder holds nothing to lose";
  std::ofstream(folder / "thesis.tex") << "years of work";
  EXPECT_THROW(claim_run_folder(folder, false), Error);
  EXPECT_THROW(claim_run_folder(folder, true), Error) << "not a run: never removed";
  EXPECT_TRUE(std::filesystem::exists(folder / "thesis.tex"));
  std::ofstream(folder / "run.json") << "{}";
  EXPECT_THROW(claim_run_folder(folder, false), Error);
  EXPECT_NO_THROW(claim_run_folder(folder, true));
  EXPECT_FALSE(std::filesystem::exists(folder));
}

}  // namespace
}  // namespace gmamba
