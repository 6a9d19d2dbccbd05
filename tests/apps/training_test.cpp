// SPDX-License-Identifier: Apache-2.0
/// Training runs as a user has them: killed, stopped, resumed, refused.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/apps/training_fixture.h"

namespace gmamba::test {
namespace {

/// Starts the command as a child of this process; the caller kills and waits.
pid_t start(const std::string& words, const fs::path& folder) {
  const std::string line = concat("cd '", folder.string(), "' && exec '", GMAMBA_COMMAND, "' ",
                                  words, " >/dev/null 2>>child.log");
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

/// Kills a run `kills` times at random moments, lets it end, and compares it with one that was left
/// alone; `more` are further options of both.
void survive_kills(const std::string& more, int64_t steps, int kills) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const Outcome whole = run(pretrain_words("whole", steps) + more, folder);
  ASSERT_EQ(whole.code, 0) << whole.err;

  Random random(2026, RandomUse::kTest);
  int killed = 0;
  int finished = 0;
  for (int round = 0; round < 400 && killed < kills; ++round) {
    const pid_t child = start(pretrain_words("killed", steps) + more + " --resume", folder);
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + random.below(250)));
    ::kill(child, SIGKILL);
    const int status = wait_for(child);
    if (WIFSIGNALED(status)) {
      ++killed;
    } else {
      // it ended by itself before the signal: it must have ended well, and the next round is a new
      // run
      ASSERT_EQ(WEXITSTATUS(status), 0) << read_file(folder / "child.log", 1 << 20);
      ++finished;
      EXPECT_EQ(weights(folder / "killed"), weights(folder / "whole"));
      remove_tree(folder / "killed");
      continue;
    }
    // whatever the moment: what is there is whole
    for (const int64_t step : list_checkpoints(folder / "killed")) {
      EXPECT_NO_THROW(verify_checkpoint(folder / "killed" / "checkpoints" / step_name(step)));
    }
  }
  EXPECT_EQ(killed, kills);
  const Outcome rest = run(pretrain_words("killed", steps) + more + " --resume", folder);
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_EQ(weights(folder / "killed"), weights(folder / "whole"));
  EXPECT_EQ(losses(folder / "killed"), losses(folder / "whole"));
  EXPECT_EQ(shown_points(folder / "killed" / "tensorboard"), logged_points(folder / "killed"));
  ::testing::Test::RecordProperty("finished_early", finished);
}

TEST(TrainingRuns, SurviveKillsAtRandomMomentsBitForBit) { survive_kills("", 120, 20); }

TEST(TrainingRuns, SurviveKillsWithCarriedStatesAndGrowingContextBitForBit) {
  survive_kills(" --carry --carry-reset 10 --context-warmup --context-warmup-from 16", 120, 12);
}

TEST(TrainingRuns, TheContextGrowsWithTheTokensOfAStepAsTheyAre) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const std::string warm = pretrain_words("run", 12) + " --context-warmup --context-warmup-from 16";
  const Outcome plan = run(warm + " --plan", folder);
  ASSERT_EQ(plan.code, 0) << plan.err;
  EXPECT_TRUE(contains(plan.out, "context 16 in steps 1 to 4: 1 micro-batches of 16 rows"));
  EXPECT_TRUE(contains(plan.out, "context 32 in steps 5 to 8: 1 micro-batches of 8 rows"));
  EXPECT_TRUE(contains(plan.out, "steps 12, each 1 micro-batches of 4 x 64 tokens"));
  std::string nowhere = warm;
  nowhere.erase(nowhere.find(" --out run"), std::string(" --out run").size());
  EXPECT_EQ(run(nowhere + " --plan", folder).out, plan.out) << "a plan needs no run folder";
  EXPECT_EQ(run(nowhere, folder).code, 2);
  ASSERT_EQ(run(warm, folder).code, 0);
  EXPECT_EQ(training_values(folder / "run", "context"),
            (std::vector<Json>{16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64}));
  const std::vector<Json> tokens = training_values(folder / "run", "tokens");
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i], 256 * (i + 1));
  std::string share = warm + " --context-warmup-share 0.5";
  share.replace(share.find("--out run"), 9, "--out half");
  ASSERT_EQ(run(share, folder).code, 0);
  EXPECT_EQ(training_values(folder / "half", "context"),
            (std::vector<Json>{16, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64}));
  for (const char* wrong : {" --context-warmup --context-warmup-from 64", " --context-warmup",
                            " --context-warmup-share 0.5"}) {
    EXPECT_EQ(run(pretrain_words("none", 3) + wrong, folder).code, 2) << wrong;
  }
}

