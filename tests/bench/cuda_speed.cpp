// SPDX-License-Identifier: Apache-2.0
/// Times of the operations and of the whole model on a GPU, each beside its floor: the bytes that
/// it must move over the bandwidth of a copy measured first. Medians of groups of calls.
///   gmamba_cuda_speed [operations|model|all] [log2 of the tokens, 20]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/conv1d.h"
#include "kernels/convert.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"
#include "kernels/rms_norm.h"
#include "libmamba/core/random.h"
#include "libmamba/trainer.h"

namespace {

using namespace gmamba;

constexpr int64_t D = 256, E = 512, N = 16, R = 16, V = 16, K = 4;
constexpr DType kF32 = DType::kF32;
constexpr DType kBF16 = DType::kBF16;

/// Median milliseconds of one call, over groups that are waited for as a whole.
double median_ms(Context& ctx, int groups, int calls, const std::function<void()>& call) {
  call();
  ctx.synchronize();
  std::vector<double> times;
  for (int group = 0; group < groups; ++group) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) call();
    ctx.synchronize();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    times.push_back(took.count() / calls);
  }
  std::nth_element(times.begin(), times.begin() + groups / 2, times.end());
  return times[static_cast<size_t>(groups / 2)];
}

/// A tensor of normal numbers: a short random stretch repeated, so that set-up takes no time.
Tensor random_on(Context& ctx, DType dtype, const Shape& shape, double scale = 1) {
  Tensor tensor = ctx.make(dtype, shape);
  const int64_t stretch = std::min<int64_t>(tensor.size(), (int64_t{1} << 20) + 24);
  Random random(7, RandomUse::kTest);
  std::vector<float> values(static_cast<size_t>(stretch));
  for (float& value : values) value = static_cast<float>(scale * random.normal());
  Tensor source = ctx.make(kF32, {stretch});
  ctx.upload(host_view(std::as_const(values).data(), {stretch}), source);
  const TensorView flat = tensor.view().reshape({tensor.size()});
  for (int64_t at = 0; at < tensor.size(); at += stretch) {
    const int64_t end = std::min(tensor.size(), at + stretch);
    convert(ctx, source.view().slice(0, 0, end - at), flat.slice(0, at, end));
  }
  ctx.synchronize();
  return tensor;
}

class Operations {
 public:
  Operations(Context& ctx, int64_t tokens, DType type) : ctx_(ctx), M(tokens), type_(type) {}

  void run() {
    copy();
    projections();
    norm();
    convolution();
    ends();
    optimiser();
  }

 private:
  void row(const std::string& name, double bytes, const std::function<void()>& call) {
    const double ms = median_ms(ctx_, 5, 4, call);
    const double floor = bandwidth_ > 0 ? bytes / bandwidth_ * 1e3 : 0;
    std::printf("%-34s %9.3f ms  floor %8.3f  %5.1f%%  %6.0f GB/s\n", name.c_str(), ms, floor,
                100 * floor / ms, bytes / ms / 1e6);
    std::fflush(stdout);
  }
  double bytes(int64_t columns) const { return static_cast<double>(M * columns * size_of(type_)); }
  double wide(int64_t columns) const { return static_cast<double>(M * columns * 4); }
  Tensor rows(int64_t columns, double scale = 1) {
    return random_on(ctx_, type_, {M, columns}, scale);
  }

  void copy() {
    Tensor from = random_on(ctx_, kF32, {M, E});
    Tensor to = ctx_.make(kF32, {M, E});
    const double ms = median_ms(ctx_, 5, 4, [&] { ctx_.copy(from, to); });
    bandwidth_ = 2 * wide(E) / ms * 1e3;
    std::printf("%-34s %9.3f ms  %46.0f GB/s\n", "copy", ms, bandwidth_ / 1e9);
  }

  void projections() {
    const Tensor u = rows(D), xz = rows(2 * E), x = rows(E), x_dbl = rows(R + 2 * N);
    const Tensor w_in = random_on(ctx_, type_, {2 * E, D}, 0.06);
    const Tensor w_x = random_on(ctx_, type_, {R + 2 * N, E}, 0.04);
    const Tensor w_dt = random_on(ctx_, type_, {E, R}, 0.2);
    const Tensor w_out = random_on(ctx_, type_, {D, E}, 0.04);
    struct Projection {
      const char* name;
      ConstTensorView x, weight, y;
    };
    const Projection all[] = {{"in_proj", u, w_in, xz},
                              {"x_proj", x, w_x, x_dbl},
                              {"dt_proj", x_dbl.view().slice(1, 0, R), w_dt, x},
                              {"out_proj", x, w_out, u}};
    for (const Projection& p : all) {
      const int64_t inputs = p.x.dim(1), outputs = p.y.dim(1);
      Tensor y = ctx_.make(type_, {M, outputs});
      Tensor dx = ctx_.make(type_, {M, inputs});
      Tensor dw = ctx_.make(kF32, {outputs, inputs});
      const double moved = bytes(inputs + outputs);
      const std::string name = p.name;
      row(name + " forward", moved, [&] { linear_forward(ctx_, p.x, p.weight, {}, y); });
      row(name + " backward input", moved, [&] { linear_backward_input(ctx_, p.y, p.weight, dx); });
      row(name + " backward weight", moved,
          [&] { linear_backward_weight(ctx_, p.y, p.x, dw, {}, GradMode::kOverwrite); });
    }
  }

