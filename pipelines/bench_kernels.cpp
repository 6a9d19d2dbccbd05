// SPDX-License-Identifier: Apache-2.0
/// Each operation of a Mamba block over one sequence, with the work that it cannot avoid.
#include <cmath>
#include <utility>

#include "kernels/adamw.h"
#include "kernels/conv1d.h"
#include "kernels/conv_projection.h"
#include "kernels/cross_entropy.h"
#include "kernels/delta_projection.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"
#include "kernels/selective_scan.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "libmamba/parameters.h"
#include "pipelines/bench.h"

namespace gmamba {
namespace {

/// Tensors of one block over M positions, and the list of rows measured so far.
class KernelBench {
 public:
  KernelBench(Context& ctx, const ModelConfig& config, int64_t tokens, int64_t repeats,
              const MachineRates& rates)
      : ctx_(ctx),
        rates_(rates),
        repeats_(repeats),
        M(tokens),
        D(config.d_model),
        E(config.d_inner()),
        N(config.d_state),
        R(config.dt_rank),
        K(config.d_conv),
        V(config.vocab_size),
        act_(static_cast<double>(size_of(ctx.activations()))) {}

  std::vector<BenchRow> run(const ModelConfig& config) {
    embedding();
    norm();
    projection("in_proj", D, 2 * E);
    convolution();
    projection("x_proj", E, R + 2 * N);
    convolution_and_projection();
    projection("dt_proj", R, E);
    steps();
    scan();
    projection("out_proj", E, D);
    loss();
    optimizer(config);
    return std::move(rows_);
  }

 private:
  double m() const { return static_cast<double>(M); }

  TensorView activation(const Shape& shape, float scale = 1) {
    const TensorView view = ctx_.arena().tensor(ctx_.activations(), shape);
    fill_random(ctx_, view, scale, ++seed_);
    return view;
  }
  TensorView floats(const Shape& shape, float scale = 1) {
    const TensorView view = ctx_.arena().f32(shape);
    fill_random(ctx_, view, scale, ++seed_);
    return view;
  }

  void row(std::string name, std::string shape, double tokens, const Work& work,
           const std::function<void()>& body) {
    BenchRow row;
    row.name = std::move(name);
    row.shape = std::move(shape);
    row.tokens = tokens;
    row.floor = work.floor(rates_, !ctx_.device().is_cpu());
    row.seconds = median_seconds(ctx_, repeats_, body);
    rows_.push_back(std::move(row));
  }

  void embedding() {
    const Arena::Scope scope(ctx_.arena());
    std::vector<uint8_t> ids(static_cast<size_t>(M));
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<uint8_t>(7 + (i * 2654435761U >> 11) % 4);
    }
    const TensorView tokens = ctx_.arena().tensor(DType::kU8, {M});
    ctx_.upload(host_view(std::as_const(ids).data(), {M}), tokens);
    const TensorView table = floats({V, D});
    const TensorView y = ctx_.arena().f32({M, D});
    const TensorView dtable = floats({V, D});
    row("embedding forward", concat(M, " x ", D), m(), {.bytes = m() * static_cast<double>(4 * D)},
        [&] { embedding_forward(ctx_, tokens, table, y); });
    row("embedding backward", concat(M, " x ", D), m(), {.bytes = m() * static_cast<double>(4 * D)},
        [&] { embedding_backward(ctx_, tokens, y, dtable, GradMode::kOverwrite); });
  }

  void norm() {
    const Arena::Scope scope(ctx_.arena());
    const TensorView residual = floats({M, D});
    const TensorView branch = activation({M, D}, 1e-3F);
    const TensorView y = activation({M, D});
    const TensorView dy = activation({M, D});
    const TensorView rstd = ctx_.arena().f32({M});
    const TensorView weight = floats({D});
    const TensorView dresidual = floats({M, D});
    const TensorView dweight = ctx_.arena().f32({D});
    const double d = m() * static_cast<double>(D);
    row("residual + norm forward", concat(M, " x ", D), m(), {.bytes = d * (8 + 2 * act_)}, [&] {
      rms_norm_forward(
          ctx_, {.residual = residual, .branch = branch, .weight = weight, .y = y, .rstd = rstd});
    });
    row("residual + norm backward", concat(M, " x ", D), m(), {.bytes = d * (8 + 2 * act_)}, [&] {
      rms_norm_backward(ctx_, {.dy = dy,
                               .y = y,
                               .rstd = rstd,
                               .weight = weight,
                               .dresidual = dresidual,
                               .dweight = dweight,
                               .mode = GradMode::kOverwrite});
    });
  }

  void projection(const std::string& name, int64_t inner, int64_t width) {
    const Arena::Scope scope(ctx_.arena());
    const TensorView x = activation({M, inner});
    const TensorView y = activation({M, width});
    const TensorView weight = activation({width, inner}, 0.1F);
    const TensorView dweight = ctx_.arena().f32({width, inner});
    const Work work = {.bytes = m() * act_ * static_cast<double>(inner + width),
                       .flops = 2 * m() * static_cast<double>(inner * width)};
    const std::string shape = concat(M, " x ", inner, " -> ", width);
    row(name + " forward", shape, m(), work, [&] { linear_forward(ctx_, x, weight, {}, y); });
    row(name + " backward, input", shape, m(), work,
        [&] { linear_backward_input(ctx_, y, weight, x); });
    row(name + " backward, weight", shape, m(), work,
        [&] { linear_backward_weight(ctx_, y, x, dweight, {}, GradMode::kOverwrite); });
  }

