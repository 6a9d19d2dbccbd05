// SPDX-License-Identifier: Apache-2.0
#include "pipelines/run_record.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "libmamba/core/file.h"

namespace gmamba {
namespace {

TEST(RunRecord, HoldsWhatMadeTheOutput) {
  const auto out =
      std::filesystem::path(testing::TempDir()) / (std::to_string(::getpid()) + "_record_test.npy");
  write_file(out, "12345");
  RunRecord record("embed", {"gmamba", "embed", "caf\xe9.fa"}, Json{{"bin", 10}});
  record.set_model("m", "abc");
  record.set_seed(7);
  record.add_input(out);
  record.add_input("-");
  record.add_bases(1000);
  record.add_records(2);
  record.set_result("rows", 2);
  record.write_beside(out);
  const Json json = parse_json(read_file(out.string() + ".json", 1 << 20), "record");
  EXPECT_EQ(json["command"], "embed");
  EXPECT_EQ(json["command_line"].size(), 3u);
  EXPECT_EQ(json["options"]["bin"], 10);
  EXPECT_EQ(json["model"]["sha256"], "abc");
  EXPECT_EQ(json["inputs"][0]["bytes"], 5);
  EXPECT_FALSE(json["inputs"][1].contains("bytes"));
  EXPECT_EQ(json["bases"], 1000);
  EXPECT_GT(json["bases_per_second"].get<double>(), 0);
  EXPECT_GT(json["peak_memory_bytes"].get<int64_t>(), 1 << 20);
  EXPECT_FALSE(json["htslib"].get<std::string>().empty());
  EXPECT_EQ(json["started"].get<std::string>().size(), 20u);
}

TEST(RunRecord, IsNotWrittenForStdout) {
  const RunRecord record("embed", {}, Json::object());
  record.write_beside("-");
  EXPECT_FALSE(std::filesystem::exists("-.json"));
}

}  // namespace
}  // namespace gmamba
