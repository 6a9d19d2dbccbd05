// SPDX-License-Identifier: Apache-2.0
#include "pipelines/info.h"

#include "libmamba/core/file.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

class InfoTest : public PipelineTest {
 protected:
  InfoOptions options(const std::string& name) {
    InfoOptions options;
    options.path = path(name);
    options.common.device = "cpu";
    return options;
  }
  std::string report(const std::string& name) {
    Job job;
    info(options(name), job);
    return job.report;
  }
};

TEST_F(InfoTest, DescribesAModelAndHashesItsFiles) {
  const Model model = make_model("model");
  InfoOptions wanted = options("model");
  wanted.common.out = path("info.json");
  Job job;
  info(wanted, job);
  const Json found = parse_json(slurp(path("info.json")), "info")["model"];
  EXPECT_EQ(found["architecture"]["d_model"], 12);
  EXPECT_EQ(found["architecture"]["layers"], 2);
  EXPECT_EQ(found["parameters"], model.parameters().layout().count());
  EXPECT_EQ(found["vocabulary"].size(), model.vocabulary().tokens.size());
  EXPECT_TRUE(found["trained_context"].is_null()) << "unknown is not zero";
  bool weights = false;
  for (const Json& file : found["files"]) {
    const std::string name = file["name"];
    EXPECT_EQ(file["sha256"], sha256_file(path("model/" + name)));
    weights = weights || name == "model.safetensors";
  }
  EXPECT_TRUE(weights);
  const std::string text = report("model");
  EXPECT_NE(text.find("d model"), std::string::npos) << text;
  EXPECT_NE(text.find("model.safetensors"), std::string::npos);
}

TEST_F(InfoTest, DescribesARunByItsLastLines) {
  make_model("run_model");
  std::filesystem::create_directories(path("run/checkpoints"));
  std::filesystem::rename(path("run_model"), path("run/model"));
  spit(path("run/run.json"), R"({"command": "pretrain", "seed": 4})");
  spit(path("run/metrics.jsonl"),
       "{\"step\": 10, \"split\": \"train\", \"loss\": 1.5}\n"
       "{\"step\": 10, \"split\": \"valid\", \"loss\": 1.25}\n"
       "{\"step\": 20, \"split\": \"train\", \"loss\": 1.125, \"tokens\": 40960}\n"
       "{\"step\": 30, \"split\": \"tra");
  const Json run = describe_run(path("run"));
  EXPECT_EQ(run["command"], "pretrain");
  EXPECT_EQ(run["last_metrics"]["train"]["loss"], 1.125);
  EXPECT_EQ(run["last_metrics"]["valid"]["step"], 10);
  const std::string text = report("run");
  EXPECT_NE(text.find("1.125"), std::string::npos) << text;
  EXPECT_NE(text.find("40,960"), std::string::npos) << text;
  EXPECT_NE(text.find("d model"), std::string::npos) << "the run's model too";
}

TEST_F(InfoTest, OtherFoldersAreRefused) {
  std::filesystem::create_directory(path("empty"));
  expect_error(ErrorKind::kInput, {"empty", "neither a model"}, [&] { report("empty"); });
  expect_error(ErrorKind::kInput, {"nowhere", "no such folder"}, [&] { report("nowhere"); });
  std::ofstream(path("file")) << "text";
  expect_error(ErrorKind::kInput, {"file: is a file; name a model folder"},
               [&] { report("file"); });
}

TEST_F(InfoTest, APlanIsMeasured) {
  make_model("model");
  InfoOptions wanted = options("model");
  wanted.common.plan = true;
  wanted.common.segment = 512;
  Job job;
  info(wanted, job);
  EXPECT_NE(job.report.find("segment of 512 tokens"), std::string::npos) << job.report;
  EXPECT_NE(job.report.find("measured now"), std::string::npos);
}

}  // namespace
}  // namespace gmamba::test
