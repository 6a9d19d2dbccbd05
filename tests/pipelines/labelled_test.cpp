// SPDX-License-Identifier: Apache-2.0
#include "pipelines/labelled.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "libmamba/core/error.h"
#include "libmamba/core/random.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

class Labelled : public ::testing::Test {
 protected:
  void SetUp() override {
    // tests of one suite run side by side: each has a folder of its own
    folder_ = fs::path(::testing::TempDir()) / ("gmamba_labelled_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }
  fs::path folder_;
  Tokenizer tokenizer_{Vocabulary::characters()};
};

TEST_F(Labelled, TablesBecomeExamples) {
  const std::string path = write("t.tsv", "label\tsequence\tid\nb\tACGT\tx\na\tNN\ty\n");
  const LabelledText text = read_labelled_table(path);
  const auto classes = class_names(text.labels);
  EXPECT_EQ(classes, (std::vector<std::string>{"a", "b"}));
  const auto examples = make_examples(text, classes, TaskKind::kClassification, tokenizer_, path);
  ASSERT_EQ(examples.size(), 2u);
  EXPECT_EQ(examples[0].label, 1);
  EXPECT_EQ(examples[0].ids, (Ids{7, 8, 9, 10}));
  EXPECT_THROW(make_examples(text, {"a"}, TaskKind::kClassification, tokenizer_, path), Error);
  EXPECT_THROW(make_examples(text, {}, TaskKind::kRegression, tokenizer_, path), Error);
  EXPECT_THROW(read_labelled_table(write("bad.tsv", "sequence\tclass\nACGT\t1\n")), Error);
  EXPECT_THROW(read_labelled_table(write("empty.tsv", "sequence\tlabel\n")), Error);
}

TEST_F(Labelled, LettersOutsideIupacAreNamedOrReadAsN) {
  const std::string table = write("odd.tsv", "sequence\tlabel\nACGT\ta\nAC#T-\tb\n");
  try {
    read_labelled_table(table);
    ADD_FAILURE() << "read";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("odd.tsv: line 3: '#' at base 3"), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(read_labelled_table(table, InvalidLetters::kN).sequences[1], "ACNTN");
  EXPECT_THROW(
      read_labelled_table(write("blank.tsv", "sequence\tlabel\nAC GT\ta\n"), InvalidLetters::kN),
      Error);
  const std::string fasta = write("odd.fa", ">one\nAC#T\n");
  const std::string labels = write("odd_labels.tsv", "id\tlabel\none\tx\n");
  EXPECT_THROW(read_labelled_records({fasta}, labels, nullptr), Error);
  EXPECT_EQ(read_labelled_records({fasta}, labels, nullptr, InvalidLetters::kN).sequences[0],
            "ACNT");
}

TEST_F(Labelled, NumbersSortByValue) {
  EXPECT_EQ(class_names({"10", "2", "1", "2"}), (std::vector<std::string>{"1", "2", "10"}));
}

TEST_F(Labelled, RecordsNeedTheirLabels) {
  const std::string fasta = write("r.fa", ">one\nACGT\n>two desc\nGG\n");
  const std::string labels = write("l.tsv", "id\tlabel\none\tx\ntwo\ty\nthree\tx\n");
  const LabelledText text = read_labelled_records({fasta}, labels, nullptr);
  EXPECT_EQ(text.labels, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(text.sequences[1], "GG");
  EXPECT_THROW(read_labelled_records({fasta}, write("few.tsv", "id\tlabel\none\tx\n"), nullptr),
               Error);
  EXPECT_THROW(
      read_labelled_records({fasta}, write("twice.tsv", "id\tlabel\none\tx\none\ty\n"), nullptr),
      Error);
}

TEST_F(Labelled, EachPassIsANewOrderOfTheSameExamples) {
  std::vector<Example> examples(50);
  for (size_t i = 0; i < examples.size(); ++i) examples[i].label = static_cast<int32_t>(i);
  const auto source = list_source(std::move(examples), 3);
  std::vector<int32_t> first;
  std::vector<int32_t> second;
  for (uint64_t i = 0; i < 50; ++i) first.push_back(source->draw(i).label);
  for (uint64_t i = 50; i < 100; ++i) second.push_back(source->draw(i).label);
  EXPECT_EQ(std::set<int32_t>(first.begin(), first.end()).size(), 50u);
  EXPECT_EQ(std::set<int32_t>(second.begin(), second.end()).size(), 50u);
  EXPECT_NE(first, second);
  EXPECT_EQ(source->draw(7).label, first[7]) << "a draw depends on its index alone";
}

TEST_F(Labelled, ClassWindowsHoldOutBases) {
  Random random(5, RandomUse::kTest);
  const auto genome = [&](const std::string& name) {
    std::string text;
    for (int contig = 0; contig < 3; ++contig) {
      text += ">c" + std::to_string(contig) + "\n";
      for (int i = 0; i < 20000; ++i) text += "ACGT"[random.below(4)];
      text += "\n";
    }
    return write(name, text);
  };
  const std::string a = genome("a.fa");
  const std::string b = genome("b.fa");
  const ClassWindows windows =
      open_class_windows({"a=" + a, "b=" + b}, 100, 500, 0.2, tokenizer_, 1, nullptr);
  EXPECT_EQ(windows.names, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(windows.train->epoch_size(), 1000);
  EXPECT_EQ(windows.train_bases + windows.valid_bases, 120000);
  EXPECT_GT(windows.valid.size(), 20u);
  // random 100-mers do not repeat by chance: a held-out window that is drawn in training is a leak
  std::set<Ids> held_out;
  for (const Example& example : windows.valid) held_out.insert(example.ids);
  for (uint64_t i = 0; i < 2000; ++i) {
    const Example example = windows.train->draw(i);
    EXPECT_EQ(example.label, static_cast<int32_t>(i % 2));
    EXPECT_EQ(held_out.count(example.ids), 0u);
  }
  EXPECT_THROW(open_class_windows({"a=" + a}, 100, 5, 0.2, tokenizer_, 1, nullptr), Error);
  EXPECT_THROW(open_class_windows({a, b}, 100, 5, 0.2, tokenizer_, 1, nullptr), Error);
}

}  // namespace
}  // namespace gmamba
