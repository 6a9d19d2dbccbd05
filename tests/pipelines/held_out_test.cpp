// SPDX-License-Identifier: Apache-2.0
#include "pipelines/held_out.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "libmamba/core/random.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

class HeldOut : public ::testing::Test {
 protected:
  void SetUp() override {
    // tests of one suite run side by side: each has a folder of its own
    folder_ = fs::path(::testing::TempDir()) /
              concat("gmamba_", ::getpid(), "_",
                     ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
    path_ = (folder_ / "g.fa").string();
    Random random(4, RandomUse::kTest);
    std::ofstream out(path_);
    out << ">c\n";
    for (int i = 0; i < 5000; ++i) out << (i % 97 == 0 ? 'N' : "ACGT"[random.below(4)]);
    out << "\n";
    config_.d_model = 16;
    config_.n_layers = 2;
    config_.dt_rank = 1;
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_;
  std::string path_;
  ModelConfig config_;
  Tokenizer tokenizer_{Vocabulary::characters()};
};

TEST_F(HeldOut, SegmentsGiveTheSameLoss) {
  Model model(config_, Device{});
  initialize(model.parameters(), config_, 2);
  const Genome genome({path_});
  Context ctx;
  const Interval interval{0, 0, 100, 4900};
  const LossTotals whole = stream_loss(ctx, model, genome, tokenizer_, interval, 1 << 20);
  int64_t bases = 0;
  for (const char letter : genome.read({0, 0, 101, 4900})) bases += letter == 'N' ? 0 : 1;
  EXPECT_EQ(whole.count, bases);
  for (const int64_t segment : {1, 63, 64, 1000}) {
    const LossTotals split = stream_loss(ctx, model, genome, tokenizer_, interval, segment);
    EXPECT_NEAR(split.loss, whole.loss, 1e-5 * whole.loss) << segment;
    EXPECT_EQ(split.count, whole.count);
  }
}

TEST_F(HeldOut, AnEmptyModelGuessesAllTokensAlike) {
  const Model model(config_, Device{});  // all zero: every logit is 0
  const Genome genome({path_});
  Context ctx;
  const LossTotals totals = stream_loss(ctx, model, genome, tokenizer_, {0, 0, 0, 5000}, 512);
  EXPECT_NEAR(totals.mean(), std::log(16.0), 1e-6);
}

TEST_F(HeldOut, MarkovOfRandomBasesIsTwoBits) {
  const Genome genome({path_});
  const std::vector<double> bits =
      markov_bits_per_base(genome, tokenizer_, {{0, 0, 0, 4000}}, {{0, 0, 4000, 5000}}, {0, 1});
  EXPECT_NEAR(bits.at(0), 2, 0.02);
  EXPECT_NEAR(bits.at(1), 2, 0.02);
}

}  // namespace
}  // namespace gmamba
