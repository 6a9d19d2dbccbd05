// SPDX-License-Identifier: Apache-2.0
/// The causal convolution with SiLU by its definition, one number at a time, forward and backward.
/// In double it is the oracle, in float the naive result of the same precision. Shares nothing with
/// the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace gmamba::reference {

template <class Real>
struct ConvInputs {
  size_t batch = 0, length = 0, d_inner = 0, d_conv = 0;
  std::vector<Real> x;        // (B, L, E)
  std::vector<Real> weight;   // (E, K)
  std::vector<Real> bias;     // (E) or empty
  std::vector<Real> tail_in;  // (B, K-1, E) or empty
  // gradients of the results
  std::vector<Real> dy;         // (B, L, E)
  std::vector<Real> dtail_out;  // (B, K-1, E) or empty
};

template <class Real>
struct ConvOutputs {
  std::vector<Real> y;         // (B, L, E)
  std::vector<Real> tail_out;  // (B, K-1, E)
};

template <class Real>
struct ConvGradients {
  std::vector<Real> x, weight, bias, tail_in;  // as the inputs
};

/// The tail and the inputs of one channel of one batch row, in one line: K-1 + L values.
template <class Real>
std::vector<Real> conv_line(const ConvInputs<Real>& in, size_t b, size_t e) {
  const size_t kept = in.d_conv - 1;
  std::vector<Real> line;
  for (size_t j = 0; j < kept; ++j) {
    line.push_back(in.tail_in.empty() ? 0 : in.tail_in[(b * kept + j) * in.d_inner + e]);
  }
  for (size_t l = 0; l < in.length; ++l) {
    line.push_back(in.x[(b * in.length + l) * in.d_inner + e]);
  }
  return line;
}

/// The sum before SiLU at position l.
template <class Real>
Real conv_sum(const ConvInputs<Real>& in, const std::vector<Real>& line, size_t e, size_t l) {
  Real sum = in.bias.empty() ? 0 : in.bias[e];
  for (size_t k = 0; k < in.d_conv; ++k) sum += in.weight[e * in.d_conv + k] * line[l + k];
  return sum;
}

template <class Real>
ConvOutputs<Real> conv_forward(const ConvInputs<Real>& in) {
  const size_t kept = in.d_conv - 1;
  ConvOutputs<Real> out;
  out.y.resize(in.x.size());
  out.tail_out.resize(in.batch * kept * in.d_inner);
  for (size_t b = 0; b < in.batch; ++b) {
    for (size_t e = 0; e < in.d_inner; ++e) {
      const std::vector<Real> line = conv_line(in, b, e);
      for (size_t l = 0; l < in.length; ++l) {
        const Real sum = conv_sum(in, line, e, l);
        out.y[(b * in.length + l) * in.d_inner + e] = sum / (1 + std::exp(-sum));
      }
      for (size_t j = 0; j < kept; ++j) {
        out.tail_out[(b * kept + j) * in.d_inner + e] = line[in.length + j];
      }
    }
  }
  return out;
}

/// Gradients of sum(dy * y) + sum(dtail_out * tail_out).
template <class Real>
ConvGradients<Real> conv_backward(const ConvInputs<Real>& in) {
  const size_t kept = in.d_conv - 1;
  ConvGradients<Real> d;
  d.x.resize(in.x.size());
  d.weight.resize(in.weight.size());
  d.bias.resize(in.bias.size());
  d.tail_in.resize(in.batch * kept * in.d_inner);
  for (size_t b = 0; b < in.batch; ++b) {
    for (size_t e = 0; e < in.d_inner; ++e) {
      const std::vector<Real> line = conv_line(in, b, e);
      std::vector<Real> dline(line.size());
      for (size_t j = 0; j < kept && !in.dtail_out.empty(); ++j) {
        dline[in.length + j] = in.dtail_out[(b * kept + j) * in.d_inner + e];
      }
      for (size_t l = 0; l < in.length; ++l) {
        const Real sum = conv_sum(in, line, e, l);
        const Real s = 1 / (1 + std::exp(-sum));
        const Real g = in.dy[(b * in.length + l) * in.d_inner + e] * (s + sum * s * (1 - s));
        if (!in.bias.empty()) d.bias[e] += g;
        for (size_t k = 0; k < in.d_conv; ++k) {
          d.weight[e * in.d_conv + k] += g * line[l + k];
          dline[l + k] += g * in.weight[e * in.d_conv + k];
        }
      }
      for (size_t j = 0; j < kept; ++j) d.tail_in[(b * kept + j) * in.d_inner + e] = dline[j];
      for (size_t l = 0; l < in.length; ++l) {
        d.x[(b * in.length + l) * in.d_inner + e] = dline[kept + l];
      }
    }
  }
  return d;
}

}  // namespace gmamba::reference
