// SPDX-License-Identifier: Apache-2.0
#include "io/genome.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "io/sequence_reader.h"
#include "libmamba/core/text.h"
#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::bgzip;
using test::error_of;
using test::gzip;
using test::random_bases;
using test::TemporaryFolder;
using test::wrap;

/// Bases of every record with some, by an independent path.
std::vector<SequenceRecord> stream(const std::string& path) {
  const auto reader = open_sequences(path);
  std::vector<SequenceRecord> records;
  SequenceRecord record;
  while (next_record(*reader, record)) {
    if (!record.bases.empty()) records.push_back(record);
  }
  return records;
}

void expect_reads(const Genome& genome, const std::vector<SequenceRecord>& expected,
                  uint64_t seed) {
  ASSERT_EQ(genome.contigs(0).size(), expected.size());
  Random random(seed, RandomUse::kTest);
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto contig = static_cast<int32_t>(i);
    const auto length = static_cast<int64_t>(expected[i].bases.size());
    EXPECT_EQ(genome.contigs(0)[i].name, expected[i].id);
    ASSERT_EQ(genome.contigs(0)[i].length, length);
    ASSERT_TRUE(genome.read({0, contig, 0, length}) == expected[i].bases) << expected[i].id;
    for (int k = 0; k < 40; ++k) {
      const auto a = static_cast<int64_t>(random.below(static_cast<uint64_t>(length + 1)));
      const auto b = static_cast<int64_t>(random.below(static_cast<uint64_t>(length + 1)));
      const Interval interval{0, contig, std::min(a, b), std::max(a, b)};
      ASSERT_EQ(genome.read(interval),
                expected[i].bases.substr(static_cast<size_t>(interval.start),
                                         static_cast<size_t>(interval.length())));
    }
  }
}

std::string sample_fasta(size_t width, std::string_view ending) {
  const std::string end(ending);
  return ">one first" + end + wrap(random_bases(30011, 1), width, ending) + ">none" + end + ">two" +
         end + wrap(random_bases(60, 2), width, ending) + end + ">three x" + end +
         wrap(random_bases(7919, 3), width, ending);
}

TEST(Genome, SameBasesAsTheStream) {
  for (const std::string_view ending : {"\n", "\r\n"}) {
    for (const size_t width : {0, 1, 60, 61, 5000}) {
      const std::string text = sample_fasta(width, ending);
      for (const bool packed : {false, true}) {
        for (const size_t cut_off : {size_t{0}, ending.size()}) {
          const TemporaryFolder folder;
          const std::string whole = text.substr(0, text.size() - cut_off);
          const std::string path = folder.write("g.fa", packed ? bgzip(whole, 3001) : whole);
          const auto expected = stream(path);
          ASSERT_EQ(expected.size(), 3u);
          expect_reads(Genome({path}), expected, width);
          ASSERT_TRUE(std::filesystem::exists(path + ".fai"));
          ASSERT_EQ(std::filesystem::exists(path + ".gzi"), packed);
          // from the files just written, trusted as far as they are checked
          expect_reads(Genome({path}, GenomeOptions{.compare_bytes = 0}), expected, width + 1);
        }
      }
    }
  }
}

