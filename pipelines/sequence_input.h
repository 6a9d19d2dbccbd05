// SPDX-License-Identifier: Apache-2.0
/// Sequences as tokens, for every pipeline that reads them: files or stdin front to back, or
/// regions of indexed FASTA, in order. Reading and tokenising run on a thread of their own, a few
/// megabytes ahead of the compute.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "io/sequence_reader.h"
#include "io/tokenizer.h"
#include "libmamba/core/log.h"
#include "pipelines/options.h"

namespace gmamba {

template <>
struct OptionWords<InvalidLetters> {
  static constexpr std::pair<std::string_view, InvalidLetters> kWords[] = {
      {"error", InvalidLetters::kError}, {"n", InvalidLetters::kN}};
};

/// The help of --invalid, wherever sequences are read.
inline constexpr std::string_view kInvalidHelp =
    "a letter outside IUPAC is an error, or is read as n";

struct InputOptions {
  std::vector<std::string> inputs;
  std::string regions;
  InvalidLetters invalid = InvalidLetters::kError;

  /// `required`: at least one input must be named.
  template <class V>
  void visit(V& v, bool required = true) {
    v.heading("Input");
    v("input", inputs,
      "FASTA or FASTQ: plain, gzip or bgzip; '-' is stdin; several are read in order",
      {.value = "INPUT", .required = required, .positional = true});
    v("regions", regions,
      "chr1:1,001-2000,chr2 (1-based, inclusive) or a BED file, on FASTA inputs, which are indexed "
      "when they are not yet",
      {.value = "LIST|BED"});
    v("invalid", invalid, kInvalidHelp, {.value = "WORD"});
  }
  /// Throws kUsage.
  void validate() const;
};

/// A stretch of one record, in order.
struct TokenPart {
  std::string id;     ///< on the first part: the record's name, or "chr1:1001-2000" of a region
  int64_t start = 0;  ///< 0-based position of the record's first base in its contig
  std::vector<uint8_t> tokens;
  bool first = false;
  bool last = false;
};

class TokenSource {
 public:
  /// `threads` for the decompression of bgzip. Throws what opening the
  /// first input throws, when that is a file.
  TokenSource(const InputOptions& options, const Tokenizer& tokenizer, int threads, Log* log);
  TokenSource(const TokenSource&) = delete;
  TokenSource& operator=(const TokenSource&) = delete;
  ~TokenSource();

  /// The next part, false at the end. Errors of the reading thread come out here, after the parts
  /// before them; Stopped when a stop was asked for.
  bool next(TokenPart& part);
  /// Share of the input that was read (-1 unknown); bases of all regions (-1 without regions).
  double fraction() const;
  int64_t total_bases() const;
  /// Letters other than A, C, G, T, U and N, all read as N; complete at the end.
  int64_t ambiguous_letters() const;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
  std::thread thread_;
  std::vector<TokenPart> block_;
  size_t at_ = 0;
};

}  // namespace gmamba
