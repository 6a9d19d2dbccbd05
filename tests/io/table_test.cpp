// SPDX-License-Identifier: Apache-2.0
#include "io/table.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>

#include "io/lines.h"
#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::bgzip;
using test::error_of;
using test::gzip;
using test::TemporaryFolder;

using Rows = std::vector<std::vector<std::string>>;

Rows read_rows(const std::string& path) {
  TableReader reader(path);
  Rows rows = {reader.columns()};
  std::vector<std::string> fields;
  while (reader.next(fields)) rows.push_back(fields);
  return rows;
}

TEST(Table, TsvAndCsvHoweverPacked) {
  const TemporaryFolder folder;
  const Rows expected = {{"id", "label", "x"}, {"a", "", "1"}, {"b \"c\"", "d", ""}};
  for (const std::string text :
       {"id\tlabel\tx\na\t\t1\nb \"c\"\td\t\n", "id\tlabel\tx\r\na\t\t1\r\nb \"c\"\td\t\r\n\r\n\n",
        "\xEF\xBB\xBFid\tlabel\tx\na\t\t1\nb \"c\"\td\t", "id,label,x\na,,1\n\"b \"\"c\"\"\",d,\n",
        "\"id\",\"label\",x\r\na,\"\",\"1\"\r\nb \"c\",d,"}) {
    for (const std::string& bytes : {text, gzip(text), bgzip(text, 7)}) {
      EXPECT_EQ(read_rows(folder.write("t", bytes)), expected) << text;
    }
  }
}

TEST(Table, QuotedFieldsHoldCommasAndLines) {
  const TemporaryFolder folder;
  const std::string path =
      folder.write("t.csv", "a,b\n\"x,y\",\"two\nlines, \"\"q\"\"\"\n\"\",z\n\"\"\"\",\"\n\"\n");
  TableReader reader(path);
  std::vector<std::string> fields;
  ASSERT_TRUE(reader.next(fields));
  EXPECT_EQ(fields, (std::vector<std::string>{"x,y", "two\nlines, \"q\""}));
  EXPECT_EQ(reader.line(), 2);
  ASSERT_TRUE(reader.next(fields));
  EXPECT_EQ(reader.line(), 4);
  EXPECT_EQ(fields, (std::vector<std::string>{"", "z"}));
  ASSERT_TRUE(reader.next(fields));
  EXPECT_EQ(fields, (std::vector<std::string>{"\"", "\n"}));
  EXPECT_FALSE(reader.next(fields));
}

TEST(Table, ColumnsByName) {
  const TemporaryFolder folder;
  const TableReader reader(folder.write("t", "id\tlabel\n"));
  EXPECT_EQ(reader.find("label"), 1);
  EXPECT_EQ(reader.find("x"), -1);
  EXPECT_EQ(reader.column("id"), 0);
  const std::string message = error_of([&] { reader.column("sequence"); });
  EXPECT_NE(message.find("no column 'sequence'; there are 'id', 'label'"), std::string::npos);
}

