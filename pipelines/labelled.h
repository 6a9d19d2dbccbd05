// SPDX-License-Identifier: Apache-2.0
/// Labelled sequences for fine-tuning and evaluation, from tables, labelled records, or windows of
/// genomes. The n-th example of a training run is a pure function of (seed, n).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/sequence_reader.h"
#include "io/tokenizer.h"
#include "libmamba/config.h"
#include "libmamba/core/log.h"
#include "pipelines/predict.h"

namespace gmamba {

struct Example {
  Ids ids;
  int32_t label = 0;  ///< class
  float value = 0;    ///< regression
};

/// Sequences and their labels, before classes are numbered.
struct LabelledText {
  std::vector<std::string> sequences;
  std::vector<std::string> labels;
};

/// Columns `sequence` and `label` of a table. A letter outside IUPAC is an error that names its
/// line and base, or read as N and counted in a warning.
LabelledText read_labelled_table(const std::string& path,
                                 InvalidLetters invalid = InvalidLetters::kError,
                                 Log* log = nullptr);

/// Records of FASTA or FASTQ files joined with a table of `id` and `label`. A record without a
/// label is an error that names it; labels without a record are counted in a warning.
LabelledText read_labelled_records(const std::vector<std::string>& inputs,
                                   const std::string& labels, Log* log,
                                   InvalidLetters invalid = InvalidLetters::kError);

/// Class names in sorted order; numbers sort by value.
std::vector<std::string> class_names(const std::vector<std::string>& labels);

/// Numbers the labels; throws kInput naming a label that is not among `classes` (or no number, for
/// regression) and its line.
std::vector<Example> make_examples(const LabelledText& text,
                                   const std::vector<std::string>& classes, TaskKind task,
                                   const Tokenizer& tokenizer, const std::string& name);

/// Where training examples come from.
class ExampleSource {
 public:
  virtual ~ExampleSource() = default;
  /// Examples of one pass.
  virtual int64_t epoch_size() const = 0;
  virtual Example draw(uint64_t index) const = 0;
  /// Tokens that examples have, each number once; none has more than the largest.
  virtual std::vector<int64_t> lengths() const = 0;
};

/// The lengths of examples, each once, ascending.
std::vector<int64_t> lengths_of(const std::vector<Example>& examples);

/// A list in memory, shuffled anew in each pass.
std::unique_ptr<ExampleSource> list_source(std::vector<Example> examples, uint64_t seed);

/// Windows of genomes, one per class in turn, and held-out windows of each.
struct ClassWindows {
  std::vector<std::string> names;
  std::unique_ptr<ExampleSource> train;
  std::vector<Example> valid;
  int64_t train_bases = 0;
  int64_t valid_bases = 0;
};
ClassWindows open_class_windows(const std::vector<std::string>& specs, int64_t context,
                                int64_t windows_per_class, double valid_fraction,
                                const Tokenizer& tokenizer, uint64_t seed, Log* log,
                                InvalidLetters invalid = InvalidLetters::kError);

}  // namespace gmamba
