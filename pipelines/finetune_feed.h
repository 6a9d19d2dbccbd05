// SPDX-License-Identifier: Apache-2.0
/// What the steps of a fine-tuning run read: drawn, tokenised and batched by a thread of its own,
/// and brought to the device while it computes. The n-th example is a function of seed and n, so
/// that a run goes on from the number of draws alone.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/made_ahead.h"
#include "libmamba/trainer.h"
#include "pipelines/finetune.h"
#include "pipelines/labelled.h"

namespace gmamba {

class FinetuneFeed {
 public:
  /// Everything given must outlive it; `source` is its own for that time. `next_draw` is the first
  /// example to read.
  FinetuneFeed(Context& ctx, const ExampleSource& source, const Tokenizer& tokenizer,
               const FinetuneOptions& options, int64_t segment, uint64_t next_draw);

  /// One optimiser step on the next --batch examples.
  StepReport step(Trainer& trainer);

  uint64_t next_draw() const { return next_draw_; }     ///< after the steps made
  int64_t step_tokens() const { return step_tokens_; }  ///< of the last one
  /// Seconds of all steps of this process, and those of them in which the next examples were
  /// waited for while nothing was left to compute.
  double step_seconds() const { return step_seconds_; }
  double waited_seconds() const { return waited_seconds_; }

 private:
  /// Sequences of like length.
  struct Rows {
    PaddedBatch padded;
    std::vector<int32_t> classes;
    std::vector<float> values;
  };
  struct Step {
    std::vector<Rows> batches;
    int64_t tokens = 0;
    uint64_t next_draw = 0;
  };
  Step make_step();
  SequenceBatch stage(const Rows& rows);

  Context& ctx_;
  const ExampleSource& source_;
  const Tokenizer& tokenizer_;
  const FinetuneOptions& options_;
  int64_t segment_;
  uint64_t drawn_;  // the making thread's
  uint64_t next_draw_;
  int64_t step_tokens_ = 0;
  double step_seconds_ = 0;
  double waited_seconds_ = 0;
  std::optional<Step> next_;            // what was ready when the step before was computed
  std::optional<SequenceBatch> first_;  // the first of its batches, on its way
  MadeAhead<Step> steps_;               // the last member: its thread reads those above
};

}  // namespace gmamba
