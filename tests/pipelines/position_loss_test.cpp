// SPDX-License-Identifier: Apache-2.0
#include "pipelines/position_loss.h"

#include <cmath>

#include "libmamba/core/text.h"
#include "pipelines/evaluate.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

class ByPosition : public PipelineTest {
 protected:
  EvaluateOptions options(int64_t segment, int64_t context) {
    EvaluateOptions options;
    options.input.inputs = {path("in.fa")};
    options.model = path("model");
    options.by_position = true;
    options.context = context;
    options.common.segment = segment;
    options.common.device = "cpu";
    options.common.out = path("out.tsv");
    return options;
  }

  static Json run(const EvaluateOptions& options) {
    options.validate();
    Job job;
    evaluate(options, job);
    return job.record.to_json();
  }

  /// Loss of each base after the first, each window of `limit` (0: one) read alone; NaN at N.
  static std::vector<double> naive(const Model& model, const std::string& bases, int64_t limit) {
    const auto length = static_cast<int64_t>(bases.size());
    const auto vocab = static_cast<size_t>(model.config().vocab_size);
    const auto d_model = static_cast<size_t>(model.config().d_model);
    const auto table = model.parameters().view("backbone.embeddings.weight").flat<const float>();
    const int64_t step = limit == 0 ? std::max<int64_t>(1, length) : limit;
    std::vector<double> losses;
    for (int64_t begin = 0; begin < length; begin += step) {
      const int64_t end = std::min(length, begin + step);
      const std::vector<float> hidden = naive_hidden(
          model, bases.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      for (int64_t t = begin; t < end && t + 1 < length; ++t) {
        const char next = bases[static_cast<size_t>(t + 1)];
        if (next == 'N') {
          losses.push_back(std::nan(""));
          continue;
        }
        const auto target =
            static_cast<size_t>(model.vocabulary().id_of_byte[static_cast<unsigned char>(next)]);
        double sum = 0, wanted = 0;
        for (size_t v = 0; v < vocab; ++v) {
          double logit = 0;
          for (size_t d = 0; d < d_model; ++d) {
            logit += static_cast<double>(table[v * d_model + d]) *
                     hidden[static_cast<size_t>(t - begin) * d_model + d];
          }
          sum += std::exp(logit);
          if (v == target) wanted = logit;
        }
        losses.push_back(std::log(sum) - wanted);
      }
    }
    return losses;
  }
};

TEST_F(ByPosition, BinsHoldTheLossOfTheirPositionsWhateverTheSegment) {
  const Model model = make_model("model");
  const std::vector<NamedSequence> records = mixed_records();
  write_fasta("in.fa", records);
  for (const int64_t limit : {0, 1, 5, 16, 100}) {
    std::vector<double> whole(20), limited(20), bases(20);
    for (const NamedSequence& record : records) {
      const std::vector<double> all = naive(model, record.bases, 0);
      const std::vector<double> few = naive(model, record.bases, limit);
      for (size_t t = 0; t < all.size(); ++t) {
        if (std::isnan(all[t])) continue;
        const auto bin = static_cast<size_t>(std::floor(std::log2(static_cast<double>(t + 1))));
        whole[bin] += all[t];
        limited[bin] += few[t];
        ++bases[bin];
      }
    }
    for (const int64_t segment : {7, 64, 4096}) {
      const std::string label = concat("limit ", limit, " segment ", segment);
      const Json record = run(options(segment, limit));
      const Json& bins = record["results"]["by_position"];
      const auto rows = read_rows(slurp(path("out.tsv")));
      ASSERT_EQ(bins.size(), 10U) << label;  // 999 bases are predicted in the longest record
      ASSERT_EQ(rows.size(), 11U) << label;
      for (size_t k = 0; k < bins.size(); ++k) {
        EXPECT_EQ(bins[k]["context_from"], int64_t{1} << k);
        EXPECT_EQ(bins[k]["context_to"], (int64_t{2} << k) - 1);
        EXPECT_EQ(bins[k]["bases"], std::llround(bases[k])) << label;
        EXPECT_NEAR(bins[k]["loss"]["mean"].get<double>(), whole[k] / bases[k], 2e-5) << label;
        EXPECT_NEAR(parse_double(rows[k + 1][4], "loss"), whole[k] / bases[k], 3e-5) << label;
        if (limit == 0) {
          EXPECT_FALSE(bins[k].contains("difference"));
          continue;
        }
        EXPECT_NEAR(bins[k]["limited_loss"]["mean"].get<double>(), limited[k] / bases[k], 2e-5);
        EXPECT_NEAR(bins[k]["difference"]["mean"].get<double>(), (limited[k] - whole[k]) / bases[k],
                    4e-5)
            << label;
      }
    }
  }
}

TEST_F(ByPosition, ALimitPastTheRecordChangesNothing) {
  make_model("model");
  write_fasta("in.fa", mixed_records());
  const Json record = run(options(64, 5000));
  for (const Json& bin : record["results"]["by_position"]) {
    EXPECT_EQ(bin["difference"]["mean"], 0.0);
  }
}

TEST_F(ByPosition, RecordsInOneBatchGiveWhatEachGivesAlone) {
  const Model model = make_model("model");
  std::vector<NamedSequence> records;
  for (uint64_t i = 0; i < 60; ++i) {
    records.push_back(
        {"r" + std::to_string(i), random_bases(static_cast<int64_t>(1 + i * 7 % 150), i)});
  }
  write_fasta("in.fa", records);
  for (const int64_t limit : {0, 1, 10, 64, 500}) {
    const Json together = run(options(2048, limit))["results"];
    // a segment of one token holds no record together with another
    const Json alone = run(options(1, limit))["results"];
    EXPECT_EQ(together["predicted_bases"], alone["predicted_bases"]);
    const Json& some = together["by_position"];
    const Json& other = alone["by_position"];
    ASSERT_EQ(some.size(), other.size());
    for (size_t k = 0; k < some.size(); ++k) {
      EXPECT_EQ(some[k]["bases"], other[k]["bases"]);
      EXPECT_EQ(some[k]["blocks"], other[k]["blocks"]) << "limit " << limit << " bin " << k;
      for (const char* key : {"loss", "limited_loss", "difference"}) {
        if (!some[k].contains(key)) continue;
        for (const char* part : {"mean", "low", "high"}) {
          if (some[k][key][part].is_null()) continue;
          EXPECT_NEAR(some[k][key][part].get<double>(), other[k][key][part].get<double>(), 2e-6);
        }
      }
    }
  }
}

TEST_F(ByPosition, MemoryIsThatOfASegmentHoweverManyRecords) {
  const Model model = make_model("model");
  const auto scratch = [&](uint64_t count, int64_t limit) {
    std::vector<NamedSequence> records;
    for (uint64_t i = 0; i < count; ++i) {
      records.push_back({"r" + std::to_string(i), random_bases(100, i)});
    }
    write_fasta("in.fa", records);
    Context ctx;
    const Tokenizer tokenizer(model.vocabulary());
    InputOptions input;
    input.inputs = {path("in.fa")};
    TokenSource source(input, tokenizer, 1, nullptr);
    RecordFeed feed(source, PositionLoss::feed_limits(512));
    PositionLoss loss(ctx, model, 512, limit, nullptr);
    loss.run(feed, source);
    EXPECT_EQ(loss.bases(), static_cast<int64_t>(100 * count));
    return ctx.arena().peak_bytes();
  };
  for (const int64_t limit : {0, 8}) EXPECT_EQ(scratch(2000, limit), scratch(50, limit));
}

TEST_F(ByPosition, TheReportIsAPageWithTheCurve) {
  make_model("model");
  write_fasta("in.fa", mixed_records());
  EvaluateOptions with = options(64, 16);
  with.report = path("curve.html");
  run(with);
  const std::string page = slurp(path("curve.html"));
  for (const char* part : {"<!DOCTYPE html>", "Loss against the context seen", "context_from",
                           "at most 16 bases", "</html>"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
}

TEST_F(ByPosition, OptionsThatDoNotFitAreRefused) {
  EvaluateOptions with = options(64, 0);
  with.labels = "labels.tsv";
  EXPECT_THROW(with.validate(), Error);
  with = options(64, 0);
  with.baseline_train = {"x.fa"};
  EXPECT_THROW(with.validate(), Error);
  with = options(64, 0);
  with.by_position = false;
  with.report = "x.html";
  EXPECT_THROW(with.validate(), Error);
}

TEST(BlockSums, IntervalsAreThoseOfTheBlockMeans) {
  BlockSums sums;
  EXPECT_TRUE(std::isnan(sums.interval().mean));
  sums.add(10, 5);
  EXPECT_DOUBLE_EQ(sums.interval().mean, 2);
  EXPECT_TRUE(std::isnan(sums.interval().low));
  // equal blocks: the ratio estimator is the mean of block means 2, 3, 4 (deviation 1)
  sums.add(15, 5);
  sums.add(20, 5);
  const Interval95 interval = sums.interval();
  EXPECT_DOUBLE_EQ(interval.mean, 3);
  EXPECT_NEAR(interval.high - interval.mean, 4.3027 / std::sqrt(3.0), 1e-4);  // two degrees
  EXPECT_NEAR(interval.mean - interval.low, interval.high - interval.mean, 1e-12);
}

TEST(BlockSums, IntervalsAreStudents) {
  for (const auto& [blocks, t] :
       {std::pair{11, 2.2281}, {12, 2.2010}, {21, 2.0860}, {101, 1.9840}}) {
    BlockSums sums;
    double squares = 0;
    for (int i = 0; i < blocks; ++i) {
      const double value = i - (blocks - 1) / 2.0;
      sums.add(value, 1);
      squares += value * value;
    }
    const double error = std::sqrt(squares / (blocks - 1) / blocks);
    EXPECT_NEAR(sums.interval().high / error, t, 1e-3) << blocks;
  }
}

TEST(BlockSums, IntervalsCoverTheTruthAboutNineteenTimesInTwenty) {
  uint64_t state = 12345;
  const auto uniform = [&state] {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state >> 11) / 9007199254740992.0;
  };
  int covered = 0;
  constexpr int kTrials = 1000;
  for (int trial = 0; trial < kTrials; ++trial) {
    BlockSums sums;
    for (int block = 0; block < 60; ++block) {
      const double bases = 100 + std::floor(uniform() * 300);
      sums.add(bases * (0.8 + uniform()), bases);  // mean 1.3
    }
    const Interval95 interval = sums.interval();
    covered += interval.low <= 1.3 && 1.3 <= interval.high ? 1 : 0;
  }
  EXPECT_GT(covered, kTrials * 92 / 100);
  EXPECT_LT(covered, kTrials * 98 / 100);
}

TEST(PositionPage, TheScaleIsMadeForWhatRestsOnEnoughBases) {
  // as of one long record: a block a bin, far off; then many blocks, 0.01 bits apart
  std::vector<PositionBin> bins;
  for (int k = 0; k < 20; ++k) {
    PositionBin bin{int64_t{1} << k, (int64_t{2} << k) - 1, {}, {}, {}};
    const bool early = k < 12;
    const double nats = early ? 1.1 + 0.5 * (k % 2) : 1.33 + 0.007 * (k % 2);
    // two records that begin alike are no evidence, though they do not differ
    const int blocks = k == 0 ? 2 : early ? 1 : 50;
    for (int b = 0; b < blocks; ++b) {
      const double around = early ? 0 : b % 2 == 0 ? 0.01 : -0.01;
      bin.loss.add(100 * (nats + around), 100);
      bin.limited.add(100 * (nats + around + 0.005), 100);
      bin.difference.add(100 * (0.005 + around / 10), 100);
    }
    bins.push_back(bin);
  }
  const std::string page = position_page("m", bins, 512);
  const std::string first = page.substr(0, page.find("</figure>"));
  // 1.1 to 1.6 nats are 1.59 to 2.31 bits per base; what counts lies within 1.91 to 1.94
  for (const char* tick : {">1.6<", ">1.8<", ">2.0<", ">2.2<"}) {
    EXPECT_EQ(first.find(tick), std::string::npos) << tick;
  }
  EXPECT_NE(first.find(">1.920<"), std::string::npos) << first;
  EXPECT_NE(page.find("the other 24 of the 40 points"), std::string::npos);
  EXPECT_NE(page.find("the other 12 of the 20 points"), std::string::npos);
  EXPECT_NE(page.find("all context: 1.58696 at 1<"), std::string::npos)
      << "what is cut off is drawn too";
  EXPECT_NE(page.find(" at 2</title>"), std::string::npos);
  EXPECT_NE(page.find(" at 741,455</title>"), std::string::npos);
  // of few bases, all that there is
  bins.resize(12);
  const std::string few = position_page("m", bins, 512);
  EXPECT_EQ(few.find("The scale fits"), std::string::npos);
  EXPECT_NE(few.find(">2.2<"), std::string::npos);
}

}  // namespace
}  // namespace gmamba::test
