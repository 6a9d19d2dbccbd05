// SPDX-License-Identifier: Apache-2.0
/// The command on small generated inputs: data on stdout and nothing else, errors that name file
/// and place, exit codes, outputs whole or not at all.
#include <gtest/gtest.h>

#include <set>

#include "io/npy.h"
#include "libmamba/core/json.h"
#include "libmamba/model_folder.h"
#include "tests/apps/command_runner.h"

namespace gmamba::test {
namespace {

namespace fs = std::filesystem;

class Command : public testing::Test {
 protected:
  void SetUp() override {
    folder = test_folder();
    fs::remove_all(folder);
    fs::create_directories(folder);
    ModelConfig config;
    config.d_model = 8;
    config.n_layers = 2;
    config.d_state = 4;
    config.dt_rank = 1;
    Model model(config, Device{});
    initialize(model.parameters(), config, 1);
    save_model(model, folder / "model");
    save_model(with_task(model, TaskKind::kClassification, {"coding", "other"}, PoolMode::kMean, 1),
               folder / "classifier");
    write("in.fa", ">one first\nACGTACGTAC\nGTNNacgt\n>two\nTTTT\n");
  }
  void TearDown() override { fs::remove_all(folder); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder / name) << text;
  }
  Outcome gmamba(const std::string& arguments) const { return run(arguments, folder); }
  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
    for (const char* ours : {"stdout.txt", "stderr.txt", "model", "classifier"}) names.erase(ours);
    return names;
  }
  static int64_t count_lines(const std::string& text) {
    return std::count(text.begin(), text.end(), '\n');
  }

  fs::path folder;
};

TEST_F(Command, EmbedWritesArrayIndexAndRecord) {
  const Outcome got = gmamba("embed --model model in.fa -o out.npy");
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(got.out, "");
  EXPECT_EQ(read_npy(folder / "out.npy").values.shape(), (Shape{2, 8}));
  EXPECT_TRUE(contains(slurp(folder / "out.npy.index.tsv"), "0\tone\t0\t18\t18\n"));
  const Json record = parse_json(slurp(folder / "out.npy.json"), "record");
  EXPECT_EQ(record["command_line"][1], "embed");
  EXPECT_EQ(record["options"]["pool"], "mean");
  EXPECT_EQ(record["bases"], 22);
  EXPECT_TRUE(contains(got.err, "done in"));
  EXPECT_TRUE(contains(got.err, "bases/s"));
  EXPECT_EQ(files(),
            (std::set<std::string>{"in.fa", "out.npy", "out.npy.index.tsv", "out.npy.json"}));
}

TEST_F(Command, StdoutHoldsDataOnly) {
  const Outcome table = gmamba("embed --model model in.fa");
  ASSERT_EQ(table.code, 0) << table.err;
  EXPECT_EQ(count_lines(table.out), 3);
  EXPECT_TRUE(table.out.starts_with("id\tstart\tend\te0\t"));
  const Outcome classes = gmamba("classify --model classifier in.fa -o -");
  ASSERT_EQ(classes.code, 0) << classes.err;
  EXPECT_EQ(count_lines(classes.out), 3);
  EXPECT_TRUE(
      classes.out.starts_with("id\tlength\tlabel\tprobability\tp_coding\tp_other\none\t18\t"));
  const Outcome loss = gmamba("evaluate --model model in.fa -o -");
  ASSERT_EQ(loss.code, 0) << loss.err;
  EXPECT_EQ(parse_json(loss.out, "stdout")["total"]["predicted_bases"], 18);
  EXPECT_EQ(files(), (std::set<std::string>{"in.fa"})) << "no record without an output file";
}

TEST_F(Command, QuietIsQuiet) {
  const Outcome got = gmamba("embed --model model in.fa -o out.npy -q");
  EXPECT_EQ(got.code, 0);
  EXPECT_EQ(got.err, "");
}

TEST_F(Command, ReadsStdinAndGzip) {
  const Outcome file = gmamba("embed --model model in.fa");
  EXPECT_EQ(gmamba("embed --model model - < in.fa").out, file.out);
  const std::string pack = "cd '" + folder.string() + "' && gzip -k in.fa";
  ASSERT_EQ(std::system(pack.c_str()), 0);
  EXPECT_EQ(gmamba("embed --model model in.fa.gz").out, file.out);
}

