// SPDX-License-Identifier: Apache-2.0
#include "libmamba/trainer.h"

#include <array>
#include <bit>
#include <utility>

#include "libmamba/pass_key.h"

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
      decay_(decay_ranges()),
      totals_(ctx.make(DType::kF64, {4})) {}

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
  ctx_.fill_zero(totals_);
  loss_ = {};
}

StagedBatch Trainer::stage(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                           std::span<const float> weights, int64_t batch, int64_t length,
                           int64_t segment) {
  const Shape shape = {batch, length};
  const std::array<ConstTensorView, 3> host = {host_view(tokens.data(), shape),
                                               host_view(targets.data(), shape),
                                               host_view(weights.data(), shape)};
  if (length > segment) return {host[0], host[1], host[2], {}};
  Staged staged = ctx_.stage(host);
  return {staged.view(0), staged.view(1), staged.view(2), std::move(staged)};
}

/// Adds a batch by `pass`, which reads `arrays`, of which the first are the tokens. A short batch
/// in one segment is many kernels for little work.
void Trainer::add_batch(std::initializer_list<ConstTensorView> arrays, int64_t segment,
                        double scale, const SequenceState* state,
                        const std::function<void()>& pass) {
  const ConstTensorView& tokens = *arrays.begin();
  const bool there = tokens.device == ctx_.device() && tokens.dim(1) <= segment;
  if (!there || !is_short(ctx_, tokens.size())) return pass();
  PassKey key = {static_cast<int64_t>(arrays.size()), std::bit_cast<int64_t>(scale), most_scratch_,
                 state != nullptr ? 1 : 0, trained_ == Trained::kAll ? 1 : 0};
  add_to(key, model_);
  for (const ConstTensorView& array : arrays) add_to(key, array);
  if (state != nullptr) add_to(key, *state);
  add_to(key, gradients_.flat());
  add_to(key, totals_);
  replay(ctx_, std::move(key), pass);
}

void Trainer::add_language_batch(const StagedBatch& batch, int64_t segment, double scale,
                                 SequenceState* state) {
  add_batch({batch.tokens, batch.targets, batch.weights}, segment, scale, state, [&] {
    LanguageModelLoss loss(ctx_, model_, batch.targets, batch.weights, static_cast<float>(scale),
                           gradients_, totals_);
    segmented_gradient(ctx_, model_, batch.tokens, segment, loss, gradients_,
                       {.start = state, .end = state, .most_scratch = most_scratch_});
  });
}

void Trainer::add_language_batch(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                                 std::span<const float> weights, int64_t batch, int64_t length,
                                 int64_t segment, double scale) {
  add_language_batch(stage(tokens, targets, weights, batch, length, segment), segment, scale);
}

void Trainer::add_sequence_batch(const SequenceBatch& batch, double scale) {
  const auto pass = [&] {
    SequenceLoss loss(ctx_, model_, batch, static_cast<float>(scale), gradients_, totals_);
    segmented_gradient(ctx_, model_, batch.tokens(), batch.segment(), loss, gradients_,
                       {.backbone = trained_ == Trained::kAll, .most_scratch = most_scratch_});
    loss_ += loss.host_totals();
  };
  // the errors of a regression are summed on the host
  const bool waits = model_.config().task != TaskKind::kClassification;
  if (waits || batch.tokens().size() == 0) return pass();
  add_batch({batch.tokens(), batch.lengths(), batch.classes(), batch.valid(0)}, batch.segment(),
            scale, nullptr, pass);
}

StepReport Trainer::end_step() {
  StepReport report;
  report.step = ++step_;
  const Optimizer::Update update =
      optimizer_.step(ctx_, model_.parameters(), gradients_, step_, updates_ + 1, decay_);
  report.loss = loss_;
  report.loss += download_totals(ctx_, totals_);
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

void Trainer::save(const std::filesystem::path& run, const Json& extra, int keep,
                   const std::map<std::string, ConstTensorView>& carried) const {
  Json state = extra;
  state[kStateKey] = {{"step", step_},
                      {"updates", updates_},
                      {"skipped_steps", skipped_steps_},
                      {"skips_in_a_row", skips_in_a_row_}};
  save_checkpoint(run, step_, model_, optimizer_.exp_avg(), optimizer_.exp_avg_sq(), state, keep,
                  carried);
}

}  // namespace gmamba
