// SPDX-License-Identifier: Apache-2.0
/// Minimises a smooth function of some thousands of variables: L-BFGS with a backtracking line
/// search. Source: Nocedal and Wright 2006, Numerical Optimization, algorithms 7.4 and 3.1.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace gmamba {

struct LbfgsOptions {
  int max_iterations = 200;
  int history = 10;         ///< pairs of steps and gradient changes kept
  double tolerance = 1e-4;  ///< stops when the gradient's norm has fallen to this part of its first
};

/// Returns f(x) and fills the gradient.
using SmoothFunction = std::function<double(std::span<const double> x, std::span<double> gradient)>;

/// Moves `x` to a minimum; returns the iterations taken. The same function gives the same bits.
int minimise(const SmoothFunction& f, std::vector<double>& x, const LbfgsOptions& options = {});

}  // namespace gmamba
