// SPDX-License-Identifier: Apache-2.0
/// The naive dense projection: three loops over contiguous row-major arrays. In double it is the
/// oracle, in float the measure of what fp32 can do.
#pragma once

#include <cstdint>
#include <vector>

namespace gmamba::reference {

struct LinearShape {
  int64_t rows;     // M
  int64_t outputs;  // N
  int64_t inputs;   // K
};

/// y[m,n] = bias[n] + sum_k x[m,k] weight[n,k]; bias may be empty.
template <class Real>
std::vector<Real> linear_forward(LinearShape s, const std::vector<Real>& x,
                                 const std::vector<Real>& weight, const std::vector<Real>& bias) {
  std::vector<Real> y(static_cast<size_t>(s.rows * s.outputs));
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = 0; n < s.outputs; ++n) {
      Real sum = bias.empty() ? Real{0} : bias[static_cast<size_t>(n)];
      for (int64_t k = 0; k < s.inputs; ++k) {
        sum += x[static_cast<size_t>(m * s.inputs + k)] *
               weight[static_cast<size_t>(n * s.inputs + k)];
      }
      y[static_cast<size_t>(m * s.outputs + n)] = sum;
    }
  }
  return y;
}

/// dx[m,k] = start[m,k] + sum_n dy[m,n] weight[n,k]
template <class Real>
std::vector<Real> linear_backward_input(LinearShape s, const std::vector<Real>& dy,
                                        const std::vector<Real>& weight, std::vector<Real> start) {
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t k = 0; k < s.inputs; ++k) {
      Real sum = start[static_cast<size_t>(m * s.inputs + k)];
      for (int64_t n = 0; n < s.outputs; ++n) {
        sum += dy[static_cast<size_t>(m * s.outputs + n)] *
               weight[static_cast<size_t>(n * s.inputs + k)];
      }
      start[static_cast<size_t>(m * s.inputs + k)] = sum;
    }
  }
  return start;
}

/// dweight[n,k] = start[n,k] + sum_m dy[m,n] x[m,k]
template <class Real>
std::vector<Real> linear_backward_weight(LinearShape s, const std::vector<Real>& dy,
                                         const std::vector<Real>& x, std::vector<Real> start) {
  for (int64_t n = 0; n < s.outputs; ++n) {
    for (int64_t k = 0; k < s.inputs; ++k) {
      Real sum = start[static_cast<size_t>(n * s.inputs + k)];
      for (int64_t m = 0; m < s.rows; ++m) {
        sum +=
            dy[static_cast<size_t>(m * s.outputs + n)] * x[static_cast<size_t>(m * s.inputs + k)];
      }
      start[static_cast<size_t>(n * s.inputs + k)] = sum;
    }
  }
  return start;
}

/// dbias[n] = start[n] + sum_m dy[m,n]
template <class Real>
std::vector<Real> linear_backward_bias(LinearShape s, const std::vector<Real>& dy,
                                       std::vector<Real> start) {
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = 0; n < s.outputs; ++n) {
      start[static_cast<size_t>(n)] += dy[static_cast<size_t>(m * s.outputs + n)];
    }
  }
  return start;
}

}  // namespace gmamba::reference
