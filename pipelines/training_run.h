// SPDX-License-Identifier: Apache-2.0
/// What every training job shares: its options, the run folder with its lock, metrics and
/// checkpoints.
///
/// RUN/ holds model/ (the newest weights, where --model takes it), checkpoints/, metrics.jsonl,
/// run.json, report.html and tensorboard/. A run killed at any instant goes on with --resume and
/// ends with the same bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "libmamba/optimizer.h"
#include "libmamba/run_checkpoint.h"
#include "libmamba/trainer.h"
#include "pipelines/event_file.h"
#include "pipelines/job.h"

namespace gmamba {

template <>
struct OptionWords<Schedule> {
  static constexpr std::pair<std::string_view, Schedule> kWords[] = {
      {"cosine", Schedule::kCosine}, {"wsd", Schedule::kWsd}, {"constant", Schedule::kConstant}};
};

/// Optimiser and run options, common to pretrain and finetune.
struct TrainingOptions {
  int64_t batch_tokens = 65536;
  int64_t steps = 0;
  double learning_rate = 8e-3;
  double warmup = 0.1;
  Schedule schedule = Schedule::kCosine;
  double decay_fraction = 0.2;
  double lr_floor = 0.01;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double weight_decay = 0.1;
  double clip = 1.0;
  bool resume = false;
  int64_t save_every = 0;
  int64_t eval_every = 0;
  int64_t log_every = 10;
  int64_t keep = 2;

  template <class V>
  void visit(V& v) {
    v.heading("Optimiser");
    v("batch-tokens", batch_tokens, "tokens of one optimiser step, accumulated over micro-batches",
      {.value = "N"});
    v("steps", steps, "optimiser steps of the whole run", {.value = "N"});
    v("lr", learning_rate, "peak learning rate", {.value = "X"});
    v("warmup", warmup, "linear warm-up: steps, or below 1 a share of all steps", {.value = "N"});
    v("schedule", schedule, "cosine, wsd (stable, then linear decay) or constant",
      {.value = "WORD"});
    v("decay-fraction", decay_fraction, "wsd: share of the steps that decay", {.value = "X"});
    v("lr-floor", lr_floor, "last learning rate as a share of the peak", {.value = "X"});
    v("beta1", beta1, "AdamW", {.value = "X"});
    v("beta2", beta2, "AdamW", {.value = "X"});
    v("weight-decay", weight_decay, "AdamW; weight matrices only", {.value = "X"});
    v("clip", clip, "global norm that gradients are clipped to; 0: none", {.value = "X"});
    v.heading("Run");
    v("resume", resume, "go on from the newest whole checkpoint, bit for bit");
    v("save-every", save_every, "steps between checkpoints",
      {.value = "N", .shown_default = "a twentieth of the run, at most 500"});
    v("eval-every", eval_every, "steps between evaluations on what is held out",
      {.value = "N", .shown_default = "a fifth of the run"});
    v("log-every", log_every, "steps between lines of metrics.jsonl", {.value = "N"});
    v("keep", keep, "checkpoints kept, at least 2", {.value = "N"});
  }
  void validate() const;
  OptimizerOptions optimizer(int64_t total_steps) const;
  int64_t save_interval(int64_t total_steps) const;
  int64_t eval_interval(int64_t total_steps) const;
};

/// The folder of one training run, locked against a second process.
class TrainingRun {
 public:
  /// Makes the folder, or with `resume` opens it. `fingerprint` holds what must not differ when a
  /// run goes on (options, data); checkpoint() throws kUsage naming the key that does.
  TrainingRun(std::filesystem::path folder, bool resume, bool force, Json fingerprint, Log* log);

  const std::filesystem::path& folder() const { return folder_; }
  /// The checkpoint to go on from; nullopt for a new run, or one that had none yet. Cuts
  /// metrics.jsonl and what event files show back to it and opens them for more. Of a run that has
  /// finished nothing is cut or opened: what it left stays as it is.
  std::optional<Checkpoint> checkpoint(Device device);
  /// The run has ended as it should and its model is there, its last checkpoint too unless all were
  /// cleared away: nothing is left to do. Known after checkpoint(), which says it to the user.
  bool finished() const { return finished_; }

  /// Takes the lines of these splits at `step` out of metrics.jsonl and the event files.
  void drop_metrics(const std::vector<std::string>& splits, int64_t step);
  /// Appends a line to metrics.jsonl, flushed, and its numbers to the event file.
  void metrics(const Json& line);
  /// Writes a checkpoint with the caller's record (the fingerprint is added).
  void save(const Trainer& trainer, Json extra, int64_t keep,
            const std::map<std::string, ConstTensorView>& carried = {});
  /// Replaces RUN/model by the trainer's weights.
  void publish(const Trainer& trainer) const;
  /// Writes run.json and report.html as things stand.
  void report(const RunRecord& record) const;

 private:
  /// Writes metrics.jsonl again with the whole lines of which this is true, and opens it for more.
  void keep_metrics(const std::function<bool(const Json&)>& keep);

  std::filesystem::path folder_;
  Json fingerprint_;
  Log* log_;
  bool resume_;
  bool finished_ = false;
  std::optional<RunLock> lock_;
  std::ofstream metrics_;
  std::optional<EventFile> events_;
};

/// The steps that the next line of metrics.jsonl speaks of. A line need not fall where a checkpoint
/// does: what was summed goes into it, so that a run that goes on writes the lines of one that was
/// not interrupted.
struct StepsOfLine {
  int64_t steps = 0;
  LossTotals loss;       ///< of those whose loss is finite
  bool skipped = false;  ///< the update of any of them

  void add(const StepReport& report);
  /// Adds them to what a checkpoint keeps of a run, and finds them there (none where it has none).
  void save(Json& state) const;
  static StepsOfLine load(const Json& state);
};

/// The line that metrics.jsonl gets for the steps since the line before: their mean loss and
/// accuracy over all predictions, and gradient norm and learning rate of the last, `report`.
/// `tokens_per_second` is the speed of training in them; `tokens` counts from the start of the run.
/// Memory: `peak_memory_bytes` is the largest resident set of the process, `device_memory_bytes`
/// what its tensors and scratch take of the device now, `device_peak_memory_bytes` at most so far;
/// on a GPU `gpu_used_bytes` is what the driver says is in use of it, by everyone.
Json step_metrics(const StepReport& report, const StepsOfLine& steps, int64_t tokens,
                  double tokens_per_second, Device device);

/// How long a GPU had nothing to do, as its driver sees it.
class IdleShare {
 public:
  /// Counts from now on.
  explicit IdleShare(Device device);
  /// Adds `gpu_idle` to a line of metrics: the share since the last call. Nothing on a CPU, or
  /// where the driver does not say.
  void add_to(Json& line);

 private:
  Device device_;
  uint64_t since_ = 0;
};

/// Ratio of what two sums over all steps have grown by since the last call: tokens to seconds of
/// steps, seconds of waiting to seconds of steps. 0 where the second has not grown.
class RatioSince {
 public:
  double next(double sum, double per);

 private:
  double sum_ = 0;
  double per_ = 0;
};

/// "step 20  loss 1.31  lr 0.008": the note of the progress line.
std::string step_note(const StepReport& report);

/// Seconds since 1970, for metrics.
double unix_time();

constexpr double kBitsPerNat = 1.4426950408889634;

}  // namespace gmamba
