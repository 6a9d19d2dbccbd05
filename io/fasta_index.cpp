// SPDX-License-Identifier: Apache-2.0
#include "io/fasta_index.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <limits>
#include <memory>
#include <unordered_set>
#include <utility>

#include "io/letters.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr size_t kLongestName = 65536;
constexpr size_t kLongestHeader = size_t{1} << 20;

std::string_view first_word(std::string_view header) {
  return header.substr(0, header.find_first_of(" \t\v\f\r"));
}

/// Follows a FASTA text in pieces of any size.
class IndexBuilder {
 public:
  IndexBuilder(std::string name, InvalidLetters invalid)
      : name_(std::move(name)), invalid_(invalid) {}

  void feed(std::string_view text) {
    while (!text.empty()) {
      if (at_line_start_) start_line(text);
      const size_t newline = text.find('\n');
      const std::string_view piece = text.substr(0, newline);
      if (in_header_) {
        header_.append(piece);
        if (header_.size() > kLongestHeader) {
          fail(ErrorKind::kInput, name_, ": line ", line_, ": a header line longer than ",
               format_bytes(kLongestHeader));
        }
      } else {
        add_letters(piece);
      }
      offset_ += static_cast<int64_t>(piece.size());
      if (newline == std::string_view::npos) return;
      ++offset_;
      end_line(1);
      text.remove_prefix(newline + 1);
    }
  }

  FastaIndex finish() {
    // a last line without its end counts as if it had one
    if (!at_line_start_) end_line(1);
    end_record();
    require(records_ > 0, ErrorKind::kInput, name_, ": no sequence records: the file is empty");
    return std::move(index_);
  }
  /// Letters that are no sequence letters, and so count as N.
  int64_t made_n() const { return made_n_; }

 private:
  void start_line(std::string_view text) {
    const char first = text.front();
    at_line_start_ = false;
    text_bytes_ = 0;
    carriage_ = false;
    if (first == '>') {
      end_record();
      in_header_ = true;
      header_.clear();
      return;
    }
    if (records_ > 0 || first == '\n' || first == '\r') return;
    refuse_other_text(text, name_);
    require(first != '@', ErrorKind::kInput, name_, ": line ", line_,
            ": this looks like FASTQ; random access needs FASTA (expected '>')");
    fail(ErrorKind::kInput, name_, ": line ", line_, ": expected '>' before any sequence, found ",
         shown_byte(first));
  }

  void add_letters(std::string_view piece) {
    if (piece.empty()) return;
    if (carriage_) fail_letter('\r', text_bytes_);
    size_t at = 0;
    while (true) {
      at += find_invalid_letter(piece.substr(at));
      if (at == piece.size()) break;
      const char letter = piece[at];
      if (letter == '\r' && at + 1 == piece.size()) {
        carriage_ = true;
        break;
      }
      if (invalid_ == InvalidLetters::kError ||
          !may_stand_for_n(static_cast<unsigned char>(letter))) {
        fail_letter(letter, text_bytes_ + static_cast<int64_t>(at));
      }
      ++made_n_;
      ++at;
    }
    text_bytes_ += static_cast<int64_t>(piece.size()) - (carriage_ ? 1 : 0);
  }

  [[noreturn]] void fail_letter(char letter, int64_t before) const {
    fail(ErrorKind::kInput, name_, ": line ", line_, ": record '", printable(entry_.name),
         "': ", shown_byte(letter), " at base ", entry_.length + before + 1,
         letter_problem(letter));
  }

  void end_line(int64_t newline) {
    at_line_start_ = true;
    if (in_header_) {
      start_record();
    } else if (text_bytes_ == 0) {
      if (records_ > 0 && blank_line_ == 0) blank_line_ = line_;
    } else {
      add_line(text_bytes_, text_bytes_ + newline + (carriage_ ? 1 : 0));
    }
    ++line_;
  }

  void start_record() {
    in_header_ = false;
    const std::string_view title = std::string_view(header_).substr(1);
    entry_ = {};
    entry_.name = first_word(title);
    ++records_;
    require(!entry_.name.empty(), ErrorKind::kInput, name_, ": line ", line_, ": record ", records_,
            " has no name after '>'");
    if (entry_.name.size() > kLongestName) {
      fail(ErrorKind::kInput, name_, ": line ", line_, ": a name of more than ",
           format_bytes(kLongestName));
    }
    if (!names_.insert(entry_.name).second) {
      fail(ErrorKind::kInput, name_, ": line ", line_, ": the name '", printable(entry_.name),
           "' is given twice; names must be unique");
    }
    entry_.offset = offset_;
    blank_line_ = 0;
    last_line_ = false;
  }