TEST(TrainingRuns, CarriedStatesHelpWhereContextsAreShort) {
  // a contig that repeats itself every 40 bases: the first of 4 tokens cannot tell where it is
  const fs::path folder = test_folder();
  {
    std::ofstream out(folder / "genome.fa");
    const std::string unit = random_bases(40, 7, 0.5);
    out << ">c\n";
    for (int i = 0; i < 400; ++i) out << unit << "\n";
  }
  const auto last_loss = [&](const std::string& name, const std::string& more) {
    const Outcome got = run(
        "pretrain --fasta genome.fa --out " + name +
            " --steps 150 --context 4 --batch-tokens 64 --d-model 32 --layers 2 --valid-fraction "
            "0.1 --log-every 150 --progress none -q --threads 2" +
            more,
        folder);
    EXPECT_EQ(got.code, 0) << got.err;
    return training_values(folder / name, "loss").back().get<double>();
  };
  EXPECT_LT(last_loss("carried", " --carry"), 0.8 * last_loss("alone", ""));
}

/// Starts a run without end, sends the signal once it has a checkpoint; its exit code.
int exit_after(int signal, const fs::path& folder) {
  const pid_t child = start(pretrain_words("run", 100000), folder);
  for (int i = 0; i < 200 && list_checkpoints(folder / "run").empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  ::kill(child, signal);
  const int status = wait_for(child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(TrainingRuns, PreemptionSavesAndTheRunGoesOn) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  EXPECT_EQ(exit_after(SIGUSR1, folder), 143) << "SIGUSR1 is the same wish as SIGTERM";
  const auto saved = list_checkpoints(folder / "run");
  ASSERT_FALSE(saved.empty());
  const std::string page = slurp(folder / "run" / "report.html");
  EXPECT_TRUE(contains(page, "not finished"));
  EXPECT_TRUE(contains(page, "of 100,000"));
  // what was finished was saved: metrics end where the newest checkpoint stands
  const auto lines = split(slurp(folder / "run" / "metrics.jsonl"), '\n');
  const Json last = parse_json(lines.at(lines.size() - 2), "metrics.jsonl");
  EXPECT_EQ(last.at("step").get<int64_t>(), *std::max_element(saved.begin(), saved.end()));
  EXPECT_EQ(event_files(folder / "run"), 1);
}

TEST(TrainingRuns, StopCleanlyOnSigterm) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  EXPECT_EQ(exit_after(SIGTERM, folder), 143);
  const auto steps = list_checkpoints(folder / "run");
  ASSERT_FALSE(steps.empty());
  const Outcome info = run("info run", folder);
  EXPECT_EQ(info.code, 0) << info.err;
}

TEST(TrainingRuns, StopWhereGradientsStayNotFiniteAndKeepWhatWasGood) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const Outcome got = run(pretrain_words("run", 1000) +
                              " --lr 10 --weight-decay 100 --clip 0 --warmup 0 --schedule constant",
                          folder);
  EXPECT_EQ(got.code, 1);
  EXPECT_TRUE(contains(got.err, "training diverged: the gradient of 10 steps in a row"));
  EXPECT_TRUE(contains(got.err, "--init RUN"));
  int64_t made = 0;
  int64_t skipped = 0;
  for (const std::string& line : split(slurp(folder / "run" / "metrics.jsonl"), '\n')) {
    if (line.empty()) continue;
    const Json json = parse_json(line, "metrics.jsonl");
    if (json.at("split") != "train") continue;
    if (json.at("skipped").get<bool>()) {
      ++skipped;
    } else {
      made = json.at("step").get<int64_t>();
      EXPECT_EQ(skipped, 0) << "this run does not recover";
    }
  }
  EXPECT_EQ(skipped, 9) << "the tenth ends the run";
  const auto saved = list_checkpoints(folder / "run");
  ASSERT_FALSE(saved.empty());
  EXPECT_EQ(*std::max_element(saved.begin(), saved.end()), made);
  EXPECT_EQ(run("info run", folder).code, 0);
  const Outcome again = run(
      "pretrain --fasta genome.fa --out again --init run --context 64 --steps 1 -q --plan", folder);
  EXPECT_EQ(again.code, 0) << "what the message says can be done: " << again.err;
}

