// SPDX-License-Identifier: Apache-2.0
/// The parts of a block's passes that Model puts together: a block's parameters and the matrices in
/// the type of the activations, names for the parts of projections, scratch for what isn't kept,
/// and states on the way.
#pragma once

#include <algorithm>
#include <string>

#include "kernels/convert.h"
#include "kernels/delta_projection.h"
#include "libmamba/core/text.h"
#include "libmamba/model.h"

namespace gmamba::detail {

/// The parameters of one block, or their gradients (`View` is ConstTensorView or TensorView).
template <class View>
struct BlockParameters {
  View norm, in_proj, in_bias, conv, conv_bias, x_proj, dt_proj, dt_bias, D, out_proj, out_bias;
};

template <class View, class Buffer>
BlockParameters<View> block_parameters(Buffer& buffer, const ModelConfig& config, int64_t layer) {
  const std::string prefix = concat("backbone.layers.", layer, ".");
  const auto get = [&](const char* name) -> View { return buffer.view(prefix + name); };
  BlockParameters<View> p;
  p.norm = get("norm.weight");
  p.in_proj = get("mixer.in_proj.weight");
  p.conv = get("mixer.conv1d.weight").reshape({config.d_inner(), config.d_conv});
  p.x_proj = get("mixer.x_proj.weight");
  p.dt_proj = get("mixer.dt_proj.weight");
  p.dt_bias = get("mixer.dt_proj.bias");
  p.D = get("mixer.D");
  p.out_proj = get("mixer.out_proj.weight");
  if (config.use_bias) {
    p.in_bias = get("mixer.in_proj.bias");
    p.out_bias = get("mixer.out_proj.bias");
  }
  if (config.use_conv_bias) {
    p.conv_bias = get("mixer.conv1d.bias");
  }
  return p;
}

/// A parameter of all blocks as (layers, its elements): they lie equally far apart.
template <class View, class Buffer>
View of_all_blocks(Buffer& buffer, const ModelConfig& config, const char* name) {
  const ParameterLayout& layout = buffer.layout();
  const auto place = [&](int64_t layer) {
    const int index = layout.find(concat("backbone.layers.", layer, ".", name));
    return layout.all()[static_cast<size_t>(index)].offset;
  };
  View all = buffer.view(concat("backbone.layers.0.", name));
  const int64_t size = all.size();
  const int64_t apart = config.n_layers > 1 ? place(1) - place(0) : size;
  for (int64_t i = 1; i < config.n_layers; ++i) {
    require(place(i) - place(i - 1) == apart, ErrorKind::kInternal, name,
            ": blocks lie unequally far apart");
  }
  all.rank = 2;
  all.extent[0] = config.n_layers, all.stride[0] = apart;
  all.extent[1] = size, all.stride[1] = 1;
  return all;
}

/// The states that a pass leaves behind, until they take the place of those it began with: all
/// layers' at once where they are small, so that two copies do.
class StatesLeft {
 public:
  StatesLeft(Context& ctx, const ModelConfig& config, int64_t batch)
      : at_once_(SequenceState::small(config, batch)) {
    const int64_t layers = at_once_ ? config.n_layers : 1;
    conv_ = ctx.arena().f32({layers, batch, config.d_conv - 1, config.d_inner()});
    ssm_ = ctx.arena().f32({layers, batch, config.d_inner(), config.d_state});
  }

  TensorView conv(int64_t layer) const { return of(conv_, layer); }
  TensorView ssm(int64_t layer) const { return of(ssm_, layer); }
  /// After the pass through a layer.
  void layer_done(Context& ctx, int64_t layer, SequenceState& to) const {
    if (at_once_) return;
    ctx.copy(conv(0), to.conv(layer));
    ctx.copy(ssm(0), to.ssm(layer));
  }
  /// After the passes through the first `layers`.
  void all_done(Context& ctx, int64_t layers, SequenceState& to) const {
    if (!at_once_) return;
    ctx.copy(conv_.slice(0, 0, layers), to.all_conv().slice(0, 0, layers));
    ctx.copy(ssm_.slice(0, 0, layers), to.all_ssm().slice(0, 0, layers));
  }

 private:
  TensorView of(const TensorView& all, int64_t layer) const {
    const int64_t i = at_once_ ? layer : 0;
    return all.slice(0, i, i + 1).reshape({all.dim(1), all.dim(2), all.dim(3)});
  }

  bool at_once_;
  TensorView conv_, ssm_;  // (layers or 1, B, K-1, E), (..., B, E, N)
};

/// The matrices in the type of the activations: the parameters themselves, or rounded copies that
/// live until the enclosing scope ends.
class Matrices {
 public:
  Matrices(Context& ctx, const ParameterBuffer& values) : values_(values) {
    if (ctx.activations() == DType::kF32) return;
    const int64_t count = values.layout().decay_end();  // every matrix decays
    rounded_ = ctx.arena().tensor(ctx.activations(), {count});
    convert(ctx, values.flat().slice(0, 0, count), rounded_);
  }

  /// The projections of a block, replaced in `p`.
  void replace(BlockParameters<ConstTensorView>& p, int64_t layer) const {
    if (rounded_.empty()) return;
    const std::string prefix = concat("backbone.layers.", layer, ".mixer.");
    p.in_proj = view(prefix + "in_proj.weight");
    p.x_proj = view(prefix + "x_proj.weight");
    p.dt_proj = view(prefix + "dt_proj.weight");
    p.out_proj = view(prefix + "out_proj.weight");
  }

