// SPDX-License-Identifier: Apache-2.0
/// What a training run says of itself: metrics.jsonl, report.html, event files.
#include <gtest/gtest.h>

#include "tests/apps/training_fixture.h"

namespace gmamba::test {
namespace {

TEST(TrainingRecords, ALineIsTheMeanOfItsSteps) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  ASSERT_EQ(run(pretrain_words("each", 12), folder).code, 0);
  const std::string five = logging_every(pretrain_words("five", 12), 5) + " --keep 20";
  ASSERT_EQ(run(five, folder).code, 0);
  EXPECT_EQ(training_values(folder / "each", "steps"), std::vector<Json>(12, 1));
  EXPECT_EQ(training_values(folder / "five", "step"), (std::vector<Json>{5, 10, 12}));
  EXPECT_EQ(training_values(folder / "five", "steps"), (std::vector<Json>{5, 5, 2}));
  for (const char* key : {"loss", "accuracy", "bits_per_base"}) {
    const std::vector<Json> each = training_values(folder / "each", key);
    const std::vector<Json> means = training_values(folder / "five", key);
    for (size_t line = 0; line < 3; ++line) {
      const size_t end = std::min<size_t>(12, 5 * line + 5);
      double sum = 0;  // each step predicts as many bases
      for (size_t i = 5 * line; i < end; ++i) sum += each[i].get<double>();
      EXPECT_NEAR(means[line].get<double>(), sum / static_cast<double>(end - 5 * line), 1e-12)
          << key << " of line " << line;
    }
  }
  // killed between two lines, and gone on with
  for (const int64_t last : {3, 5, 11}) {
    fs::copy(folder / "five", folder / "killed", fs::copy_options::recursive);
    drop_checkpoints_after(folder / "killed", last);
    std::string words = five + " --resume";
    words.replace(words.find("--out five"), 10, "--out killed");
    ASSERT_EQ(run(words, folder).code, 0);
    EXPECT_EQ(losses(folder / "killed"), losses(folder / "five")) << "from step " << last;
    remove_tree(folder / "killed");
  }
}

TEST(TrainingRecords, SpeedLeavesOutEvaluationsAndCheckpoints) {
  const fs::path folder = test_folder();
  {
    std::ofstream out(folder / "genome.fa");
    out << ">c0\n"
        << random_bases(20000, 7, 0.5) << "\n>c1\n"
        << random_bases(100000, 8, 0.5) << "\n";
  }
  // after each step of 256 tokens an evaluation of 100,000 bases, a report and a checkpoint
  const Outcome got =
      run("pretrain --fasta genome.fa --valid-contigs c1 --out run --steps 8 --context 64 "
          "--batch-tokens 256 --d-model 16 --layers 2 --save-every 1 --log-every 1 --eval-every 1 "
          "--progress none -q --threads 1",
          folder);
  ASSERT_EQ(got.code, 0) << got.err;
  const std::vector<Json> speed = training_values(folder / "run", "tokens_per_second");
  const std::vector<Json> time = training_values(folder / "run", "time");
  ASSERT_EQ(speed.size(), 8U);
  double training = 0;
  for (size_t i = 1; i < speed.size(); ++i) training += 256 / speed[i].get<double>();
  EXPECT_GT(training, 0);
  EXPECT_LT(training, 0.5 * (time.back().get<double>() - time.front().get<double>()));
}

TEST(TrainingRecords, SayWhatTheyWaitedForAndWhatMemoryTheyTook) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  ASSERT_EQ(run(pretrain_words("run", 6), folder).code, 0);
  for (const Json& share : training_values(folder / "run", "input_wait")) {
    EXPECT_GE(share.get<double>(), 0);
    EXPECT_LE(share.get<double>(), 1);
  }
  const Json record = parse_json(slurp(folder / "run" / "run.json"), "run.json");
  const Json& results = record.at("results");
  const auto peak = results.at("peak_device_memory_bytes").get<int64_t>();
  EXPECT_GT(peak, 1000);
  EXPECT_LE(peak, record.at("peak_memory_bytes").get<int64_t>());
  EXPECT_GE(results.at("input_wait").get<double>(), 0);
  for (const Json& now : training_values(folder / "run", "device_memory_bytes")) {
    EXPECT_GT(now.get<int64_t>(), 1000);
    EXPECT_LE(now.get<int64_t>(), peak);
  }
  // curves of both are on the page and among the scalars of TensorBoard
  const std::string page = slurp(folder / "run" / "report.html");
  for (const char* part : {"Waiting for input", "Device memory", "Peak resident memory"}) {
    EXPECT_TRUE(contains(page, part)) << part;
  }
  std::string events;
  for (const auto& entry : fs::directory_iterator(folder / "run" / "tensorboard")) {
    events += slurp(entry.path());
  }
  for (const char* tag : {"train/input_wait", "train/device_memory_bytes", "train/context"}) {
    EXPECT_TRUE(contains(events, tag)) << tag;
  }
}