  /// What a convolution reads and writes; x and dx are halves of wider rows, as in a block.
  struct Convolution {
    TensorView x, y, dy, dx;     // (1, M, E)
    TensorView weight, dweight;  // (E, K)
    TensorView bias, dbias;      // (E)
  };
  Convolution convolution_arrays() {
    Convolution c;
    c.x = activation({1, M, 2 * E}).slice(2, 0, E);
    c.y = activation({1, M, E});
    c.dy = activation({1, M, E});
    c.dx = activation({1, M, 2 * E}).slice(2, 0, E);
    c.weight = floats({E, K});
    c.bias = floats({E});
    c.dweight = ctx_.arena().f32({E, K});
    c.dbias = ctx_.arena().f32({E});
    return c;
  }

  void convolution() {
    const Arena::Scope scope(ctx_.arena());
    const Convolution c = convolution_arrays();
    const double e = m() * static_cast<double>(E);
    const std::string shape = concat("1 x ", M, " x ", E);
    row("convolution forward", shape, m(), {.bytes = 2 * act_ * e, .exps = e},
        [&] { conv1d_forward(ctx_, {.x = c.x, .weight = c.weight, .bias = c.bias, .y = c.y}); });
    row("convolution backward", shape, m(), {.bytes = 3 * act_ * e, .exps = e}, [&] {
      conv1d_backward(ctx_, {.dy = c.dy,
                             .x = c.x,
                             .weight = c.weight,
                             .bias = c.bias,
                             .dx = c.dx,
                             .dweight = c.dweight,
                             .dbias = c.dbias,
                             .mode = GradMode::kOverwrite});
    });
  }

  /// dt_proj with bias and softplus, where the device has it.
  void steps() {
    if (!delta_projection_fits(ctx_.device(), ctx_.activations(), R, E)) return;
    const Arena::Scope scope(ctx_.arena());
    const TensorView x = activation({M, R});
    const TensorView weight = activation({E, R}, 0.1F);
    const TensorView bias = floats({E});
    const TensorView delta = activation({M, E});
    row("dt_proj + softplus forward", concat(M, " x ", R, " -> ", E), m(),
        {.bytes = m() * act_ * static_cast<double>(R + E)}, [&] {
          delta_projection(ctx_, {x, weight, bias, delta});
        });
  }

  void convolution_and_projection() {
    const Arena::Scope scope(ctx_.arena());
    const int64_t P = R + 2 * N;
    const Convolution c = convolution_arrays();
    const TensorView projected = activation({M, P});
    const TensorView projection = activation({P, E}, 0.1F);
    const TensorView dprojection = ctx_.arena().f32({P, E});
    const double e = m() * static_cast<double>(E);
    const double p = m() * static_cast<double>(P);
    const std::string shape = concat("1 x ", M, " x ", E, " -> ", P);
    const double product = 2 * e * static_cast<double>(P);
    row("convolution + x_proj forward", shape, m(),
        {.bytes = act_ * (2 * e + p), .flops = product, .exps = e}, [&] {
          conv_projection_forward(ctx_, {.x = c.x,
                                         .weight = c.weight,
                                         .bias = c.bias,
                                         .projection = projection,
                                         .y = c.y,
                                         .projected = projected});
        });
    row("convolution + x_proj backward", shape, m(),
        {.bytes = act_ * (3 * e + p), .flops = 2 * product, .exps = e}, [&] {
          conv_projection_backward(ctx_, {.dy = c.dy,
                                          .dprojected = projected,
                                          .x = c.x,
                                          .y = c.y,
                                          .weight = c.weight,
                                          .bias = c.bias,
                                          .projection = projection,
                                          .dx = c.dx,
                                          .dweight = c.dweight,
                                          .dbias = c.dbias,
                                          .dprojection = dprojection,
                                          .mode = GradMode::kOverwrite});
        });
  }

  void scan() {
    for (const int64_t batch : {int64_t{1}, int64_t{8}}) {
      if (M % batch == 0) scan_of(batch, M / batch);
    }
  }

