// SPDX-License-Identifier: Apache-2.0
/// AdamW with a learning-rate schedule over the contiguous parameter buffer.
#pragma once

#include <cstdint>
#include <string_view>

#include "libmamba/parameters.h"

namespace gmamba {

enum class Schedule {
  kCosine,    ///< warm-up, then half a cosine down to the floor
  kWsd,       ///< warm-up, stable, then a linear decay over the last `decay_fraction` of the steps
  kConstant,  ///< warm-up, then constant
};

struct OptimizerOptions {
  double learning_rate = 8e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;  ///< global norm; 0: none
  Schedule schedule = Schedule::kCosine;
  int64_t warmup_steps = 0;
  int64_t total_steps = 1;
  double decay_fraction = 0.2;   ///< kWsd
  double floor_fraction = 0.01;  ///< of the learning rate at the end
  void validate() const;
};

/// Learning rate of step `step`, from 1 to total_steps.
double learning_rate_at(const OptimizerOptions& options, int64_t step);

/// Moments and the update. One instance per training run.
class Optimizer {
 public:
  Optimizer(Context& ctx, const ParameterBuffer& like, OptimizerOptions options);

  const OptimizerOptions& options() const { return options_; }
  ParameterBuffer& exp_avg() { return exp_avg_; }
  ParameterBuffer& exp_avg_sq() { return exp_avg_sq_; }
  const ParameterBuffer& exp_avg() const { return exp_avg_; }
  const ParameterBuffer& exp_avg_sq() const { return exp_avg_sq_; }

  struct Update {
    double gradient_norm = 0;  ///< before clipping
    double learning_rate = 0;
    bool skipped = false;  ///< the norm was not finite: nothing changed
  };
  /// `update` counts the updates made so far plus one, for the moments' bias correction; `step` is
  /// the place in the schedule. Elements of [0, frozen_below) or other frozen ranges are passed
  /// with zero gradients and zero decay by the caller's `decay`.
  Update step(Context& ctx, ParameterBuffer& values, const ParameterBuffer& gradients, int64_t step,
              int64_t update, std::span<const DecayRange> decay);

 private:
  OptimizerOptions options_;
  ParameterBuffer exp_avg_;
  ParameterBuffer exp_avg_sq_;
  Tensor norm_;  // (1) fp64
};

}  // namespace gmamba
