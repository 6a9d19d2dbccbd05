// SPDX-License-Identifier: Apache-2.0
#include "pipelines/labelled.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <unordered_map>

#include "io/genome.h"
#include "io/letters.h"
#include "io/sequence_reader.h"
#include "io/table.h"
#include "io/windows.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"

namespace gmamba {

namespace {

/// Refuses what is no sequence letter, or makes N of it; returns how many it made.
int64_t check_letters(std::string& letters, InvalidLetters invalid, const std::string& path,
                      int64_t line) {
  int64_t count = 0;
  for (size_t at = 0;;) {
    at += find_invalid_letter(std::string_view(letters).substr(at));
    if (at == letters.size()) return count;
    if (invalid == InvalidLetters::kError ||
        !may_stand_for_n(static_cast<unsigned char>(letters[at]))) {
      fail(ErrorKind::kInput, printable(path), ": line ", line, ": ", shown_byte(letters[at]),
           " at base ", at + 1, " of the sequence", letter_problem(letters[at]));
    }
    letters[at] = 'N';
    ++count;
  }
}

}  // namespace

LabelledText read_labelled_table(const std::string& path, InvalidLetters invalid, Log* log) {
  TableReader table(path);
  const auto sequence = static_cast<size_t>(table.column("sequence"));
  const auto label = static_cast<size_t>(table.column("label"));
  LabelledText text;
  std::vector<std::string> fields;
  int64_t made_n = 0;
  while (table.next(fields)) {
    require(!fields[sequence].empty() && !fields[label].empty(), ErrorKind::kInput, printable(path),
            ": line ", table.line(), ": an empty sequence or label");
    made_n += check_letters(fields[sequence], invalid, path, table.line());
    text.sequences.push_back(std::move(fields[sequence]));
    text.labels.push_back(std::move(fields[label]));
  }
  require(!text.sequences.empty(), ErrorKind::kInput, printable(path),
          ": no rows below the header");
  if (made_n > 0) {
    log_line(log, LogLevel::kWarning, read_as_n(printable(path), made_n));
  }
  return text;
}

LabelledText read_labelled_records(const std::vector<std::string>& inputs,
                                   const std::string& labels, Log* log, InvalidLetters invalid) {
  std::unordered_map<std::string, std::string> label_of;
  TableReader table(labels);
  const auto id = static_cast<size_t>(table.column("id"));
  const auto label = static_cast<size_t>(table.column("label"));
  std::vector<std::string> fields;
  while (table.next(fields)) {
    require(label_of.emplace(fields[id], fields[label]).second, ErrorKind::kInput,
            printable(labels), ": line ", table.line(), ": the id '", printable(fields[id]),
            "' stands twice");
  }
  LabelledText text;
  for (const std::string& input : inputs) {
    const auto reader = open_sequences(input, {.invalid = invalid, .log = log});
    SequenceRecord record;
    while (next_record(*reader, record)) {
      const auto found = label_of.find(record.id);
      require(found != label_of.end(), ErrorKind::kInput, printable(input), ": record '",
              printable(record.id), "' has no label in ", printable(labels));
      text.sequences.push_back(std::move(record.bases));
      text.labels.push_back(found->second);
    }
  }
  require(!text.sequences.empty(), ErrorKind::kInput, "the inputs hold no records");
  if (label_of.size() > text.sequences.size()) {
    log_line(log, LogLevel::kWarning,
             concat(label_of.size() - text.sequences.size(), " labels of ", printable(labels),
                    " have no record in the inputs"));
  }
  return text;
}

std::vector<std::string> class_names(const std::vector<std::string>& labels) {
  const std::set<std::string> distinct(labels.begin(), labels.end());
  std::vector<std::string> names(distinct.begin(), distinct.end());
  const auto is_number = [](const std::string& name) {
    return !name.empty() && name.size() < 10 &&
           name.find_first_not_of("0123456789") == std::string::npos;
  };
  if (std::all_of(names.begin(), names.end(), is_number)) {
    std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
      return parse_int(a, "label") < parse_int(b, "label");
    });
  }
  return names;
}

std::vector<Example> make_examples(const LabelledText& text,
                                   const std::vector<std::string>& classes, TaskKind task,
                                   const Tokenizer& tokenizer, const std::string& name) {
  std::unordered_map<std::string, int32_t> number;
  for (size_t i = 0; i < classes.size(); ++i) number[classes[i]] = static_cast<int32_t>(i);
  std::vector<Example> examples(text.sequences.size());
  for (size_t i = 0; i < examples.size(); ++i) {
    const std::string& letters = text.sequences[i];
    examples[i].ids.resize(letters.size());
    tokenizer.encode(letters, examples[i].ids);
    if (task == TaskKind::kRegression) {
      examples[i].value = static_cast<float>(
          parse_double(text.labels[i], concat(printable(name), ": record ", i + 1, ": label")));
      continue;
    }
    const auto found = number.find(text.labels[i]);
    require(found != number.end(), ErrorKind::kInput, printable(name), ": record ", i + 1,
            ": the label '", printable(text.labels[i]), "' is not among the classes of the model");
    examples[i].label = found->second;
  }
  return examples;
}

namespace {

class ListSource final : public ExampleSource {
 public:
  ListSource(std::vector<Example> examples, uint64_t seed)
      : examples_(std::move(examples)), seed_(seed), order_(examples_.size()) {}

  int64_t epoch_size() const override { return static_cast<int64_t>(examples_.size()); }
  std::vector<int64_t> lengths() const override { return lengths_of(examples_); }

