// SPDX-License-Identifier: Apache-2.0
#include "pipelines/evaluate.h"

#include "libmamba/baseline_markov.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

struct NaiveLoss {
  double nats = 0;
  int64_t count = 0;
  int64_t correct = 0;
};

class EvaluateTest : public PipelineTest {
 protected:
  EvaluateOptions options(const std::vector<std::string>& inputs) {
    EvaluateOptions options;
    options.input.inputs = inputs;
    options.model = path("model");
    options.common.out = path("out.json");
    options.common.device = "cpu";
    return options;
  }

  Json run(const EvaluateOptions& options, std::string* report = nullptr) {
    options.validate();
    Job job;
    evaluate(options, job);
    if (report != nullptr) *report = job.report;
    return parse_json(slurp(options.common.out), "out.json");
  }

  /// Sums over windows of `context` bases (0: one), each read from nothing; the target of a
  /// window's last base is the next window's first.
  static NaiveLoss naive_loss(const Model& model, const std::string& bases, int64_t context) {
    NaiveLoss loss;
    const auto length = static_cast<int64_t>(bases.size());
    const auto vocab = static_cast<size_t>(model.config().vocab_size);
    const auto d_model = static_cast<size_t>(model.config().d_model);
    const auto table = model.parameters().view("backbone.embeddings.weight").flat<const float>();
    const int64_t step = context == 0 ? std::max<int64_t>(1, length) : context;
    for (int64_t begin = 0; begin < length; begin += step) {
      const int64_t end = std::min(length, begin + step);
      const std::vector<float> hidden = naive_hidden(
          model, bases.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      for (int64_t t = begin; t < end && t + 1 < length; ++t) {
        const char next = bases[static_cast<size_t>(t + 1)];
        if (next == 'N') continue;
        const auto target =
            static_cast<size_t>(model.vocabulary().id_of_byte[static_cast<unsigned char>(next)]);
        std::vector<double> logits(vocab, 0.0);
        double sum = 0;
        for (size_t v = 0; v < vocab; ++v) {
          for (size_t d = 0; d < d_model; ++d) {
            logits[v] += static_cast<double>(table[v * d_model + d]) *
                         hidden[static_cast<size_t>(t - begin) * d_model + d];
          }
          sum += std::exp(logits[v]);
        }
        loss.nats += std::log(sum) - logits[target];
        ++loss.count;
        const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
        loss.correct += best == static_cast<std::ptrdiff_t>(target) ? 1 : 0;
      }
    }
    return loss;
  }

  void expect_losses(const Model& model, const std::vector<NamedSequence>& records,
                     const Json& results, int64_t context, const std::string& label) {
    NaiveLoss total;
    for (size_t i = 0; i < records.size(); ++i) {
      const NaiveLoss want = naive_loss(model, records[i].bases, context);
      const Json& found = results["records"][i];
      EXPECT_EQ(found["id"], records[i].id) << label;
      EXPECT_EQ(found["length"], records[i].bases.size()) << label;
      ASSERT_EQ(found["predicted_bases"], want.count) << label << " " << records[i].id;
      if (want.count > 0) {
        const double mean = want.nats / static_cast<double>(want.count);
        EXPECT_NEAR(found["loss"].get<double>(), mean, 1e-5) << label << " " << records[i].id;
        EXPECT_NEAR(found["bits_per_base"].get<double>(), mean / std::log(2.0), 2e-5);
        EXPECT_NEAR(found["perplexity"].get<double>(), std::exp(mean), 2e-4);
      }
      total.nats += want.nats;
      total.count += want.count;
      total.correct += want.correct;
    }
    EXPECT_EQ(results["total"]["predicted_bases"], total.count) << label;
    EXPECT_NEAR(results["total"]["loss"].get<double>(),
                total.nats / static_cast<double>(total.count), 1e-5)
        << label;
    // a tie in the logits may fall either way
    EXPECT_NEAR(results["total"]["accuracy"].get<double>(),
                static_cast<double>(total.correct) / static_cast<double>(total.count), 2e-3);
  }
};

TEST_F(EvaluateTest, LossIsThatOfEachRecordInOnePiece) {
  const Model model = make_model("model");
  const std::vector<NamedSequence> records = mixed_records();
  EvaluateOptions wanted = options({write_fasta("in.fa", records)});
  for (const int64_t segment : {1, 7, 64, 4096}) {
    wanted.common.segment = segment;
    expect_losses(model, records, run(wanted), 0, concat("segment ", segment));
  }
}

TEST_F(EvaluateTest, WindowsStartAfreshWhateverTheSegment) {
  const Model model = make_model("model");
  const std::vector<NamedSequence> records = mixed_records();
  EvaluateOptions wanted = options({write_fasta("in.fa", records)});
  for (const int64_t context : {1, 10, 64, 100, 5000}) {
    for (const int64_t segment : {7, 64, 4096}) {
      wanted.context = context;
      wanted.common.segment = segment;
      expect_losses(model, records, run(wanted), context,
                    concat("context ", context, " segment ", segment));
    }
  }
}

TEST_F(EvaluateTest, MarkovModelsAreScoredOnTheSameBases) {
  make_model("model");
  std::vector<NamedSequence> records = mixed_records();
  records.push_back({"n", "NNACGTNNNNACGRTAC"});
  const std::vector<NamedSequence> training = {{"t1", random_bases(3000, 77)},
                                               {"t2", random_bases(2000, 78)}};
  EvaluateOptions wanted = options({write_fasta("in.fa", records)});
  wanted.baseline_train = {write_fasta("train.fa", training)};
  wanted.baseline_orders = {0, 2, 5};
  wanted.common.segment = 64;
  MarkovBaseline markov({.order = 5});
  for (const NamedSequence& record : training) markov.add(encode_bases(record.bases));
  markov.finish();
  std::string report;
  const Json results = run(wanted, &report);
  for (const int order : {0, 2, 5}) {
    BitsScore total;
    for (size_t i = 0; i < records.size(); ++i) {
      const std::vector<uint8_t> codes = encode_bases(records[i].bases);
      MarkovContext context;
      markov.advance(std::span(codes).first(1), context);
      const BitsScore score = markov.score(std::span(codes).subspan(1), context, order);
      ASSERT_EQ(results["records"][i]["predicted_bases"], score.bases);
      total += score;
    }
    const std::string key = concat("markov_", order, "_bits_per_base");
    EXPECT_NEAR(results["total"][key].get<double>(), total.bits_per_base(), 1e-9) << key;
    EXPECT_NE(report.find(concat("markov-", order)), std::string::npos);
  }
}

TEST_F(EvaluateTest, NothingToPredictIsAnError) {
  make_model("model");
  const EvaluateOptions wanted = options({write_fasta("in.fa", {{"a", "A"}, {"n", "NNNN"}})});
  expect_error(ErrorKind::kInput, {"no base to predict"}, [&] { run(wanted); });
}

TEST_F(EvaluateTest, ClassifiersAreJudgedBesideKmerRegression) {
  // class by composition: k-mer regression must find it, a random model has no reason to
  const std::vector<std::string> labels = {"at", "gc"};
  Model model = with_task(tiny_model(7, small_config()), TaskKind::kClassification, labels,
                          PoolMode::kMean, 3);
  save_model(model, path("model"));
  std::ofstream table(path("test.tsv"));
  std::ofstream train(path("train.tsv"));
  std::ofstream fasta(path("test.fa"));
  std::ofstream ids(path("labels.tsv"));
  table << "sequence\tlabel\n";
  train << "sequence\tlabel\n";
  ids << "id\tlabel\n";
  for (int i = 0; i < 60; ++i) {
    std::string bases = random_bases(60, static_cast<uint64_t>(i) + 200);
    const bool gc = i % 2 == 0;
    for (size_t k = 0; k < bases.size(); k += 2) bases[k] = gc ? 'G' : 'A';
    (i < 30 ? table : train) << bases << "\t" << labels[gc ? 1 : 0] << "\n";
    if (i < 30) {
      fasta << ">s" << i << "\n" << bases << "\n";
      ids << "s" << i << "\t" << labels[gc ? 1 : 0] << "\n";
    }
  }
  for (std::ofstream* file : {&table, &train, &fasta, &ids}) file->close();
  EvaluateOptions wanted = options({});
  wanted.table = path("test.tsv");
  wanted.baseline_train = {path("train.tsv")};
  wanted.baseline_k = 2;
  std::string report;
  const Json results = run(wanted, &report);
  EXPECT_EQ(results["model"]["count"], 30);
  EXPECT_EQ(results["kmer"]["accuracy"], 1.0);
  int64_t counted = 0;
  for (const Json& row : results["model"]["confusion"]) {
    for (const Json& cell : row) counted += cell.get<int64_t>();
  }
  EXPECT_EQ(counted, 30);
  EXPECT_NE(report.find("2-mer regression: accuracy 1"), std::string::npos) << report;

  EvaluateOptions by_labels = options({path("test.fa")});
  by_labels.labels = path("labels.tsv");
  EXPECT_EQ(run(by_labels)["model"], results["model"]) << "the same sequences, given as FASTA";
}

TEST_F(EvaluateTest, OptionsMustFitTheModel) {
  make_model("model");
  write_fasta("in.fa", {{"x", "ACGT"}});
  EvaluateOptions wanted = options({path("in.fa")});
  wanted.labels = path("labels.tsv");
  expect_error(ErrorKind::kUsage, {"no task head"}, [&] { run(wanted); });
  expect_error(ErrorKind::kUsage, {"missing INPUT"}, [&] { run(options({})); });
  wanted.table = path("t.tsv");
  expect_error(ErrorKind::kUsage, {"--labels", "--table"}, [&] { run(wanted); });
  std::filesystem::remove_all(path("model"));
  save_model(with_task(tiny_model(7, small_config()), TaskKind::kClassification, {"a", "b"},
                       PoolMode::kMean, 1),
             path("model"));
  expect_error(ErrorKind::kUsage, {"--labels or --table"}, [&] { run(options({path("in.fa")})); });
}

}  // namespace
}  // namespace gmamba::test
