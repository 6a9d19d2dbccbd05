// SPDX-License-Identifier: Apache-2.0
#include "pipelines/event_file.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "tests/pipelines/event_reader.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

TEST(Crc32c, GivesThePublishedValues) {
  // RFC 3720, appendix B.4
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43U);
  std::string up, down;
  for (char c = 0; c < 32; ++c) {
    up += c;
    down.insert(0, 1, c);
  }
  EXPECT_EQ(crc32c(up), 0x46DD794EU);
  EXPECT_EQ(crc32c(down), 0x113FDB5CU);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(crc32c("gmamba"), naive_crc32c("gmamba"));
}

TEST(EventFiles, RecordsAreFramedByteForByte) {
  const std::string record = tf_record("abc");
  ASSERT_EQ(record.size(), 8U + 4 + 3 + 4);
  EXPECT_EQ(record.substr(0, 8), std::string("\x03\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(12, 3), "abc");
  EXPECT_EQ(Decoder(record).record(), "abc");
  std::string damaged = record;
  damaged[13] ^= 1;
  EXPECT_THROW(Decoder(damaged).record(), std::runtime_error);
}

class EventFileTest : public PipelineTest {};

TEST_F(EventFileTest, AReaderFindsWhatWasWritten) {
  EventFile file(path("board"), 1700000000.25);
  EXPECT_EQ(file.path().filename().string().find("events.out.tfevents.1700000000."), 0U);
  const std::vector<Scalar> scalars = {{"train/loss", 1.375}, {"valid/loss", -2e-3}};
  file.add(1700000001.5, 300, scalars);
  file.add(1700000002, 301, {});
  file.restart(1700000003, int64_t{1} << 40);

  Decoder records(slurp(file.path()));
  auto version = Decoder(records.record()).message();
  EXPECT_EQ(as_double(version.find(1)->second.bytes), 1700000000.25);
  EXPECT_EQ(version.find(3)->second.bytes, "brain.Event:2");

  auto event = Decoder(records.record()).message();
  EXPECT_EQ(as_double(event.find(1)->second.bytes), 1700000001.5);
  EXPECT_EQ(event.find(2)->second.varint, 300U);
  const auto summary = Decoder(event.find(5)->second.bytes).message();
  ASSERT_EQ(summary.count(1), 2U);
  size_t i = 0;
  for (const auto& [number, field] : summary) {
    const auto value = Decoder(field.bytes).message();
    EXPECT_EQ(number, 1U);
    EXPECT_EQ(value.find(1)->second.bytes, scalars[i].tag);
    EXPECT_EQ(as_float(value.find(2)->second.bytes), static_cast<float>(scalars[i].value));
    ++i;
  }

  auto restart = Decoder(records.record()).message();
  EXPECT_EQ(restart.find(2)->second.varint, uint64_t{1} << 40);
  EXPECT_EQ(Decoder(restart.find(7)->second.bytes).message().find(1)->second.varint, 1U);
  EXPECT_TRUE(records.end()) << "an event without scalars is none";
}

// Starts within a second, another process that sorts behind this one, a clock that was set back.
TEST_F(EventFileTest, ALaterFileIsBehindAllThatAreThere) {
  const EventFile first(path("board"), 1700000000);
  const EventFile second(path("board"), 1700000000);
  EXPECT_LT(first.path(), second.path());
  std::ofstream(path("board") + "/events.out.tfevents.1700000009.zz.99999999.7") << "x";
  for (const char* other : {"notes", "99999999999.a.1.0", "9999999999", "-999999999.a.1.0"}) {
    std::ofstream(path("board") + "/events.out.tfevents." + other) << "x";
  }
  const EventFile third(path("board"), 1700000003);
  EXPECT_EQ(third.path().filename().string().find("events.out.tfevents.1700000010."), 0U);
  const EventFile fourth(path("board"), 1800000000);
  EXPECT_EQ(fourth.path().filename().string().find("events.out.tfevents.1800000000."), 0U);
}

TEST_F(EventFileTest, AFolderThatCannotBeMadeIsAnError) {
  std::ofstream(path("file")) << "x";
  EXPECT_THROW(EventFile(path("file") + "/board", 1), Error);
}

}  // namespace
}  // namespace gmamba::test
