// SPDX-License-Identifier: Apache-2.0
/// One Mamba block, forward:                        backward, read upwards:
///   residual += branch of the block before           dresidual flows straight through
///   u     = rms_norm(residual)                       du -> dresidual
///   xz    = u W_in^T              (x | z)            dxz -> du, dW_in
///   x'    = silu(conv(x))                            dx' -> dx           (one operation
///   x_dbl = x' W_x^T              (dt | B | C)       dx_dbl -> dx', dW_x   of both)
///   delta = dt W_dt^T             (on a GPU in bf16  ddelta -> dx_dbl, dW_dt
///           behind bias and softplus already)
///   y     = scan(x', delta, B, C, z)                 dy -> dx', ddelta, dB, dC, dz
///   branch = y W_out^T                               dbranch -> dy, dW_out
/// Kept for the backward pass: u and rstd (which stand for the residual, rms_norm.h), x_dbl, the
/// scan's states, and what costs most to compute again for its bytes: xz on a CPU, where products
/// take the time, x' on a GPU, where memory traffic does. The rest is computed again where memory
/// is short (y always).
/// Activations are of the context's type. Parameters stay fp32; where activations are bf16, a call
/// begins by rounding the matrices to a bf16 copy (their bytes are those of a few hundred tokens).
/// The residual stream and its gradient are fp32, with a bf16 copy of the gradient for the
/// products.
#include "libmamba/model.h"

#include <utility>

#include "kernels/conv1d.h"
#include "kernels/conv_projection.h"
#include "kernels/decay_rates.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"
#include "kernels/linear_backward.h"
#include "kernels/rms_norm.h"
#include "kernels/selective_scan.h"
#include "libmamba/model_parts.h"
#include "libmamba/pass_key.h"

