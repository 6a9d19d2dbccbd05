// SPDX-License-Identifier: Apache-2.0
#include "io/sequence_reader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::bgzip;
using test::error_of;
using test::gzip;
using test::random_bases;
using test::wrap;

std::vector<SequenceRecord> read_all(SequenceReader& reader) {
  std::vector<SequenceRecord> records;
  SequencePart part;
  while (reader.next(part)) {
    if (part.first) {
      EXPECT_EQ(part.offset, 0);
      EXPECT_EQ(part.record, static_cast<int64_t>(records.size()));
      records.push_back({std::string(part.id), std::string(part.description), ""});
    }
    EXPECT_EQ(part.offset, static_cast<int64_t>(records.back().bases.size()));
    EXPECT_TRUE(!part.bases.empty() || (part.first && part.last)) << "an empty part";
    records.back().bases += part.bases;
  }
  EXPECT_FALSE(reader.next(part));
  return records;
}

std::vector<SequenceRecord> read_text(std::string_view text,
                                      const SequenceReaderOptions& options = {}) {
  return read_all(*open_sequences_memory(text, "x.fa", options));
}

void expect_equal(const std::vector<SequenceRecord>& found,
                  const std::vector<SequenceRecord>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].id, expected[i].id);
    EXPECT_EQ(found[i].description, expected[i].description);
    ASSERT_TRUE(found[i].bases == expected[i].bases) << "record " << i;
  }
}

std::vector<SequenceRecord> sample_records() {
  return {{"chr1", "first of  all", random_bases(1234, 1)},
          {"empty", "", ""},
          {"chr:2|x", "a", random_bases(120, 2)},
          {"s", "", "N"},
          {"long", "", random_bases(20001, 3)}};
}

std::string as_fasta(const std::vector<SequenceRecord>& records, size_t width,
                     std::string_view ending) {
  std::string text;
  for (const SequenceRecord& record : records) {
    text += ">" + record.id;
    if (!record.description.empty()) text += " " + record.description;
    text.append(ending);
    text += wrap(record.bases, width, ending);
  }
  return text;
}

std::string as_fastq(const std::vector<SequenceRecord>& records, size_t width,
                     std::string_view ending, bool name_twice) {
  std::string text;
  Random random(9, RandomUse::kTest);
  for (const SequenceRecord& record : records) {
    const std::string title =
        record.id + (record.description.empty() ? "" : " " + record.description);
    std::string quality(record.bases.size(), '\0');
    // '@' and '+' at line starts too
    for (size_t i = 0; i < quality.size(); ++i) {
      quality[i] = i % 3 == 0 ? (i % 2 == 0 ? '@' : '+') : static_cast<char>(33 + random.below(94));
    }
    text += "@" + title + std::string(ending);
    text += record.bases.empty() ? std::string(ending) : wrap(record.bases, width, ending);
    text += "+" + (name_twice ? title : "") + std::string(ending);
    text += record.bases.empty() ? std::string(ending) : wrap(quality, width, ending);
  }
  return text;
}

/// Every packing of `text` read with buffers that put borders everywhere.
void expect_reads(const std::string& text, const std::vector<SequenceRecord>& expected) {
  for (const std::string& packed :
       {text, gzip(text), bgzip(text), bgzip(text, 997),
        gzip(text.substr(0, text.size() / 3)) + gzip(text.substr(text.size() / 3))}) {
    for (const auto& [buffer, part] : std::vector<std::pair<int64_t, int64_t>>{
             {1 << 18, 1 << 18}, {16, 7}, {17, 1000}, {64, 60}, {4096, 61}}) {
      SequenceReaderOptions options;
      options.buffer_bytes = buffer;
      options.part_bases = part;
      options.threads = buffer == 64 ? 3 : 1;
      expect_equal(read_text(packed, options), expected);
    }
  }
}

TEST(SequenceReader, FastaSameBasesWhateverTheWrapping) {
  const auto records = sample_records();
  for (const std::string_view ending : {"\n", "\r\n"}) {
    for (const size_t width : {0, 1, 60, 61, 200}) {
      const std::string text = as_fasta(records, width, ending);
      expect_reads(text, records);
      // without the last line end, and with blank lines at the record ends
      expect_equal(read_text(text.substr(0, text.size() - ending.size())), records);
      expect_equal(read_text(text + std::string(ending) + std::string(ending)), records);
    }
  }
  expect_equal(read_text(">a\nAC\nG\n\n\n>b\r\n\r\n>c x\nT\r\n\r\n"),
               {{"a", "", "ACG"}, {"b", "", ""}, {"c", "x", "T"}});
  expect_equal(read_text("\n\n>a\nAC\r"), {{"a", "", "AC"}});
  expect_equal(read_text(">a"), {{"a", "", ""}});
}