TEST_F(Command, ThreadsAndSegmentsDoNotChangeWhatIsSaid) {
  std::string bases;
  for (int i = 0; i < 3000; ++i) bases += "ACGT"[(i * i / 7 + i / 3) % 4];
  write("long.fa", ">long\n" + bases + "\n>short\nACGT\n");
  const Outcome one = gmamba("classify --model classifier long.fa --threads 1");
  ASSERT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(gmamba("classify --model classifier long.fa --threads 2").out, one.out)
      << "the same bits whatever the threads";
}

TEST_F(Command, ErrorsNameFileAndPlaceOnOneLine) {
  write("bad.fa", ">good\nACGT\n>wrong\nAC\nG!T\n");
  const Outcome got = gmamba("embed --model model bad.fa -o out.npy");
  EXPECT_EQ(got.code, 1);
  EXPECT_TRUE(contains(got.err, "gmamba embed: error: bad.fa: line 5: record 'wrong'"));
  EXPECT_EQ(got.out, "");
  EXPECT_EQ(files(), (std::set<std::string>{"bad.fa", "in.fa"})) << "no output after a failure";

  const Outcome missing = gmamba("embed --model model nowhere.fa -o out.npy");
  EXPECT_EQ(missing.code, 1);
  EXPECT_TRUE(contains(missing.err, "nowhere.fa"));
  const Outcome train = gmamba("pretrain --fasta bad.fa --steps 1 --out run");
  EXPECT_EQ(train.code, 1);
  EXPECT_TRUE(contains(train.err, "bad.fa: line 5: record 'wrong': '!' at base 4"));
  EXPECT_TRUE(contains(train.err, "write N there (--invalid n reads it so)"));
  const Outcome no_model = gmamba("embed --model nowhere in.fa -o out.npy");
  EXPECT_EQ(no_model.code, 1);
  EXPECT_TRUE(contains(no_model.err, "nowhere"));
  EXPECT_EQ(files(), (std::set<std::string>{"bad.fa", "in.fa"}));
}

TEST_F(Command, UsageErrorsEndWithTwo) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"embed --model model --modle x in.fa", "unknown option '--modle'; did you mean --model?"},
      {"embed --model model --segmnet=5 in.fa", "did you mean --segment?"},
      {"embd in.fa", "did you mean 'embed'?"},
      {"embed in.fa", "missing --model"},
      {"embed --model model", "missing INPUT"},
      {"embed --model model in.fa --bin x", "--bin: expected"},
      {"embed --model model in.fa --pool meen", "did you mean 'mean'?"},
      {"embed --model model in.fa --bin 5 --bin 6", "--bin: given more than once"},
      {"embed --model model in.fa --threads", "--threads: expected a value after it"},
      {"embed in.fa --model=", "--model: expected a value after it"},
      {"embed --model model in.fa --quiet=often",
       "--quiet: a flag, which takes no value; found 'of"},
      {"embed --model model in.fa --quiet=3", "--quiet: a flag, which takes no value; found '3'"},
      {"embed --model model in.fa -q=3", "-q: a flag, which takes no value; found '3'"},
      {"embed --model model in.fa -vq=true", "-q: a flag, which takes no value; found 'true'"},
      {"embed --model model in.fa -v=", "-v: a flag, which takes no value; found ''"},
      {"embed -h=3", "-h: a flag, which takes no value; found '3'"},
      {"embed --help=yes", "--help: a flag, which takes no value; found 'yes'"},
      {"embed --print-config=3", "--print-config: a flag, which takes no value; found '3'"},
      {"pretrain --carry=3", "--carry: a flag, which takes no value; found '3'"},
      {"embed --model model in.fa --max-memory 3X", "--max-memory: expected a size such as"},
      {"embed --model model in.fa -o out.npy -q -v", "--quiet and --verbose"},
      {"info model extra", "unexpected argument 'extra'"},
      {"classify --model model in.fa", "no task head"},
      {"embed --model model in.fa --device tpu", "--device"},
      {"help embd", "did you mean 'embed'?"},
  };
  for (const auto& [arguments, message] : cases) {
    const Outcome got = gmamba(arguments);
    EXPECT_EQ(got.code, 2) << arguments << "\n" << got.err;
    EXPECT_EQ(got.out, "") << arguments;
    EXPECT_TRUE(contains(got.err, message)) << arguments;
    EXPECT_EQ(files(), (std::set<std::string>{"in.fa"})) << arguments;
  }
}

