// SPDX-License-Identifier: Apache-2.0
#include "pipelines/embed.h"

#include <csignal>

#include "pipelines/stop.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

constexpr double kTolerance = 1e-5;

class EmbedTest : public PipelineTest {
 protected:
  EmbedOptions options(const std::string& input, const std::string& out) {
    EmbedOptions options;
    options.input.inputs = {input};
    options.model = path("model");
    options.common.out = path(out);
    options.common.device = "cpu";
    return options;
  }
  NpyArray run(const EmbedOptions& options) {
    options.validate();
    Job job;
    embed(options, job);
    return read_npy(options.common.out);
  }

  /// The vectors that a record should have, by definition.
  static std::vector<std::vector<double>> expected(const Model& model, const std::string& bases,
                                                   const EmbedOptions& options) {
    const int64_t d_model = model.config().d_model;
    const auto length = static_cast<int64_t>(bases.size());
    const bool both = options.strands == Strands::kBoth;
    const int layer = static_cast<int>(options.layer) - 1;
    const std::vector<float> forward = naive_hidden(model, bases, layer);
    const std::vector<float> reverse = naive_hidden(model, reverse_complement(bases), layer);
    const int64_t bin = options.pool == EmbedPool::kNone ? 1 : options.bin;
    const PoolMode mode = options.pool == EmbedPool::kLast  ? PoolMode::kLast
                          : options.pool == EmbedPool::kMax ? PoolMode::kMax
                                                            : PoolMode::kMean;
    std::vector<std::vector<double>> rows;
    for (int64_t begin = 0; begin < std::max<int64_t>(length, bin == 0 ? 1 : 0);
         begin += bin == 0 ? std::max<int64_t>(1, length) : bin) {
      const int64_t end = bin == 0 ? length : std::min(length, begin + bin);
      std::vector<double> row = naive_pool(forward, d_model, begin, end, mode);
      if (both) {
        const std::vector<double> other =
            naive_pool(reverse, d_model, length - end, length - begin, mode);
        for (size_t i = 0; i < row.size(); ++i) row[i] = 0.5 * (row[i] + other[i]);
      }
      rows.push_back(row);
    }
    return rows;
  }

  void expect_rows(const Model& model, const std::vector<NamedSequence>& records,
                   const EmbedOptions& options, const std::string& label) {
    const NpyArray found = run(options);
    const std::vector<float> values = floats_of(found);
    const auto d_model = static_cast<size_t>(model.config().d_model);
    size_t row = 0;
    for (const NamedSequence& record : records) {
      for (const std::vector<double>& want : expected(model, record.bases, options)) {
        ASSERT_LE((row + 1) * d_model, values.size()) << label;
        EXPECT_LT(row_error(std::span(values).subspan(row * d_model, d_model), want), kTolerance)
            << label << ", record " << record.id << ", row " << row;
        ++row;
      }
    }
    EXPECT_EQ(found.values.shape(),
              (Shape{static_cast<int64_t>(row), static_cast<int64_t>(d_model)}))
        << label;
  }
};

TEST_F(EmbedTest, EveryPoolingStrandAndSegmentGivesTheVectorsOfARecordAlone) {
  const Model model = make_model("model");
  const std::vector<NamedSequence> records = mixed_records();
  EmbedOptions wanted = options(write_fasta("in.fa", records), "out.npy");
  for (const EmbedPool pool :
       {EmbedPool::kMean, EmbedPool::kLast, EmbedPool::kMax, EmbedPool::kNone}) {
    for (const Strands strands : {Strands::kForward, Strands::kBoth}) {
      for (const int64_t segment : {1, 7, 64, 4096}) {
        wanted.pool = pool;
        wanted.strands = strands;
        wanted.common.segment = segment;
        expect_rows(model, records, wanted,
                    concat("pool ", static_cast<int>(pool), " strands ", static_cast<int>(strands),
                           " segment ", segment));
      }
    }
  }
}

TEST_F(EmbedTest, BinsAreMeansOfForwardPositionsOnBothStrands) {
  const Model model = make_model("model");
  const std::vector<NamedSequence> records = mixed_records();
  EmbedOptions wanted = options(write_fasta("in.fa", records), "out.npy");
  for (const int64_t bin : {2, 10, 64, 5000}) {
    for (const Strands strands : {Strands::kForward, Strands::kBoth}) {
      for (const int64_t segment : {7, 64, 4096}) {
        wanted.bin = bin;
        wanted.strands = strands;
        wanted.common.segment = segment;
        expect_rows(
            model, records, wanted,
            concat("bin ", bin, " strands ", static_cast<int>(strands), " segment ", segment));
      }
    }
  }
}

