// SPDX-License-Identifier: Apache-2.0
#include "io/table.h"

#include <htslib/bgzf.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "io/bgzf.h"
#include "io/lines.h"
#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {

struct TableReader::Impl {
  explicit Impl(const std::string& path) : lines(open_bytes(path)) {
    std::string_view header;
    const bool any = lines.next(header);
    require(any && !header.empty(), ErrorKind::kInput, lines.name(),
            ": expected a header line with the names of the columns, found ",
            any ? "an empty line" : "an empty file");
    separator = header.find('\t') != std::string_view::npos ? '\t' : ',';
    parse(header, columns);
    for (size_t i = 0; i < columns.size(); ++i) {
      require(numbers.emplace(columns[i], static_cast<int>(i)).second, ErrorKind::kInput,
              lines.name(), ": line 1: the column '", printable(columns[i]), "' is there twice");
    }
  }

  bool next(std::vector<std::string>& fields) {
    std::string_view text;
    int64_t blank = 0;
    do {
      if (!lines.next(text)) return false;
      // lines without anything may end a table, but not interrupt it
      if (text.empty() && blank == 0) blank = lines.line();
    } while (text.empty());
    require(blank == 0, ErrorKind::kInput, lines.name(), ": line ", blank,
            ": an empty line within the table");
    row_line = lines.line();
    parse(text, fields);
    require(fields.size() == columns.size(), ErrorKind::kInput, lines.name(), ": line ", row_line,
            ": expected ", columns.size(), " fields as in the header, found ", fields.size());
    return true;
  }

  void parse(std::string_view text, std::vector<std::string>& fields) {
    if (separator == '\t') {
      size_t count = 0;
      while (true) {
        const size_t end = text.find('\t');
        put(fields, count++, text.substr(0, end));
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
      }
      fields.resize(count);
    } else {
      parse_csv(text, fields);
    }
  }

  static void put(std::vector<std::string>& fields, size_t at, std::string_view value) {
    if (at == fields.size()) fields.emplace_back();
    fields[at] = value;
  }

  /// Quoted fields may hold commas, doubled quotes and line ends.
  void parse_csv(std::string_view text, std::vector<std::string>& fields) {
    const int64_t first_line = lines.line();
    size_t count = 0;
    while (true) {
      if (!text.starts_with('"')) {
        const size_t end = text.find(',');
        put(fields, count++, text.substr(0, end));
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
        continue;
      }
      put(fields, count++, {});
      std::string& field = fields[count - 1];
      text.remove_prefix(1);
      while (true) {
        const size_t quote = text.find('"');
        field.append(text.substr(0, quote));
        if (quote == std::string_view::npos) {
          require(lines.next(text), ErrorKind::kInput, lines.name(), ": line ", first_line,
                  ": a quote is opened and not closed");
          field += '\n';
          continue;
        }
        text.remove_prefix(quote + 1);
        if (!text.starts_with('"')) break;
        field += '"';
        text.remove_prefix(1);
      }
      if (text.empty()) break;
      require(text.starts_with(','), ErrorKind::kInput, lines.name(), ": line ", lines.line(),
              ": expected a comma after the closing quote of field ", count);
      text.remove_prefix(1);
    }
    fields.resize(count);
  }

  LineReader lines;
  char separator = '\t';
  std::vector<std::string> columns;
  std::unordered_map<std::string, int> numbers;
  int64_t row_line = 1;
};

TableReader::TableReader(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}

TableReader::~TableReader() = default;

const std::vector<std::string>& TableReader::columns() const { return impl_->columns; }

int TableReader::find(std::string_view column) const {
  const auto found = impl_->numbers.find(std::string(column));
  return found == impl_->numbers.end() ? -1 : found->second;
}

int TableReader::column(std::string_view name) const {
  const int found = find(name);
  if (found >= 0) return found;
  std::string known;
  for (const std::string& column : impl_->columns) {
    if (known.size() > 200) {
      known += ", ...";
      break;
    }
    known += concat(known.empty() ? "" : ", ", "'", printable(column), "'");
  }
  fail(ErrorKind::kInput, impl_->lines.name(), ": no column '", printable(name), "'; there are ",
       known);
}

