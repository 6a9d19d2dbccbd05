// SPDX-License-Identifier: Apache-2.0
#include "libmamba/trainer.h"

#include <utility>

namespace gmamba {
namespace {

constexpr const char* kStateKey = "trainer";

}  // namespace

Trainer::Trainer(Context& ctx, Model model, OptimizerOptions options, Trained trained)
    : ctx_(ctx),
      model_(std::move(model)),
      gradients_(model_.parameters().shared_layout(), ctx.device()),
      optimizer_(ctx, model_.parameters(), options),
      trained_(trained),
      decay_(decay_ranges()) {}

Trainer::Trainer(Context& ctx, Checkpoint checkpoint, OptimizerOptions options, Trained trained)
    : Trainer(ctx, std::move(checkpoint.model), options, trained) {
  ctx.copy(checkpoint.exp_avg.flat(), optimizer_.exp_avg().flat());
  ctx.copy(checkpoint.exp_avg_sq.flat(), optimizer_.exp_avg_sq().flat());
  ctx.synchronize();
  const Json& state = checkpoint.trainer_state.at(kStateKey);
  step_ = state.at("step").get<int64_t>();
  updates_ = state.at("updates").get<int64_t>();
  skipped_steps_ = state.at("skipped_steps").get<int64_t>();
  skips_in_a_row_ = state.at("skips_in_a_row").get<int64_t>();
}

std::vector<DecayRange> Trainer::decay_ranges() const {
  const ParameterLayout& layout = model_.parameters().layout();
  const auto decay = static_cast<float>(optimizer_.options().weight_decay);
  if (trained_ == Trained::kAll) {
    return {{0, layout.decay_end(), decay}};
  }
  // frozen parameters have zero gradients and zero decay, which AdamW leaves as they are
  const ParameterInfo& head = layout.all()[static_cast<size_t>(layout.find("score.weight"))];
  return {{head.offset, head.offset + head.size, decay}};
}

void Trainer::begin_step() {
  ctx_.fill_zero(gradients_.flat());
  loss_ = {};
}

void Trainer::add_language_batch(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                                 std::span<const float> weights, int64_t batch, int64_t length,
                                 int64_t segment, double scale) {
  const Arena::Scope scope(ctx_.arena());
  const Shape shape = {batch, length};
  // a batch of one segment goes to the device as a whole, longer ones a segment at a time
  const auto place = [&](ConstTensorView host) -> ConstTensorView {
    if (length > segment) return host;
    const TensorView there = ctx_.arena().tensor(host.dtype, shape);
    ctx_.upload(host, there);
    return there;
  };
  const ConstTensorView placed_tokens = place(host_view(tokens.data(), shape));
  const ConstTensorView placed_targets = place(host_view(targets.data(), shape));
  const ConstTensorView placed_weights = place(host_view(weights.data(), shape));
  LanguageModelLoss loss(ctx_, model_, placed_targets, placed_weights, static_cast<float>(scale),
                         gradients_);
  segmented_gradient(ctx_, model_, placed_tokens, segment, loss, gradients_,
                     {.most_scratch = most_scratch_});
  loss_ += loss.totals(ctx_);
}

void Trainer::add_sequence_batch(std::span<const uint8_t> tokens, std::vector<int64_t> lengths,
                                 std::vector<int32_t> classes, std::vector<float> values,
                                 int64_t length, int64_t segment, double scale) {
  const Arena::Scope scope(ctx_.arena());
  const Shape shape = {static_cast<int64_t>(lengths.size()), length};
  const TensorView device_tokens = ctx_.arena().tensor(DType::kU8, shape);
  ctx_.upload(host_view(tokens.data(), shape), device_tokens);
  SequenceLoss loss(ctx_, model_, std::move(lengths), std::move(classes), std::move(values),
                    static_cast<float>(scale), gradients_);
  segmented_gradient(ctx_, model_, device_tokens, segment, loss, gradients_,
                     {.backbone = trained_ == Trained::kAll, .most_scratch = most_scratch_});
  loss_ += loss.totals();
}

StepReport Trainer::end_step() {
  StepReport report;
  report.step = ++step_;
  report.loss = loss_;
  const Optimizer::Update update =
      optimizer_.step(ctx_, model_.parameters(), gradients_, step_, updates_ + 1, decay_);
  report.gradient_norm = update.gradient_norm;
  report.learning_rate = update.learning_rate;
  report.skipped = update.skipped;
  if (!update.skipped) {
    ++updates_;
    skips_in_a_row_ = 0;
    return report;
  }
  ++skipped_steps_;
  ++skips_in_a_row_;
  require(skips_in_a_row_ < kMostSkips, ErrorKind::kInput, "training diverged: the gradient of ",
          skips_in_a_row_, " steps in a row (the last is step ", step_,
          ") was not finite; no checkpoint was made in them: start a new run from the newest one "
          "with a "
          "lower --lr or --clip (pretrain --init RUN, finetune --model RUN)");
  return report;
}

void Trainer::save(const std::filesystem::path& run, const Json& extra, int keep) const {
  Json state = extra;
  state[kStateKey] = {{"step", step_},
                      {"updates", updates_},
                      {"skipped_steps", skipped_steps_},
                      {"skips_in_a_row", skips_in_a_row_}};
  save_checkpoint(run, step_, model_, optimizer_.exp_avg(), optimizer_.exp_avg_sq(), state, keep);
}

}  // namespace gmamba