  void norm() {
    Tensor h = random_on(ctx_, kF32, {M, D}), dh = random_on(ctx_, kF32, {M, D});
    Tensor y = rows(D), branch = rows(D, 1e-3), copy = rows(D);
    Tensor rstd = random_on(ctx_, kF32, {M});
    Tensor weight = random_on(ctx_, kF32, {D}), dweight = random_on(ctx_, kF32, {D});
    row("rms_norm forward", 2 * wide(D) + 2 * bytes(D), [&] {
      rms_norm_forward(ctx_,
                       {.residual = h, .branch = branch, .weight = weight, .y = y, .rstd = rstd});
    });
    row("rms_norm backward", 3 * wide(D) + 2 * bytes(D), [&] {
      rms_norm_backward(ctx_, {.dy = y,
                               .residual = h,
                               .rstd = rstd,
                               .weight = weight,
                               .dresidual = dh,
                               .dweight = dweight,
                               .dbranch = copy});
    });
  }

  void convolution() {
    const Tensor xz = rows(2 * E), dy = rows(E);
    Tensor y = ctx_.make(type_, {1, M, E}), dxz = ctx_.make(type_, {1, M, 2 * E});
    const Tensor weight = random_on(ctx_, kF32, {E, K}, 0.5), bias = random_on(ctx_, kF32, {E});
    Tensor dweight = ctx_.make(kF32, {E, K}), dbias = ctx_.make(kF32, {E});
    const ConstTensorView x = ConstTensorView(xz).reshape({1, M, 2 * E}).slice(2, 0, E);
    row("conv1d forward", bytes(2 * E),
        [&] { conv1d_forward(ctx_, {.x = x, .weight = weight, .bias = bias, .y = y}); });
    row("conv1d backward", bytes(3 * E), [&] {
      conv1d_backward(ctx_, {.dy = ConstTensorView(dy).reshape({1, M, E}),
                             .x = x,
                             .weight = weight,
                             .bias = bias,
                             .dx = dxz.view().slice(2, 0, E),
                             .dweight = dweight,
                             .dbias = dbias});
    });
  }

  void ends() {
    Tensor tokens = ctx_.make(DType::kU8, {M});
    std::vector<uint8_t> codes(static_cast<size_t>(M));
    std::vector<int32_t> next(static_cast<size_t>(M));
    Random random(3, RandomUse::kTest);
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<uint8_t>(random.below(V));
      next[i] = static_cast<int32_t>(random.below(V));
    }
    Tensor targets = ctx_.make(DType::kI32, {M});
    ctx_.upload(host_view(std::as_const(codes).data(), {M}), tokens);
    ctx_.upload(host_view(std::as_const(next).data(), {M}), targets);
    const Tensor table = random_on(ctx_, kF32, {V, D});
    const Tensor narrow_table = random_on(ctx_, type_, {V, D});
    Tensor h = random_on(ctx_, kF32, {M, D}), dtable = ctx_.make(kF32, {V, D});
    row("embedding forward", wide(D), [&] { embedding_forward(ctx_, tokens, table, h); });
    row("embedding backward", wide(D),
        [&] { embedding_backward(ctx_, tokens, h, dtable, GradMode::kAccumulate); });
    const Tensor hidden = rows(D);
    Tensor logits = ctx_.make(kF32, {M, V}), dlogits = ctx_.make(type_, {M, V});
    Tensor dhidden = ctx_.make(type_, {M, D}), totals = ctx_.make(DType::kF64, {4});
    row("LM head forward", bytes(D) + wide(V),
        [&] { linear_forward(ctx_, hidden, narrow_table, {}, logits); });
    row("cross_entropy", wide(V) + bytes(V) + wide(1), [&] {
      cross_entropy(ctx_,
                    {.logits = logits, .targets = targets, .dlogits = dlogits, .totals = totals});
    });
    row("LM head backward weight", bytes(D) + bytes(V),
        [&] { linear_backward_weight(ctx_, dlogits, hidden, dtable, {}, GradMode::kAccumulate); });
    row("LM head backward input", bytes(D) + bytes(V),
        [&] { linear_backward_input(ctx_, dlogits, narrow_table, dhidden); });
  }

  void optimiser() {
    constexpr int64_t kParameters = int64_t{40} << 20;
    Tensor p = random_on(ctx_, kF32, {kParameters}), g = random_on(ctx_, kF32, {kParameters});
    Tensor m = ctx_.make(kF32, {kParameters}), v = ctx_.make(kF32, {kParameters});
    Tensor length = ctx_.make(DType::kF64, {1});
    row("global_norm, 42M", 4.0 * kParameters, [&] { global_norm(ctx_, g, length); });
    row("adamw, 42M", 28.0 * kParameters, [&] {
      adamw_step(ctx_, {.parameters = p,
                        .gradients = g,
                        .exp_avg = m,
                        .exp_avg_sq = v,
                        .norm = length,
                        .max_norm = 1,
                        .learning_rate = 1e-3F});
    });
  }

  Context& ctx_;
  const int64_t M;
  DType type_;
  double bandwidth_ = 0;  // bytes/s
};

