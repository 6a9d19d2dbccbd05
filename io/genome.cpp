// SPDX-License-Identifier: Apache-2.0
#include "io/genome.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

#include "io/fasta_index.h"
#include "io/letters.h"
#include "io/random_bytes.h"
#include "io/regions.h"
#include "libmamba/core/context.h"
#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

/// Records so short that checking each of them costs as much as reading the file.
constexpr int64_t kShortRecord = 1 << 14;
constexpr int64_t kIndexLimit = int64_t{1} << 32;

struct GenomeFile {
  std::string path;
  std::string name;  ///< printable
  std::unique_ptr<RandomBytes> bytes;
  FastaIndex index;
  std::vector<Contig> contigs;
  std::unordered_map<std::string_view, int32_t> numbers;  // views into contigs
  bool scanned = false;  ///< the index was made from the whole file, or equals one that was
};

bool is_older(const fs::path& index, const fs::path& file) {
  std::error_code code;
  const auto index_time = fs::last_write_time(index, code);
  if (code) return true;
  const auto file_time = fs::last_write_time(file, code);
  return code || index_time < file_time;
}

std::optional<std::string> read_if_there(const fs::path& path, Log* log) {
  std::error_code code;
  if (!fs::exists(path, code)) return std::nullopt;
  try {
    return read_file(path, kIndexLimit);
  } catch (const Error& error) {
    log_line(log, LogLevel::kWarning, concat(error.message(), "; going on without it"));
    return std::string();
  }
}

/// Saves an index beside its file where that is possible; it is only a help for the next run.
void save_index(const fs::path& path, std::string_view bytes, Log* log) {
  try {
    write_file(path, bytes);
    log_line(log, LogLevel::kInfo, concat(printable(path.string()), ": index written"));
  } catch (const Error& error) {
    log_line(log, LogLevel::kInfo, concat("index kept in memory: ", error.message()));
  }
}

class Indexer {
 public:
  Indexer(GenomeFile& file, const GenomeOptions& options)
      : file_(file), options_(options), log_(options.log) {}

  void run() {
    const std::string path = file_.path + ".fai";
    const std::optional<std::string> text = read_if_there(path, log_);
    if (!text) {
      build();
      if (options_.save_index) save_index(path, format_fasta_index(file_.index), log_);
      return;
    }
    std::string problem;
    std::optional<FastaIndex> index = parse_fasta_index(*text, problem);
    const bool older = is_older(path, file_.path);
    const bool compare = older || !index || is_better_compared(*index);
    if (compare) {
      build();
      if (index && *index != file_.index) problem = "its entries";
    } else {
      problem = index->empty() ? "no entries" : check_fasta_index(*index, *file_.bytes);
      if (problem.empty()) {
        file_.index = std::move(*index);
      } else {
        build();
      }
    }
    if (!problem.empty()) {
      log_line(log_, LogLevel::kWarning,
               concat(printable(path), " does not fit ", file_.name, " (", problem,
                      "); an index made from the file is used instead, delete the old one"));
    } else if (older) {
      log_line(log_, LogLevel::kWarning,
               concat(printable(path), " is older than ", file_.name, "; it was checked and fits"));
    }
  }

  /// The .gzi is for other programs: here the blocks themselves were followed.
  void run_blocks() {
    const std::vector<BlockOffset>& blocks = file_.bytes->blocks();
    if (blocks.empty()) return;
    const std::string path = file_.path + ".gzi";
    const std::optional<std::string> text = read_if_there(path, log_);
    if (!text) {
      if (options_.save_index) save_index(path, format_blocks(blocks), log_);
    } else if (!blocks_fit(*text, blocks)) {
      log_line(log_, LogLevel::kWarning,
               concat(printable(path), " does not fit ", file_.name,
                      "; the blocks of the file are used instead, delete it"));
    }
  }

 private:
  void build() {
    file_.index =
        build_fasta_index(open_bytes(file_.path, available_threads()), options_.invalid, log_);
    require(!file_.index.empty(), ErrorKind::kInput, file_.name, ": its records hold no bases");
    file_.scanned = true;
  }

