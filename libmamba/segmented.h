// SPDX-License-Identifier: Apache-2.0
/// Exact gradients over sequences of any length in the memory of one segment. The forward sweep
/// reads all segments and keeps only the state at each border; the backward sweep takes the
/// segments in reverse, reads each again from its border keeping what backward needs, and hands the
/// gradient of the state to the segment before. One segment means one forward pass.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "libmamba/model.h"

namespace gmamba {

/// What a sweep asks of the loss at each segment. Offsets are positions in the sequence.
class SegmentLoss {
 public:
  virtual ~SegmentLoss() = default;
  /// What `begin` takes of the arena for the whole sweep, and the taking of it.
  virtual int64_t scratch_bytes() const { return 0; }
  virtual void begin(Context&) {}
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
/// The same from numbers on the host.
LossTotals loss_totals(std::span<const double, 4> totals);

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

/// Whole sequences and what is to be said of them, brought to the device while it computes.
/// Sequences longer than a segment stay on the host and go there a segment at a time.
class SequenceBatch {
 public:
  /// tokens (B, L) row-major, rows padded; it must outlive this. Of each row how many tokens are no
  /// padding, and its class, or for a regression its value.
  SequenceBatch(Context& ctx, std::span<const uint8_t> tokens, std::vector<int64_t> lengths,
                std::vector<int32_t> classes, std::vector<float> values, int64_t segment);

  int64_t rows() const { return static_cast<int64_t>(host_lengths_.size()); }
  int64_t segment() const { return segment_; }
  ConstTensorView tokens() const { return tokens_; }    // (B, L)
  ConstTensorView lengths() const { return lengths_; }  // (B) int64
  ConstTensorView classes() const { return classes_; }  // (B) int32, or empty
  const std::vector<float>& values() const { return values_; }
  /// (B) int64: tokens of each row within the segment that begins at `offset`.
  ConstTensorView valid(int64_t offset) const;

 private:
  std::vector<int64_t> host_lengths_, host_valid_;
  std::vector<int32_t> host_classes_;
  std::vector<float> values_;
  int64_t segment_;
  ConstTensorView tokens_, lengths_, classes_;
  ConstTensorView valid_;  // (S, B) int64
  Staged staged_;
};

/// Classification (cross-entropy over labels) or regression (squared error) of whole sequences,
/// pooled as the model's config says. A classification doesn't wait for the device.
class SequenceLoss final : public SegmentLoss {
 public:
  /// The batch stays borrowed until the sweep is over; gradients are scaled by `scale`. `totals`
  /// (4, fp64) as LanguageModelLoss has them.
  SequenceLoss(Context& ctx, const Model& model, const SequenceBatch& batch, float scale,
               ParameterBuffer& gradients, TensorView totals = {});
  bool needs_whole_sequence() const override { return true; }
  int64_t scratch_bytes() const override;
  void begin(Context& ctx) override;
  void observe(Context& ctx, int64_t offset, ConstTensorView hidden) override;
  void finish_observing(Context& ctx) override;
  void gradient(Context& ctx, int64_t offset, ConstTensorView hidden, TensorView dhidden) override;
  /// Of a regression, whose errors are summed on the host.
  const LossTotals& host_totals() const { return host_totals_; }
  LossTotals totals(Context& ctx) const;

 private:
  void classify(Context& ctx, ConstTensorView scores, TensorView dscores);
  void regress(Context& ctx, ConstTensorView scores, TensorView dscores);

  const Model& model_;
  const SequenceBatch& batch_;
  float scale_;
  ParameterBuffer& gradients_;
  TensorView totals_;       // (4) fp64
  TensorView accumulator_;  // (B, D) fp64
  TensorView position_;     // (B, D) int64
  TensorView dpooled_;      // (B, D)
  LossTotals host_totals_;
};

/// Rows of `lengths` that lie in [offset, offset + length), for pooling: clamp(lengths - offset, 0,
/// length).
std::vector<int64_t> valid_in_segment(const std::vector<int64_t>& lengths, int64_t offset,
                                      int64_t length);

}  // namespace gmamba
