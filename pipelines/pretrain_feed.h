// SPDX-License-Identifier: Apache-2.0
/// What the steps of a pretraining run read, in the order of the run: batches made in the
/// background, brought to the device while it computes, and with --carry the states that rows go on
/// from. All of it comes back from a checkpoint as it was.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/loader.h"
#include "io/windows.h"
#include "libmamba/trainer.h"
#include "pipelines/pretrain_plan.h"

namespace gmamba {

class PretrainFeed {
 public:
  /// Everything given must outlive it. `checkpoint` (of `step` steps) is what to go on from.
  PretrainFeed(Context& ctx, const ModelConfig& config, const Genome& genome,
               const Tokenizer& tokenizer, const Split& split, const PretrainOptions& options,
               const PretrainPlan& plan, int64_t step, const Checkpoint* checkpoint);
  ~PretrainFeed();

  /// One optimiser step on what comes next.
  StepReport step(Trainer& trainer);

  /// For a checkpoint, after a step: numbers, and tensors that belong to this.
  Json state() const;
  std::map<std::string, ConstTensorView> carried() const;

  int64_t context() const { return stage().context; }  ///< of the step that was made last
  int64_t tokens() const { return tokens_; }           ///< read by all steps so far
  int64_t skipped_windows() const { return skipped_windows_; }
  /// Seconds of all steps of this process, and those of them in which the next batch was waited
  /// for while nothing was left to compute.
  double step_seconds() const { return step_seconds_; }
  double waited_seconds() const { return waited_seconds_; }

 private:
  const PretrainStage& stage() const { return plan_.stages[stage_]; }
  void enter_stage();
  std::unique_ptr<BatchMaker> make_batches();
  void restore_states(const Checkpoint& checkpoint);
  void wait_for_batches();
  void take_ready_batches(Trainer& trainer);
  void add_batches(Trainer& trainer);
  void note_batches();
  void forget();

  Context& ctx_;
  const ModelConfig& config_;
  const Genome& genome_;
  const Tokenizer& tokenizer_;
  const Split& split_;
  const PretrainOptions& options_;
  const PretrainPlan& plan_;

  size_t stage_ = 0;
  int64_t step_ = 0;
  uint64_t next_draw_ = 0;
  int64_t tokens_ = 0;
  int64_t skipped_windows_ = 0;
  std::vector<StreamPlace> places_;    // of all streams, after the last step
  std::vector<SequenceState> states_;  // of the rows of each micro-batch, likewise
  std::optional<WindowSampler> sampler_;
  std::unique_ptr<BatchLoader> loader_;
  std::vector<Batch> batches_;        // of this step; then as many of the next as are ready
  std::optional<StagedBatch> ahead_;  // the first of them
  double step_seconds_ = 0;
  double waited_seconds_ = 0;
};

}  // namespace gmamba