TEST(TrainingRuns, RefuseWhatWouldLoseOrMixWork) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  ASSERT_EQ(run(pretrain_words("run", 3), folder).code, 0);
  const Outcome again = run(pretrain_words("run", 3), folder);
  EXPECT_EQ(again.code, 2);
  EXPECT_TRUE(contains(again.err, "--force"));
  const Outcome other = run(pretrain_words("run", 3) + " --resume --lr 0.5", folder);
  EXPECT_EQ(other.code, 2);
  EXPECT_TRUE(contains(other.err, "'lr' differs"));
  write_genome(folder / "other.fa", 9);
  std::string words = pretrain_words("run", 3) + " --resume --fasta other.fa";
  EXPECT_TRUE(contains(run(words, folder).err, "'genomes' differs"));
  EXPECT_EQ(run(pretrain_words("run", 3) + " --force", folder).code, 0);
  EXPECT_TRUE(
      contains(run("pretrain --fasta genome.fa --out x", folder).err, "--steps or --tokens"));
  EXPECT_EQ(run("pretrain --fasta missing.fa --out x --steps 1", folder).code, 1);
  EXPECT_FALSE(fs::exists(folder / "x"));
  const Outcome file =
      run("pretrain --fasta genome.fa --out genome.fa --steps 1 --context 64 --resume", folder);
  EXPECT_EQ(file.code, 2);
  EXPECT_TRUE(contains(file.err, "--out genome.fa: exists and is no folder; name the folder"));
}

TEST(TrainingRuns, GoOnWithTheCutThatTheyBeganWith) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  // a bound that asks for smaller micro-batches than the machine would take
  const std::string words = " --keep 20 --max-memory 700KiB";
  ASSERT_EQ(run(pretrain_words("whole", 12) + words, folder).code, 0);
  fs::copy(folder / "whole", folder / "run", fs::copy_options::recursive);
  drop_checkpoints_after(folder / "run", 5);
  const std::string on = pretrain_words("run", 12) + " --keep 20 --resume";
  const Outcome bound = run(pretrain_words("new", 12) + words + " --plan", folder);
  const Outcome free = run(pretrain_words("new", 12) + " --plan", folder);
  const Outcome resumed = run(on + " --plan", folder);
  const auto cut = [](const Outcome& plan) { return plan.out.substr(plan.out.find("steps ")); };
  EXPECT_NE(cut(free), cut(bound)) << "the bound does change the cut";
  EXPECT_EQ(cut(resumed), cut(bound));
  const Outcome little = run(on + " --max-memory 100KiB", folder);
  EXPECT_EQ(little.code, 2);
  EXPECT_TRUE(contains(little.err, "--resume: run goes on as it began, "));
  EXPECT_TRUE(contains(little.err, "--max-memory allows 100 KiB"));
  const Outcome other = run(on + " --segment 4096", folder);
  EXPECT_EQ(other.code, 2);
  EXPECT_TRUE(contains(other.err, "'rows' differs"));
  const Outcome rest = run(on, folder);
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_EQ(weights(folder / "run"), weights(folder / "whole"));
  EXPECT_EQ(losses(folder / "run"), losses(folder / "whole"));
}

TEST(TrainingRuns, ThreadsChangeNoBit) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  ASSERT_EQ(run(pretrain_words("two", 10), folder).code, 0);
  ASSERT_EQ(run(pretrain_words("one", 10) + " --threads 1", folder).code, 2)
      << "an option given twice is refused";
  std::string words = pretrain_words("one", 10);
  words.replace(words.find("--threads 2"), 11, "--threads 1");
  ASSERT_EQ(run(words, folder).code, 0);
  EXPECT_EQ(weights(folder / "one"), weights(folder / "two"));
}