  void add_line(int64_t bases, int64_t width) {
    if (blank_line_ > 0) {
      fail(ErrorKind::kInput, name_, ": line ", blank_line_, ": blank line inside record '",
           printable(entry_.name), "'; sequence goes on at line ", line_);
    }
    if (entry_.length == 0) {
      entry_.line_bases = bases;
      entry_.line_width = width;
    } else if (last_line_ || bases > entry_.line_bases) {
      const int64_t where = last_line_ ? line_ - 1 : line_;
      fail(ErrorKind::kInput, name_, ": line ", where, ": record '", printable(entry_.name),
           "' has lines of unequal length (", last_line_ ? last_bases_ : bases, " instead of ",
           entry_.line_bases,
           " bases), or with different line ends, which gives no random access; "
           "wrap it again, for example with seqtk seq -l 60");
    }
    entry_.length += bases;
    last_line_ = bases != entry_.line_bases || width != entry_.line_width;
    last_bases_ = bases;
  }

  void end_record() {
    if (records_ > 0 && entry_.length > 0) index_.push_back(std::move(entry_));
    entry_ = {};
  }

  std::string name_;
  InvalidLetters invalid_;
  FastaIndex index_;
  std::unordered_set<std::string> names_;
  FastaEntry entry_;
  std::string header_;
  int64_t made_n_ = 0;
  int64_t records_ = 0;
  int64_t offset_ = 0;
  int64_t line_ = 1;
  bool at_line_start_ = true;
  bool in_header_ = false;
  bool carriage_ = false;   // the line's last byte so far is a carriage return
  int64_t text_bytes_ = 0;  // letters of the line so far
  int64_t blank_line_ = 0;  // first blank line of the record, 0 for none
  bool last_line_ = false;  // the line before can only be the record's last
  int64_t last_bases_ = 0;
};

/// Checks that need the file; stops at the first thing that does not fit.
class IndexChecker {
 public:
  explicit IndexChecker(const RandomBytes& bytes) : bytes_(bytes) {}

  std::string check(const FastaIndex& index) {
    int64_t at = 0;
    for (const FastaEntry& entry : index) {
      if (!headers(at, entry.offset, entry.name)) return about(entry, "its header line");
      const std::optional<int64_t> end = end_of(entry);
      if (!end) return about(entry, "the end of its sequence");
      if (!lines(entry)) return about(entry, "the length of its lines");
      at = *end;
    }
    return headers(at, bytes_.size(), {}) ? "" : "sequence after its last record";
  }

 private:
  static std::string about(const FastaEntry& entry, std::string_view what) {
    return concat(what, " of '", printable(entry.name), "'");
  }

  /// Whether [from, to) holds only blank lines and header lines, the last one of `name`.
  bool headers(int64_t from, int64_t to, std::string_view name) {
    if (from > to || to > bytes_.size() || to - from > static_cast<int64_t>(kLongestHeader) * 2) {
      return false;
    }
    text_.resize(static_cast<size_t>(to - from));
    bytes_.read(from, text_);
    std::string_view rest = text_;
    std::string_view last;
    while (!rest.empty()) {
      const size_t newline = rest.find('\n');
      if (newline == std::string_view::npos && !name.empty()) return false;
      const std::string_view line = rest.substr(0, newline);
      if (line.starts_with('>')) {
        last = first_word(line.substr(1));
      } else if (!line.empty() && line != "\r") {
        return false;
      } else if (newline + 1 == rest.size() && !name.empty()) {
        return false;  // a blank line between header and sequence
      }
      rest.remove_prefix(newline == std::string_view::npos ? rest.size() : newline + 1);
    }
    return name.empty() || last == name;
  }

  /// Whether some lines end where they should and the first one not before, which is all there is
  /// to know when lines are of equal length. Call after end_of.
  bool lines(const FastaEntry& entry) {
    const int64_t count = (entry.length - 1) / entry.line_bases;  // lines before the last
    const int64_t ending = entry.line_width - entry.line_bases;
    for (const int64_t line : {std::min<int64_t>(1, count), (count + 1) / 2, count}) {
      if (line > 0 && !is_line_end(entry.offset + line * entry.line_width - ending, ending)) {
        return false;
      }
    }
    return !has_newline(entry.offset, std::min(entry.length, entry.line_bases));
  }