TEST(SequenceReader, FastqSameBasesWhateverTheWrapping) {
  const auto records = sample_records();
  for (const std::string_view ending : {"\n", "\r\n"}) {
    for (const size_t width : {0, 1, 60, 61}) {
      for (const bool name_twice : {false, true}) {
        const std::string text = as_fastq(records, width, ending, name_twice);
        if (name_twice) {
          expect_equal(read_text(text), records);
        } else {
          expect_reads(text, records);
        }
        expect_equal(read_text(text.substr(0, text.size() - ending.size())), records);
        expect_equal(read_text(text + std::string(ending)), records);
      }
    }
  }
}

TEST(SequenceReader, CountsAndProgress) {
  const std::string text = as_fasta(sample_records(), 60, "\n");
  const auto reader = open_sequences_memory(text, "x");
  EXPECT_EQ(reader->bytes_total(), static_cast<int64_t>(text.size()));
  SequenceRecord record;
  int64_t records = 0;
  while (next_record(*reader, record)) ++records;
  EXPECT_EQ(records, 5);
  EXPECT_EQ(reader->bases_read(), 1234 + 120 + 1 + 20001);
  EXPECT_EQ(reader->bytes_read(), static_cast<int64_t>(text.size()));
}

struct BadCase {
  std::string text;
  std::string message;  // what the message must hold
};

TEST(SequenceReader, RefusesBadFasta) {
  const std::vector<BadCase> cases = {
      {"", "empty"},
      {"\n\n", "empty"},
      {"ACGT\n", "line 1: expected '>'"},
      {"\n\nx>a\nACGT\n", "line 3: expected '>'"},
      {";old\n>a\nA\n", "';'"},
      {"\xEF\xBB\xBF>a\nA\n", "byte-order mark"},
      {">\nACGT\n", "record 1 has no name"},
      {">a\nA\n> b\nA\n", "line 3: record 2 has no name"},
      {">a\nACG\nAXG\n", "line 3: record 'a': 'X' at base 5"},
      {">a\nACG\nA-G\n", "line 3: record 'a': '-' at base 5 is a gap"},
      {">a\nACG\nA.G\n", "is a gap"},
      {">a\n*\n", "is a gap"},
      {">a\nAC GT\n", "a space at base 3"},
      {">a\nAC\tGT\n", "a tab at base 3"},
      {">a\nAC\rGT\n", "a carriage return at base 3"},
      {">a\nAC\r\r\nGT\n", "a carriage return at base 3"},
      {">a\nAC\n>b\nA\x01", "line 4: record 'b': byte \\x01 at base 2"},
      {">a\nAC>b\nA\n", "'>' at base 3"},
      {">a\nAC\n\nGT\n", "line 3: blank line inside record 'a'; sequence goes on at line 4"},
      {">a\n\nGT\n", "line 2: blank line inside record 'a'"},
      {">a\nAC\n@b\nA\n+\nI\n", "'@' at base 3"},
      {">a\nE\n", "'E'"},
      {">\x1b[31m\nE\n", "\\x1b[31m"},
  };
  for (const BadCase& bad : cases) {
    for (const int64_t buffer : {16, 1 << 16}) {
      SequenceReaderOptions options;
      options.buffer_bytes = buffer;
      options.part_bases = buffer == 16 ? 2 : 1 << 16;
      const std::string message = error_of([&] { read_text(bad.text, options); });
      EXPECT_NE(message.find(bad.message), std::string::npos) << bad.text << "\n" << message;
      EXPECT_EQ(message.find("x.fa: "), 0u) << message;
    }
  }
}