  /// Whether making an index takes little time, or no more than checking this one.
  bool is_better_compared(const FastaIndex& index) const {
    if (options_.invalid == InvalidLetters::kN) return true;  // its letters are counted
    if (options_.compare_bytes == 0) return false;
    const int64_t size = file_.bytes->size();
    int64_t first_lines = 0;  // they are read by the check
    for (const FastaEntry& entry : index) {
      first_lines += std::min({entry.length, entry.line_bases, size});
      if (first_lines > size / 2) break;
    }
    return size <= options_.compare_bytes || first_lines > size / 2 ||
           static_cast<int64_t>(index.size()) > size / kShortRecord;
  }

  static std::string format_blocks(const std::vector<BlockOffset>& blocks) {
    std::string out;
    const auto add = [&](int64_t value) {
      for (int i = 0; i < 8; ++i) out += static_cast<char>((value >> (8 * i)) & 255);
    };
    // the first block needs no entry
    add(static_cast<int64_t>(blocks.size()) - 1);
    for (size_t i = 1; i < blocks.size(); ++i) {
      add(blocks[i].packed);
      add(blocks[i].text);
    }
    return out;
  }

  static bool blocks_fit(std::string_view text, const std::vector<BlockOffset>& blocks) {
    const auto number = [&](size_t at) {
      uint64_t value = 0;
      for (size_t i = 0; i < 8; ++i) {
        value |= uint64_t{static_cast<unsigned char>(text[at + i])} << (8 * i);
      }
      return static_cast<int64_t>(value);
    };
    if (text.size() < 8 || text.size() % 16 != 8) return false;
    if (number(0) != static_cast<int64_t>(text.size() / 16)) return false;
    BlockOffset before;
    for (size_t at = 8; at < text.size(); at += 16) {
      const BlockOffset entry{number(at), number(at + 8)};
      if (!std::binary_search(blocks.begin(), blocks.end(), entry)) return false;
      if (entry <= before) return false;
      before = entry;
    }
    return true;
  }

  GenomeFile& file_;
  const GenomeOptions& options_;
  Log* log_;
};

}  // namespace

struct Genome::Impl {
  std::vector<GenomeFile> files;
  int64_t total = 0;
  GenomeOptions options;

  const GenomeFile& file(int32_t number) const {
    require(number >= 0 && static_cast<size_t>(number) < files.size(), ErrorKind::kInternal,
            "genome: file ", number, " of ", files.size());
    return files[static_cast<size_t>(number)];
  }

