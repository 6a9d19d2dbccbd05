// SPDX-License-Identifier: Apache-2.0
/// A training run's moving parts: model, gradients, moments, counters. Each step is: begin, any
/// number of batches whose gradients add up, end. The whole of it goes into a checkpoint and comes
/// back out with the same bits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <vector>

#include "libmamba/optimizer.h"
#include "libmamba/run_checkpoint.h"
#include "libmamba/segmented.h"

namespace gmamba {

/// Rows of a language model's batch on their way to the device; see Trainer::stage().
struct StagedBatch {
  ConstTensorView tokens;   // (B, L) uint8
  ConstTensorView targets;  // (B, L) int32
  ConstTensorView weights;  // (B, L)
  Staged staged;
};

/// What of the model is trained.
enum class Trained { kAll, kHeadOnly };

struct StepReport {
  int64_t step = 0;
  LossTotals loss;
  double gradient_norm = 0;
  double learning_rate = 0;
  bool skipped = false;
};

class Trainer {
 public:
  Trainer(Context& ctx, Model model, OptimizerOptions options, Trained trained = Trained::kAll);
  /// Continues from a checkpoint; options must be those of the run.
  Trainer(Context& ctx, Checkpoint checkpoint, OptimizerOptions options,
          Trained trained = Trained::kAll);

  Model& model() { return model_; }
  const Model& model() const { return model_; }
  ParameterBuffer& gradients() { return gradients_; }
  int64_t step() const { return step_; }  ///< steps finished
  int64_t skipped_steps() const { return skipped_steps_; }

  /// On a GPU, bytes that a step's activations may take (0, as it is at first: most of what is
  /// free). Never changes results.
  void limit_scratch(int64_t bytes) { most_scratch_ = bytes; }

  void begin_step();
  /// Brings host arrays, row-major (batch, length), to the device while it computes; those that are
  /// longer than a segment stay, and go there a segment at a time. They must outlive the batch.
  StagedBatch stage(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                    std::span<const float> weights, int64_t batch, int64_t length, int64_t segment);
  /// Adds the batch's gradients scaled by `scale` (1 / weight of the step). `state` holds what the
  /// rows go on from, and then what comes after them (null: rows begin with nothing read). Does not
  /// wait for the device.
  void add_language_batch(const StagedBatch& batch, int64_t segment, double scale,
                          SequenceState* state = nullptr);
  /// Both at once.
  void add_language_batch(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                          std::span<const float> weights, int64_t batch, int64_t length,
                          int64_t segment, double scale);
  /// Whole sequences; a batch may be made ahead, while the device computes.
  void add_sequence_batch(const SequenceBatch& batch, double scale);
  /// Clips, updates, counts; waits for the device. A gradient that is not finite changes nothing
  /// and is counted; after `kMostSkips` in a row throws kInput that says what to try.
  StepReport end_step();
  static constexpr int64_t kMostSkips = 10;

  /// Writes RUN/checkpoints/step-*; `extra` is the caller's own record (data cursor, options).
  /// `carried` are tensors that it wants back.
  void save(const std::filesystem::path& run, const Json& extra, int keep,
            const std::map<std::string, ConstTensorView>& carried = {}) const;

 private:
  std::vector<DecayRange> decay_ranges() const;
  void add_batch(std::initializer_list<ConstTensorView> arrays, int64_t segment, double scale,
                 const SequenceState* state, const std::function<void()>& pass);

  Context& ctx_;
  Model model_;
  ParameterBuffer gradients_;
  Optimizer optimizer_;
  Trained trained_;
  std::vector<DecayRange> decay_;
  Tensor totals_;    // (4) fp64: loss of the step
  LossTotals loss_;  // what was summed on the host
  int64_t step_ = 0;
  int64_t updates_ = 0;
  int64_t skipped_steps_ = 0;
  int64_t skips_in_a_row_ = 0;
  int64_t most_scratch_ = 0;
};

}  // namespace gmamba