TEST(SequenceReader, RefusesBadFastq) {
  const std::vector<BadCase> cases = {
      {"@a\nACGT\n", "truncated: record 'a' ends before its quality"},
      {"@a\nACGT\n+\n", "truncated: record 'a' ends within its quality"},
      {"@a\nACGT\n+\nIII", "truncated: record 'a' ends within its quality"},
      {"@a\nACGT\n+\nIIIII\n", "record 'a' has 4 bases, but its quality string is longer"},
      {"@a\nACGT\n+\nII\n\nII\n", "line 5: record 'a' has 4 bases, but its quality string is shor"},
      {"@a\nACGT\n+\nIIII\nI\n", "line 5: expected '@' and a name after record 'a', found 'I'"},
      {"@a\nACGT\n+b\nIIII\n", "the '+' line names 'b'"},
      {"@a\nACGT\n+\nII I\n", "a space is no quality character"},
      {"@a\nAC\nG-\n+\nIIII\n", "line 3: record 'a': '-' at base 4"},
      {"@a\nACGT\n+\nIIII\n>b\nACGT\n", "found '>'"},
      {"@a\nACGT\n\n+\nIIII\n", "line 3: blank line inside record 'a'"},
      {"@a\n\nACGT\n+\nIIII\n", "line 2: blank line inside record 'a'"},
      {"@\nACGT\n+\nIIII\n", "record 1 has no name"},
      {"@a\n+\n!\n", "expected '@'"},
  };
  for (const BadCase& bad : cases) {
    for (const int64_t buffer : {16, 1 << 16}) {
      SequenceReaderOptions options;
      options.buffer_bytes = buffer;
      const std::string message = error_of([&] { read_text(bad.text, options); });
      EXPECT_NE(message.find(bad.message), std::string::npos) << bad.text << "\n" << message;
    }
  }
}

TEST(SequenceReader, NamesUpTo64KiB) {
  const std::string longest(65536, 'n');
  EXPECT_EQ(read_text(">" + longest + "\nA\n")[0].id, longest);
  EXPECT_EQ(read_text(">" + longest + " about\r\nA\n")[0].description, "about");
  EXPECT_NE(error_of([&] { read_text(">" + longest + "n\nA\n"); }).find("more than 64 KiB"),
            std::string::npos);
  const std::string endless = ">" + std::string(5 << 20, 'n');
  EXPECT_NE(error_of([&] { read_text(endless); }).find("header line longer than 1 MiB"),
            std::string::npos);
}

TEST(SequenceReader, InvalidLettersAsN) {
  test::MemoryLog log;
  SequenceReaderOptions options;
  options.invalid = InvalidLetters::kN;
  options.log = &log;
  const auto reader = open_sequences_memory(">a\nAC-*.G\nXJ\n>b\nACGT\n", "x.fa", options);
  expect_equal(read_all(*reader), {{"a", "", "ACNNNGNN"}, {"b", "", "ACGT"}});
  EXPECT_EQ(reader->invalid_letters(), 5);
  EXPECT_TRUE(log.contains("x.fa: 5 letters"));
  // bytes that no editor writes into a sequence stay errors
  error_of([&] { read_text(std::string(">a\nAC\0GT\n", 9), options); });
  error_of([&] { read_text(">a\nAC GT\n", options); });
  error_of([&] { read_text(">a\nAC\xffGT\n", options); });
}

TEST(SequenceReader, ForeignFormatsAreNamed) {
  using namespace std::string_literals;
  for (const auto& [head, word] :
       std::vector<std::pair<std::string, std::string>>{{"BZh91AY&SY____", "bzip2"},
                                                        {"\xFD\x37zXZ\0____"s, "xz"},
                                                        {"\x28\xB5\x2F\xFD____", "Zstandard"},
                                                        {"PK\x03\x04____", "zip"},
                                                        {"CRAM\x03____", "CRAM"},
                                                        {"\x43\x27\x41\x1A____", "2bit"}}) {
    EXPECT_NE(
        error_of([&, &bytes = head] { read_text(bytes); }, ErrorKind::kUnsupported).find(word),
        std::string::npos);
  }
  for (const auto& [bytes, word] : std::vector<std::pair<std::string, std::string>>{
           {bgzip("BAM\x01\x66\x00\x00\x00@HD\tVN:1.6\n"s), "x.fa: this is a BAM file"},
           {"@HD\tVN:1.6\n@SQ\tSN:c\tLN:9\n", "x.fa: this is a SAM file"},
           {"@SQ\tSN:c\tLN:9\n", "convert it with samtools fasta"}}) {
    EXPECT_NE(error_of([&, &b = bytes] { read_text(b); }, ErrorKind::kUnsupported).find(word),
              std::string::npos);
  }
  EXPECT_NO_THROW(read_text("@SQ\tsecond\nAC\n+\nII\n")) << "a read may be called so";
  const std::string missing = error_of([] { open_sequences("/no/such/file.fa"); }, ErrorKind::kIo);
  EXPECT_NE(missing.find("/no/such/file.fa: cannot open: No such file"), std::string::npos);
  error_of(
      [] {
        SequencePart part;
        open_sequences("/")->next(part);
      },
      ErrorKind::kIo);
}