TEST_F(Command, WhatHasAnEqualsSignIsNoValueOfAFlag) {
  const std::string rest = " --model model --print-config";
  EXPECT_EQ(gmamba("finetune --class q=a.fa --class v=b.fa --out run" + rest).code, 0);
  EXPECT_EQ(gmamba("embed q=3.fa" + rest).code, 0);
  EXPECT_EQ(gmamba("embed in.fa -o q=3.npy" + rest).code, 0);
  EXPECT_EQ(gmamba("embed in.fa --quiet=false" + rest).code, 0);
  EXPECT_TRUE(contains(gmamba("embed in.fa --quiet=true" + rest).out, "quiet = true"));
}

TEST_F(Command, AListOptionTakesAllValuesUpToTheNext) {
  const std::string rest = " --print-config --out run --steps 1";
  const Outcome together = gmamba("pretrain --fasta a.fa b.fa c.fa" + rest);
  EXPECT_EQ(together.code, 0) << together.err;
  EXPECT_TRUE(contains(together.out, "c.fa")) << together.out;
  EXPECT_EQ(together.out, gmamba("pretrain --fasta a.fa --fasta b.fa c.fa" + rest).out);
  EXPECT_EQ(together.out, gmamba("pretrain --fasta a.fa --fasta b.fa --fasta c.fa" + rest).out);
  // before any option there is no list to take it
  EXPECT_EQ(gmamba("pretrain a.fa --fasta b.fa" + rest).code, 2);
}

TEST_F(Command, WhatIsNotHereEndsWithThree) {
  EXPECT_EQ(gmamba("embed --model model in.fa -o out.h5").code, 3);
  EXPECT_EQ(gmamba("embed --model model in.fa -o out.npy --device cpu --precision bf16").code, 3);
  const Outcome got = gmamba("embed --model model in.fa -o out.npy --device cuda");
  EXPECT_TRUE(got.code == 3 || got.code == 0) << "no GPU, or one";
  EXPECT_TRUE(got.code == 0 || contains(got.err, "--device cuda")) << got.err;
}

TEST_F(Command, HelpShowsEveryDefault) {
  for (const char* command : {"pretrain", "finetune", "embed", "classify", "evaluate", "info"}) {
    const Outcome got = gmamba(std::string(command) + " --help");
    EXPECT_EQ(got.code, 0) << command;
    EXPECT_EQ(got.err, "") << command;
    EXPECT_TRUE(contains(got.out, std::string("Usage: gmamba ") + command));
    EXPECT_TRUE(contains(got.out, "--seed N"));
    EXPECT_EQ(gmamba(std::string("help ") + command).out, got.out);
    EXPECT_TRUE(contains(gmamba("--help").out, command));
  }
  EXPECT_TRUE(contains(gmamba("embed --help").out, "[default: mean]"));
}

TEST_F(Command, AFullDiskIsAnErrorEvenForBufferedData) {
  const Outcome got = gmamba("embed --model model in.fa >/dev/full");
  EXPECT_EQ(got.code, 1);
  EXPECT_TRUE(contains(got.err, "No space left on device"));
  EXPECT_EQ(gmamba("info model >/dev/full").code, 1);
}

TEST_F(Command, ALimitOfFileSizeIsAnErrorAndLeavesNothing) {
  write("many.fa", [] {
    std::string text;
    for (int i = 0; i < 5000; ++i) text += ">r" + std::to_string(i) + "\nACGTACGT\n";
    return text;
  }());
  const std::string command = "cd '" + folder.string() + "' && ( ulimit -f 16; '" + GMAMBA_COMMAND +
                              "' embed --model model many.fa -o out.npy -q ) " +
                              ">stdout.txt 2>stderr.txt";
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_TRUE(contains(slurp(folder / "stderr.txt"), "out.npy"));
  EXPECT_EQ(files(), (std::set<std::string>{"in.fa", "many.fa"}));
}

TEST_F(Command, AClosedPipeEndsQuietly) {
  write("many.fa", [] {
    std::string text;
    for (int i = 0; i < 20000; ++i) text += ">r" + std::to_string(i) + "\nACGT\n";
    return text;
  }());
  const std::string command = "cd '" + folder.string() + "' && '" + GMAMBA_COMMAND +
                              "' embed --model model many.fa -q 2>stderr.txt | head -n 2 " +
                              ">stdout.txt";
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(slurp(folder / "stderr.txt"), "");
  EXPECT_EQ(count_lines(slurp(folder / "stdout.txt")), 2);
}

