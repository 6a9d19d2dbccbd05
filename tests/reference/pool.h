// SPDX-License-Identifier: Apache-2.0
/// The naive pooling of one whole sequence (L, D), and its gradient.
#pragma once

#include <cstdint>
#include <vector>

namespace gmamba::reference {

enum class Pooling { kMean, kLast, kMax };

/// Rows [0, length) of `hidden`; all 0 for an empty sequence.
template <class Real>
std::vector<Real> pool(Pooling mode, const std::vector<Real>& hidden, size_t length, size_t width) {
  std::vector<Real> pooled(width, Real{0});
  for (size_t i = 0; i < width && length > 0; ++i) {
    Real sum{0};
    Real best = hidden[i];
    for (size_t t = 0; t < length; ++t) {
      sum += hidden[t * width + i];
      if (hidden[t * width + i] > best) best = hidden[t * width + i];
    }
    pooled[i] = mode == Pooling::kMean   ? sum / static_cast<Real>(length)
                : mode == Pooling::kLast ? hidden[(length - 1) * width + i]
                                         : best;
  }
  return pooled;
}

/// Gradient of pool with respect to `hidden`, (L, D) of the size of `hidden`.
template <class Real>
std::vector<Real> pool_backward(Pooling mode, const std::vector<Real>& hidden, size_t length,
                                size_t width, const std::vector<Real>& dpooled) {
  std::vector<Real> gradient(hidden.size(), Real{0});
  for (size_t i = 0; i < width && length > 0; ++i) {
    size_t best = 0;
    for (size_t t = 0; t < length; ++t) {
      if (hidden[t * width + i] > hidden[best * width + i]) best = t;
      if (mode == Pooling::kMean) gradient[t * width + i] = dpooled[i] / static_cast<Real>(length);
    }
    if (mode == Pooling::kLast) gradient[(length - 1) * width + i] = dpooled[i];
    if (mode == Pooling::kMax) gradient[best * width + i] = dpooled[i];
  }
  return gradient;
}

}  // namespace gmamba::reference