  void open(const std::string& path) {
    GenomeFile& file = files.emplace_back();
    file.path = path;
    file.name = printable(path);
    file.bytes = open_random_bytes(path);
    Indexer indexer(file, options);
    indexer.run();
    indexer.run_blocks();
    require(file.index.size() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()),
            ErrorKind::kUnsupported, file.name, ": more than 2^31 records");
    for (const FastaEntry& entry : file.index) {
      file.contigs.push_back({entry.name, entry.length});
      total += entry.length;
    }
    for (size_t i = 0; i < file.contigs.size(); ++i) {
      file.numbers.emplace(file.contigs[i].name, static_cast<int32_t>(i));
    }
  }

  bool is_contig(std::string_view name) const {
    return std::any_of(files.begin(), files.end(),
                       [&](const GenomeFile& file) { return file.numbers.contains(name); });
  }

  [[noreturn]] void fail_unknown(std::string_view name) const {
    std::string hint;
    const std::string with = "chr" + std::string(name);
    if (is_contig(with)) {
      hint = concat("; did you mean '", printable(with), "'?");
    } else if (name.starts_with("chr") && is_contig(name.substr(3))) {
      hint = concat("; did you mean '", printable(name.substr(3)), "'?");
    } else {
      hint = concat("; the first of its contigs is '", printable(files[0].contigs[0].name), "'");
    }
    fail(ErrorKind::kInput, "no contig '", printable(name), "' in ",
         files.size() == 1 ? files[0].name : concat("any of ", files.size(), " files"), hint);
  }

  /// The interval of a region: clipped at the contig's end.
  Interval place(const Region& region, const Interval& contig, std::string_view shown) const {
    const int64_t length = contig.end;
    require(region.start < length || (region.start == 0 && region.end == 0), ErrorKind::kInput,
            "region ", shown, " lies outside of '", printable(region.contig), "', which has ",
            format_count(length), " bases");
    Interval interval = contig;
    interval.start = region.start;
    interval.end = std::min(region.end, length);
    if (region.end > length && region.end != Region::kToEnd) {
      log_line(options.log, LogLevel::kWarning,
               concat("region ", shown, " is cut at the end of '", printable(region.contig), "' (",
                      format_count(length), " bases)"));
    }
    return interval;
  }

  std::string describe(const GenomeFile& file, const Interval& interval) const {
    return concat(file.name, ": ",
                  printable(file.contigs[static_cast<size_t>(interval.contig)].name), ":",
                  interval.start + 1, "-", interval.end);
  }

  [[noreturn]] void fail_misfit(const GenomeFile& file, const Interval& interval) const {
    fail(ErrorKind::kInput, describe(file, interval), ": the lines are not where ", file.name,
         ".fai says; delete the index, or open the file again if it was changed");
  }

  /// Whether the bytes at `at` are the line end of `entry`.
  bool is_line_end(const GenomeFile& file, const FastaEntry& entry, int64_t at) const {
    char ending[2] = {};
    const auto bytes = static_cast<size_t>(entry.line_width - entry.line_bases);
    file.bytes->read(at, std::span<char>(ending).first(bytes));
    return bytes == 1 ? ending[0] == '\n' : ending[0] == '\r' && ending[1] == '\n';
  }

  /// An index that was not made from the whole file must show that the lines touched begin and end
  /// where it says.
  void check_lines(const GenomeFile& file, const FastaEntry& entry,
                   const Interval& interval) const {
    const int64_t first = interval.start / entry.line_bases;
    const int64_t last = (interval.end - 1) / entry.line_bases;
    const int64_t last_of_all = (entry.length - 1) / entry.line_bases;
    const auto end_of_line = [&](int64_t line) {
      return entry.offset + line * entry.line_width + entry.line_bases;
    };
    const bool fits = (first == 0 || is_line_end(file, entry, end_of_line(first - 1))) &&
                      (last == last_of_all || is_line_end(file, entry, end_of_line(last)));
    if (!fits) fail_misfit(file, interval);
  }

  std::string read(const Interval& interval) const;
  void remove_line_ends(const GenomeFile& file, const FastaEntry& entry, const Interval& interval,
                        std::string& text) const;
  void check_letters(const GenomeFile& file, const Interval& interval, std::string& bases) const;
};

std::string Genome::Impl::read(const Interval& interval) const {
  const GenomeFile& from = file(interval.file);
  require(interval.contig >= 0 && static_cast<size_t>(interval.contig) < from.index.size(),
          ErrorKind::kInput, from.name, ": contig number ", interval.contig, " of ",
          from.index.size());
  const FastaEntry& entry = from.index[static_cast<size_t>(interval.contig)];
  if (interval.start < 0 || interval.start > interval.end || interval.end > entry.length) {
    fail(ErrorKind::kInput, describe(from, interval), ": outside of the contig, which has ",
         entry.length, " bases");
  }
  std::string text;
  if (interval.start == interval.end) return text;
  if (!from.scanned) check_lines(from, entry, interval);
  const int64_t begin = entry.offset_of(interval.start);
  text.resize(static_cast<size_t>(entry.offset_of(interval.end - 1) + 1 - begin));
  from.bytes->read(begin, text);
  remove_line_ends(from, entry, interval, text);
  check_letters(from, interval, text);
  return text;
}

void Genome::Impl::remove_line_ends(const GenomeFile& file, const FastaEntry& entry,
                                    const Interval& interval, std::string& text) const {
  const auto line_bases = static_cast<size_t>(entry.line_bases);
  const auto ending = static_cast<size_t>(entry.line_width - entry.line_bases);
  const auto wanted = static_cast<size_t>(interval.length());
  size_t done = std::min(wanted, line_bases - static_cast<size_t>(interval.start) % line_bases);
  size_t at = done;
  while (done < wanted) {
    const bool fits = ending == 1 ? text[at] == '\n' : text[at] == '\r' && text[at + 1] == '\n';
    if (!fits) fail_misfit(file, interval);
    at += ending;
    const size_t take = std::min(wanted - done, line_bases);
    std::memmove(text.data() + done, text.data() + at, take);
    done += take;
    at += take;
  }
  text.resize(wanted);
}