TEST(Genome, FaiAndGziAreThoseOfSamtools) {
  if (std::system("samtools --version >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "samtools is not installed";
  }
  const TemporaryFolder folder;
  int number = 0;
  const auto compare = [&](const std::string& bytes) {
    const std::string ours = folder.write(concat("a", ++number, ".fa"), bytes);
    const std::string theirs = folder.write(concat("b", number, ".fa"), bytes);
    const Genome genome({ours});
    ASSERT_EQ(std::system(concat("samtools faidx ", theirs, " >/dev/null 2>&1").c_str()), 0);
    EXPECT_EQ(read_file(ours + ".fai", 1 << 20), read_file(theirs + ".fai", 1 << 20)) << number;
    if (std::filesystem::exists(theirs + ".gzi")) {
      EXPECT_EQ(read_file(ours + ".gzi", 1 << 20), read_file(theirs + ".gzi", 1 << 20)) << number;
    }
  };
  for (const std::string_view ending : {"\n", "\r\n"}) {
    for (const size_t width : {0, 1, 60, 61}) {
      const std::string text = sample_fasta(width, ending);
      compare(text);
      compare(bgzip(text));
      compare(bgzip(text, 1000));
      if (ending == "\n") compare(text.substr(0, text.size() - 1));
    }
  }
  compare("\n>a\nACGT\n\n\n>b\nA");
  compare(">a\nACGT\nAC\n\n>b\nA");
  for (const char* name : {"lambda.fa.gz", "vibrio_cholerae.fa.gz", "unseen.fa.gz"}) {
    const auto path = std::filesystem::path(GMAMBA_SOURCE_DIR) / "test_data" / name;
    compare(read_file(path, 1 << 24));
  }
}

TEST(Genome, RefusesWhatHasNoRandomAccess) {
  const TemporaryFolder folder;
  const auto message = [&](const std::string& bytes) {
    const std::string path = folder.write("x.fa", bytes);
    const std::string text = error_of([&] { const Genome genome({path}); });
    EXPECT_FALSE(std::filesystem::exists(path + ".fai"));
    return text;
  };
  const auto expect = [&](const std::string& bytes, std::string_view part) {
    const std::string text = message(bytes);
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  expect(gzip(">a\nACGT\n"), "bgzip");
  expect("@a\nACGT\n+\nIIII\n", "FASTQ");
  expect("\xEF\xBB\xBF>a\nACGT\n", "byte-order mark; remove its first three bytes");
  const std::string packed = bgzip(">a\n" + std::string(500, 'A') + "\n");
  expect(packed.substr(0, packed.size() / 2), "copy or download it again");
  expect("", "empty");
  expect("ACGT\n", "line 1: expected '>'");
  expect(">a\nACGT\n>b\nAC\n>a\nA\n", "line 5: the name 'a' is given twice");
  expect(">a\nACGT\nAC\nACGT\n", "line 3: record 'a' has lines of unequal length (2 instead of 4");
  expect(">a\nACGT\nACGTA\n", "line 3: record 'a' has lines of unequal length");
  expect(">a\nACGT\r\nACGT\nACGT\n", "line 3: record 'a' has lines of unequal length");
  expect(">a\nAC\n\nGT\n", "line 3: blank line inside record 'a'");
  expect(">a\nAC\nG-\n", "line 3: record 'a': '-' at base 4 is a gap");
  expect(">a\nAC\nG T\n", "a space at base 4");
  expect(">a\nAC\rG\n", "a carriage return at base 3");
  expect(">\nACGT\n", "record 1 has no name");
  expect(">a\n>b\n", "hold no bases");
  expect(">" + std::string(70000, 'n') + "\nA\n", "more than 64 KiB");
  expect(">" + std::string(3000000, 'n') + "\nA\n", "header line longer");
  error_of([] { Genome({std::string("-")}); });
  error_of([] { Genome({std::string("/dev/null")}); });
  error_of([] { Genome({std::string("/no/such.fa")}); }, ErrorKind::kIo);
  error_of([] { Genome(std::vector<std::string>{}); }, ErrorKind::kUsage);
}

TEST(Genome, TruncatedBgzipIsRefused) {
  const TemporaryFolder folder;
  const std::string whole = bgzip(sample_fasta(60, "\n"), 4000);
  for (size_t length = 0; length < whole.size(); length += length < 400 ? 1 : 97) {
    const std::string path = folder.write("x.fa.gz", whole.substr(0, length));
    EXPECT_THROW(Genome({path}), Error) << length;
  }
}

TEST(Genome, IntervalsOutsideAreRefused) {
  const TemporaryFolder folder;
  const Genome genome({folder.write("x.fa", ">a\nACGT\nAC\n")});
  EXPECT_EQ(genome.read({0, 0, 6, 6}), "");
  for (const Interval& bad : std::vector<Interval>{
           {0, 0, 0, 7}, {0, 0, -1, 3}, {0, 0, 4, 3}, {0, 1, 0, 1}, {0, -1, 0, 1}}) {
    EXPECT_THROW(genome.read(bad), Error);
  }
  EXPECT_THROW(genome.read({1, 0, 0, 1}), Error);
}

/// Every field of the index changed in every way: the bases are right or refused, never others.
TEST(Genome, CraftedFaiNeverGivesWrongBases) {
  const TemporaryFolder folder;
  for (const bool packed : {false, true}) {
    const std::string text = ">one a\n" + wrap(random_bases(21000, 1, "ACGT"), 60) + ">two\n" +
                             random_bases(16000, 2, "ACGT") + "\n>three\n" +
                             wrap(random_bases(20001, 3, "ACGT"), 61, "\r\n");
    const std::string path = folder.write(concat("x", packed, ".fa"), packed ? bgzip(text) : text);
    const auto expected = stream(path);
    const Genome whole({path});
    const std::string good = read_file(path + ".fai", 1 << 20);
    std::vector<std::string> mutants = {"",
                                        "\n",
                                        "one\n",
                                        good + good,
                                        good.substr(0, 9),
                                        "\xff\xfe" + good,
                                        std::string(1 << 20, '\t'),
                                        std::string(100000, 'x')};
    const std::vector<std::string> lines = split(trim(good), '\n');
    for (size_t line = 0; line < lines.size(); ++line) {
      const std::vector<std::string> fields = split(lines[line], '\t');
      for (size_t field = 0; field < fields.size(); ++field) {
        std::vector<std::string> values = {"",
                                           "-1",
                                           "0",
                                           "1",
                                           "2",
                                           "59",
                                           "61",
                                           "62",
                                           "63",
                                           "60",
                                           "x",
                                           "1e3",
                                           "one",
                                           "three",
                                           "300000",
                                           "9223372036854775807",
                                           "9223372036854775808",
                                           "4611686018427387904",
                                           "18446744073709551615"};
        if (field > 0) {
          const int64_t value = parse_int(fields[field], "field");
          for (const int64_t change : {-61, -60, -2, -1, 1, 2, 60, 61, 62}) {
            values.push_back(std::to_string(value + change));
          }
          values.push_back(std::to_string(value * 2));
          values.push_back(fields[field] + " ");
        }
        for (const std::string& value : values) {
          std::vector<std::string> changed = fields;
          changed[field] = value;
          std::string mutant;
          for (size_t k = 0; k < lines.size(); ++k) {
            std::string joined = changed[0];
            for (size_t f = 1; f < changed.size(); ++f) joined += "\t" + changed[f];
            mutant += (k == line ? joined : lines[k]) + "\n";
          }
          if (mutant != good) mutants.push_back(mutant);
        }
      }
      std::string without;
      for (size_t k = 0; k < lines.size(); ++k) {
        if (k != line) without += lines[k] + "\n";
      }
      mutants.push_back(without);
    }
    int refused = 0;
    for (const std::string& mutant : mutants) {
      test::overwrite_file(path + ".fai", mutant);
      for (const int64_t compare_bytes : {int64_t{0}, int64_t{1} << 28}) {
        test::MemoryLog log;
        const Genome genome({path}, GenomeOptions{.log = &log, .compare_bytes = compare_bytes});
        ASSERT_LE(genome.contigs(0).size(), expected.size());
        for (size_t i = 0; i < genome.contigs(0).size(); ++i) {
          const auto contig = static_cast<int32_t>(i);
          const int64_t length = genome.contigs(0)[i].length;
          try {
            const std::string bases = genome.read({0, contig, 0, length});
            EXPECT_EQ(genome.contigs(0)[i].name, expected[i].id) << mutant;
            EXPECT_TRUE(bases == expected[i].bases) << mutant;
          } catch (const Error& error) {
            EXPECT_NE(error.message().find(".fai"), std::string::npos) << error.message();
            EXPECT_EQ(compare_bytes, 0);
            ++refused;
          }
        }
        if (compare_bytes > 0) {
          EXPECT_GE(log.warnings, 1) << mutant;
          expect_reads(genome, expected, 5);
        }
        // the file of the user is not touched
        ASSERT_EQ(read_file(path + ".fai", 1 << 24), mutant);
      }
    }
    EXPECT_LT(refused, static_cast<int>(mutants.size() / 4)) << "too few are found when opening";
  }
}

TEST(Genome, CraftedGziDoesNotMatter) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.fa.gz", bgzip(sample_fasta(60, "\n"), 2000));
  const auto expected = stream(path);
  const Genome first({path});
  const std::string good = read_file(path + ".gzi", 1 << 20);
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int change : {1, 128, 255}) {
      std::string mutant = good;
      mutant[at] = static_cast<char>(mutant[at] ^ change);
      test::overwrite_file(path + ".gzi", mutant);
      test::MemoryLog log;
      const Genome genome({path}, &log);
      EXPECT_TRUE(log.contains("x.fa.gz.gzi does not fit")) << at;
      if (at % 16 == 0) expect_reads(genome, expected, at);
    }
  }
  for (const std::string& mutant : {std::string(), std::string(7, '\0'), good.substr(0, 9),
                                    good + std::string(16, '\xff'), std::string(1 << 20, '\xff')}) {
    test::overwrite_file(path + ".gzi", mutant);
    expect_reads(Genome({path}), expected, 7);
  }
}

