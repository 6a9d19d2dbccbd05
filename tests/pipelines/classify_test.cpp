// SPDX-License-Identifier: Apache-2.0
#include "pipelines/classify.h"

#include <set>

#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

class ClassifyTest : public PipelineTest {
 protected:
  /// A classifier of three classes whose head has large weights, so that predictions differ.
  Model make_classifier(PoolMode pool, bool both, TaskKind task = TaskKind::kClassification) {
    const std::vector<std::string> labels = {"human", "mouse", "yeast"};
    const bool regression = task == TaskKind::kRegression;
    Model model = with_task(tiny_model(7, small_config()), task,
                            regression ? std::vector<std::string>{"value"} : labels, pool, 3);
    for (float& weight : model.parameters().view("score.weight").flat<float>()) weight *= 60;
    ModelConfig config = model.config();
    config.both_strands = both;
    Model out(config, Device{});
    Context ctx;
    ctx.copy(model.parameters().flat(), out.parameters().flat());
    std::filesystem::remove_all(path("model"));
    save_model(out, path("model"));
    return out;
  }

  ClassifyOptions options(const std::string& input) {
    ClassifyOptions options;
    options.input.inputs = {input};
    options.model = path("model");
    options.common.out = path("out.tsv");
    options.common.device = "cpu";
    return options;
  }

  std::vector<std::vector<std::string>> run(const ClassifyOptions& options) {
    options.validate();
    Job job;
    classify(options, job);
    return read_rows(slurp(options.common.out));
  }

  /// Probabilities by definition, in double.
  static std::vector<double> probabilities(const Model& model, const std::string& bases,
                                           bool both) {
    std::vector<double> mean(3, 0.0);
    const int64_t d_model = model.config().d_model;
    const auto weights = model.parameters().view("score.weight").flat<const float>();
    for (int strand = 0; strand < (both ? 2 : 1); ++strand) {
      const std::vector<float> hidden =
          naive_hidden(model, strand == 0 ? bases : reverse_complement(bases));
      const std::vector<double> pooled =
          naive_pool(hidden, d_model, 0, static_cast<int64_t>(bases.size()), model.config().pool);
      std::vector<double> p(3, 0.0);
      double sum = 0;
      for (size_t c = 0; c < 3; ++c) {
        for (size_t d = 0; d < pooled.size(); ++d)
          p[c] += weights[c * pooled.size() + d] * pooled[d];
        p[c] = std::exp(p[c]);
        sum += p[c];
      }
      for (size_t c = 0; c < 3; ++c) mean[c] += p[c] / sum / (both ? 2 : 1);
    }
    return mean;
  }
};

TEST_F(ClassifyTest, ProbabilitiesAreThoseOfEachRecordAlone) {
  std::set<std::string> seen;
  for (const PoolMode pool : {PoolMode::kMean, PoolMode::kLast, PoolMode::kMax}) {
    for (const bool both : {false, true}) {
      const Model model = make_classifier(pool, both);
      ClassifyOptions wanted = options(write_fasta("in.fa", mixed_records()));
      for (const int64_t segment : {16, 64, 4096}) {
        wanted.common.segment = segment;
        const auto rows = run(wanted);
        ASSERT_EQ(rows.size(), mixed_records().size() + 1);
        EXPECT_EQ(rows[0], (std::vector<std::string>{"id", "length", "label", "probability",
                                                     "p_human", "p_mouse", "p_yeast"}));
        for (size_t r = 0; r + 1 < rows.size(); ++r) {
          const NamedSequence record = mixed_records()[r];
          const std::vector<std::string>& row = rows[r + 1];
          const std::vector<double> want = probabilities(model, record.bases, both);
          EXPECT_EQ(row[0], record.id);
          EXPECT_EQ(row[1], std::to_string(record.bases.size()));
          for (size_t c = 0; c < 3; ++c) EXPECT_NEAR(std::stod(row[4 + c]), want[c], 2e-5);
          const auto best = std::max_element(want.begin(), want.end());
          if (*best > 0.51) {
            EXPECT_EQ(row[2], model.config().labels[static_cast<size_t>(best - want.begin())]);
          }
          EXPECT_NEAR(std::stod(row[3]), *best, 2e-5);
          seen.insert(row[2]);
        }
      }
    }
  }
  EXPECT_GT(seen.size(), 1u) << "a test in which all labels agree shows little";
}

TEST_F(ClassifyTest, StrandsOfTheOptionWinOverThoseOfTheModel) {
  const Model model = make_classifier(PoolMode::kMean, true);
  ClassifyOptions wanted = options(write_fasta("in.fa", {{"x", random_bases(90, 4)}}));
  wanted.strands = ClassifyStrands::kForward;
  const std::vector<double> want = probabilities(model, random_bases(90, 4), false);
  EXPECT_NEAR(std::stod(run(wanted)[1][4]), want[0], 2e-5);
}

TEST_F(ClassifyTest, UncertainOnesAreUnknown) {
  make_classifier(PoolMode::kMean, false);
  ClassifyOptions wanted = options(write_fasta("in.fa", mixed_records()));
  const auto certain = run(wanted);
  wanted.min_probability = 0.7;
  const auto rows = run(wanted);
  int unknown = 0;
  for (size_t r = 1; r < rows.size(); ++r) {
    EXPECT_EQ(rows[r][2], std::stod(rows[r][3]) >= 0.7 ? certain[r][2] : "unknown");
    unknown += rows[r][2] == "unknown" ? 1 : 0;
  }
  EXPECT_GT(unknown, 0);
  EXPECT_LT(unknown, 13);
}

TEST_F(ClassifyTest, ARecordWithoutBasesHasNoLabel) {
  make_classifier(PoolMode::kMax, false);
  const auto rows = run(options(write_fasta("in.fa", {{"a", "ACGT"}, {"none", ""}})));
  EXPECT_EQ(rows[2], (std::vector<std::string>{"none", "0", "NA", "NA", "NA", "NA", "NA"}));
}

TEST_F(ClassifyTest, RegressionGivesAValue) {
  const Model model = make_classifier(PoolMode::kMean, false, TaskKind::kRegression);
  const std::string bases = random_bases(90, 4);
  const auto rows = run(options(write_fasta("in.fa", {{"x", bases}})));
  EXPECT_EQ(rows[0], (std::vector<std::string>{"id", "length", "value"}));
  const std::vector<double> pooled =
      naive_pool(naive_hidden(model, bases), 12, 0, 90, PoolMode::kMean);
  const auto weights = model.parameters().view("score.weight").flat<const float>();
  double want = 0;
  for (size_t d = 0; d < pooled.size(); ++d) want += weights[d] * pooled[d];
  EXPECT_NEAR(std::stod(rows[1][2]), want, 1e-4 * std::max(1.0, std::abs(want)));
}

TEST_F(ClassifyTest, AModelWithoutAHeadIsAUsageErrorThatSaysWhatToDo) {
  make_model("model");
  const ClassifyOptions wanted = options(write_fasta("in.fa", {{"x", "ACGT"}}));
  expect_error(ErrorKind::kUsage, {"no task head", "gmamba finetune"}, [&] { run(wanted); });
  EXPECT_FALSE(std::filesystem::exists(path("out.tsv")));
}

}  // namespace
}  // namespace gmamba::test