  void scan_of(int64_t batch, int64_t length) {
    const Arena::Scope scope(ctx_.arena());
    SelectiveScanForward forward;
    const TensorView xz = activation({batch, length, 2 * E});
    const TensorView dbc = activation({batch, length, R + 2 * N});
    const TensorView A = floats({E, N});
    const TensorView D_skip = floats({E});
    TensorView bias = floats({E});
    // rates and steps as a layer has them at its start: A from -1 to -N, delta from 0.001 to 0.1
    std::vector<float> rates(static_cast<size_t>(E * N));
    for (size_t i = 0; i < rates.size(); ++i) rates[i] = -static_cast<float>(i % N + 1);
    ctx_.upload(host_view(std::as_const(rates).data(), {E, N}), A);
    Random random(1, RandomUse::kTest);
    std::vector<float> steps(static_cast<size_t>(E));
    for (float& step : steps) {
      step = static_cast<float>(std::log(std::expm1(std::pow(10, random.uniform(-3, -1)))));
    }
    ctx_.upload(host_view(std::as_const(steps).data(), {E}), bias);
    forward.u = activation({batch, length, E});
    forward.delta = activation({batch, length, E}, 0.5F);
    forward.A = A;
    forward.B = dbc.slice(2, R, R + N);
    forward.C = dbc.slice(2, R + N, R + 2 * N);
    forward.D = D_skip;
    forward.z = xz.slice(2, E, 2 * E);
    forward.delta_bias = bias;
    forward.y = activation({batch, length, E});
    const double e = m() * static_cast<double>(E);
    const double n = static_cast<double>(N);
    const double small = m() * act_ * static_cast<double>(2 * N);
    const std::string shape = concat(batch, " x ", length, " x ", E, " x ", N);
    row("scan forward", shape, m(), {.bytes = 4 * act_ * e + small, .exps = e * (n + 3)},
        [&] { selective_scan_forward(ctx_, forward); });
    forward.saved_states =
        ctx_.arena().f32({batch, scan_saved_states(length, ctx_.device()), E, N});
    selective_scan_forward(ctx_, forward);
    const TensorView dxz = activation({batch, length, 2 * E});
    const TensorView ddbc = activation({batch, length, R + 2 * N});
    SelectiveScanBackward backward;
    backward.dy = activation({batch, length, E});
    backward.u = forward.u;
    backward.delta = forward.delta;
    backward.A = forward.A;
    backward.B = forward.B;
    backward.C = forward.C;
    backward.D = forward.D;
    backward.z = forward.z;
    backward.delta_bias = forward.delta_bias;
    backward.saved_states = forward.saved_states;
    backward.du = activation({batch, length, E});
    backward.ddelta = activation({batch, length, E});
    backward.dB = ddbc.slice(2, R, R + N);
    backward.dC = ddbc.slice(2, R + N, R + 2 * N);
    backward.dz = dxz.slice(2, E, 2 * E);
    backward.dA = ctx_.arena().f32({E, N});
    backward.dD = ctx_.arena().f32({E});
    backward.ddelta_bias = ctx_.arena().f32({E});
    backward.mode = GradMode::kOverwrite;
    row("scan backward", shape, m(), {.bytes = 7 * act_ * e + 2 * small, .exps = e * (n + 3)},
        [&] { selective_scan_backward(ctx_, backward); });
  }

  void loss() {
    const Arena::Scope scope(ctx_.arena());
    const TensorView logits = floats({M, V});
    const TensorView dlogits = ctx_.arena().f32({M, V});
    const TensorView targets = ctx_.arena().tensor(DType::kI32, {M});
    const std::vector<int32_t> classes(static_cast<size_t>(M), 7);
    ctx_.upload(host_view(classes.data(), {M}), targets);
    const TensorView totals = ctx_.arena().zeros(DType::kF64, {4}, ctx_.stream());
    const double v = m() * static_cast<double>(V);
    row("cross-entropy + gradient", concat(M, " x ", V), m(), {.bytes = 8 * v + 4 * m(), .exps = v},
        [&] {
          cross_entropy(
              ctx_, {.logits = logits, .targets = targets, .dlogits = dlogits, .totals = totals});
        });
  }

  void optimizer(const ModelConfig& config) {
    const Arena::Scope scope(ctx_.arena());
    const int64_t count = ParameterLayout(config).buffer_size();
    const TensorView parameters = floats({count});
    const TensorView gradients = floats({count}, 1e-3F);
    const TensorView mean = ctx_.arena().zeros(DType::kF32, {count}, ctx_.stream());
    const TensorView square = ctx_.arena().zeros(DType::kF32, {count}, ctx_.stream());
    const TensorView norm = ctx_.arena().zeros(DType::kF64, {1}, ctx_.stream());
    row("norm + AdamW", concat(count, " parameters"), 0, {.bytes = 32 * static_cast<double>(count)},
        [&] {
          global_norm(ctx_, gradients, norm);
          adamw_step(ctx_, {.parameters = parameters,
                            .gradients = gradients,
                            .exp_avg = mean,
                            .exp_avg_sq = square,
                            .norm = norm,
                            .max_norm = 1,
                            .learning_rate = 1e-5F});
        });
  }

  Context& ctx_;
  MachineRates rates_;
  int64_t repeats_;
  int64_t M, D, E, N, R, K, V;
  double act_;  ///< bytes of one activation
  uint64_t seed_ = 0;
  std::vector<BenchRow> rows_;
};

}  // namespace

std::vector<BenchRow> bench_kernels(Context& ctx, const ModelConfig& config, int64_t tokens,
                                    int64_t repeats, const MachineRates& rates) {
  return KernelBench(ctx, config, tokens, repeats, rates).run(config);
}

}  // namespace gmamba