TEST(TrainingRecords, LeaveAReportAndEventFiles) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  ASSERT_EQ(run(pretrain_words("run", 15), folder).code, 0);
  const std::string page = slurp(folder / "run" / "report.html");
  for (const char* part : {"<svg", "15 of 15", "finished", "order-3 Markov model", "--batch-tokens",
                           "pretrain --fasta genome.fa --out run", "Held out, by contig"}) {
    EXPECT_TRUE(contains(page, part));
  }
  EXPECT_EQ(event_files(folder / "run"), 1);
  EXPECT_EQ(slurp(folder / "run" / "lock"), "") << "as docs/training.md has it";
  const Json record = parse_json(slurp(folder / "run" / "run.json"), "run.json");
  EXPECT_TRUE(record.at("results").at("finished").get<bool>());
  // the contigs' losses make up that of the whole
  const auto lines = split(slurp(folder / "run" / "metrics.jsonl"), '\n');
  const Json last = parse_json(lines.at(lines.size() - 2), "metrics.jsonl");
  ASSERT_EQ(last.at("split"), "valid_all");
  double loss = 0;
  int64_t bases = 0;
  for (const Json& contig : last.at("contigs")) {
    const auto count = contig.at("bases").get<int64_t>();
    loss += contig.at("loss").get<double>() * static_cast<double>(count);
    bases += count;
  }
  EXPECT_EQ(bases, last.at("bases").get<int64_t>());
  EXPECT_NEAR(loss / static_cast<double>(bases), last.at("loss").get<double>(), 1e-9);
}

TEST(TrainingRecords, TheLastEvaluationHasTheSampleOfTheOthersAndAll) {
  const fs::path folder = test_folder();
  {
    std::ofstream out(folder / "genome.fa");
    for (int contig = 0; contig < 3; ++contig) {
      out << ">c" << contig << "\n"
          << random_bases(contig == 0 ? 20000 : 530000, static_cast<uint64_t>(7 + contig), 0.5)
          << "\n";
    }
  }
  // the same steps, so that both have the same weights after the second
  const auto words = [](const std::string& name, int steps) {
    return concat("pretrain --fasta genome.fa --valid-contigs c1,c2 --out ", name, " --steps ",
                  steps,
                  " --context 64 --batch-tokens 256 --d-model 8 --layers 1 --eval-every 2 "
                  "--schedule constant --warmup 1 --progress none --threads 2");
  };
  const Outcome two = run(words("two", 2), folder);
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_TRUE(contains(two.err, "(a sample, 529,999 bases)"));
  EXPECT_TRUE(contains(two.err, "(1,059,998 bases)"));
  ASSERT_EQ(run(words("three", 3), folder).code, 0);
  const Json during = lines_of(folder / "three", "valid").at(0);
  const std::vector<Json> samples = lines_of(folder / "two", "valid");
  const std::vector<Json> whole = lines_of(folder / "two", "valid_all");
  ASSERT_EQ(samples.size(), 1U);
  ASSERT_EQ(whole.size(), 1U);
  for (const char* key : {"step", "tokens", "loss", "bits_per_base", "accuracy", "bases", "contigs",
                          "contigs_left_out"}) {
    EXPECT_EQ(samples[0].at(key), during.at(key)) << key;
  }
  EXPECT_EQ(samples[0].at("contigs").size(), 1U);
  EXPECT_EQ(whole[0].at("contigs").size(), 2U);
  EXPECT_EQ(whole[0].at("contigs")[0], samples[0].at("contigs")[0]);
  EXPECT_EQ(whole[0].at("bases"), 2 * samples[0].at("bases").get<int64_t>());
  const Json record = parse_json(slurp(folder / "two" / "run.json"), "run.json");
  EXPECT_EQ(record.at("results").at("held_out_bits_per_base"), whole[0].at("bits_per_base"));
  EXPECT_TRUE(contains(slurp(folder / "two" / "report.html"), "a sample of 529,999 bases"));
  std::string events;
  for (const auto& entry : fs::directory_iterator(folder / "two" / "tensorboard")) {
    events += slurp(entry.path());
  }
  EXPECT_TRUE(contains(events, "valid/bits_per_base"));
  EXPECT_TRUE(contains(events, "valid_all/bits_per_base"));
  // a run that was killed before its record was written evaluates again, and has each line once
  const std::string before = losses(folder / "two");
  fs::remove(folder / "two" / "run.json");
  ASSERT_EQ(run(words("two", 2) + " --resume", folder).code, 0);
  EXPECT_EQ(losses(folder / "two"), before);
}