TEST_F(EmbedTest, LayersBeforeTheLast) {
  const Model model = make_model("model");
  const std::vector<NamedSequence> records = mixed_records();
  EmbedOptions wanted = options(write_fasta("in.fa", records), "out.npy");
  wanted.layer = 1;
  wanted.common.segment = 64;
  expect_rows(model, records, wanted, "layer 1");
  wanted.layer = 3;
  expect_error(ErrorKind::kUsage, {"--layer 3", "2 blocks"}, [&] { run(wanted); });
}

TEST_F(EmbedTest, IndexFollowsTheRowsInInputOrder) {
  make_model("model");
  EmbedOptions wanted =
      options(write_fasta("in.fa", {{"long", random_bases(100, 1)}, {"none", ""}, {"b", "ACG"}}),
              "out.npy");
  wanted.common.segment = 64;
  run(wanted);
  EXPECT_EQ(slurp(path("out.npy.index.tsv")),
            "row\tid\tstart\tend\tlength\n0\tlong\t0\t100\t100\n1\tnone\t0\t0\t0\n2\tb\t0\t3\t3\n");
  wanted.bin = 40;
  run(wanted);
  EXPECT_EQ(slurp(path("out.npy.index.tsv")),
            "row\tid\tstart\tend\tlength\n0\tlong\t0\t40\t100\n1\tlong\t40\t80\t100\n"
            "2\tlong\t80\t100\t100\n3\tb\t0\t3\t3\n");
  wanted.bin = 0;
  wanted.pool = EmbedPool::kNone;
  EXPECT_EQ(run(wanted).values.shape()[0], 103);
  EXPECT_EQ(slurp(path("out.npy.index.tsv")),
            "row\tid\tstart\tend\tlength\n0\tlong\t0\t100\t100\n100\tb\t0\t3\t3\n");
}

TEST_F(EmbedTest, TableHoldsTheSameValues) {
  make_model("model");
  EmbedOptions wanted = options(write_fasta("in.fa", mixed_records()), "out.npy");
  const std::vector<float> values = floats_of(run(wanted));
  wanted.common.out = path("out.tsv");
  wanted.validate();
  Job job;
  embed(wanted, job);
  const auto rows = read_rows(slurp(path("out.tsv")));
  ASSERT_EQ(rows.size(), mixed_records().size() + 1);
  EXPECT_EQ(rows[0][0], "id");
  EXPECT_EQ(rows[0].back(), "e11");
  for (size_t r = 1; r < rows.size(); ++r) {
    for (size_t d = 0; d < 12; ++d) {
      EXPECT_EQ(std::stof(rows[r][3 + d]), values[(r - 1) * 12 + d]) << "read back the same";
    }
  }
}

TEST_F(EmbedTest, HalfPrecisionRoundsTheSameVectors) {
  make_model("model");
  EmbedOptions wanted = options(write_fasta("in.fa", mixed_records()), "out.npy");
  run(wanted);
  wanted.common.out = path("half.npy");
  wanted.dtype = EmbedDtype::kF16;
  wanted.validate();
  Job job;
  embed(wanted, job);
  const std::string full = slurp(path("out.npy"));
  const std::string half = slurp(path("half.npy"));
  EXPECT_NE(half.find("<f2"), std::string::npos);
  EXPECT_EQ((full.size() - 128) / 2, half.size() - 128);
}

TEST_F(EmbedTest, BothStrandsAreTheSameForTheReverseComplement) {
  make_model("model");
  std::vector<NamedSequence> flipped = mixed_records();
  for (NamedSequence& record : flipped) record.bases = reverse_complement(record.bases);
  EmbedOptions wanted = options(write_fasta("in.fa", mixed_records()), "out.npy");
  wanted.strands = Strands::kBoth;
  wanted.common.segment = 64;
  const std::vector<float> one = floats_of(run(wanted));
  wanted.input.inputs = {write_fasta("flipped.fa", flipped)};
  const std::vector<float> other = floats_of(run(wanted));
  ASSERT_EQ(one.size(), other.size());
  for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], other[i], 1e-5);
}

TEST_F(EmbedTest, LettersOfEqualMeaningGiveTheSameBits) {
  make_model("model");
  EmbedOptions wanted = options(write_fasta("a.fa", {{"x", "ACGTNNACGTT"}}), "a.npy");
  const std::vector<float> plain = floats_of(run(wanted));
  wanted = options(write_fasta("b.fa", {{"x", "acguRYacgUt"}}, 3), "b.npy");
  Job job;
  embed(wanted, job);
  EXPECT_EQ(plain, floats_of(read_npy(path("b.npy"))));
  EXPECT_EQ(job.record.to_json()["results"]["ambiguous_letters"], 2);
}