TEST(Table, RefusesBadTables) {
  const TemporaryFolder folder;
  const auto expect = [&](const std::string& bytes, std::string_view part) {
    const std::string path = folder.write("t", bytes);
    const std::string message = error_of([&] { read_rows(path); });
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect("", "empty file");
  expect("\n", "empty line");
  expect("a\ta\n", "column 'a' is there twice");
  expect("a\tb\n1\t2\n1\n", "line 3: expected 2 fields as in the header, found 1");
  expect("a\tb\n1\t2\t3\n", "line 2: expected 2 fields as in the header, found 3");
  expect("a\tb\n1\t2\n\n3\t4\n", "line 3: an empty line");
  expect("a,b\n\"x,1\n2\n", "line 2: a quote is opened");
  expect("a,b\n\"x\"y,1\n", "line 2: expected a comma after the closing quote of field 1");
  const std::string packed = gzip("a\tb\n1\t2\n1\t2\n");
  expect(packed.substr(0, packed.size() - 3), "truncated");
  const std::string blocks = bgzip("a\tb\n1\t2\n1\t2\n");
  expect(blocks.substr(0, blocks.size() - 28), "end-of-file block");
  error_of([] { TableReader("/no/such/table"); }, ErrorKind::kIo);
}

TEST(Lines, LongAndShortInAnyOrder) {
  std::string text;
  for (const auto& [line, count] : std::vector<std::pair<std::string, int>>{
           {"a\n", 1}, {"b", 300000}, {"\n\nc\r\n", 1}, {"d", 70000}, {"\neeeeeeeeee", 1}}) {
    for (int i = 0; i < count; ++i) text += line;
  }
  for (const std::string& bytes : {text, gzip(text)}) {
    LineReader lines(open_bytes_memory(bytes, "x"));
    std::vector<size_t> sizes;
    std::string_view line;
    while (lines.next(line)) sizes.push_back(line.size());
    EXPECT_EQ(sizes, (std::vector<size_t>{1, 300000, 0, 1, 70000, 10}));
    EXPECT_EQ(lines.line(), 6);
  }
  LineReader shortest(open_bytes_memory(text, "x"), 1000);
  std::string_view line;
  ASSERT_TRUE(shortest.next(line));
  EXPECT_NE(error_of([&] { shortest.next(line); }).find("line 2: longer than"), std::string::npos);
}

TEST(TextWriter, FilesAppearWholeAndCompressedByName) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 30000; ++i) text += tsv_line({"row", std::to_string(i), "x y"});
  for (const std::string name : {"t.tsv", "t.tsv.gz", "t.bgz"}) {
    const std::string path = folder.file(name);
    TextWriter writer(path);
    for (size_t at = 0; at < text.size(); at += 1000) {
      writer.write(std::string_view(text).substr(at, 1000));
    }
    EXPECT_FALSE(std::filesystem::exists(path));
    writer.commit();
    const OpenedBytes opened = open_bytes(path);
    EXPECT_EQ(opened.packing, name == "t.tsv" ? Packing::kPlain : Packing::kBgzf);
    LineReader lines(open_bytes(path));
    std::string back;
    std::string_view line;
    while (lines.next(line)) back.append(line).append("\n");
    EXPECT_TRUE(back == text) << name;
  }
  { TextWriter unfinished(folder.file("never.tsv")); }
  { TextWriter unfinished(folder.file("never.gz")); }
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    files += entry.is_regular_file() ? 1 : 0;
  }
  EXPECT_EQ(files, 3u);
  {
    TextWriter empty(folder.file("e.gz"));
    empty.commit();
  }
  EXPECT_EQ(read_file(folder.file("e.gz"), 100), bgzip(""));
  if (std::system("bgzip --version >/dev/null 2>&1") == 0) {
    EXPECT_EQ(std::system(("bgzip -t " + folder.file("t.tsv.gz")).c_str()), 0);
  }
}

/// Runs `body` with stdout going to `path`.
template <class Body>
void with_stdout(const std::string& path, Body&& body) {
  std::fflush(stdout);
  const int saved = ::dup(STDOUT_FILENO);
  const int target = ::open(path.c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_GE(target, 0);
  ::dup2(target, STDOUT_FILENO);
  ::close(target);
  body();
  ::dup2(saved, STDOUT_FILENO);
  ::close(saved);
}

TEST(TextWriter, StandardOutputIsChecked) {
  const TemporaryFolder folder;
  for (const std::string name : {"", "-"}) {
    const std::string path = folder.file("out");
    with_stdout(path, [&] {
      TextWriter writer(name);
      writer.write("hello\n");
      writer.commit();
    });
    EXPECT_EQ(read_file(path, 100), "hello\n");
  }
  std::string message;
  with_stdout("/dev/full", [&] {
    message = error_of(
        [] {
          TextWriter writer("-");
          writer.write("lost\n");
          writer.commit();
        },
        ErrorKind::kIo);
  });
  EXPECT_NE(message.find("standard output: cannot write: No space left"), std::string::npos);
}

TEST(TextWriter, FullDiskIsAnError) {
  const TemporaryFolder folder;
  struct rlimit old = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = old;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    TextWriter writer(folder.file("t.tsv"));
    for (int i = 0; i < 3000; ++i) writer.write("0123456789\n");
    writer.commit();
  } catch (const Error& error) {
    message = error.message();
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find("t.tsv: cannot write"), std::string::npos) << message;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(TsvLine, RefusesWhatWouldBreakTheTable) {
  EXPECT_EQ(tsv_line({"a", "", "c d"}), "a\t\tc d\n");
  for (const char* bad : {"a\tb", "a\n", "\r"}) {
    error_of([&] { tsv_line({"x", bad}); });
  }
}

}  // namespace
}  // namespace gmamba
