// SPDX-License-Identifier: Apache-2.0
#include "io/sequence_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "io/byte_source.h"
#include "io/letters.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr size_t kLongestName = 65536;
constexpr size_t kLongestHeader = size_t{1} << 20;

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\v' || c == '\f' || c == '\r'; }

/// Lines are followed through the input buffer as they come; letters go to the part's buffer with
/// one copy per line and are checked there all at once.
class TextSequenceReader final : public SequenceReader {
 public:
  TextSequenceReader(OpenedBytes input, const SequenceReaderOptions& options)
      : input_(std::move(input)),
        options_(options),
        buffer_size_(static_cast<size_t>(std::max<int64_t>(options.buffer_bytes, 16))),
        buffer_(std::make_unique_for_overwrite<char[]>(buffer_size_)),
        part_size_(static_cast<size_t>(std::max<int64_t>(options.part_bases, 1))),
        bases_(std::make_unique_for_overwrite<char[]>(part_size_)) {}

  bool next(SequencePart& part) override {
    if (done_) return false;
    size_ = 0;
    line_starts_.clear();
    const bool first = !in_record_;
    if (first && !start_record()) {
      finish();
      return false;
    }
    part_line_ = line_;
    part_starts_line_ = at_line_start_;
    const bool last = collect();
    check_letters();
    if (last && fastq_) read_quality();
    in_record_ = !last;
    part.id = id_;
    part.description = description_;
    part.record = record_;
    part.offset = record_bases_;
    part.bases = {bases_.get(), size_};
    part.first = first;
    part.last = last;
    record_bases_ += static_cast<int64_t>(size_);
    bases_read_ += static_cast<int64_t>(size_);
    return true;
  }

  int64_t bases_read() const override { return bases_read_; }
  int64_t invalid_letters() const override { return invalid_; }
  int64_t bytes_read() const override { return input_.bytes->consumed(); }
  int64_t bytes_total() const override { return input_.bytes->total(); }

 private:
  // ---- input

  /// Reads on behind what is left; false at the end of the input.
  bool refill() {
    if (input_ended_) return false;
    std::memmove(buffer_.get(), buffer_.get() + at_, end_ - at_);
    end_ -= at_;
    at_ = 0;
    const size_t got = input_.bytes->read(buffer_.get() + end_, buffer_size_ - end_);
    input_ended_ = got == 0;
    end_ += got;
    return got > 0;
  }
  bool available() { return at_ < end_ || refill(); }

  /// What of the current line is in the buffer.
  struct Stretch {
    size_t text = 0;    ///< bytes before the line end, or all that is there
    size_t ending = 0;  ///< bytes of the line end: 0 while it is not in sight
  };
  /// Call when available(). A carriage return counts as line end only before a newline or the end
  /// of the input, so one at the end of the buffer makes it read on.
  Stretch stretch() {
    while (true) {
      const char* const text = buffer_.get() + at_;
      const size_t there = end_ - at_;
      const auto* const newline = static_cast<const char*>(std::memchr(text, '\n', there));
      if (newline != nullptr) {
        const auto before = static_cast<size_t>(newline - text);
        const size_t carriage = before > 0 && newline[-1] == '\r' ? 1 : 0;
        return {before - carriage, 1 + carriage};
      }
      if (text[there - 1] != '\r') return {there, 0};
      if (there > 1) return {there - 1, 0};
      if (!refill()) return {0, 1};
    }
  }
  void end_line(size_t ending) {
    at_ += ending;
    ++line_;
    at_line_start_ = true;
  }

  /// The rest of the current line, line end consumed.
  void read_line(std::string& line, std::string_view what) {
    line.clear();
    while (available()) {
      const Stretch part = stretch();
      line.append(buffer_.get() + at_, part.text);
      at_ += part.text;
      if (line.size() > kLongestHeader) {
        fail_here(concat("a ", what, " longer than ", format_bytes(kLongestHeader)));
      }
      if (part.ending > 0) break;
    }
    end_line(available() ? stretch().ending : 0);
  }

  // ---- records

