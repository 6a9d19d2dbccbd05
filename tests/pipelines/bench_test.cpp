// SPDX-License-Identifier: Apache-2.0
#include "pipelines/bench.h"

#include <gtest/gtest.h>

#include <set>

namespace gmamba::test {
namespace {

constexpr MachineRates kRates = {.copy_bytes = 1e9, .gemm_flops = 1e11, .exps = 1e9};

TEST(Bench, FloorsFollowTheUnitsOfTheDevice) {
  const Work work = {.bytes = 2e9, .flops = 1e11, .exps = 3e9};
  EXPECT_DOUBLE_EQ(work.floor(kRates, true), 3);   // side by side: the slowest unit
  EXPECT_DOUBLE_EQ(work.floor(kRates, false), 4);  // products and exponentials in turn
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

}  // namespace
}  // namespace gmamba::test
