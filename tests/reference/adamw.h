// SPDX-License-Identifier: Apache-2.0
/// The naive optimiser step, element by element, as the paper writes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace gmamba::reference {

template <class Real>
struct AdamWState {
  std::vector<Real> parameters;
  std::vector<Real> exp_avg;
  std::vector<Real> exp_avg_sq;
};

struct AdamWOptions {
  double max_norm;  // 0: no clipping
  double learning_rate;
  double beta1;
  double beta2;
  double epsilon;
};

template <class Real>
Real global_norm(const std::vector<Real>& values) {
  Real sum{0};
  for (const Real value : values) sum += value * value;
  return std::sqrt(sum);
}

/// Step t (from 1); `decay` is the weight decay of each element.
template <class Real>
void adamw_step(AdamWState<Real>& state, const std::vector<Real>& gradients,
                const std::vector<Real>& decay, const AdamWOptions& options, int64_t t) {
  const Real norm = global_norm(gradients);
  const auto max_norm = static_cast<Real>(options.max_norm);
  const Real clip = max_norm > 0 && norm > 0 ? std::min(Real{1}, max_norm / norm) : Real{1};
  const auto beta1 = static_cast<Real>(options.beta1);
  const auto beta2 = static_cast<Real>(options.beta2);
  const auto rate = static_cast<Real>(options.learning_rate);
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Real g = gradients[i] * clip;
    Real& m = state.exp_avg[i];
    Real& v = state.exp_avg_sq[i];
    Real& p = state.parameters[i];
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    const Real m_hat = m / (1 - std::pow(beta1, static_cast<Real>(t)));
    const Real v_hat = v / (1 - std::pow(beta2, static_cast<Real>(t)));
    p = p - rate * decay[i] * p -
        rate * m_hat / (std::sqrt(v_hat) + static_cast<Real>(options.epsilon));
  }
}

}  // namespace gmamba::reference
