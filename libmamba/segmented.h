// SPDX-License-Identifier: Apache-2.0
/// Exact gradients over sequences of any length in the memory of one segment. The forward sweep
/// reads all segments and keeps only the state at each border; the backward sweep takes the
/// segments in reverse, reads each again from its border keeping what backward needs, and hands the
/// gradient of the state to the segment before. One segment means one forward pass.
#pragma once

#include <cstdint>
#include <vector>

#include "libmamba/model.h"

namespace gmamba {

/// What a sweep asks of the loss at each segment. Offsets are positions in the sequence.
class SegmentLoss {
 public:
  virtual ~SegmentLoss() = default;
  /// True when `observe` must see every segment before any gradient can be made (pooling heads).
  virtual bool needs_whole_sequence() const = 0;
  /// Forward sweep, segments in order: hidden (B, S, D). Called only when needs_whole_sequence().
  virtual void observe(Context& ctx, int64_t offset, ConstTensorView hidden) = 0;
  /// After the forward sweep, before the first gradient.
  virtual void finish_observing(Context& ctx) = 0;
  /// Backward sweep, segments in reverse: fills dhidden (B, S, D).
  virtual void gradient(Context& ctx, int64_t offset, ConstTensorView hidden,
                        TensorView dhidden) = 0;
};

struct SegmentedOptions {
  /// False for a frozen backbone: only what the loss adds itself is computed.
  bool backbone = true;
  /// The state before the sequences; null: nothing read yet.
  const SequenceState* start = nullptr;
  /// Gets the state after the sequences; may be what `start` points to. No gradient goes through
  /// it.
  SequenceState* end = nullptr;
  /// On a GPU, bytes that activations may take; 0: most of what is free. What is left of them after
  /// the least that a segment needs goes into keeping more for the backward pass.
  int64_t most_scratch = 0;
};

/// Adds the gradients of the whole batch to `gradients`: tokens (B, L) uint8 in segments of
/// `segment` tokens. Tokens on the host go to the device a segment at a time.
void segmented_gradient(Context& ctx, const Model& model, ConstTensorView tokens, int64_t segment,
                        SegmentLoss& loss, ParameterBuffer& gradients,
                        const SegmentedOptions& options = {});

/// Totals of a cross-entropy over predicted positions or sequences.
struct LossTotals {
  double loss = 0;  ///< weighted sum, natural log
  double weight = 0;
  double correct = 0;  ///< weight where the largest logit is the target's
  int64_t count = 0;   ///< positions counted

  double mean() const { return weight > 0 ? loss / weight : 0; }
  LossTotals& operator+=(const LossTotals& other);
};

/// The totals that cross_entropy adds to (4, fp64); waits for the device.
LossTotals download_totals(Context& ctx, ConstTensorView totals);

/// Next-token cross-entropy. Views stay borrowed until the sweep is over; on the host, they go to
/// the device a segment at a time.
class LanguageModelLoss final : public SegmentLoss {
 public:
  /// targets (B, L) int32, weights (B, L) fp32 or empty; gradients are scaled by `scale`. What is
  /// summed up is added to `totals` (4, fp64); where none is given they are of the context's arena
  /// and live as long as the enclosing scope.
  LanguageModelLoss(Context& ctx, const Model& model, ConstTensorView targets,
                    ConstTensorView weights, float scale, ParameterBuffer& gradients,
                    TensorView totals = {});
  bool needs_whole_sequence() const override { return false; }
  void observe(Context&, int64_t, ConstTensorView) override {}
  void finish_observing(Context&) override {}
  void gradient(Context& ctx, int64_t offset, ConstTensorView hidden, TensorView dhidden) override;
  LossTotals totals(Context& ctx) const { return download_totals(ctx, totals_); }

 private:
  const Model& model_;
  ConstTensorView targets_;
  ConstTensorView weights_;
  float scale_;
  ParameterBuffer& gradients_;
  TensorView totals_;  // (4) fp64
};

/// Classification (cross-entropy over labels) or regression (squared error) of whole sequences,
/// pooled as the model's config says.
class SequenceLoss final : public SegmentLoss {
 public:
  /// lengths (B) int64 on the CPU: tokens of each row that are not padding. targets: class per row,
  /// or value per row for regression.
  SequenceLoss(Context& ctx, const Model& model, std::vector<int64_t> lengths,
               std::vector<int32_t> classes, std::vector<float> values, float scale,
               ParameterBuffer& gradients);
  bool needs_whole_sequence() const override { return true; }
  void observe(Context& ctx, int64_t offset, ConstTensorView hidden) override;
  void finish_observing(Context& ctx) override;
  void gradient(Context& ctx, int64_t offset, ConstTensorView hidden, TensorView dhidden) override;
  LossTotals totals() const { return totals_; }
  /// (B, labels) scores of the forward sweep.
  const std::vector<float>& scores() const { return scores_; }

 private:
  const Model& model_;
  std::vector<int64_t> lengths_;
  std::vector<int32_t> classes_;
  std::vector<float> values_;
  float scale_;
  ParameterBuffer& gradients_;
  Tensor device_lengths_;  // (B) int64
  Tensor accumulator_;     // (B, D) fp64
  Tensor position_;        // (B, D) int64
  Tensor dpooled_;         // (B, D)
  LossTotals totals_;
  std::vector<float> scores_;
};

/// Rows of `lengths` that lie in [offset, offset + length), for pooling: clamp(lengths - offset, 0,
/// length).
std::vector<int64_t> valid_in_segment(const std::vector<int64_t>& lengths, int64_t offset,
                                      int64_t length);

}  // namespace gmamba