  /// Skips blank lines and reads a header; false at the end of the input.
  bool start_record() {
    Stretch blank;
    while (available() && (blank = stretch(), blank.text == 0)) end_line(blank.ending);
    if (!available()) return false;
    const char mark = buffer_[at_];
    if (record_ < 0) {
      fastq_ = mark == '@';
      check_start(mark);
    } else if (mark != (fastq_ ? '@' : '>')) {
      fail_here(concat("expected '@' and a name after record '", printable(id_), "', found ",
                       shown_byte(mark), "; is its quality string longer than its sequence?"));
    }
    ++at_;
    header_line_ = line_;
    read_line(header_, "header line");
    ++record_;
    record_bases_ = 0;
    blank_line_ = 0;
    const auto blank_at = std::find_if(header_.begin(), header_.end(), is_blank);
    id_.assign(header_.begin(), blank_at);
    description_.assign(std::find_if_not(blank_at, header_.end(), is_blank), header_.end());
    require(!id_.empty(), ErrorKind::kInput, input_.name, ": line ", header_line_, ": record ",
            record_ + 1, " has no name after '", fastq_ ? '@' : '>', "'");
    if (id_.size() > kLongestName) {
      fail(ErrorKind::kInput, input_.name, ": line ", header_line_, ": record ", record_ + 1,
           ": a name of more than ", format_bytes(kLongestName), ": '", printable(id_), "'");
    }
    return true;
  }

  void check_start(char mark) const {
    if (mark == '>') return;
    refuse_other_text({buffer_.get() + at_, end_ - at_}, input_.name);
    if (mark == '@') return;
    fail_here(concat("expected '>' (FASTA) or '@' (FASTQ) before any sequence, found ",
                     shown_byte(mark)));
  }

  /// Fills the part; true when the record's sequence ended, false when more letters follow.
  bool collect() {
    const char mark = fastq_ ? '+' : '>';
    while (true) {
      if (!available()) {
        if (fastq_) fail_truncated("ends before its quality string");
        return true;
      }
      if (at_line_start_ && buffer_[at_] == mark) return true;
      const Stretch line = stretch();
      if (line.text > 0) {
        if (blank_line_ > 0) fail_blank_line();
        const size_t take = std::min(line.text, part_size_ - size_);
        if (take == 0) return false;
        if (at_line_start_) line_starts_.push_back(size_);
        at_line_start_ = false;
        std::memcpy(bases_.get() + size_, buffer_.get() + at_, take);
        size_ += take;
        at_ += take;
        if (take < line.text) return false;
      }
      if (line.ending > 0) {
        if (at_line_start_) blank_line_ = line_;
        end_line(line.ending);
      }
    }
  }

  [[noreturn]] void fail_blank_line() const {
    fail(ErrorKind::kInput, input_.name, ": line ", blank_line_, ": blank line inside record '",
         printable(id_), "'; sequence goes on at line ", line_);
  }

  /// After the sequence: the '+' line and as many quality characters as there were letters.
  void read_quality() {
    const int64_t total = record_bases_ + static_cast<int64_t>(size_);
    if (blank_line_ > 0 && total > 0) {
      fail(ErrorKind::kInput, input_.name, ": line ", blank_line_, ": blank line inside record '",
           printable(id_), "'");
    }
    ++at_;
    at_line_start_ = false;
    const int64_t plus_line = line_;
    read_line(plus_, "'+' line");
    if (!plus_.empty() && plus_ != header_ && plus_ != id_) {
      fail(ErrorKind::kInput, input_.name, ": line ", plus_line, ": the '+' line names '",
           printable(plus_), "', but the record is '", printable(id_), "'");
    }
    int64_t left = total;
    while (left > 0) {
      if (!available()) fail_truncated("ends within its quality string");
      const Stretch line = stretch();
      const bool blank = line.text == 0 && at_line_start_;
      if (blank || static_cast<int64_t>(line.text) > left) {
        fail_quality(total, blank ? "shorter" : "longer");
      }
      const std::string_view quality(buffer_.get() + at_, line.text);
      const size_t bad = find_unprintable(quality);
      if (bad < quality.size()) {
        fail_here(concat("record '", printable(id_), "': ", shown_byte(quality[bad]),
                         " is no quality character"));
      }
      at_ += line.text;
      left -= static_cast<int64_t>(line.text);
      at_line_start_ = at_line_start_ && line.text == 0;
      if (line.ending > 0) end_line(line.ending);
    }
    if (!at_line_start_ && available()) {
      const Stretch rest = stretch();
      if (rest.text > 0) fail_quality(total, "longer");
      end_line(rest.ending);
    }
  }