TEST_F(EmbedTest, RegionsAreRecordsInContigCoordinates) {
  make_model("model");
  const std::string bases = random_bases(500, 3);
  EmbedOptions wanted = options(write_fasta("in.fa", {{"c1", "ACGT"}, {"c2", bases}}), "out.npy");
  wanted.input.regions = "c2:101-300,c1";
  const std::vector<float> by_region = floats_of(run(wanted));
  EXPECT_EQ(slurp(path("out.npy.index.tsv")),
            "row\tid\tstart\tend\tlength\n0\tc2:101-300\t100\t300\t200\n1\tc1:1-4\t0\t4\t4\n");
  wanted =
      options(write_fasta("cut.fa", {{"a", bases.substr(100, 200)}, {"b", "ACGT"}}), "cut.npy");
  EXPECT_EQ(by_region, floats_of(run(wanted)));
}

TEST_F(EmbedTest, NothingIsLeftAfterAFailure) {
  make_model("model");
  std::string bases = random_bases(5000, 5);
  bases[4321] = '!';
  EmbedOptions wanted =
      options(write_fasta("in.fa", {{"good", "ACGT"}, {"bad", bases}}), "out.npy");
  wanted.common.segment = 100;
  expect_error(ErrorKind::kInput, {"in.fa", "bad", "4322"}, [&] { run(wanted); });
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    files.push_back(entry.path().filename());
  }
  std::sort(files.begin(), files.end());
  EXPECT_EQ(files, (std::vector<std::string>{"in.fa", "model"}));
}

TEST_F(EmbedTest, AStopLeavesNoOutput) {
  make_model("model");
  const EmbedOptions wanted = options(write_fasta("in.fa", mixed_records()), "out.npy");
  request_stop(SIGTERM);
  EXPECT_THROW(run(wanted), Stopped);
  request_stop(0);
  EXPECT_FALSE(std::filesystem::exists(path("out.npy")));
  EXPECT_FALSE(std::filesystem::exists(path("out.npy.index.tsv")));
}

TEST_F(EmbedTest, RecordSaysWhatMadeTheOutput) {
  make_model("model");
  const EmbedOptions wanted = options(write_fasta("in.fa", mixed_records()), "out.npy");
  run(wanted);
  const Json record = parse_json(slurp(path("out.npy.json")), "record");
  EXPECT_EQ(record["records"], 13);
  EXPECT_EQ(record["bases"], 1934);
  EXPECT_EQ(record["results"]["rows"], 13);
  EXPECT_EQ(record["model"]["sha256"], model_digest(path("model")));
  EXPECT_EQ(record["device"]["name"], "cpu");
}

TEST_F(EmbedTest, OptionsThatMakeNoSenseAreRefused) {
  const auto refused = [&](auto change, const std::string& part) {
    EmbedOptions bad = options("in.fa", "out.npy");
    change(bad);
    expect_error(ErrorKind::kUsage, {part}, [&] { bad.validate(); });
  };
  refused([](EmbedOptions& o) { o.common.out = "x.bin"; }, "--format");
  refused([](EmbedOptions& o) { o.common.out = "x.npy.gz"; }, ".gz");
  refused([](EmbedOptions& o) { o.bin = 5, o.pool = EmbedPool::kMax; }, "--bin");
  refused([](EmbedOptions& o) { o.common.out = "", o.format = EmbedFormat::kNpy; }, "stdout");
  refused([](EmbedOptions& o) { o.common.out = "x.tsv", o.dtype = EmbedDtype::kF16; }, "f16");
  refused([](EmbedOptions& o) { o.input.inputs = {"-", "-"}; }, "stdin");
  EmbedOptions h5 = options("in.fa", "out.h5");
  expect_error(ErrorKind::kUnsupported, {"HDF5"}, [&] { h5.validate(); });
}

TEST_F(EmbedTest, MemoryBoundChoosesASmallerSegmentOrRefuses) {
  make_model("model");
  EmbedOptions wanted = options(write_fasta("in.fa", {{"x", "ACGT"}}), "out.npy");
  wanted.common.plan = true;
  Job free_job;
  embed(wanted, free_job);
  EXPECT_NE(free_job.report.find("2,048 tokens"), std::string::npos) << free_job.report;
  EXPECT_FALSE(std::filesystem::exists(path("out.npy"))) << "a plan computes nothing";
  wanted.common.max_memory = int64_t{105} << 20;
  Job bounded_job;
  embed(wanted, bounded_job);
  EXPECT_EQ(bounded_job.report.find("2,048 tokens"), std::string::npos) << bounded_job.report;
  wanted.common.max_memory = 1000;
  Job job;
  expect_error(ErrorKind::kUsage, {"--max-memory"}, [&] { embed(wanted, job); });
}

}  // namespace
}  // namespace gmamba::test
