// SPDX-License-Identifier: Apache-2.0
/// Streams records of FASTA and FASTQ: plain, gzip, bgzip, or stdin ("-"), of any length, in
/// bounded memory. A record arrives as parts; a reader that wants it whole joins them. Errors
/// (kInput) name file, record and line: truncated gzip or BGZF, BGZF without its end block, a
/// quality string of another length than its sequence, a byte that is no sequence letter, a name of
/// more than 64 KiB, an input without any record.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "libmamba/core/log.h"

namespace gmamba {

enum class InvalidLetters {
  kError,  ///< a letter outside IUPAC is an error that names record and position
  kN,      ///< it is read as N and counted
};

struct SequenceReaderOptions {
  int threads = 1;  ///< decompression threads for bgzip
  InvalidLetters invalid = InvalidLetters::kError;
  Log* log = nullptr;
  int64_t part_bases = 1 << 18;    ///< a part has at most this many bases
  int64_t buffer_bytes = 1 << 18;  ///< read from the input at once
};

/// A stretch of one record, in order. `bases` is valid during the call only: letters as in the file
/// (case kept), without line ends.
struct SequencePart {
  std::string_view id;           ///< first word of the header
  std::string_view description;  ///< the rest of the header
  int64_t record = 0;            ///< from 0
  int64_t offset = 0;            ///< position of bases[0] in the record
  std::string_view bases;
  bool first = false;  ///< of the record
  bool last = false;   ///< of the record; an empty record is one part, first and last
};

class SequenceReader {
 public:
  virtual ~SequenceReader() = default;
  /// The next part, or false at the end of the input (then all was read and checked).
  virtual bool next(SequencePart& part) = 0;
  virtual int64_t bases_read() const = 0;
  virtual int64_t invalid_letters() const = 0;
  /// Bytes consumed of the file on disk and its size (-1 when unknown), for progress.
  virtual int64_t bytes_read() const = 0;
  virtual int64_t bytes_total() const = 0;
};

/// Opens by content, not by suffix.
std::unique_ptr<SequenceReader> open_sequences(const std::string& path,
                                               const SequenceReaderOptions& options = {});

/// The same over bytes in memory, which must outlive the reader; `name` goes into messages.
std::unique_ptr<SequenceReader> open_sequences_memory(std::string_view data,
                                                      const std::string& name,
                                                      const SequenceReaderOptions& options = {});

/// Reads whole records; for reads and contigs that fit memory.
struct SequenceRecord {
  std::string id;
  std::string description;
  std::string bases;
};
bool next_record(SequenceReader& reader, SequenceRecord& record);

}  // namespace gmamba
