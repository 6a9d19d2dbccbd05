// SPDX-License-Identifier: Apache-2.0
#include "libmamba/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gmamba {

void OptimizerOptions::validate() const {
  const auto within = [](double value, double low, double high, const char* flag) {
    require(value >= low && value <= high, ErrorKind::kUsage, flag, ": expected ", low, " to ",
            high, ", found ", value);
  };
  within(learning_rate, 0, 10, "--lr");
  within(beta1, 0, 0.999999, "--beta1");
  within(beta2, 0, 0.999999, "--beta2");
  within(weight_decay, 0, 100, "--weight-decay");
  within(clip, 0, 1e9, "--clip");
  within(decay_fraction, 0, 1, "--decay-fraction");
  within(floor_fraction, 0, 1, "--lr-floor");
  require(warmup_steps >= 0 && total_steps >= 1, ErrorKind::kUsage,
          "--steps must be at least 1 and --warmup at least 0");
}

double learning_rate_at(const OptimizerOptions& options, int64_t step) {
  const double peak = options.learning_rate;
  if (step <= options.warmup_steps) {
    return peak * static_cast<double>(step) / static_cast<double>(options.warmup_steps);
  }
  const double floor = peak * options.floor_fraction;
  const auto total = static_cast<double>(options.total_steps);
  const auto warmup = static_cast<double>(std::min(options.warmup_steps, options.total_steps));
  const auto at = static_cast<double>(std::min(step, options.total_steps));
  switch (options.schedule) {
    case Schedule::kConstant:
      return peak;
    case Schedule::kCosine: {
      const double done = total > warmup ? (at - warmup) / (total - warmup) : 1;
      return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done));
    }
    case Schedule::kWsd: {
      const double decay = std::max(1.0, options.decay_fraction * total);
      const double left = total - at;
      return left >= decay ? peak : floor + (peak - floor) * left / decay;
    }
  }
  return peak;
}

Optimizer::Optimizer(Context& ctx, const ParameterBuffer& like, OptimizerOptions options)
    : options_((options.validate(), options)),
      exp_avg_(like.shared_layout(), ctx.device()),
      exp_avg_sq_(like.shared_layout(), ctx.device()),
      norm_(ctx.make(DType::kF64, {1})) {}

Optimizer::Update Optimizer::step(Context& ctx, ParameterBuffer& values,
                                  const ParameterBuffer& gradients, int64_t step, int64_t update,
                                  std::span<const DecayRange> decay) {
  Update result;
  result.learning_rate = learning_rate_at(options_, step);
  global_norm(ctx, gradients.flat(), norm_);
  adamw_step(ctx, {.parameters = values.flat(),
                   .gradients = gradients.flat(),
                   .exp_avg = exp_avg_.flat(),
                   .exp_avg_sq = exp_avg_sq_.flat(),
                   .norm = norm_,
                   .max_norm = static_cast<float>(options_.clip),
                   .learning_rate = static_cast<float>(result.learning_rate),
                   .beta1 = static_cast<float>(options_.beta1),
                   .beta2 = static_cast<float>(options_.beta2),
                   .epsilon = static_cast<float>(options_.epsilon),
                   .step = update,
                   .decay = decay});
  ctx.download(norm_, host_view(&result.gradient_norm, {1}));
  result.skipped = !std::isfinite(result.gradient_norm);
  return result;
}

}  // namespace gmamba
