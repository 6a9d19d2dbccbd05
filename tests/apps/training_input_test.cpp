// SPDX-License-Identifier: Apache-2.0
/// What training runs make of letters that are no sequence letters.
#include <gtest/gtest.h>

#include "tests/apps/training_fixture.h"

namespace gmamba::test {
namespace {

/// The text with these letters at the fifth place of its first lines of sequence, one in each.
std::string with_letters(std::string text, const std::string& letters) {
  size_t end = 0;
  for (const char letter : letters) {
    do {
      end = text.find('\n', end + 1);
    } while (text[end + 1] == '>');
    text[end + 5] = letter;
  }
  return text;
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

std::string with_word(std::string words, const std::string& word, const std::string& other) {
  return words.replace(words.find(word), word.size(), other);
}

constexpr const char* kThree = ": 3 letters that are no sequence letters were read as N";

TEST(TrainingInput, GenomesHaveOddLettersAsNWhenAsked) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  const std::string genome = slurp(folder / "genome.fa");
  write(folder / "odd.fa", with_letters(genome, "!-E"));
  write(folder / "n.fa", with_letters(genome, "NNN"));
  const auto words = [](const std::string& file, const std::string& out) {
    const std::string loud = with_word(pretrain_words(out, 8), " -q", "");
    return with_word(loud, "genome.fa", file) + " --keep 20";
  };
  const Outcome refused = run(words("odd.fa", "odd"), folder);
  EXPECT_EQ(refused.code, 1);
  EXPECT_TRUE(contains(refused.err, "odd.fa: line 2: record 'c0': '!' at base 5 is no sequence"));
  EXPECT_TRUE(contains(refused.err, "--invalid n reads it so"));
  EXPECT_FALSE(fs::exists(folder / "odd"));
  EXPECT_EQ(run(words("odd.fa", "odd") + " --invalid N", folder).code, 2);

  const std::string odd = words("odd.fa", "odd") + " --invalid n";
  const Outcome read = run(odd, folder);
  ASSERT_EQ(read.code, 0) << read.err;
  EXPECT_TRUE(contains(read.err, concat("odd.fa", kThree)));
  const Json record = parse_json(slurp(folder / "odd" / "run.json"), "run.json");
  EXPECT_EQ(record.at("options").at("invalid"), "n");
  ASSERT_EQ(run(words("n.fa", "n"), folder).code, 0);
  EXPECT_EQ(weights(folder / "odd"), weights(folder / "n"));
  EXPECT_EQ(losses(folder / "odd"), losses(folder / "n"));

  // a run goes on with the choice that it began with
  const std::string before = losses(folder / "odd");
  drop_checkpoints_after(folder / "odd", 4);
  const Outcome other = run(words("n.fa", "odd") + " --resume", folder);
  EXPECT_EQ(other.code, 2);
  EXPECT_TRUE(contains(other.err, "--resume: 'invalid' differs from that of the run in odd"));
  const Outcome more = run(words("n.fa", "n") + " --resume --invalid n", folder);
  EXPECT_EQ(more.code, 2);
  EXPECT_TRUE(contains(more.err, "--resume: 'invalid' differs from that of the run in n"));
  ASSERT_EQ(run(odd + " --resume", folder).code, 0);
  EXPECT_EQ(losses(folder / "odd"), before);
  EXPECT_EQ(weights(folder / "odd"), weights(folder / "n"));
}

TEST(TrainingInput, LabelledSequencesHaveOddLettersAsNWhenAsked) {
  const fs::path folder = test_folder();
  write_genome(folder / "genome.fa", 1);
  ASSERT_EQ(run(pretrain_words("base", 1), folder).code, 0);
  std::string table = "sequence\tlabel\n";
  std::string labels = "id\tlabel\n";
  std::string fasta;
  for (int i = 0; i < 24; ++i) {
    const std::string label = i % 2 == 0 ? "at" : "gc";
    const std::string bases =
        random_bases(40, static_cast<uint64_t>(100 + i), label == "at" ? 0.8 : 0.2);
    table += concat(bases, "\t", label, "\n");
    labels += concat("r", i, "\t", label, "\n");
    fasta += concat(">r", i, "\n", bases, "\n");
  }
  write(folder / "labels.tsv", labels);
  write(folder / "train.tsv", table);
  write_genome(folder / "at.fa", 11, 0.8);
  const std::string genome = slurp(folder / "at.fa");
  for (const auto& [kind, letters] : {std::pair{"odd", "!-E"}, std::pair{"n", "NNN"}}) {
    write(folder / concat(kind, ".tsv"), with_letters(table, letters));
    write(folder / concat(kind, "_reads.fa"), with_letters(fasta, letters));
    write(folder / concat(kind, "_at.fa"), with_letters(genome, letters));
  }
  struct Case {
    std::string words;  ///< FILE is the kind
    std::string file;
    std::string place;
  };
  const std::string common =
      " --model base --batch 8 --steps 3 --kmer 0 --keep 20 --save-every 1 --progress none "
      "--threads 2 --out ";
  for (const Case& c :
       {Case{"--train FILE.tsv", "odd.tsv", ": line 2: '!' at base 5 of the sequence"},
        Case{"--train train.tsv --valid FILE.tsv", "odd.tsv", ": line 2: '!' at base 5 of the"},
        Case{"--labels labels.tsv FILE_reads.fa", "odd_reads.fa",
             ": line 2: record 'r0': '!' at base 5"},
        Case{"--class at=FILE_at.fa --class gc=genome.fa --context 100", "odd_at.fa",
             ": line 2: record 'c0': '!' at base 5"}}) {
    const auto words = [&](const std::string& kind, const std::string& out) {
      return concat("finetune ", with_word(c.words, "FILE", kind), common, out);
    };
    const Outcome refused = run(words("odd", "odd"), folder);
    EXPECT_EQ(refused.code, 1) << c.words;
    EXPECT_TRUE(contains(refused.err, c.file + c.place));
    EXPECT_FALSE(fs::exists(folder / "odd")) << c.words;
    const std::string odd = words("odd", "odd") + " --invalid n";
    const Outcome read = run(odd, folder);
    ASSERT_EQ(read.code, 0) << c.words << ": " << read.err;
    EXPECT_TRUE(contains(read.err, c.file + kThree));
    ASSERT_EQ(run(words("n", "n"), folder).code, 0) << c.words;
    EXPECT_EQ(weights(folder / "odd"), weights(folder / "n")) << c.words;

    drop_checkpoints_after(folder / "odd", 2);
    const Outcome other = run(words("n", "odd") + " --resume", folder);
    EXPECT_EQ(other.code, 2) << c.words;
    EXPECT_TRUE(contains(other.err, "--resume: 'invalid' differs from that of the run in odd"));
    ASSERT_EQ(run(odd + " --resume", folder).code, 0) << c.words;
    EXPECT_EQ(weights(folder / "odd"), weights(folder / "n")) << c.words;
    remove_tree(folder / "odd");
    remove_tree(folder / "n");
  }
}

}  // namespace
}  // namespace gmamba::test
