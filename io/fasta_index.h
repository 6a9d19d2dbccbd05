// SPDX-License-Identifier: Apache-2.0
/// The .fai index of a FASTA file: made from the file, written and read in samtools' format, and
/// checked against the file, because an index that does not fit gives wrong bases silently.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/byte_source.h"
#include "io/random_bytes.h"
#include "io/sequence_reader.h"

namespace gmamba {

/// One line of a .fai. Records without bases have none, as in samtools.
struct FastaEntry {
  std::string name;
  int64_t length = 0;      ///< bases
  int64_t offset = 0;      ///< of the first base in the (decompressed) file
  int64_t line_bases = 0;  ///< bases of each line but the last
  int64_t line_width = 0;  ///< the same with the line end
  bool operator==(const FastaEntry&) const = default;

  /// Offset in the file of base `position`.
  int64_t offset_of(int64_t position) const {
    return offset + position / line_bases * line_width + position % line_bases;
  }
};

using FastaIndex = std::vector<FastaEntry>;

/// Reads all of `input`. Throws kInput naming the line for text before the first '>', FASTQ, lines
/// of unequal length within a record, blank lines inside one, letters that are none, a name given
/// twice or longer than 64 KiB, and an input without records. Letters that are none, where they
/// count as N, are said in a warning.
FastaIndex build_fasta_index(OpenedBytes input, InvalidLetters invalid, Log* log = nullptr);

/// Text of a .fai.
std::string format_fasta_index(const FastaIndex& index);

/// Entries of a .fai text, or nothing and why in `problem`.
std::optional<FastaIndex> parse_fasta_index(std::string_view text, std::string& problem);

/// Compares an index with its file: headers, places of the line ends, ends of the records. Returns
/// what does not fit, or "" when all does. Does not read the sequences themselves.
std::string check_fasta_index(const FastaIndex& index, const RandomBytes& bytes);

}  // namespace gmamba
