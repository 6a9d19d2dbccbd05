// SPDX-License-Identifier: Apache-2.0
#include "libmamba/lbfgs.h"

#include <cmath>
#include <deque>

namespace gmamba {
namespace {

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// y += scale * x
void add_scaled(double scale, std::span<const double> x, std::span<double> y) {
  for (size_t i = 0; i < x.size(); ++i) y[i] += scale * x[i];
}

struct Pair {
  std::vector<double> step;    // x' - x
  std::vector<double> change;  // gradient' - gradient
  double curvature;            // step . change, above 0
};

/// Minus the approximate inverse Hessian times the gradient (two-loop recursion).
std::vector<double> descent_direction(const std::deque<Pair>& pairs,
                                      std::span<const double> gradient) {
  std::vector<double> direction(gradient.begin(), gradient.end());
  std::vector<double> weight(pairs.size());
  for (size_t i = pairs.size(); i-- > 0;) {
    weight[i] = dot(pairs[i].step, direction) / pairs[i].curvature;
    add_scaled(-weight[i], pairs[i].change, direction);
  }
  const double scale = pairs.empty()
                           ? 1 / std::sqrt(dot(gradient, gradient))
                           : pairs.back().curvature / dot(pairs.back().change, pairs.back().change);
  for (double& value : direction) value *= scale;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const double along = dot(pairs[i].change, direction) / pairs[i].curvature;
    add_scaled(weight[i] - along, pairs[i].step, direction);
  }
  for (double& value : direction) value = -value;
  return direction;
}

}  // namespace

int minimise(const SmoothFunction& f, std::vector<double>& x, const LbfgsOptions& options) {
  constexpr double kSufficientDecrease = 1e-4;
  constexpr int kMaxHalvings = 40;
  std::vector<double> gradient(x.size());
  std::vector<double> next_gradient(x.size());
  double value = f(x, gradient);
  const double enough = options.tolerance * std::sqrt(dot(gradient, gradient));
  std::deque<Pair> pairs;
  for (int iteration = 0; iteration < options.max_iterations; ++iteration) {
    const double norm = std::sqrt(dot(gradient, gradient));
    if (!(norm > enough)) return iteration;
    const std::vector<double> direction = descent_direction(pairs, gradient);
    const double slope = dot(gradient, direction);
    double length = 1;
    std::vector<double> next;
    double next_value = 0;
    int halvings = 0;
    for (; halvings < kMaxHalvings; ++halvings, length /= 2) {
      next = x;
      add_scaled(length, direction, next);
      next_value = f(next, next_gradient);
      if (next_value <= value + kSufficientDecrease * length * slope) break;
    }
    if (halvings == kMaxHalvings) return iteration;  // rounding is all that is left
    Pair pair{direction, next_gradient, 0};
    for (double& step : pair.step) step *= length;
    add_scaled(-1, gradient, pair.change);
    pair.curvature = dot(pair.step, pair.change);
    if (pair.curvature > 1e-12 * dot(pair.change, pair.change)) {
      pairs.push_back(std::move(pair));
      if (pairs.size() > static_cast<size_t>(options.history)) pairs.pop_front();
    }
    x.swap(next);
    gradient.swap(next_gradient);
    value = next_value;
  }
  return options.max_iterations;
}

}  // namespace gmamba
