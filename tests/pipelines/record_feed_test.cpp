// SPDX-License-Identifier: Apache-2.0
#include "pipelines/record_feed.h"

#include "pipelines/spill_file.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

class RecordFeedTest : public PipelineTest {};

TEST_F(RecordFeedTest, GivesEveryBaseOnceInOrder) {
  std::vector<NamedSequence> records = mixed_records();
  records.push_back({"empty", ""});
  records.push_back({"huge", random_bases(700000, 50)});
  const Tokenizer tokenizer(Vocabulary::characters());
  InputOptions input;
  input.inputs = {write_fasta("in.fa", records)};
  for (const int64_t longest : {1, 64, 100000, 1000000}) {
    TokenSource source(input, tokenizer, 1, nullptr);
    RecordFeed feed(source, {.longest_held = longest, .wave_tokens = 200, .wave_records = 4});
    std::vector<NamedSequence> found;
    while (true) {
      const RecordFeed::Kind kind = feed.next();
      if (kind == RecordFeed::Kind::kEnd) break;
      if (kind == RecordFeed::Kind::kWave) {
        EXPECT_LE(feed.wave().size(), 4u);
        for (const HeldRecord& held : feed.wave()) {
          EXPECT_LE(held.info.length, longest);
          EXPECT_EQ(held.info.index, static_cast<int64_t>(found.size()));
          found.push_back({held.info.id, tokenizer.decode(held.tokens)});
        }
        continue;
      }
      std::string bases;
      std::vector<uint8_t> tokens(77);
      while (const int64_t got = feed.read(tokens)) {
        bases += tokenizer.decode(std::span(tokens).first(static_cast<size_t>(got)));
      }
      EXPECT_GT(feed.long_record().length, longest);
      EXPECT_EQ(feed.long_record().length, static_cast<int64_t>(bases.size()));
      EXPECT_EQ(feed.long_record().index, static_cast<int64_t>(found.size()));
      found.push_back({feed.long_record().id, bases});
    }
    ASSERT_EQ(found.size(), records.size());
    for (size_t i = 0; i < records.size(); ++i) {
      EXPECT_EQ(found[i].id, records[i].id);
      EXPECT_EQ(found[i].bases, records[i].bases) << records[i].id;
    }
  }
}

TEST_F(RecordFeedTest, ALongRecordThatIsNotReadIsSkipped) {
  const Tokenizer tokenizer(Vocabulary::characters());
  InputOptions input;
  input.inputs = {write_fasta("in.fa", {{"long", random_bases(600000, 1)}, {"next", "ACGT"}})};
  TokenSource source(input, tokenizer, 1, nullptr);
  RecordFeed feed(source, {.longest_held = 100});
  ASSERT_EQ(feed.next(), RecordFeed::Kind::kLong);
  std::vector<uint8_t> some(1000);
  feed.read(some);
  ASSERT_EQ(feed.next(), RecordFeed::Kind::kWave);
  EXPECT_EQ(feed.wave()[0].info.id, "next");
  EXPECT_EQ(feed.next(), RecordFeed::Kind::kEnd);
}

TEST_F(RecordFeedTest, ErrorsOfTheReadingThreadComeAfterTheRecordsBeforeThem) {
  const Tokenizer tokenizer(Vocabulary::characters());
  InputOptions input;
  input.inputs = {write_fasta("in.fa", {{"good", "ACGT"}, {"bad", "AC!T"}})};
  TokenSource source(input, tokenizer, 1, nullptr);
  TokenPart part;
  ASSERT_TRUE(source.next(part));
  EXPECT_EQ(part.id, "good");
  expect_error(ErrorKind::kInput, {"bad"}, [&] { source.next(part); });
}

TEST_F(RecordFeedTest, ASourceThatIsLeftEarlyEnds) {
  const Tokenizer tokenizer(Vocabulary::characters());
  InputOptions input;
  input.inputs = {write_fasta("in.fa", {{"long", random_bases(9000000, 1)}}, 9000000)};
  TokenSource source(input, tokenizer, 1, nullptr);
  TokenPart part;
  EXPECT_TRUE(source.next(part));
}

TEST(PlanBatches, CoversAllWithinTheBounds) {
  std::vector<HeldRecord> wave;
  for (const int64_t length : {5, 900, 3, 3, 0, 64, 2000, 70, 1, 8}) {
    wave.push_back({{"x", 0, 0, length}, {}});
  }
  std::vector<int> seen(wave.size(), 0);
  for (const std::vector<size_t>& batch : plan_batches(wave, 256, 3)) {
    int64_t longest = 0;
    for (const size_t i : batch) {
      ++seen[i];
      EXPECT_GE(wave[i].info.length, longest) << "ascending";
      longest = wave[i].info.length;
    }
    EXPECT_LE(batch.size(), 3u);
    EXPECT_TRUE(batch.size() == 1 || static_cast<int64_t>(batch.size()) * longest <= 256);
  }
  EXPECT_EQ(seen, std::vector<int>(wave.size(), 1));
}

TEST_F(RecordFeedTest, SpillFilesHaveNoNameAndKeepBytes) {
  SpillFile file(folder_);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
  const std::string text = "0123456789";
  file.append(std::as_bytes(std::span(text)));
  file.append(std::as_bytes(std::span(text)));
  EXPECT_EQ(file.size(), 20);
  std::string part(4, ' ');
  file.read(8, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "8901");
  file.clear();
  EXPECT_EQ(file.size(), 0);
  expect_error(ErrorKind::kIo, {"TMPDIR"}, [&] { SpillFile bad(folder_ / "nowhere"); });
}

}  // namespace
}  // namespace gmamba::test