TEST(Genome, OldIndexIsCheckedAndWarnedOf) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.fa", sample_fasta(60, "\n"));
  { const Genome genome({path}); }
  namespace fs = std::filesystem;
  fs::last_write_time(path + ".fai", fs::last_write_time(path) - std::chrono::hours(1));
  test::MemoryLog log;
  { const Genome genome({path}, &log); }
  EXPECT_TRUE(log.contains("is older than")) << log.lines.size();
  folder.write("x.fa", sample_fasta(61, "\n"));
  fs::last_write_time(path + ".fai", fs::last_write_time(path) - std::chrono::hours(1));
  test::MemoryLog second;
  const Genome genome({path}, &second);
  EXPECT_TRUE(second.contains("does not fit"));
  expect_reads(genome, stream(path), 4);
}

TEST(Genome, IndexStaysInMemoryWhereNothingCanBeWritten) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.fa", sample_fasta(60, "\n"));
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  ASSERT_GE(descriptor, 0);
  test::MemoryLog log;
  const Genome genome({concat("/proc/self/fd/", descriptor)}, &log);
  EXPECT_TRUE(log.contains("index kept in memory"));
  expect_reads(genome, stream(path), 3);
  ::close(descriptor);
  { const Genome unsaved({path}, GenomeOptions{.save_index = false}); }
  EXPECT_FALSE(std::filesystem::exists(path + ".fai"));
}