TEST(TrainingRuns, AllNContigsAreSkippedAndCounted) {
  const fs::path folder = test_folder();
  {
    std::ofstream out(folder / "genome.fa");
    out << ">gap\n"
        << std::string(20000, 'N') << "\n>bases\n"
        << random_bases(20000, 3, 0.5) << "\n";
  }
  const Outcome got = run(pretrain_words("run", 8) + " --valid-contigs bases", folder);
  EXPECT_NE(got.code, 0) << "nothing but N is left to train on";
  std::string words = pretrain_words("run2", 8);
  ASSERT_EQ(run(words, folder).code, 0);
  const Json record = parse_json(read_file(folder / "run2" / "run.json", 1 << 20), "run.json");
  EXPECT_GT(record.at("results").at("skipped_windows").get<int64_t>(), 0);
}

/// The settings that a refusal names, without what each needs.
std::vector<std::string> settings_named(const std::string& message) {
  std::vector<std::string> settings;
  const std::string before = "what fits: ";
  const size_t at = message.find(before);
  if (at == std::string::npos) return settings;
  for (size_t begin = at + before.size(); begin < message.size();) {
    const size_t end = message.find(" (", begin);
    if (end == std::string::npos) break;
    settings.push_back(message.substr(begin, end - begin));
    const size_t next = message.find("), or ", end);
    if (next == std::string::npos) break;
    begin = next + 6;
  }
  return settings;
}

TEST(Memory, ARunThatCannotFitNamesSettingsThatDo) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const std::string base = "pretrain --fasta genome.fa --out run --steps 2 -q --plan --device cpu ";
  struct Case {
    std::string words;  // without what the settings change
    std::string changed;
    std::string first;  // how the first setting begins
    size_t settings;
  };
  for (const Case& c :
       {Case{"--d-model 64 --layers 8 --batch-tokens 8192 --max-memory 40MiB --context 512",
             " --segment 8192", "--segment ", 1},
        // nothing but a shorter context or a narrower model will do
        Case{"--layers 8 --batch-tokens 16384 --max-memory 10MiB", " --context 16384 --d-model 64",
             "--context ", 2}}) {
    const Outcome refused = run(base + c.words + c.changed, folder);
    EXPECT_EQ(refused.code, 2) << refused.out;
    EXPECT_TRUE(contains(refused.err, "--max-memory allows"));
    const std::vector<std::string> settings = settings_named(refused.err);
    ASSERT_EQ(settings.size(), c.settings) << refused.err;
    EXPECT_TRUE(settings.front().starts_with(c.first)) << refused.err;
    for (const std::string& setting : settings) {
      // a flag of the setting takes the place of the one given
      std::string kept;
      for (const std::string& flag : {std::string("--segment 8192"), std::string("--context 16384"),
                                      std::string("--d-model 64")}) {
        const std::string name = flag.substr(0, flag.find(' '));
        if (contains(c.changed, flag) && !contains(setting, name)) kept += " " + flag;
      }
      const Outcome fits = run(base + c.words + kept + " " + setting, folder);
      EXPECT_EQ(fits.code, 0) << setting << ": " << fits.err;
    }
  }
  const Outcome tiny = run(base + "--max-memory 20KiB", folder);
  EXPECT_EQ(tiny.code, 2);
  EXPECT_TRUE(contains(tiny.err, "use a smaller model"));
}

TEST(Memory, WithoutASegmentOneThatFitsIsTaken) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const std::string words =
      "pretrain --fasta genome.fa --out run --steps 2 -q --plan --device cpu --d-model 64 --layers "
      "8 "
      "--batch-tokens 8192 --context 512";
  const Outcome free = run(words, folder);
  EXPECT_TRUE(contains(free.out, "4 micro-batches of 4 x 512"));
  const Outcome bound = run(words + " --max-memory 40MiB", folder);
  EXPECT_EQ(bound.code, 0) << bound.err;
  EXPECT_FALSE(contains(bound.out, "4 micro-batches of 4 x 512"));
}