 private:
  ConstTensorView view(const std::string& name) const {
    const ParameterLayout& layout = values_.layout();
    const ParameterInfo& info = layout.all()[static_cast<size_t>(layout.find(name))];
    return ConstTensorView(rounded_)
        .slice(0, info.offset, info.offset + info.size)
        .reshape(info.shape);
  }

  const ParameterBuffer& values_;
  TensorView rounded_;
};

/// One matrix in the type of `like`: itself or a rounded copy.
inline ConstTensorView matrix_like(Context& ctx, ConstTensorView matrix, ConstTensorView like) {
  if (matrix.dtype == like.dtype) return matrix;
  const TensorView rounded = ctx.arena().tensor(like.dtype, matrix.shape());
  convert(ctx, matrix, rounded);
  return rounded;
}

/// Sizes of a segment and the views that name the parts of a block's projections.
struct Extents {
  int64_t batch, length, rows, d_model, d_inner, d_state, d_conv, dt_rank;

  Extents(const ModelConfig& c, int64_t batch_, int64_t length_)
      : batch(batch_),
        length(length_),
        rows(batch_ * length_),
        d_model(c.d_model),
        d_inner(c.d_inner()),
        d_state(c.d_state),
        d_conv(c.d_conv),
        dt_rank(c.dt_rank) {}

  template <class View>
  View sequence(const View& flat) const {  // (M, W) -> (B, L, W)
    return flat.reshape({batch, length, flat.dim(-1)});
  }
  template <class View>
  View x(const View& xz) const {  // (B, L, E)
    return sequence(xz).slice(2, 0, d_inner);
  }
  template <class View>
  View z(const View& xz) const {  // (B, L, E)
    return sequence(xz).slice(2, d_inner, 2 * d_inner);
  }
  /// The decay rates of a layer, (E, N), of all layers'.
  TensorView rates(const TensorView& all, int64_t layer) const {
    return all.slice(0, layer, layer + 1).reshape({d_inner, d_state});
  }
  template <class View>
  View dt(const View& x_dbl) const {  // (M, R)
    return x_dbl.slice(1, 0, dt_rank);
  }
  template <class View>
  View B(const View& x_dbl) const {  // (B, L, N)
    return sequence(x_dbl).slice(2, dt_rank, dt_rank + d_state);
  }
  template <class View>
  View C(const View& x_dbl) const {  // (B, L, N)
    return sequence(x_dbl).slice(2, dt_rank + d_state, dt_rank + 2 * d_state);
  }
};

/// True when the scan gets its steps behind bias and softplus.
inline bool steps_ready(const Context& ctx, const Extents& e) {
  return delta_projection_fits(ctx.device(), ctx.activations(), e.dt_rank, e.d_inner);
}
/// The scan's steps (M, E) from x_dbl, ready or before bias and softplus.
inline void project_steps(Context& ctx, const Extents& e, ConstTensorView x_dbl,
                          const BlockParameters<ConstTensorView>& p, TensorView delta) {
  if (steps_ready(ctx, e)) {
    delta_projection(ctx, {e.dt(x_dbl), p.dt_proj, p.dt_bias, delta});
  } else {
    linear_forward(ctx, e.dt(x_dbl), p.dt_proj, {}, delta);
  }
}

/// The first elements of a contiguous array, as `shape`.
inline TensorView head_of(const TensorView& array, const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return array.reshape({array.size()}).slice(0, 0, count).reshape(shape);
}

/// Scratch of the arena for an array that some block of `saved` lacks, or that no pass keeps.
inline void take_lacking(Context& ctx, const ForwardSaved* saved, TensorView BlockSaved::*array,
                         const Shape& shape, BlockSaved& scratch) {
  const auto lacks = [&](const BlockSaved& block) { return (block.*array).empty(); };
  if (saved == nullptr || std::any_of(saved->blocks.begin(), saved->blocks.end(), lacks)) {
    scratch.*array = ctx.arena().tensor(ctx.activations(), shape);
  }
}

/// The marks of a layer, or nothing.
inline TensorView marks_of(const StatesPassed* states, int64_t layer) {
  if (states == nullptr || states->marks.empty()) return {};
  return states->marks[static_cast<size_t>(layer)];
}
inline int64_t mark_spacing(const StatesPassed* passed, const StatesPassed* known) {
  const bool marked = passed != nullptr && !passed->marks.empty();
  return marked ? passed->every : known != nullptr ? known->every : 0;
}

/// The states of a layer at the borders that were passed: those of the scan from its marks, the
/// last inputs of the convolution from `x` (B, L, E).
inline void copy_borders(Context& ctx, const StatesPassed& passed, ConstTensorView x,
                         int64_t layer) {
  for (size_t i = 0; i < passed.borders.size(); ++i) {
    SequenceState& border = *passed.borders[i];
    const int64_t at = static_cast<int64_t>(i + 1) * passed.border_every;
    const TensorView tail = border.conv(layer);
    const TensorView state = border.ssm(layer);
    const int64_t mark = at / passed.every;
    const TensorView marks = passed.marks[static_cast<size_t>(layer)];
    convert(ctx, x.slice(1, at - tail.dim(1), at), tail);
    for (int64_t b = 0; b < state.dim(0); ++b) {
      ctx.copy(
          marks.slice(0, b, b + 1).slice(1, mark, mark + 1).reshape({state.dim(1), state.dim(2)}),
          state.slice(0, b, b + 1).reshape({state.dim(1), state.dim(2)}));
    }
  }
}

}  // namespace gmamba::detail