TEST(Genome, FileChangedWhileOpenIsNoticed) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.fa", sample_fasta(60, "\n"));
  const Genome genome({path});
  std::filesystem::resize_file(path, 1000);
  EXPECT_NE(error_of([&] {
              genome.read({0, 0, 0, 30011});
            }).find("became shorter"),
            std::string::npos);
  const std::string other = folder.write("y.fa", sample_fasta(60, "\n"));
  const Genome second({other});
  const int descriptor = ::open(other.c_str(), O_WRONLY);  // in place, under the open file
  const std::string changed = sample_fasta(59, "\n");
  ASSERT_EQ(::pwrite(descriptor, changed.data(), changed.size(), 0),
            static_cast<ssize_t>(changed.size()));
  ::close(descriptor);
  EXPECT_NE(error_of([&] {
              second.read({0, 0, 0, 30011});
            }).find("the lines are not where"),
            std::string::npos);
}

TEST(Genome, ThreadsReadAtOnce) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.fa.gz", bgzip(sample_fasta(60, "\n"), 1000));
  const auto expected = stream(path);
  const Genome genome({path});
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t k = 0; k < 20; ++k) expect_reads(genome, expected, t * 100 + k);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Genome, AlignmentsAreNamed) {
  const TemporaryFolder folder;
  const std::string bam = bgzip(std::string("BAM\x01\x66\x00\x00\x00@HD\tVN:1.6\n", 20));
  for (const auto& [bytes, kind] : {std::pair{bam, "BAM"}, {"@HD\tVN:1.6\n", "SAM"}}) {
    const std::string path = folder.write("x.fa", bytes);
    const std::string text = error_of([&] { Genome({path}); }, ErrorKind::kUnsupported);
    EXPECT_NE(text.find(concat("this is a ", kind, " file")), std::string::npos) << text;
  }
}