Model random_model(Device device) {
  ModelConfig config;  // 8 layers, d_model 256, vocabulary 16
  Model host(config, Device{});
  initialize(host.parameters(), config, 1);
  Model model(config, device);
  model.parameters() = host.parameters().clone_to(device);
  return model;
}

struct Language {
  std::vector<uint8_t> codes;
  std::vector<int32_t> next;
  std::vector<float> weights;
};

/// Random bases, and the targets that shift them by one.
Language language(int64_t tokens) {
  const auto count = static_cast<size_t>(tokens);
  Language out{std::vector<uint8_t>(count), std::vector<int32_t>(count, 8),
               std::vector<float>(count, 1.0F)};
  Random random(5, RandomUse::kTest);
  for (uint8_t& code : out.codes) code = static_cast<uint8_t>(7 + random.below(4));
  for (size_t i = 0; i + 1 < count; ++i) out.next[i] = out.codes[i + 1];
  return out;
}

void say(Context& ctx, const char* what, int64_t batch, int64_t length, double ms) {
  std::printf("%-14s %6lld x %-9lld %9.2f ms  %7.2f million tokens/s  arena %.2f GiB\n", what,
              static_cast<long long>(batch), static_cast<long long>(length), ms,
              static_cast<double>(batch * length) / ms / 1e3,
              static_cast<double>(ctx.arena().peak_bytes()) / (1 << 30));
  std::fflush(stdout);
}

void reading(Context& ctx, int64_t tokens) {
  const Model model = random_model(ctx.device());
  const Language text = language(tokens);
  for (const int64_t batch : {1, 8, 1024}) {
    const Arena::Scope scope(ctx.arena());
    const int64_t length = tokens / batch;
    const TensorView ids = ctx.arena().tensor(DType::kU8, {batch, length});
    ctx.upload(host_view(text.codes.data(), {batch, length}), ids);
    const TensorView hidden = ctx.arena().tensor(ctx.activations(), {batch, length, D});
    SequenceState state = SequenceState::scratch(ctx, model.config(), batch);
    say(ctx, "forward", batch, length,
        median_ms(ctx, 3, 2, [&] { model.forward(ctx, ids, state, hidden); }));
  }
}

void training(Context& ctx, int64_t tokens) {
  const Language text = language(tokens);
  Trainer trainer(ctx, random_model(ctx.device()), {.total_steps = 100});
  const auto step = [&](int64_t batch, int64_t segment) {
    const int64_t length = tokens / batch;
    const double ms = median_ms(ctx, 3, 1, [&] {
      trainer.begin_step();
      trainer.add_language_batch(text.codes, text.next, text.weights, batch, length, segment,
                                 1.0 / static_cast<double>(tokens));
      trainer.end_step();
    });
    say(ctx, segment < length ? "step, segments" : "training step", batch, length, ms);
  };
  step(1, tokens / 8);
  step(1024, tokens / 1024);
  step(1, tokens);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  const int64_t tokens = int64_t{1} << (argc > 2 ? std::atoi(argv[2]) : 20);
  try {
    const Device device = parse_device("cuda");
    for (const DType type : {kBF16, kF32}) {
      auto ctx = std::make_unique<Context>(device, ContextOptions{.activations = type});
      std::printf("%s, %s, %lld tokens\n", ctx->backend().device_name(0).c_str(),
                  std::string(to_string(type)).c_str(), static_cast<long long>(tokens));
      if (what != "model") Operations(*ctx, tokens, type).run();
      if (what == "operations" || type == kF32) continue;
      reading(*ctx, tokens);
      ctx.reset();  // gives its memory back
      ctx = std::make_unique<Context>(device, ContextOptions{.activations = type});
      training(*ctx, tokens);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
