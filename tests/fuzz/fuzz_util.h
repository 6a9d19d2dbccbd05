// SPDX-License-Identifier: Apache-2.0
/// What the fuzz targets of io/ share.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/genome.h"
#include "io/sequence_reader.h"
#include "libmamba/core/error.h"

namespace gmamba::fuzz {

/// A broken promise: libFuzzer and the replay keep the input.
inline void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

/// All records, or the message of the error.
struct Outcome {
  std::vector<SequenceRecord> records;
  std::string error;
  /// Which of several faults is met first may depend on how much is read at once.
  bool operator==(const Outcome& other) const {
    return error.empty() == other.error.empty() &&
           std::equal(records.begin(), records.end(), other.records.begin(), other.records.end(),
                      [](const SequenceRecord& a, const SequenceRecord& b) {
                        return a.id == b.id && a.description == b.description && a.bases == b.bases;
                      });
  }
};

inline Outcome read_stream(std::string_view bytes, int64_t buffer, int64_t part, int threads) {
  Outcome outcome;
  try {
    SequenceReaderOptions options;
    options.buffer_bytes = buffer;
    options.part_bases = part;
    options.threads = threads;
    const auto reader = open_sequences_memory(bytes, "x", options);
    SequenceRecord record;
    int64_t total = 0;
    while (next_record(*reader, record)) {
      total += static_cast<int64_t>(record.bases.size());
      outcome.records.push_back(record);
    }
    expect(total == reader->bases_read(), "bases are counted");
  } catch (const Error& error) {
    expect(error.kind() == ErrorKind::kInput || error.kind() == ErrorKind::kUnsupported,
           "bad bytes are an input error");
    outcome = {};
    outcome.error = error.message();
    expect(!outcome.error.empty(), "errors say something");
  }
  return outcome;
}

/// Every contig that the genome gives is a record of the stream, in order, with the same bases.
/// `partial` also compares pieces.
inline void expect_same_bases(const Genome& genome, const std::vector<SequenceRecord>& records,
                              bool partial) {
  size_t next = 0;
  for (size_t i = 0; i < genome.contigs(0).size(); ++i) {
    const Contig& contig = genome.contigs(0)[i];
    const auto number = static_cast<int32_t>(i);
    std::optional<std::string> bases;
    try {
      bases = genome.read({0, number, 0, contig.length});
    } catch (const Error& error) {
      expect(error.kind() == ErrorKind::kInput, "a misfit is an input error");
    }
    if (!bases) continue;
    expect(static_cast<int64_t>(bases->size()) == contig.length, "as many bases as the contig has");
    while (next < records.size() && records[next].id != contig.name) ++next;
    expect(next < records.size(), "contigs are records");
    expect(*bases == records[next].bases, "contigs have the bases of their records");
    for (int64_t piece = 1; partial && piece <= 3; ++piece) {
      const int64_t start = contig.length * (piece - 1) / 3;
      const int64_t end = contig.length * piece / 3;
      expect(genome.read({0, number, start, end}) ==
                 bases->substr(static_cast<size_t>(start), static_cast<size_t>(end - start)),
             "pieces are pieces of the whole");
    }
    ++next;
  }
}

}  // namespace gmamba::fuzz