TEST(SequenceReader, ACutFileIsToBeCopiedAgain) {
  const std::string text = as_fasta({{"a", "", random_bases(3000, 5)}}, 60, "\n");
  for (const std::string& whole : {gzip(text), bgzip(text)}) {
    const std::string cut = whole.substr(0, whole.size() / 2);
    const std::string message = error_of([&] { read_text(cut); });
    EXPECT_EQ(message.find("x.fa: truncated: "), 0U) << message;
    EXPECT_NE(message.find("; copy or download it again"), std::string::npos) << message;
  }
}

TEST(SequenceReader, TruncatedCompressionIsNeverWhole) {
  const std::string text = as_fasta({{"a", "", random_bases(3000, 5)}}, 60, "\n");
  for (const std::string& whole : {gzip(text), bgzip(text), bgzip(text, 500)}) {
    for (const int threads : {1, 2}) {
      SequenceReaderOptions options;
      options.threads = threads;
      ASSERT_NO_THROW(read_text(whole, options));
      const size_t step = threads == 1 ? 1 : 17;
      for (size_t length = 0; length < whole.size(); length += step) {
        EXPECT_THROW(read_text(std::string_view(whole).substr(0, length), options), Error)
            << length << " of " << whole.size();
      }
    }
  }
}

TEST(SequenceReader, FlippedBitsAreNeverReadAsOtherBases) {
  const std::string text = as_fasta({{"a", "", random_bases(500, 6)}}, 60, "\n");
  const auto expected = read_text(text);
  for (const std::string& whole : {gzip(text), bgzip(text, 200)}) {
    for (size_t bit = 0; bit < whole.size() * 8; bit += 3) {
      std::string damaged = whole;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
      try {
        const auto found = read_text(damaged);
        // flags and times of the gzip header do not touch the data
        expect_equal(found, expected);
      } catch (const Error& error) {
        EXPECT_FALSE(error.message().empty());
      }
    }
  }
}

TEST(SequenceReader, GarbageAroundCompressedData) {
  const std::string text = ">a\nACGT\n";
  EXPECT_NE(error_of([&] { read_text(gzip(text) + "garbage"); }).find("no gzip"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read_text(gzip(text) + std::string(512, '\0')); }).find("no gzip"),
            std::string::npos);
  error_of([&] { read_text(bgzip(text) + "g"); });
  EXPECT_NE(error_of([&] { read_text(bgzip(text) + std::string(40, 'g')); }).find("no BGZF block"),
            std::string::npos);
  EXPECT_NE(error_of([&] { read_text(bgzip(text) + gzip(text)); }).find("no BGZF block"),
            std::string::npos);
  const std::string block = test::bgzf_block(text);
  EXPECT_NE(error_of([&] { read_text(block); }).find("end-of-file block is missing"),
            std::string::npos);
  // whole files joined are one file
  expect_equal(read_text(bgzip(text) + bgzip(">b\nC\n")), {{"a", "", "ACGT"}, {"b", "", "C"}});
  expect_equal(read_text(gzip(text) + gzip("") + gzip(">b\nC\n")),
               {{"a", "", "ACGT"}, {"b", "", "C"}});
  EXPECT_NE(error_of([&] { read_text(gzip("")); }).find("empty"), std::string::npos);
  EXPECT_NE(error_of([&] { read_text(bgzip("")); }).find("empty"), std::string::npos);
}

TEST(SequenceReader, BgzfBlocksThatLie) {
  const std::string text = as_fasta({{"a", "", random_bases(5000, 7)}}, 60, "\n");
  const std::string end = bgzip("");
  for (const auto& [from_end, word] : std::vector<std::pair<size_t, std::string>>{
           {1, "more than 64 KiB"}, {2, "more than 64 KiB"}, {8, "CRC-32"}, {40, ""}}) {
    std::string block = test::bgzf_block(text);
    block[block.size() - from_end] = static_cast<char>(block[block.size() - from_end] ^ 0x41);
    const std::string message = error_of([&, &lie = block] { read_text(lie + end); });
    EXPECT_NE(message.find(word), std::string::npos) << message;
  }
  // a length below and above the true one
  for (const uint64_t length : {text.size() - 1, text.size() + 1, size_t{0}}) {
    std::string block = test::bgzf_block(text);
    block.replace(block.size() - 4, 4, test::little_endian(length, 4));
    error_of([&] { read_text(block + end); });
  }
}