TEST(Genome, InvalidLettersAsN) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.fa", ">a\nAC-T\nX\n");
  const Genome genome({path}, GenomeOptions{.invalid = InvalidLetters::kN});
  EXPECT_EQ(genome.read({0, 0, 0, 5}), "ACNTN");
  // counted once, whether there is an index or not
  for (const int64_t compare_bytes : {int64_t{0}, int64_t{1} << 20}) {
    test::MemoryLog log;
    const Genome again(
        {path},
        GenomeOptions{.log = &log, .invalid = InvalidLetters::kN, .compare_bytes = compare_bytes});
    EXPECT_TRUE(log.contains("x.fa: 2 letters that are no sequence letters were read as N"));
    EXPECT_EQ(log.warnings, 1);
  }
  // an index that is there does not hide them
  EXPECT_NE(error_of([&] { Genome({path}); }).find("gap or stop"), std::string::npos);
}

TEST(Genome, FindsContigsOverFiles) {
  const TemporaryFolder folder;
  const Genome genome({folder.write("x.fa", ">20\nACGT\n>chrX\nAC\n>both\nA\n"),
                       folder.write("y.fa", ">chrY\nACG\n>both\nA\n")});
  EXPECT_EQ(genome.files(), 2);
  EXPECT_EQ(genome.total_bases(), 4 + 2 + 1 + 3 + 1);
  EXPECT_EQ(genome.find("chrY"), (Interval{1, 0, 0, 3}));
  EXPECT_NE(error_of([&] { genome.find("chr20"); }).find("did you mean '20'?"), std::string::npos);
  EXPECT_NE(error_of([&] { genome.find("X"); }).find("did you mean 'chrX'?"), std::string::npos);
  EXPECT_NE(error_of([&] { genome.find("zz"); }).find("no contig 'zz'"), std::string::npos);
  const std::string twice = error_of([&] { genome.find("both"); });
  EXPECT_NE(twice.find("x.fa and in "), std::string::npos) << twice;
}

TEST(Genome, Regions) {
  const TemporaryFolder folder;
  const std::string text = ">chr1\n" + wrap(random_bases(5000, 1), 60) + ">HLA:1*2:17\n" +
                           random_bases(300, 2) + "\n>a\nACGT\n>a:1-2\nAC\n";
  test::MemoryLog log;
  const Genome genome({folder.write("x.fa", text)}, &log);
  const auto expect = [&](const std::string& region, int32_t contig, int64_t start, int64_t end) {
    EXPECT_EQ(genome.parse_region(region), (Interval{0, contig, start, end})) << region;
  };
  expect("chr1", 0, 0, 5000);
  expect("chr1:100", 0, 99, 5000);
  expect("chr1:100-", 0, 99, 5000);
  expect("chr1:-100", 0, 0, 100);
  expect("chr1:1,001-2,000", 0, 1000, 2000);
  expect("chr1:1k-2k", 0, 999, 2000);
  expect("chr1:1.5k-2e3", 0, 1499, 2000);
  expect("chr1:5000-5000", 0, 4999, 5000);
  expect("HLA:1*2:17", 1, 0, 300);
  expect("HLA:1*2:17:5-10", 1, 4, 10);
  expect("{HLA:1*2:17}", 1, 0, 300);
  expect("{HLA:1*2:17}:5-10", 1, 4, 10);
  expect("{a:1-2}", 3, 0, 2);
  expect("{a}:1-2", 2, 0, 2);
  EXPECT_EQ(log.warnings, 0);
  expect("chr1:4990-6000", 0, 4989, 5000);
  EXPECT_EQ(log.warnings, 1);
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"chr1:5001", "lies outside"},
      {"chr1:0-5", "start at 1"},
      {"chr1:9-5", "ends before"},
      {"chr1:x-5", "a position"},
      {"chr1:", "nothing follows"},
      {"chr1:-", "a position"},
      {"a:1-2", "two meanings"},
      {"{chr1", "'}' is missing"},
      {"{chr1}5", "expected ':'"},
      {"{zz}:5", "no contig 'zz'"},
      {"chr2:1-5", "no contig 'chr2'"},
      {"1", "did you mean 'chr1'"},
      {"", "no contig"},
      {"chr1:99999999999999999999", "region"}};
  for (const auto& [region, part] : bad) {
    const std::string message = error_of([&, &text = region] { genome.parse_region(text); });
    EXPECT_NE(message.find(part), std::string::npos) << region << ": " << message;
  }
  EXPECT_EQ(genome.parse_regions("chr1:1,001-2,000,a,{a:1-2}:1,chr1:5-6,HLA:1*2:17"),
            (std::vector<Interval>{
                {0, 0, 1000, 2000}, {0, 2, 0, 4}, {0, 3, 0, 2}, {0, 0, 4, 6}, {0, 1, 0, 300}}));
}

