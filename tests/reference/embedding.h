// SPDX-License-Identifier: Apache-2.0
/// The naive table lookup and its gradient.
#pragma once

#include <cstdint>
#include <vector>

namespace gmamba::reference {

template <class Real>
std::vector<Real> embedding_forward(const std::vector<uint8_t>& tokens,
                                    const std::vector<Real>& table, size_t width) {
  std::vector<Real> y;
  for (const uint8_t token : tokens) {
    for (size_t i = 0; i < width; ++i) y.push_back(table[token * width + i]);
  }
  return y;
}

/// Adds to `start`, the table's gradient so far.
template <class Real>
std::vector<Real> embedding_backward(const std::vector<uint8_t>& tokens,
                                     const std::vector<Real>& dy, size_t width,
                                     std::vector<Real> start) {
  for (size_t m = 0; m < tokens.size(); ++m) {
    for (size_t i = 0; i < width; ++i) start[tokens[m] * width + i] += dy[m * width + i];
  }
  return start;
}

}  // namespace gmamba::reference