  [[noreturn]] void fail_quality(int64_t bases, std::string_view how) const {
    fail(ErrorKind::kInput, input_.name, ": line ", line_, ": record '", printable(id_), "' has ",
         bases, " bases, but its quality string is ", how);
  }

  void finish() {
    done_ = true;
    require(record_ >= 0, ErrorKind::kInput, input_.name,
            ": no sequence records: the input is empty");
    if (invalid_ > 0) {
      log_line(options_.log, LogLevel::kWarning, read_as_n(input_.name, invalid_));
    }
  }

  // ---- letters

  void check_letters() {
    size_t at = 0;
    while (true) {
      const std::string_view rest(bases_.get() + at, size_ - at);
      at += find_invalid_letter(rest);
      if (at == size_) return;
      const auto letter = static_cast<unsigned char>(bases_[at]);
      if (options_.invalid == InvalidLetters::kError || !may_stand_for_n(letter)) fail_letter(at);
      bases_[at] = 'N';
      ++invalid_;
    }
  }

  [[noreturn]] void fail_letter(size_t at) const {
    const auto lines = std::upper_bound(line_starts_.begin(), line_starts_.end(), at);
    const int64_t line = part_line_ + (lines - line_starts_.begin()) - (part_starts_line_ ? 1 : 0);
    fail(ErrorKind::kInput, input_.name, ": line ", line, ": record '", printable(id_),
         "': ", shown_byte(bases_[at]), " at base ", record_bases_ + static_cast<int64_t>(at) + 1,
         letter_problem(bases_[at]));
  }

  // ---- messages

  [[noreturn]] void fail_here(const std::string& what) const {
    fail(ErrorKind::kInput, input_.name, ": line ", line_, ": ", what);
  }
  [[noreturn]] void fail_truncated(std::string_view how) const {
    fail(ErrorKind::kInput, input_.name, ": line ", line_, ": truncated: record '", printable(id_),
         "' ", how);
  }

  OpenedBytes input_;
  SequenceReaderOptions options_;
  size_t buffer_size_;
  std::unique_ptr<char[]> buffer_;  // [at_, end_) is not yet looked at
  size_t at_ = 0;
  size_t end_ = 0;
  bool input_ended_ = false;
  int64_t line_ = 1;  // of at_
  bool at_line_start_ = true;

  size_t part_size_;
  std::unique_ptr<char[]> bases_;  // of the part: size_ letters
  size_t size_ = 0;
  std::vector<size_t> line_starts_;  // where lines begin in bases_, for messages
  int64_t part_line_ = 1;
  bool part_starts_line_ = true;

  bool fastq_ = false;
  bool in_record_ = false;
  bool done_ = false;
  int64_t record_ = -1;
  int64_t record_bases_ = 0;  // before the part
  int64_t header_line_ = 0;
  int64_t blank_line_ = 0;  // a blank line seen in the record, 0 for none
  std::string header_;
  std::string id_;
  std::string description_;
  std::string plus_;

  int64_t bases_read_ = 0;
  int64_t invalid_ = 0;
};

}  // namespace

std::unique_ptr<SequenceReader> open_sequences(const std::string& path,
                                               const SequenceReaderOptions& options) {
  return std::make_unique<TextSequenceReader>(open_bytes(path, options.threads), options);
}

std::unique_ptr<SequenceReader> open_sequences_memory(std::string_view data,
                                                      const std::string& name,
                                                      const SequenceReaderOptions& options) {
  return std::make_unique<TextSequenceReader>(open_bytes_memory(data, name, options.threads),
                                              options);
}

bool next_record(SequenceReader& reader, SequenceRecord& record) {
  SequencePart part;
  if (!reader.next(part)) return false;
  record.id = part.id;
  record.description = part.description;
  record.bases = part.bases;
  while (!part.last) {
    require(reader.next(part), ErrorKind::kInternal, "a record ended without its last part");
    record.bases.append(part.bases);
  }
  return true;
}

}  // namespace gmamba