TEST(Finetuning, GoesOnWithTheCutThatItBeganWith) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  write_genome(folder / "at.fa", 11, 0.8);
  write_genome(folder / "gc.fa", 12, 0.2);
  ASSERT_EQ(run(pretrain_words("base", 2), folder).code, 0);
  const auto words = [](const std::string& name) {
    return "finetune --model base --class at=at.fa --class gc=gc.fa --context 100 --batch 16 "
           "--steps 9 --kmer 3 --keep 20 --save-every 1 --log-every 3 --progress none -q "
           "--rc-augment --seed 4 --threads 2 --out " +
           name;
  };
  // a bound that asks for smaller batches than the machine would take
  const std::string bound = " --max-memory 700KiB";
  ASSERT_EQ(run(words("whole") + bound, folder).code, 0);
  for (const Json& share : training_values(folder / "whole", "input_wait")) {
    EXPECT_GE(share.get<double>(), 0);
    EXPECT_LE(share.get<double>(), 1);
  }
  const Json record = parse_json(slurp(folder / "whole" / "run.json"), "run.json");
  EXPECT_GE(record.at("results").at("input_wait").get<double>(), 0);
  EXPECT_GT(record.at("results").at("planned_memory_bytes").get<int64_t>(), 1000);
  fs::copy(folder / "whole", folder / "run", fs::copy_options::recursive);
  drop_checkpoints_after(folder / "run", 4);
  EXPECT_NE(run(words("new") + " --plan", folder).out,
            run(words("new") + bound + " --plan", folder).out)
      << "the bound does change the cut";
  const Outcome little = run(words("run") + " --resume --max-memory 100KiB", folder);
  EXPECT_EQ(little.code, 2);
  EXPECT_TRUE(contains(little.err, "--resume: run goes on as it began, "));
  const Outcome rest = run(words("run") + " --resume", folder);
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_EQ(weights(folder / "run"), weights(folder / "whole"));
  EXPECT_EQ(losses(folder / "run"), losses(folder / "whole"));
}

TEST(Finetuning, LearnsWhatIsThereFromEachKindOfInput) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  write_genome(folder / "at.fa", 11, 0.8);
  write_genome(folder / "gc.fa", 12, 0.2);
  ASSERT_EQ(run(pretrain_words("base", 5), folder).code, 0);
  {
    std::ofstream table(folder / "train.tsv");
    std::ofstream fasta(folder / "reads.fa");
    std::ofstream labels(folder / "labels.tsv");
    table << "sequence\tlabel\n";
    labels << "id\tlabel\n";
    for (int i = 0; i < 200; ++i) {
      const bool at = i % 2 == 0;
      const std::string bases =
          random_bases(40 + i % 50, static_cast<uint64_t>(100 + i), at ? 0.8 : 0.2);
      table << bases << "\t" << (at ? "at" : "gc") << "\n";
      fasta << ">r" << i << "\n" << bases << "\n";
      labels << "r" << i << "\t" << (at ? "at" : "gc") << "\n";
    }
  }
  const std::string common =
      " --model base --batch 16 --lr 1e-2 --progress none -q --kmer 3 --seed 4 --steps 60";
  const auto accuracy = [&](const std::string& name) {
    const Json record = parse_json(read_file(folder / name / "run.json", 1 << 20), "run.json");
    return record.at("results").at("held_out").at("accuracy").get<double>();
  };
  for (const auto& [name, words] : std::vector<std::pair<std::string, std::string>>{
           {"table", "--train train.tsv --strands both --rc-augment"},
           {"records", "--labels labels.tsv reads.fa --pool last"},
           {"windows", "--class at=at.fa --class gc=gc.fa --context 100"},
           {"frozen", "--train train.tsv --freeze --pool max --lr-floor 1"}}) {
    const Outcome got = run("finetune " + words + common + " --out " + name, folder);
    ASSERT_EQ(got.code, 0) << got.err;
    EXPECT_GT(accuracy(name), name == "frozen" ? 0.7 : 0.9) << name;
  }
  {
    std::ofstream table(folder / "gc.tsv");
    table << "sequence\tlabel\n";
    for (int i = 0; i < 120; ++i) {
      const double share = 0.1 + 0.8 * i / 120;
      table << random_bases(80, static_cast<uint64_t>(900 + i), share) << "\t" << share << "\n";
    }
  }
  const Outcome value =
      run("finetune --train gc.tsv --task regression" + common + " --out value", folder);
  ASSERT_EQ(value.code, 0) << value.err;
  const Outcome answers = run("classify --model value reads.fa", folder);
  ASSERT_EQ(answers.code, 0) << answers.err;
  EXPECT_TRUE(contains(answers.out, "id\tlength\tvalue\n"));
  const Outcome regression =
      run("finetune --train numbers.tsv --task regression --model base --out r --steps 2", folder);
  EXPECT_EQ(regression.code, 1);
  EXPECT_TRUE(contains(regression.err, "numbers.tsv"));
}

}  // namespace
}  // namespace gmamba::test