  bool has_newline(int64_t at, int64_t bytes) {
    constexpr int64_t kPiece = 1 << 18;
    while (bytes > 0) {
      text_.resize(static_cast<size_t>(std::min(bytes, kPiece)));
      bytes_.read(at, text_);
      if (text_.find('\n') != std::string::npos) return true;
      at += static_cast<int64_t>(text_.size());
      bytes -= static_cast<int64_t>(text_.size());
    }
    return false;
  }

  bool is_line_end(int64_t at, int64_t bytes) {
    std::array<char, 2> ending{};
    if (at < 0 || bytes > bytes_.size() - at) return false;
    bytes_.read(at, std::span<char>(ending).first(static_cast<size_t>(bytes)));
    return bytes == 1 ? ending[0] == '\n' : ending[0] == '\r' && ending[1] == '\n';
  }

  /// Where the line end after the last base ends, when a base and then a line end or the end of
  /// the file are there.
  std::optional<int64_t> end_of(const FastaEntry& entry) {
    const int64_t last = entry.offset_of(entry.length - 1) + 1;
    std::array<char, 2> ending{};
    const int64_t left = bytes_.size() - last;
    if (left < 0 || is_line_byte(last - 1)) return std::nullopt;
    const auto some = static_cast<size_t>(std::min<int64_t>(left, 2));
    bytes_.read(last, std::span<char>(ending).first(some));
    if (some == 0) return last;
    if (ending[0] == '\n') return last + 1;
    if (ending[0] != '\r' || (some == 2 && ending[1] != '\n')) return std::nullopt;
    return last + static_cast<int64_t>(some);
  }

  bool is_line_byte(int64_t at) {
    char byte = 0;
    bytes_.read(at, std::span<char>(&byte, 1));
    return byte == '\n' || byte == '\r';
  }

  const RandomBytes& bytes_;
  std::string text_;
};

bool parse_number(std::string_view text, int64_t& value) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && value >= 0;
}

/// Whether offset_of() stays within int64 for every base.
bool fits(const FastaEntry& entry) {
  if (entry.line_bases < 1 || entry.line_width <= entry.line_bases ||
      entry.line_width - entry.line_bases > 2) {
    return false;
  }
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 4;
  // a line end is at most twice as long as its line's bases
  return entry.length <= kMost / 3 && entry.offset <= kMost;
}

}  // namespace

FastaIndex build_fasta_index(OpenedBytes input, InvalidLetters invalid, Log* log) {
  IndexBuilder builder(input.name, invalid);
  constexpr size_t kBufferBytes = size_t{1} << 18;
  const auto buffer = std::make_unique_for_overwrite<char[]>(kBufferBytes);
  while (true) {
    const size_t got = input.bytes->read(buffer.get(), kBufferBytes);
    if (got == 0) break;
    builder.feed({buffer.get(), got});
  }
  FastaIndex index = builder.finish();
  if (builder.made_n() > 0) {
    log_line(log, LogLevel::kWarning, read_as_n(input.name, builder.made_n()));
  }
  return index;
}

std::string format_fasta_index(const FastaIndex& index) {
  std::string text;
  for (const FastaEntry& entry : index) {
    text += entry.name;
    for (const int64_t value : {entry.length, entry.offset, entry.line_bases, entry.line_width}) {
      text += '\t';
      text += std::to_string(value);
    }
    text += '\n';
  }
  return text;
}

std::optional<FastaIndex> parse_fasta_index(std::string_view text, std::string& problem) {
  FastaIndex index;
  std::unordered_set<std::string_view> names;
  int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t newline = text.find('\n');
    const std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    std::array<std::string_view, 5> fields;
    std::string_view rest = line;
    size_t count = 0;
    while (true) {
      const size_t tab = rest.find('\t');
      if (count < 5) fields[count] = rest.substr(0, tab);
      ++count;
      if (tab == std::string_view::npos) break;
      rest.remove_prefix(tab + 1);
    }
    FastaEntry entry;
    const bool whole = count == 5 && !fields[0].empty() && parse_number(fields[1], entry.length) &&
                       parse_number(fields[2], entry.offset) &&
                       parse_number(fields[3], entry.line_bases) &&
                       parse_number(fields[4], entry.line_width);
    if (!whole || !names.insert(fields[0]).second || (entry.length > 0 && !fits(entry))) {
      problem = concat("line ", number, " of the index");
      return std::nullopt;
    }
    if (entry.length == 0) continue;
    entry.name = fields[0];
    index.push_back(std::move(entry));
  }
  return index;
}

std::string check_fasta_index(const FastaIndex& index, const RandomBytes& bytes) {
  return IndexChecker(bytes).check(index);
}

}  // namespace gmamba