TEST(TrainingRecords, ABoardShowsEachPointOnce) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const std::string words = pretrain_words("run", 8) + " --keep 20";
  const fs::path board = folder / "run" / "tensorboard";
  const auto expect_all = [&](const std::string& when) {
    const Points logged = logged_points(folder / "run");
    EXPECT_TRUE(logged.contains({"train/loss", 8}) && logged.contains({"valid/loss", 8})) << when;
    for (const auto& [place, values] : logged) EXPECT_EQ(values.size(), 1U) << place.first;
    EXPECT_EQ(shown_points(board), logged) << when;
  };
  ASSERT_EQ(run(words, folder).code, 0);
  expect_all("left alone");
  // each time as a process leaves it that was killed before it wrote the record
  for (int round = 0; round < 2; ++round) {
    fs::remove(folder / "run" / "run.json");
    ASSERT_EQ(run(words + " --resume", folder).code, 0);
    expect_all("killed after the last evaluation");
  }
  // between the two lines of that evaluation
  fs::remove(folder / "run" / "run.json");
  const std::string metrics = slurp(folder / "run" / "metrics.jsonl");
  const size_t last = metrics.rfind('\n', metrics.size() - 2) + 1;
  std::ofstream(folder / "run" / "metrics.jsonl") << metrics.substr(0, last + 20);
  ASSERT_EQ(run(words + " --resume", folder).code, 0);
  expect_all("killed within the last evaluation");
  drop_checkpoints_after(folder / "run", 7);  // where there was an evaluation, too
  ASSERT_EQ(run(words + " --resume", folder).code, 0);
  expect_all("killed before the last step");
  fs::remove(folder / "run" / "run.json");
  drop_checkpoints_after(folder / "run", 0);
  ASSERT_EQ(run(words + " --resume", folder).code, 0);
  expect_all("killed before the first checkpoint");
}

TEST(TrainingRecords, OfAFinishedRunStayAsTheyAreWhenItIsResumed) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  write_genome(folder / "at.fa", 11, 0.8);
  write_genome(folder / "gc.fa", 12, 0.2);
  std::string pretrain = pretrain_words("pretrained", 8);
  pretrain.erase(pretrain.find(" -q"), 3);
  const std::string finetune =
      "finetune --model pretrained --class at=at.fa --class gc=gc.fa --context 100 --batch 16 "
      "--steps 3 --kmer 3 --progress none --threads 2 --out finetuned";
  for (const auto& [name, words] :
       {std::pair{"pretrained", pretrain}, std::pair{"finetuned", finetune}}) {
    const Outcome whole = run(words, folder);
    ASSERT_EQ(whole.code, 0) << whole.err;
    EXPECT_FALSE(contains(whole.err, "nothing to do"));
    const auto before = all_files(folder / name);
    EXPECT_GT(before.size(), 8U);
    const Outcome again = run(words + " --resume", folder);
    ASSERT_EQ(again.code, 0) << again.err;
    EXPECT_TRUE(contains(again.err, concat(name, ": the run is finished (step ")));
    EXPECT_EQ(run(words + " --resume --lr 0.5", folder).code, 2) << "other options are refused";
    const auto after = all_files(folder / name);
    EXPECT_EQ(after.size(), before.size());
    for (const auto& [file, bytes] : before) {
      EXPECT_TRUE(after.contains(file) && after.at(file) == bytes) << name << "/" << file;
    }
  }
  // killed between the record and the page; checkpoints cleared away
  const fs::path run_folder = folder / "pretrained";
  const std::string page = slurp(run_folder / "report.html");
  fs::remove(run_folder / "report.html");
  remove_tree(run_folder / "checkpoints");
  const std::string metrics = slurp(run_folder / "metrics.jsonl");
  ASSERT_EQ(run(pretrain + " --resume", folder).code, 0);
  EXPECT_EQ(slurp(run_folder / "metrics.jsonl"), metrics);
  EXPECT_EQ(slurp(run_folder / "report.html"), page);
}

TEST(TrainingRecords, OfARunThatLostItsLastCheckpointAreMadeAgain) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const std::string words = pretrain_words("run", 8);
  ASSERT_EQ(run(words, folder).code, 0);
  const std::string before = losses(folder / "run");
  drop_checkpoints_after(folder / "run", 7);
  // it gets no further than the record of the finished run
  remove_tree(folder / "run" / "tensorboard");
  std::ofstream(folder / "run" / "tensorboard") << "a file in the place of the folder";
  EXPECT_EQ(run(words + " --resume", folder).code, 1);
  EXPECT_FALSE(fs::exists(folder / "run" / "run.json")) << "it would say that the run is finished";
  fs::remove(folder / "run" / "tensorboard");
  ASSERT_EQ(run(words + " --resume", folder).code, 0);
  EXPECT_EQ(losses(folder / "run"), before);
}

}  // namespace
}  // namespace gmamba::test