TEST(SequenceReader, StandardInputByContent) {
  const auto records = sample_records();
  const std::string text = as_fasta(records, 60, "\n");
  for (const std::string& packed : {text, gzip(text), bgzip(text)}) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const int saved = ::dup(STDIN_FILENO);
    ASSERT_EQ(::dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
    ::close(ends[0]);
    std::thread writer([&, out = ends[1]] {
      for (size_t at = 0; at < packed.size();) {  // dribbles
        const ssize_t put = ::write(out, packed.data() + at,
                                    std::min<size_t>(at < 100 ? 7 : 5000, packed.size() - at));
        if (put <= 0) break;
        at += static_cast<size_t>(put);
      }
      ::close(out);
    });
    const auto reader = open_sequences("-");
    expect_equal(read_all(*reader), records);
    EXPECT_EQ(reader->bytes_total(), -1);
    writer.join();
    ::dup2(saved, STDIN_FILENO);
    ::close(saved);
  }
}

TEST(SequenceReader, StopsEarlyWithoutHanging) {
  const std::string packed = bgzip(as_fasta({{"a", "", random_bases(4000000, 8)}}, 60, "\n"));
  for (int i = 0; i < 20; ++i) {
    SequenceReaderOptions options;
    options.threads = 3;
    const auto reader = open_sequences_memory(packed, "x", options);
    SequencePart part;
    for (int k = 0; k < i % 4; ++k) ASSERT_TRUE(reader->next(part));
  }
}

/// One record longer than 2^31 bases, from BGZF blocks that repeat, in bounded parts.
TEST(SequenceReaderLarge, RecordPastTwoToThe31) {
  const std::string line = random_bases(64, 10, "ACGT");
  std::string lines;
  while (lines.size() + 65 <= 65000) lines += line + "\n";
  const auto bases_per_block = static_cast<int64_t>(lines.size() / 65 * 64);
  const int64_t blocks = ((int64_t{1} << 31) + (int64_t{1} << 20)) / bases_per_block;
  const std::string block = test::bgzf_block(lines);
  std::string packed = test::bgzf_block(">big\n");
  for (int64_t i = 0; i < blocks; ++i) packed += block;
  packed += test::bgzf_block("");
  SequenceReaderOptions options;
  options.threads = 2;
  const auto reader = open_sequences_memory(packed, "big", options);
  std::string pattern;
  while (pattern.size() < (1 << 18) + 64) pattern += line;
  SequencePart part;
  int64_t total = 0;
  while (reader->next(part)) {
    ASSERT_EQ(part.offset, total);
    ASSERT_LE(part.bases.size(), size_t{1} << 18);
    ASSERT_EQ(part.bases,
              std::string_view(pattern).substr(static_cast<size_t>(total % 64), part.bases.size()));
    total += static_cast<int64_t>(part.bases.size());
    ASSERT_EQ(part.last, total == blocks * bases_per_block);
  }
  EXPECT_EQ(total, blocks * bases_per_block);
  EXPECT_GT(total, int64_t{1} << 31);
}

TEST(SequenceReader, RealGenomes) {
  const auto data = test::shared_data();
  if (data.empty()) GTEST_SKIP() << "../shared/data is not there";
  const auto count = [&](const std::string& name, int threads) {
    SequenceReaderOptions options;
    options.threads = threads;
    const auto reader = open_sequences((data / name).string(), options);
    SequencePart part;
    while (reader->next(part)) {
    }
    return reader->bases_read();
  };
  EXPECT_EQ(count("genomes/Vibrio_cholerae_O1.fa.gz", 1), 4033464);
  EXPECT_EQ(count("genomes/Homo_sapiens_chr20_1-12Mb.fa.gz", 2), 12000000);
  EXPECT_GT(count("reads/ecoli_K12_pacbio_CLR_P5C3.fastq.gz", 1), 5900000);
}

}  // namespace
}  // namespace gmamba