namespace gmamba {

using namespace detail;

Model::Model(ModelConfig config, Device device)
    : config_((config.validate(), std::move(config))),
      vocabulary_(Vocabulary::characters()),
      values_(std::make_shared<const ParameterLayout>(config_), device) {}

/// What a forward pass is for.
struct Model::Pass {
  TensorView hidden;  // (B, L, D), or empty: the states alone
  int layer = -1;
  ForwardSaved* saved = nullptr;
  int64_t extras = 0;
  const StatesPassed* passed = nullptr;  // written
  const StatesPassed* known = nullptr;   // read
};

void Model::forward(Context& ctx, ConstTensorView tokens, SequenceState& state, TensorView hidden,
                    int layer) const {
  const Pass pass{.hidden = hidden, .layer = layer};
  if (!is_short(ctx, tokens.size())) return run(ctx, tokens, state, pass);
  replay(ctx, forward_key(*this, tokens, state, hidden, layer),
         [&] { run(ctx, tokens, state, pass); });
}

void Model::advance(Context& ctx, ConstTensorView tokens, SequenceState& state,
                    const StatesPassed& passed, TensorView hidden) const {
  run(ctx, tokens, state, {.hidden = hidden, .passed = &passed});
}

void Model::forward_saving(Context& ctx, ConstTensorView tokens, SequenceState& state,
                           TensorView hidden, ForwardSaved& saved, int64_t extras,
                           const StatesPassed& known) const {
  run(ctx, tokens, state, {.hidden = hidden, .saved = &saved, .extras = extras, .known = &known});
}

void Model::take_saved(Context& ctx, int64_t batch, int64_t length, int64_t extras,
                       ForwardSaved& saved) const {
  const Extents e(config_, batch, length);
  const DType type = ctx.activations();
  Arena& arena = ctx.arena();
  saved.blocks.assign(static_cast<size_t>(config_.n_layers), BlockSaved{});
  for (BlockSaved& block : saved.blocks) {
    block.u = arena.tensor(type, {e.rows, e.d_model});
    block.rstd = arena.f32({e.rows});
    block.x_dbl = arena.tensor(type, {e.rows, e.dt_rank + 2 * e.d_state});
    block.states =
        arena.f32({e.batch, scan_saved_states(e.length, ctx.device()), e.d_inner, e.d_state});
    const auto layer = &block - saved.blocks.data();
    if (ctx.device().is_cpu()) {
      block.xz = arena.tensor(type, {e.rows, 2 * e.d_inner});
      continue;
    }
    block.conv = arena.tensor(type, {e.rows, e.d_inner});
    if (layer < extras) block.delta = arena.tensor(type, {e.rows, e.d_inner});
    if (layer + config_.n_layers < extras) {
      block.xz = arena.tensor(type, {e.rows, 2 * e.d_inner});
    }
  }
  saved.rstd = arena.f32({e.rows});
}

void Model::run(Context& ctx, ConstTensorView tokens, SequenceState& state,
                const Pass& pass) const {
  const TensorView& hidden = pass.hidden;
  ForwardSaved* const saved = pass.saved;
  require(tokens.rank == 2, ErrorKind::kShape, "model: tokens must be (B, L), found ",
          to_string(tokens.shape()));
  require(hidden.empty() || (hidden.rank == 3 && hidden.dim(0) == tokens.dim(0) &&
                             hidden.dim(1) == tokens.dim(1) && hidden.dim(2) == config_.d_model),
          ErrorKind::kShape, "model: tokens ", to_string(tokens.shape()), " need hidden (B, L, ",
          config_.d_model, "), found ", to_string(hidden.shape()));
  require(state.batch() == tokens.dim(0) && state.n_layers() == config_.n_layers, ErrorKind::kShape,
          "model: the state is for batch ", state.batch(), " and ", state.n_layers(),
          " layers, the tokens have batch ", tokens.dim(0), " and the model ", config_.n_layers,
          " layers");
  const int layer = pass.layer;
  require(layer >= -1 && layer < config_.n_layers, ErrorKind::kUsage, "layer ", layer,
          " does not exist; the model has layers 0 to ", config_.n_layers - 1,
          " and -1 for the output of the final norm");
  const Extents e(config_, tokens.dim(0), tokens.dim(1));
  if (e.rows == 0) {
    if (saved != nullptr) saved->blocks.clear();
    return;
  }

  Arena& arena = ctx.arena();
  const DType type = ctx.activations();
  const Shape stream_shape = {e.rows, e.d_model};
  // what must outlive this call is taken before the scope that frees the rest
  if (saved != nullptr) take_saved(ctx, e.batch, e.length, pass.extras, *saved);
  const Arena::Scope scope(arena);
  const TensorView residual = arena.f32(stream_shape);
  const TensorView branch = arena.tensor(type, stream_shape);
  const Shape inner_shape = {e.rows, e.d_inner};
  BlockSaved scratch;  // for what a block doesn't keep
  take_lacking(ctx, saved, &BlockSaved::u, stream_shape, scratch);
  take_lacking(ctx, saved, &BlockSaved::xz, {e.rows, 2 * e.d_inner}, scratch);
  take_lacking(ctx, saved, &BlockSaved::x_dbl, {e.rows, e.dt_rank + 2 * e.d_state}, scratch);
  take_lacking(ctx, saved, &BlockSaved::conv, inner_shape, scratch);
  take_lacking(ctx, saved, &BlockSaved::delta, inner_shape, scratch);
  const TensorView y = arena.tensor(type, inner_shape);
  const Matrices matrices(ctx, values_);
  const TensorView rates = arena.f32({config_.n_layers, e.d_inner * e.d_state});
  decay_rates_forward(ctx, of_all_blocks<ConstTensorView>(values_, config_, "mixer.A_log"), rates);
  const StatesLeft after(ctx, config_, e.batch);

  embedding_forward(ctx, tokens.reshape({e.rows}), values_.view("backbone.embeddings.weight"),
                    residual);
  const int64_t last = layer < 0 ? config_.n_layers : layer + 1;
  for (int64_t i = 0; i < last; ++i) {
    auto p = block_parameters<ConstTensorView>(values_, config_, i);
    matrices.replace(p, i);
    BlockSaved* keep = saved != nullptr ? &saved->blocks[static_cast<size_t>(i)] : nullptr;
    const auto place = [&](TensorView BlockSaved::*array) {
      return keep != nullptr && !(keep->*array).empty() ? keep->*array : scratch.*array;
    };
    const bool goes_on = !hidden.empty() || i + 1 < last;  // not where states alone are wanted
    const TensorView u = place(&BlockSaved::u);
    const TensorView xz = place(&BlockSaved::xz);
    const TensorView x_dbl = place(&BlockSaved::x_dbl);
    const TensorView conv_out = place(&BlockSaved::conv);
    const TensorView delta = place(&BlockSaved::delta);
    rms_norm_forward(ctx, {.residual = residual,
                           .branch = i == 0 ? ConstTensorView{} : ConstTensorView(branch),
                           .weight = p.norm,
                           .epsilon = static_cast<float>(config_.norm_epsilon),
                           .y = u,
                           .rstd = keep != nullptr ? keep->rstd : TensorView{}});
    linear_forward(ctx, u, p.in_proj, p.in_bias, xz);
    conv_projection_forward(ctx, {.x = e.x(xz),
                                  .weight = p.conv,
                                  .bias = p.conv_bias,
                                  .tail_in = state.conv(i),
                                  .projection = p.x_proj,
                                  .y = e.sequence(conv_out),
                                  .projected = x_dbl,
                                  .tail_out = after.conv(i)});
    project_steps(ctx, e, x_dbl, p, delta);
    selective_scan_forward(ctx, {.u = e.sequence(conv_out),
                                 .delta = e.sequence(delta),
                                 .A = e.rates(rates, i),
                                 .B = e.B(x_dbl),
                                 .C = e.C(x_dbl),
                                 .D = p.D,
                                 .z = e.z(xz),
                                 .delta_bias = p.dt_bias,
                                 .state_in = state.ssm(i),
                                 .y = goes_on ? e.sequence(y) : TensorView{},
                                 .state_out = after.ssm(i),
                                 .saved_states = keep != nullptr ? keep->states : TensorView{},
                                 .marks = marks_of(pass.passed, i),
                                 .known = marks_of(pass.known, i),
                                 .mark_every = mark_spacing(pass.passed, pass.known),
                                 .delta_ready = steps_ready(ctx, e)});
    if (pass.passed != nullptr) copy_borders(ctx, *pass.passed, e.x(xz), i);
    if (goes_on) linear_forward(ctx, y, p.out_proj, p.out_bias, branch);
    after.layer_done(ctx, i, state);
  }
  after.all_done(ctx, last, state);
  if (hidden.empty()) return;
  const TensorView out = hidden.reshape(stream_shape);
  rms_norm_forward(ctx, {.residual = residual,
                         .branch = branch,
                         .weight = values_.view("backbone.norm_f.weight"),
                         .epsilon = static_cast<float>(config_.norm_epsilon),
                         .y = out,
                         .rstd = saved != nullptr ? saved->rstd : TensorView{}});
  if (saved != nullptr) saved->hidden = out;
  if (layer >= 0) convert(ctx, residual, out);
}

void Model::backward(Context& ctx, ConstTensorView tokens, const SequenceState& state_in,
                     const ForwardSaved& saved, ConstTensorView dhidden, SequenceState& dstate,
                     ParameterBuffer& gradients) const {
  const Extents e(config_, tokens.dim(0), tokens.dim(1));
  if (e.rows == 0) {
    return;  // the gradient of the state passes unchanged
  }
  Arena& arena = ctx.arena();
  const Arena::Scope scope(arena);
  const Shape stream_shape = {e.rows, e.d_model};
  const DType type = ctx.activations();
  const Shape inner_shape = {e.rows, e.d_inner};
  const TensorView dresidual = arena.f32(stream_shape);
  // the same in the type of the activations, for the products
  const TensorView dbranch_copy =
      type == DType::kF32 ? TensorView{} : arena.tensor(type, stream_shape);
  const TensorView dbranch = type == DType::kF32 ? dresidual : dbranch_copy;
  const TensorView dxz = arena.tensor(type, {e.rows, 2 * e.d_inner});
  const TensorView dx_dbl = arena.tensor(type, {e.rows, e.dt_rank + 2 * e.d_state});
  BlockSaved scratch;  // for what a block doesn't keep
  take_lacking(ctx, &saved, &BlockSaved::xz, {e.rows, 2 * e.d_inner}, scratch);
  take_lacking(ctx, &saved, &BlockSaved::conv, inner_shape, scratch);
  take_lacking(ctx, &saved, &BlockSaved::delta, inner_shape, scratch);
  const TensorView ddelta = arena.tensor(type, inner_shape);
  const TensorView y = arena.tensor(type, inner_shape);
  const TensorView dy = arena.tensor(type, inner_shape);
  const TensorView dconv = arena.tensor(type, inner_shape);
  const TensorView du = head_of(dy, stream_shape);  // wanted when dy no longer is
  const Matrices matrices(ctx, values_);
  const Shape rates_shape = {config_.n_layers, e.d_inner * e.d_state};
  const TensorView rates = arena.f32(rates_shape);
  const TensorView drates = arena.zeros(DType::kF32, rates_shape, ctx.stream());
  decay_rates_forward(ctx, of_all_blocks<ConstTensorView>(values_, config_, "mixer.A_log"), rates);
  const StatesLeft dbefore(ctx, config_, e.batch);

  rms_norm_backward(ctx, {.dy = dhidden.reshape(stream_shape),
                          .y = saved.hidden,
                          .rstd = saved.rstd,
                          .weight = values_.view("backbone.norm_f.weight"),
                          .dresidual = dresidual,
                          .dweight = gradients.view("backbone.norm_f.weight"),
                          .residual_mode = GradMode::kOverwrite,
                          .dbranch = dbranch_copy});
  for (int64_t i = config_.n_layers - 1; i >= 0; --i) {
    auto p = block_parameters<ConstTensorView>(values_, config_, i);
    matrices.replace(p, i);
    const auto g = block_parameters<TensorView>(gradients, config_, i);
    const BlockSaved& keep = saved.blocks[static_cast<size_t>(i)];

    // what the forward pass did not keep; the outgoing tail is not needed again
    const auto place = [&](TensorView BlockSaved::*array) {
      return (keep.*array).empty() ? scratch.*array : keep.*array;
    };
    const TensorView u = keep.u;
    const TensorView xz = place(&BlockSaved::xz);
    const TensorView conv_out = place(&BlockSaved::conv);
    const TensorView delta = place(&BlockSaved::delta);
    if (keep.xz.empty()) linear_forward(ctx, u, p.in_proj, p.in_bias, xz);
    if (keep.conv.empty()) {
      conv1d_forward(ctx, {.x = e.x(xz),
                           .weight = p.conv,
                           .bias = p.conv_bias,
                           .tail_in = state_in.conv(i),
                           .y = e.sequence(conv_out)});
    }
    if (keep.delta.empty()) project_steps(ctx, e, keep.x_dbl, p, delta);
    linear_backward_input(ctx, dbranch, p.out_proj, dy);
    selective_scan_backward(ctx, {.dy = e.sequence(dy),
                                  .dstate_out = dstate.ssm(i),
                                  .u = e.sequence(conv_out),
                                  .delta = e.sequence(delta),
                                  .A = e.rates(rates, i),
                                  .B = e.B(keep.x_dbl),
                                  .C = e.C(keep.x_dbl),
                                  .D = p.D,
                                  .z = e.z(xz),
                                  .delta_bias = p.dt_bias,
                                  .saved_states = keep.states,
                                  .du = e.sequence(dconv),
                                  .ddelta = e.sequence(ddelta),
                                  .dB = e.B(dx_dbl),
                                  .dC = e.C(dx_dbl),
                                  .dz = e.z(dxz),
                                  .y = e.sequence(y),
                                  .dstate_in = dbefore.ssm(i),
                                  .dA = e.rates(drates, i),
                                  .dD = g.D,
                                  .ddelta_bias = g.dt_bias,
                                  .mode = GradMode::kAccumulate,
                                  .delta_ready = steps_ready(ctx, e)});
    linear_backward_weight(ctx, dbranch, y, g.out_proj, g.out_bias, GradMode::kAccumulate);
    linear_backward(ctx, {.dy = ddelta,
                          .x = e.dt(keep.x_dbl),
                          .weight = p.dt_proj,
                          .dx = e.dt(dx_dbl),
                          .dweight = g.dt_proj,
                          .mode = GradMode::kAccumulate});
    conv_projection_backward(ctx, {.dy = e.sequence(dconv),
                                   .dprojected = dx_dbl,
                                   .dtail_out = dstate.conv(i),
                                   .x = e.x(xz),
                                   .y = e.sequence(conv_out),
                                   .weight = p.conv,
                                   .bias = p.conv_bias,
                                   .tail_in = state_in.conv(i),
                                   .projection = p.x_proj,
                                   .dx = e.x(dxz),
                                   .dtail_in = dbefore.conv(i),
                                   .dweight = g.conv,
                                   .dbias = g.conv_bias,
                                   .dprojection = g.x_proj,
                                   .mode = GradMode::kAccumulate});
    linear_backward_weight(ctx, dxz, u, g.in_proj, g.in_bias, GradMode::kAccumulate);
    linear_backward_input(ctx, dxz, p.in_proj, du);
    rms_norm_backward(ctx, {.dy = du,
                            .y = u,
                            .rstd = keep.rstd,
                            .weight = p.norm,
                            .dresidual = dresidual,
                            .dweight = g.norm,
                            .dbranch = i > 0 ? dbranch_copy : TensorView{}});
    dbefore.layer_done(ctx, i, dstate);
  }
  dbefore.all_done(ctx, config_.n_layers, dstate);
  decay_rates_backward(ctx, drates, rates,
                       of_all_blocks<TensorView>(gradients, config_, "mixer.A_log"));
  embedding_backward(ctx, tokens.reshape({e.rows}), dresidual,
                     gradients.view("backbone.embeddings.weight"), GradMode::kAccumulate);
}

namespace {

const char* lm_head_name(const ModelConfig& config) {
  return config.tie_embeddings ? "backbone.embeddings.weight" : "lm_head.weight";
}

void require_task(const ModelConfig& config) {
  require(config.task != TaskKind::kNone, ErrorKind::kUsage,
          "the model has no classification head; make one with 'gmamba finetune'");
}

}  // namespace

void Model::logits(Context& ctx, ConstTensorView hidden, TensorView logits) const {
  const Arena::Scope scope(ctx.arena());
  const ConstTensorView table = values_.view(lm_head_name(config_));
  linear_forward(ctx, hidden, matrix_like(ctx, table, hidden), {}, logits);
}

void Model::logits_backward(Context& ctx, ConstTensorView dlogits, ConstTensorView hidden,
                            TensorView dhidden, ParameterBuffer& gradients) const {
  const Arena::Scope scope(ctx.arena());
  const ConstTensorView table = values_.view(lm_head_name(config_));
  linear_backward_weight(ctx, dlogits, hidden, gradients.view(lm_head_name(config_)), {},
                         GradMode::kAccumulate);
  linear_backward_input(ctx, dlogits, matrix_like(ctx, table, dlogits), dhidden);
}

void Model::scores(Context& ctx, ConstTensorView pooled, TensorView scores) const {
  require_task(config_);
  linear_forward(ctx, pooled, values_.view("score.weight"), {}, scores);
}

void Model::scores_backward(Context& ctx, ConstTensorView dscores, ConstTensorView pooled,
                            TensorView dpooled, ParameterBuffer& gradients) const {
  require_task(config_);
  linear_backward_weight(ctx, dscores, pooled, gradients.view("score.weight"), {},
                         GradMode::kAccumulate);
  linear_backward_input(ctx, dscores, values_.view("score.weight"), dpooled);
}

Model with_task(const Model& model, TaskKind task, std::vector<std::string> labels, PoolMode pool,
                uint64_t seed) {
  ModelConfig config = model.config();
  config.task = task;
  config.labels = std::move(labels);
  config.pool = pool;
  Model tasked(config, Device{});
  tasked.set_vocabulary(model.vocabulary());
  initialize(tasked.parameters(), config, seed);
  for (const ParameterInfo& info : model.parameters().layout().all()) {
    if (info.name == "score.weight") continue;
    const TensorView to = tasked.parameters().view(info.name);
    Context host;
    host.copy(model.parameters().view(info.name), to);
  }
  return tasked;
}

}  // namespace gmamba