void Genome::Impl::check_letters(const GenomeFile& file, const Interval& interval,
                                 std::string& bases) const {
  size_t at = 0;
  while (true) {
    at += find_invalid_letter(std::string_view(bases).substr(at));
    if (at == bases.size()) return;
    const char letter = bases[at];
    if (letter == '\n') fail_misfit(file, interval);
    if (options.invalid == InvalidLetters::kError ||
        !may_stand_for_n(static_cast<unsigned char>(letter))) {
      fail(ErrorKind::kInput, describe(file, interval), ": ", shown_byte(letter), " at base ",
           interval.start + static_cast<int64_t>(at) + 1, letter_problem(letter));
    }
    bases[at] = 'N';
  }
}

Genome::Genome(std::vector<std::string> paths, Log* log)
    : Genome(std::move(paths), GenomeOptions{.log = log}) {}

Genome::Genome(std::vector<std::string> paths, const GenomeOptions& options)
    : impl_(std::make_unique<Impl>()) {
  require(!paths.empty(), ErrorKind::kUsage, "a genome needs at least one FASTA file");
  impl_->options = options;
  impl_->files.reserve(paths.size());
  for (const std::string& path : paths) impl_->open(path);
}

Genome::~Genome() = default;

int32_t Genome::files() const { return static_cast<int32_t>(impl_->files.size()); }

const std::string& Genome::path(int32_t file) const { return impl_->file(file).path; }

const std::vector<Contig>& Genome::contigs(int32_t file) const { return impl_->file(file).contigs; }

int64_t Genome::total_bases() const { return impl_->total; }

std::string Genome::read(const Interval& interval) const { return impl_->read(interval); }

Interval Genome::find(std::string_view contig) const {
  std::optional<Interval> found;
  for (size_t i = 0; i < impl_->files.size(); ++i) {
    const GenomeFile& file = impl_->files[i];
    const auto number = file.numbers.find(contig);
    if (number == file.numbers.end()) continue;
    if (found) {
      fail(ErrorKind::kInput, "contig '", printable(contig), "' is in ",
           impl_->file(found->file).name, " and in ", file.name,
           "; give one of them alone, or rename it");
    }
    const int64_t length = file.contigs[static_cast<size_t>(number->second)].length;
    found = Interval{static_cast<int32_t>(i), number->second, 0, length};
  }
  if (!found) impl_->fail_unknown(contig);
  return *found;
}

Interval Genome::parse_region(std::string_view region) const {
  const Region parsed =
      parse_region_text(region, [this](std::string_view name) { return impl_->is_contig(name); });
  return impl_->place(parsed, find(parsed.contig), concat("'", printable(region), "'"));
}

std::vector<Interval> Genome::parse_regions(const std::string& bed_or_list) const {
  std::vector<Interval> intervals;
  std::error_code code;
  const std::string_view text = bed_or_list;
  const bool named_bed = text.ends_with(".bed") || text.ends_with(".bed.gz");
  if (named_bed || fs::is_regular_file(bed_or_list, code)) {
    for (const BedRegion& bed : read_bed(bed_or_list)) {
      const std::string where = concat(printable(bed_or_list), " line ", bed.line);
      with_frame(
          [&] {
            const Interval found = impl_->place(bed.region, find(bed.region.contig), where);
            if (found.length() > 0) intervals.push_back(found);
          },
          [&] { return concat("while reading ", where); });
    }
    require(!intervals.empty(), ErrorKind::kInput, printable(bed_or_list),
            ": no regions with bases in it");
    return intervals;
  }
  for (const std::string& region : split_regions(text)) intervals.push_back(parse_region(region));
  return intervals;
}

}  // namespace gmamba