  Example draw(uint64_t index) const override {
    const uint64_t epoch = index / examples_.size();
    if (!shuffled_ || epoch != epoch_) {
      std::iota(order_.begin(), order_.end(), size_t{0});
      Random random(seed_, RandomUse::kShuffle, epoch);
      for (size_t i = order_.size(); i > 1; --i) {
        std::swap(order_[i - 1], order_[random.below(i)]);
      }
      epoch_ = epoch;
      shuffled_ = true;
    }
    return examples_[order_[index % examples_.size()]];
  }

 private:
  std::vector<Example> examples_;
  uint64_t seed_;
  mutable std::vector<size_t> order_;  // of epoch_, made when first asked for
  mutable uint64_t epoch_ = 0;
  mutable bool shuffled_ = false;
};

Example read_window(const Genome& genome, const Tokenizer& tokenizer, const Window& window,
                    int32_t label) {
  const std::string letters = genome.read(window.interval);
  Example example;
  example.label = label;
  example.ids.resize(letters.size());
  tokenizer.encode(letters, example.ids);
  if (window.reverse) tokenizer.reverse_complement(example.ids);
  return example;
}

bool mostly_bases(const Example& example, const Vocabulary& vocabulary) {
  const auto bases = std::count_if(example.ids.begin(), example.ids.end(),
                                   [&](uint8_t id) { return vocabulary.is_base(id); });
  return bases * 2 > static_cast<int64_t>(example.ids.size());
}

class WindowSource final : public ExampleSource {
 public:
  WindowSource(std::vector<std::unique_ptr<Genome>> genomes, std::vector<WindowSampler> samplers,
               Tokenizer tokenizer, int64_t windows_per_class, int64_t context)
      : genomes_(std::move(genomes)),
        samplers_(std::move(samplers)),
        tokenizer_(std::move(tokenizer)),
        windows_per_class_(windows_per_class),
        context_(context) {}

  std::vector<int64_t> lengths() const override { return {context_}; }
  int64_t epoch_size() const override {
    return windows_per_class_ * static_cast<int64_t>(genomes_.size());
  }

  Example draw(uint64_t index) const override {
    const size_t which = index % genomes_.size();
    const uint64_t nth = index / genomes_.size();
    // a window that is mostly N says nothing of its species: the draw is repeated elsewhere
    constexpr uint64_t kTries = 64;
    Example example;
    for (uint64_t attempt = 0; attempt < kTries; ++attempt) {
      const Window window = samplers_[which].draw(nth * kTries + attempt);
      example = read_window(*genomes_[which], tokenizer_, window, static_cast<int32_t>(which));
      if (mostly_bases(example, tokenizer_.vocabulary())) break;
    }
    return example;
  }

 private:
  std::vector<std::unique_ptr<Genome>> genomes_;
  std::vector<WindowSampler> samplers_;
  Tokenizer tokenizer_;
  int64_t windows_per_class_;
  int64_t context_;
};

}  // namespace

std::vector<int64_t> lengths_of(const std::vector<Example>& examples) {
  std::set<int64_t> lengths;
  for (const Example& example : examples) {
    lengths.insert(static_cast<int64_t>(example.ids.size()));
  }
  return {lengths.begin(), lengths.end()};
}

std::unique_ptr<ExampleSource> list_source(std::vector<Example> examples, uint64_t seed) {
  require(!examples.empty(), ErrorKind::kInput, "there are no training examples");
  return std::make_unique<ListSource>(std::move(examples), seed);
}

ClassWindows open_class_windows(const std::vector<std::string>& specs, int64_t context,
                                int64_t windows_per_class, double valid_fraction,
                                const Tokenizer& tokenizer, uint64_t seed, Log* log,
                                InvalidLetters invalid) {
  ClassWindows classes;
  std::vector<std::pair<std::string, std::vector<std::string>>> files;
  for (const std::string& spec : specs) {
    const size_t at = spec.find('=');
    require(at != std::string::npos && at > 0 && at + 1 < spec.size(), ErrorKind::kUsage,
            "--class: expected NAME=FASTA, found '", printable(spec), "'");
    const std::string name = spec.substr(0, at);
    const auto known = std::find_if(files.begin(), files.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    if (known == files.end()) {
      files.push_back({name, {spec.substr(at + 1)}});
    } else {
      known->second.push_back(spec.substr(at + 1));  // one class of several files
    }
  }
  require(files.size() >= 2, ErrorKind::kUsage, "--class: at least two classes are needed, found ",
          files.size());
  std::vector<std::unique_ptr<Genome>> genomes;
  std::vector<WindowSampler> samplers;
  for (size_t i = 0; i < files.size(); ++i) {
    classes.names.push_back(files[i].first);
    genomes.push_back(
        std::make_unique<Genome>(files[i].second, GenomeOptions{.log = log, .invalid = invalid}));
    const Genome& genome = *genomes.back();
    SplitOptions options;
    options.valid_fraction = valid_fraction;
    options.seed = seed;
    const Split split = make_split(genome, options);
    classes.train_bases += split.train_bases;
    classes.valid_bases += split.valid_bases;
    samplers.emplace_back(split.train, context, false, seed + i);
    // as many held-out windows of each class as there are, but no more than a tenth of an epoch
    const std::vector<Window> windows = tile(split.valid, context);
    const auto most = static_cast<size_t>(std::max<int64_t>(50, windows_per_class / 10));
    const size_t every = std::max<size_t>(1, (windows.size() + most - 1) / most);
    for (size_t w = 0; w < windows.size(); w += every) {
      if (windows[w].interval.length() * 2 < context) continue;
      Example example = read_window(genome, tokenizer, windows[w], static_cast<int32_t>(i));
      if (mostly_bases(example, tokenizer.vocabulary()))
        classes.valid.push_back(std::move(example));
    }
  }
  classes.train = std::make_unique<WindowSource>(std::move(genomes), std::move(samplers), tokenizer,
                                                 windows_per_class, context);
  return classes;
}

}  // namespace gmamba
