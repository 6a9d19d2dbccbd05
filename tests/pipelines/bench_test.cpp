// SPDX-License-Identifier: Apache-2.0
#include "pipelines/bench.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

constexpr MachineRates kRates = {.copy_bytes = 1e9, .gemm_flops = 1e11, .exps = 1e9};

TEST(Bench, FloorsFollowTheUnitsOfTheDevice) {
  const Work work = {.bytes = 2e9, .flops = 1e11, .exps = 3e9};
  EXPECT_DOUBLE_EQ(work.floor(kRates, true), 3);   // side by side: the slowest unit
  EXPECT_DOUBLE_EQ(work.floor(kRates, false), 4);  // products and exponentials in turn
}

TEST(Bench, SaysWhatBecameSlower) {
  EXPECT_EQ(slowdown(kRates, kRates), "");
  EXPECT_EQ(slowdown(kRates, {.copy_bytes = 0.96e9, .gemm_flops = 2e11, .exps = 0.96e9}), "");
  EXPECT_EQ(slowdown(kRates, {.copy_bytes = 0.9e9, .gemm_flops = 1e11, .exps = 0.5e9}),
            "the machine became slower meanwhile: copy by 10%, exponentials by 50%; later rows are "
            "slower for it");
}

class BenchReport : public PipelineTest {};

TEST_F(BenchReport, EndsWithRatesMeasuredAgain) {
  BenchOptions options;
  options.common.out = path("bench.json");
  options.part = BenchPart::kKernels;
  options.tokens = 64;
  options.d_model = 16;
  options.repeats = 1;
  Job job;
  bench(options, job);
  EXPECT_NE(job.report.find("\nmeasured again at the end: copy "), std::string::npos);
  const Json json = Json::parse(slurp(path("bench.json")));
  EXPECT_GT(json["exps_per_second"].get<double>(), 0);
  EXPECT_GT(json["at_end"]["exps_per_second"].get<double>(), 0);
  EXPECT_GT(json["rows"].size(), 10U);
}

TEST(Bench, MeasuresEveryOperationAndModel) {
  Context ctx;
  ModelConfig config;
  config.d_model = 32;
  config.n_layers = 2;
  config.dt_rank = 2;
  std::vector<BenchRow> rows = bench_kernels(ctx, config, 128, 1, kRates);
  std::vector<std::string> left_out;
  const auto models =
      bench_models(ctx.device(), {}, config,
                   {.tokens = 128, .stream = 200, .train = 200, .segment = 64}, kRates, left_out);
  EXPECT_TRUE(left_out.empty());
  for (const BenchRow& row : models) EXPECT_GT(row.memory, 0) << row.name;
  rows.insert(rows.end(), models.begin(), models.end());
  std::set<std::string> names;
  for (const BenchRow& row : rows) {
    EXPECT_GT(row.seconds, 0) << row.name;
    EXPECT_GT(row.floor, 0) << row.name;
    names.insert(row.name);
  }
  for (const char* name :
       {"scan forward", "scan backward", "in_proj forward", "norm + AdamW", "model forward",
        "training step", "model forward, segments of 64", "training step, segments of 64"}) {
    EXPECT_TRUE(names.count(name)) << name;
  }
}

TEST(Bench, AStepWithinABoundIsPlannedAndMeasured) {
  ModelConfig config;
  config.d_model = 64;
  config.n_layers = 4;
  config.dt_rank = 4;
  std::vector<std::string> left_out;
  const auto bounded_rows = [&](int64_t max_memory) {
    return bench_models(Device{}, {}, config,
                        {.tokens = 64, .train = 4096, .max_memory = max_memory}, kRates, left_out);
  };
  for (const int64_t mebibytes : {7, 12, 100}) {
    const int64_t bound = mebibytes << 20;
    const BenchRow row = bounded_rows(bound).back();
    EXPECT_EQ(row.shape, "1 x 4096");
    EXPECT_NE(row.name.find("training step, segments of "), std::string::npos) << row.name;
    EXPECT_LE(row.planned, bound);
    EXPECT_LE(row.memory, bound);
    EXPECT_NEAR(static_cast<double>(row.planned), static_cast<double>(row.memory),
                0.05 * static_cast<double>(row.memory))
        << row.name;
  }
  EXPECT_TRUE(left_out.empty());
  EXPECT_EQ(bounded_rows(1 << 20).back().planned, 0) << "that row is not there";
  ASSERT_EQ(left_out.size(), 1u);
  EXPECT_NE(left_out[0].find("--max-memory allows 1 MiB"), std::string::npos) << left_out[0];
}

TEST(Bench, ABoundWithoutTheStepThatItIsOfIsSaidAndNoMore) {
  ModelConfig config;
  config.d_model = 16;
  config.n_layers = 1;
  config.dt_rank = 2;
  std::vector<std::string> left_out;
  const auto rows = bench_models(Device{}, {.threads = 1}, config,
                                 {.tokens = 64, .max_memory = 1 << 30}, kRates, left_out);
  EXPECT_FALSE(rows.empty());
  ASSERT_EQ(left_out.size(), 1u);
  EXPECT_NE(left_out[0].find("--train says of how many tokens"), std::string::npos);
}

}  // namespace
}  // namespace gmamba::test
