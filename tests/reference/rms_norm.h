// SPDX-License-Identifier: Apache-2.0
/// The naive RMS norm over contiguous rows, forward and backward.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace gmamba::reference {

template <class Real>
struct RmsNormResult {
  std::vector<Real> residual;  // (M, D) after the add
  std::vector<Real> y;         // (M, D)
  std::vector<Real> rstd;      // (M)
};

/// branch may be empty.
template <class Real>
RmsNormResult<Real> rms_norm_forward(int64_t rows, int64_t width, std::vector<Real> residual,
                                     const std::vector<Real>& branch,
                                     const std::vector<Real>& weight, double epsilon) {
  RmsNormResult<Real> out;
  for (size_t i = 0; i < branch.size(); ++i) residual[i] += branch[i];
  for (int64_t m = 0; m < rows; ++m) {
    const size_t first = static_cast<size_t>(m * width);
    Real squares{0};
    for (size_t i = 0; i < weight.size(); ++i) {
      squares += residual[first + i] * residual[first + i];
    }
    const Real mean = squares / static_cast<Real>(width);
    out.rstd.push_back(Real{1} / std::sqrt(mean + static_cast<Real>(epsilon)));
    for (size_t i = 0; i < weight.size(); ++i) {
      out.y.push_back(weight[i] * residual[first + i] * out.rstd.back());
    }
  }
  out.residual = residual;
  return out;
}

/// The h of which y is the norm, given the factors of its rows.
template <class Real>
std::vector<Real> before_rms_norm(const std::vector<Real>& y, const std::vector<Real>& rstd,
                                  const std::vector<Real>& weight) {
  std::vector<Real> h;
  for (size_t i = 0; i < y.size(); ++i) {
    h.push_back(y[i] / (weight[i % weight.size()] * rstd[i / weight.size()]));
  }
  return h;
}

template <class Real>
struct RmsNormGradients {
  std::vector<Real> dresidual;  // (M, D)
  std::vector<Real> dweight;    // (D)
};

/// Gradients of y with respect to h and weight, added to what `start` holds.
template <class Real>
RmsNormGradients<Real> rms_norm_backward(int64_t rows, int64_t width, const std::vector<Real>& dy,
                                         const std::vector<Real>& h, const std::vector<Real>& rstd,
                                         const std::vector<Real>& weight,
                                         RmsNormGradients<Real> start) {
  for (int64_t m = 0; m < rows; ++m) {
    const size_t first = static_cast<size_t>(m * width);
    const Real r = rstd[static_cast<size_t>(m)];
    Real sum{0};
    for (size_t i = 0; i < weight.size(); ++i) sum += dy[first + i] * weight[i] * h[first + i];
    for (size_t i = 0; i < weight.size(); ++i) {
      const Real normal = h[first + i] * r;
      start.dresidual[first + i] +=
          r * (dy[first + i] * weight[i] - normal * r * sum / static_cast<Real>(width));
      start.dweight[i] += dy[first + i] * normal;
    }
  }
  return start;
}

}  // namespace gmamba::reference