TEST_F(Command, SignalsStopCleanly) {
  // the signal comes while the command waits for an input that says nothing for a minute
  const std::string script =
      "cd '" + folder.string() + "'\nmkfifo pipe\nsleep 60 >pipe &\nsleeper=$!\n'" +
      GMAMBA_COMMAND +
      "' embed --model model - -o out.npy <pipe 2>stderr.txt &\npid=$!\nsleep 1\nkill -$1 $pid\n"
      "wait $pid\ncode=$?\n[ $SECONDS -lt 30 ] || code=99\nkill $sleeper\nrm pipe\nexit $code\n";
  write("stop.sh", script);
  for (const auto& [signal, code] : {std::pair<std::string, int>{"TERM", 143}, {"INT", 130}}) {
    // a shell starts background commands with SIGINT ignored; -m gives them the default
    const std::string command = "bash -m '" + (folder / "stop.sh").string() + "' " + signal;
    const int status = std::system(command.c_str());
    EXPECT_EQ(WEXITSTATUS(status), code) << signal;
    EXPECT_TRUE(contains(slurp(folder / "stderr.txt"), "stopped by signal"));
    EXPECT_EQ(files(), (std::set<std::string>{"in.fa", "stop.sh"})) << signal;
  }
}

TEST_F(Command, ConfigFilesGiveOptionsAndFlagsWin) {
  write("job.toml", "model = \"model\"\n[embed]\npool = \"last\"\nsegment = 64\n");
  const Outcome got = gmamba("embed --config job.toml --segment 128 in.fa -o out.npy");
  ASSERT_EQ(got.code, 0) << got.err;
  const Json options = parse_json(slurp(folder / "out.npy.json"), "record")["options"];
  EXPECT_EQ(options["pool"], "last");
  EXPECT_EQ(options["segment"], 128);

  write("bad.toml", "model = \"model\"\n\n[embed]\npol = \"last\"\n");
  const Outcome bad = gmamba("embed --config bad.toml in.fa");
  EXPECT_EQ(bad.code, 2);
  EXPECT_TRUE(
      contains(bad.err, "bad.toml:4: 'pol' is not an option of embed; did you mean 'pool'"));
  EXPECT_EQ(gmamba("embed --config nowhere.toml in.fa").code, 1);

  const Outcome printed = gmamba("embed --config job.toml in.fa --print-config");
  EXPECT_EQ(printed.code, 0);
  write("printed.toml", printed.out);
  EXPECT_EQ(gmamba("embed --config printed.toml").out, gmamba("embed --config job.toml in.fa").out);
}

TEST_F(Command, EnvironmentLiesBetweenConfigAndFlags) {
  ASSERT_EQ(setenv("GMAMBA_POOL", "max", 1), 0);
  const Outcome got = gmamba("embed --model model in.fa -o out.npy");
  unsetenv("GMAMBA_POOL");
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(parse_json(slurp(folder / "out.npy.json"), "record")["options"]["pool"], "max");
}

TEST_F(Command, InfoPrintsAModel) {
  const Outcome got = gmamba("info model -q");
  EXPECT_EQ(got.code, 0);
  EXPECT_EQ(got.err, "");
  EXPECT_TRUE(contains(got.out, "d model"));
  EXPECT_TRUE(contains(got.out, "config.json"));
  EXPECT_TRUE(contains(gmamba("info model --plan").out, "bases/s"));
}

TEST_F(Command, DoctorEndsWithAVerdict) {
  const Outcome got = gmamba("doctor --device cpu -o doctor.json");
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "VERDICT: this machine"));
  EXPECT_TRUE(contains(got.out, "gradients"));
  const Json json = parse_json(slurp(folder / "doctor.json"), "doctor");
  EXPECT_EQ(json["checks"].size(), 7U);
  for (const Json& check : json["checks"]) EXPECT_NE(check["outcome"], "FAILED");
}

TEST_F(Command, EvaluatePrintsATableForPeople) {
  const Outcome got =
      gmamba("evaluate --model model in.fa --baseline-train in.fa --baseline-orders 1,2");
  ASSERT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "bits/base"));
  EXPECT_TRUE(contains(got.out, "markov-2"));
  EXPECT_TRUE(contains(got.out, "total"));
}

TEST_F(Command, NoControlCodesReachTheTerminal) {
  write("odd.fa", std::string(">na\x1b[31mme\nAC!T\n"));
  const Outcome got = gmamba("embed --model model odd.fa -o out.npy");
  EXPECT_EQ(got.code, 1);
  EXPECT_TRUE(contains(got.err, "\\x1b"));
  EXPECT_EQ(got.err.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace gmamba::test