bool TableReader::next(std::vector<std::string>& fields) { return impl_->next(fields); }

int64_t TableReader::line() const { return impl_->row_line; }

namespace {

constexpr size_t kBufferBytes = size_t{1} << 16;

/// Where finished bytes go.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void write(std::string_view bytes) = 0;
  virtual void commit() = 0;
};

class StdoutSink final : public Sink {
 public:
  void write(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t put = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
      if (put >= 0) {
        bytes.remove_prefix(static_cast<size_t>(put));
      } else if (errno == EAGAIN) {  // someone made the pipe non-blocking
        struct pollfd ready = {STDOUT_FILENO, POLLOUT, 0};
        ::poll(&ready, 1, -1);
      } else if (errno != EINTR) {
        fail_errno();
      }
    }
  }
  void commit() override {
    // pipes and terminals cannot be flushed to disk and say so with these
    const bool flushed = ::fsync(STDOUT_FILENO) == 0;
    if (!flushed && errno != EINVAL && errno != ENOTSUP && errno != EROFS) fail_errno();
  }

 private:
  [[noreturn]] static void fail_errno() {
    const int code = errno;
    fail(ErrorKind::kIo, "standard output: cannot write: ", std::strerror(code));
  }
};

class FileSink final : public Sink {
 public:
  explicit FileSink(const std::string& path) : file_(path) {}
  void write(std::string_view bytes) override { file_.write(bytes); }
  void commit() override { file_.commit(); }

 private:
  AtomicFile file_;
};

class BgzfSink final : public Sink {
 public:
  explicit BgzfSink(const std::string& path) : file_(path) {}
  void write(std::string_view bytes) override {
    while (!bytes.empty()) {
      const size_t take = std::min(bytes.size(), size_t{BGZF_BLOCK_SIZE} - pending_.size());
      pending_.append(bytes.substr(0, take));
      bytes.remove_prefix(take);
      if (pending_.size() == size_t{BGZF_BLOCK_SIZE}) compress();
    }
  }
  void commit() override {
    if (!pending_.empty()) compress();
    file_.write(bgzf_end_block());
    file_.commit();
  }

 private:
  void compress() {
    size_t length = block_.size();
    constexpr int kDefaultLevel = -1;
    require(::bgzf_compress(block_.data(), &length, pending_.data(), pending_.size(),
                            kDefaultLevel) == 0,
            ErrorKind::kInternal, printable(file_.path().string()), ": compression failed");
    file_.write(std::string_view(block_.data(), length));
    pending_.clear();
  }

  AtomicFile file_;
  std::string pending_;
  std::array<char, BGZF_MAX_BLOCK_SIZE> block_;
};

std::unique_ptr<Sink> make_sink(const std::string& path) {
  if (path.empty() || path == "-") return std::make_unique<StdoutSink>();
  if (path.ends_with(".gz") || path.ends_with(".bgz")) return std::make_unique<BgzfSink>(path);
  return std::make_unique<FileSink>(path);
}

}  // namespace

struct TextWriter::Impl {
  std::unique_ptr<Sink> sink;
  std::string buffer;
};

TextWriter::TextWriter(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->sink = make_sink(path);
}

TextWriter::~TextWriter() = default;

void TextWriter::write(std::string_view text) {
  impl_->buffer.append(text);
  if (impl_->buffer.size() < kBufferBytes) return;
  impl_->sink->write(impl_->buffer);
  impl_->buffer.clear();
}

void TextWriter::commit() {
  impl_->sink->write(impl_->buffer);
  impl_->buffer.clear();
  impl_->sink->commit();
}

std::string tsv_line(const std::vector<std::string>& fields) {
  std::string line;
  for (size_t i = 0; i < fields.size(); ++i) {
    if (fields[i].find_first_of("\t\n\r") != std::string::npos) {
      fail(ErrorKind::kInput, "a tab or line end in '", printable(fields[i]),
           "', which a table cannot hold");
    }
    if (i > 0) line += '\t';
    line += fields[i];
  }
  return line + '\n';
}

}  // namespace gmamba
