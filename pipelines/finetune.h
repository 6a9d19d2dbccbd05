// SPDX-License-Identifier: Apache-2.0
/// Fine-tuning of a classifier or regressor on labelled sequences: a table, labelled FASTA records,
/// or windows of whole genomes per class.
#pragma once

#include <string>
#include <vector>

#include "pipelines/job.h"
#include "pipelines/model_input.h"
#include "pipelines/sequence_input.h"
#include "pipelines/training_run.h"

namespace gmamba {

template <>
struct OptionWords<TaskKind> {
  static constexpr std::pair<std::string_view, TaskKind> kWords[] = {
      {"classification", TaskKind::kClassification}, {"regression", TaskKind::kRegression}};
};

struct FinetuneOptions {
  std::string model;
  std::string train;
  std::string valid;
  std::string labels;
  std::vector<std::string> inputs;
  std::vector<std::string> classes;
  InvalidLetters invalid = InvalidLetters::kError;
  int64_t context = 1024;
  int64_t windows_per_class = 2000;
  double valid_fraction = 0.1;
  PoolMode pool = PoolMode::kMean;
  bool freeze = false;
  Strands strands = Strands::kForward;
  TaskKind task = TaskKind::kClassification;
  int64_t batch = 32;
  double epochs = 0;
  bool rc_augment = false;
  int64_t kmer = 6;

  TrainingOptions training;
  CommonOptions common;

  FinetuneOptions() {
    training.learning_rate = 1e-3;
    training.weight_decay = 0.01;
  }

  template <class V>
  void visit(V& v) {
    v.heading("Data");
    v("model", model, "model to start from: a model or run folder",
      {.value = "MODEL", .required = true});
    v("train", train, "table (TSV or CSV) with a header: sequence, label", {.value = "FILE"});
    v("valid", valid, "the same to validate on", {.value = "FILE"});
    v("labels", labels, "table of id and label for the records of the FASTA inputs",
      {.value = "FILE"});
    v("inputs", inputs, "FASTA or FASTQ for --labels", {.value = "FILE", .positional = true});
    v("class", classes, "name=genome.fa: windows of a genome as one class; repeat",
      {.value = "NAME=FASTA"});
    v("invalid", invalid, kInvalidHelp, {.value = "WORD"});
    v("context", context, "bases of a window, with --class", {.value = "N"});
    v("windows-per-class", windows_per_class, "windows drawn of each class in an epoch",
      {.value = "N"});
    v("valid-fraction", valid_fraction,
      "share held out where no --valid is given: whole blocks of bases with --class, else records",
      {.value = "X"});
    v.heading("Head");
    v("task", task, "classification or regression", {.value = "WORD"});
    v("pool", pool, "how a sequence becomes one vector: mean, last or max", {.value = "WORD"});
    v("freeze", freeze, "train the head only");
    v("strands", strands, "both: predictions average the two strands", {.value = "WORD"});
    v("rc-augment", rc_augment, "train on a random strand of each sequence");
    v("batch", batch, "sequences of one optimiser step", {.value = "N"});
    v("epochs", epochs, "passes over the training data, in place of --steps",
      {.value = "X",
       .shown_default = "10 for tables and records, 1 for windows",
       .in_place_of = "steps"});
    v("kmer", kmer, "k of the k-mer baseline printed beside; 0: none", {.value = "N"});
    training.visit(v);
    common.visit(v);
  }
  void validate() const;
};

void finetune(const FinetuneOptions& options, Job& job);

}  // namespace gmamba