TEST(Genome, BedFiles) {
  const TemporaryFolder folder;
  const Genome genome({folder.write("x.fa", ">chr1\n" + wrap(random_bases(500, 1), 60))});
  const std::string bed =
      "# comment\ntrack name=x\nbrowser position\n\nchr1\t0\t10\tname\t5\nchr1\t20\t20\r\nchr1 100 "
      "600\n";
  const std::vector<Interval> expected = {{0, 0, 0, 10}, {0, 0, 100, 500}};
  EXPECT_EQ(genome.parse_regions(folder.write("a.bed", bed)), expected);
  EXPECT_EQ(genome.parse_regions(folder.write("a.bed.gz", gzip(bed))), expected);
  EXPECT_EQ(genome.parse_regions(folder.write("noname", bed)), expected);
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"chr1\t5\n", "line 1: expected at least three columns"},
      {"chr1\t0\t5\nchr1\tx\t5\n", "line 2: start: expected a whole number, found 'x'"},
      {"chr1\t-1\t5\n", "expected 0 <= start"},
      {"chr1\t6\t5\n", "expected 0 <= start"},
      {"chr1\t500\t501\n", "lies outside"},
      {"chr9\t0\t5\n", "no contig 'chr9'"},
      {"chr1\t5\t99999999999999999999\n", "end: expected"},
      {"# nothing\n", "no regions"}};
  for (const auto& [text, part] : bad) {
    const std::string path = folder.write("bad.bed", text);
    const std::string message = error_of([&] { genome.parse_regions(path); });
    EXPECT_NE(message.find(part), std::string::npos) << text << ": " << message;
  }
  error_of([&] { genome.parse_regions(folder.file("missing.bed")); }, ErrorKind::kIo);
}

/// A contig longer than 2^31 bases, read on both sides of the border.
TEST(GenomeLarge, ContigPastTwoToThe31) {
  const TemporaryFolder folder;
  const std::string line = random_bases(64, 10, "ACGT");
  std::string lines;
  while (lines.size() + 65 <= 65000) lines += line + "\n";
  const auto per_block = static_cast<int64_t>(lines.size() / 65 * 64);
  const int64_t blocks = ((int64_t{1} << 31) + (int64_t{1} << 20)) / per_block;
  const std::string block = test::bgzf_block(lines);
  std::string packed = test::bgzf_block(">big\n");
  for (int64_t i = 0; i < blocks; ++i) packed += block;
  packed += test::bgzf_block("");
  const std::string path = folder.write("big.fa.gz", packed);
  const Genome genome({path});
  ASSERT_EQ(genome.contigs(0)[0].length, blocks * per_block);
  const std::string pattern = line + line + line;
  for (const int64_t start : {int64_t{0}, (int64_t{1} << 31) - 50, (int64_t{1} << 31) + 12345,
                              blocks * per_block - 100}) {
    EXPECT_EQ(genome.read({0, 0, start, start + 100}),
              pattern.substr(static_cast<size_t>(start % 64), 100));
  }
}

TEST(Genome, RealGenomes) {
  const auto data = test::shared_data();
  if (data.empty()) GTEST_SKIP() << "../shared/data is not there";
  for (const char* name : {"Vibrio_cholerae_O1.fa.gz", "Drosophila_melanogaster.fa.gz"}) {
    const std::string path = (data / "genomes" / name).string();
    expect_reads(Genome({path}, GenomeOptions{.save_index = false}), stream(path), 2);
  }
}

}  // namespace
}  // namespace gmamba
