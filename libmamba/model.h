// SPDX-License-Identifier: Apache-2.0
/// A causal Mamba over DNA: embedding, a stack of Mamba blocks, final norm, heads. Forward reads a
/// segment and carries the state; backward walks the same segment back and hands the state's
/// gradient on. A sequence of any length is a loop over segments.
///
///   Model model = ...;  SequenceState state(model.config(), 1, ctx.device());
///   for each segment:  model.forward(ctx, tokens, state, hidden);   // state moves along
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "libmamba/config.h"
#include "libmamba/core/context.h"
#include "libmamba/core/vocabulary.h"
#include "libmamba/parameters.h"
#include "libmamba/state.h"

namespace gmamba {

/// What one block keeps of its forward pass; views into the context's arena.
struct BlockSaved {
  TensorView u;       // (M, D) norm output, in the type of the activations
  TensorView rstd;    // (M)
  TensorView x_dbl;   // (M, R+2N) x_proj output
  TensorView states;  // scan states
  // likewise; what isn't kept is empty and computed again by the backward pass, to the same bits
  TensorView conv;   // (M, E) convolution's output: kept on a GPU
  TensorView delta;  // (M, E) the scan's steps, as it reads them: an extra
  TensorView xz;     // (M, 2E) in_proj output: kept on a CPU, an extra on a GPU
};

/// What a forward pass over one segment keeps for its backward pass. On a GPU a number of extras
/// goes into what memory is left: delta of the first layers; when all keep theirs, xz of the first.
struct ForwardSaved {
  std::vector<BlockSaved> blocks;
  TensorView hidden;  // (M, D) output of the final norm: the caller's
  TensorView rstd;    // (M)
};

/// States on the way through a segment, for later passes over parts of it.
struct StatesPassed {
  /// Per layer those of the scan before positions 0, every, 2 every, ...: (B, ceil(L / every), E,
  /// N), on a GPU. `every` is as selective_scan.h wants it.
  std::vector<TensorView> marks;
  int64_t every = 0;
  /// The whole states before positions border_every, 2 border_every, ..., which is a multiple of
  /// `every` and at least d_conv - 1.
  std::vector<SequenceState*> borders;
  int64_t border_every = 0;
};

class Model {
 public:
  /// Parameters are zero; fill them by `initialize` or from a folder.
  Model(ModelConfig config, Device device);

  const ModelConfig& config() const { return config_; }
  /// The names and tokens that the model reads.
  const Vocabulary& vocabulary() const { return vocabulary_; }
  void set_vocabulary(Vocabulary vocabulary) { vocabulary_ = std::move(vocabulary); }
  ParameterBuffer& parameters() { return values_; }
  const ParameterBuffer& parameters() const { return values_; }

  /// Reads a segment: tokens (B, L) uint8, hidden (B, L, D) after the final norm, in fp32 or in the
  /// type of the context's activations; `state` is
  /// replaced by the state after it. `layer` k >= 0 gives the residual stream after block k
  /// instead, without a norm (-1: after the final norm). L may be 0.
  void forward(Context& ctx, ConstTensorView tokens, SequenceState& state, TensorView hidden,
               int layer = -1) const;

  /// The same, writing what `passed` asks for. Without `hidden` the last layer's output is spared.
  void advance(Context& ctx, ConstTensorView tokens, SequenceState& state,
               const StatesPassed& passed, TensorView hidden = {}) const;

  /// As forward, keeping in `saved` what backward needs (memory of ctx.arena(), valid until the
  /// enclosing scope ends) but for `hidden`, which the caller keeps; with so many `extras`.
  /// Marks of an earlier pass over these tokens (`known`) make it cheaper.
  void forward_saving(Context& ctx, ConstTensorView tokens, SequenceState& state, TensorView hidden,
                      ForwardSaved& saved, int64_t extras = 0,
                      const StatesPassed& known = {}) const;

  /// Adds the gradients of all backbone parameters to `gradients`. `state_in` is the state before
  /// the segment; `dstate` holds the gradient of the state after it and is replaced by the gradient
  /// of the state before it. dhidden (B, L, D) in the type of the activations.
  void backward(Context& ctx, ConstTensorView tokens, const SequenceState& state_in,
                const ForwardSaved& saved, ConstTensorView dhidden, SequenceState& dstate,
                ParameterBuffer& gradients) const;

  /// LM head: hidden (M, D) in fp32 or in the type of the activations -> logits (M, V) fp32.
  void logits(Context& ctx, ConstTensorView hidden, TensorView logits) const;
  /// dhidden = dlogits W; adds to the head's (or the tied embedding's) gradient. dlogits, hidden
  /// and dhidden are of one type.
  void logits_backward(Context& ctx, ConstTensorView dlogits, ConstTensorView hidden,
                       TensorView dhidden, ParameterBuffer& gradients) const;

  /// Task head: pooled (B, D) -> scores (B, labels). Throws kUsage when the model has no task.
  void scores(Context& ctx, ConstTensorView pooled, TensorView scores) const;
  void scores_backward(Context& ctx, ConstTensorView dscores, ConstTensorView pooled,
                       TensorView dpooled, ParameterBuffer& gradients) const;

 private:
  struct Pass;
  void run(Context& ctx, ConstTensorView tokens, SequenceState& state, const Pass& pass) const;
  void take_saved(Context& ctx, int64_t batch, int64_t length, int64_t extras,
                  ForwardSaved& saved) const;

  ModelConfig config_;
  Vocabulary vocabulary_;
  ParameterBuffer values_;
};

/// A model of the same backbone with a task head: labels, pooling. Backbone values are copied, the
/// head is freshly initialised by `seed`.
Model with_task(const Model& model, TaskKind task, std::vector<std::string> labels, PoolMode pool,
                uint64_t seed);

}  // namespace gmamba
