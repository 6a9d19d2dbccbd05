// SPDX-License-Identifier: Apache-2.0
/// The selective scan by its definition, one number at a time, forward and backward. In double it
/// is the oracle; in float it is the naive result of the same precision, whose error sets the
/// budget. Shares nothing with the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gmamba::reference {

template <class Real>
struct ScanInputs {
  size_t batch = 0, length = 0, d_inner = 0, d_state = 0;
  std::vector<Real> u, delta;  // (B, L, E)
  std::vector<Real> A;         // (E, N)
  std::vector<Real> B, C;      // (B, L, N)
  std::vector<Real> D;         // (E) or empty
  std::vector<Real> z;         // (B, L, E) or empty
  std::vector<Real> bias;      // (E) or empty
  std::vector<Real> state_in;  // (B, E, N) or empty
  // gradients of the results
  std::vector<Real> dy;          // (B, L, E)
  std::vector<Real> dstate_out;  // (B, E, N) or empty
};

template <class Real>
struct ScanOutputs {
  std::vector<Real> y;          // (B, L, E)
  std::vector<Real> state_out;  // (B, E, N)
  std::vector<Real> states;     // (B, L + 1, E, N): before each position, and the last
};

template <class Real>
struct ScanGradients {
  std::vector<Real> u, delta, A, B, C, D, z, bias, state_in;  // as the inputs
};

template <class Real>
Real softplus(Real x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}
template <class Real>
Real sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

template <class Real>
ScanOutputs<Real> scan_forward(const ScanInputs<Real>& in) {
  const size_t L = in.length, E = in.d_inner, N = in.d_state;
  ScanOutputs<Real> out;
  out.y.resize(in.batch * L * E);
  out.states.resize(in.batch * (L + 1) * E * N);
  out.state_out.resize(in.batch * E * N);
  for (size_t b = 0; b < in.batch; ++b) {
    for (size_t e = 0; e < E; ++e) {
      for (size_t n = 0; n < N; ++n) {
        Real h = in.state_in.empty() ? 0 : in.state_in[(b * E + e) * N + n];
        out.states[((b * (L + 1)) * E + e) * N + n] = h;
        for (size_t l = 0; l < L; ++l) {
          const size_t i = (b * L + l) * E + e;
          const Real bias = in.bias.empty() ? 0 : in.bias[e];
          const Real delta = softplus(in.delta[i] + bias);
          h = std::exp(delta * in.A[e * N + n]) * h + delta * in.B[(b * L + l) * N + n] * in.u[i];
          out.states[((b * (L + 1) + l + 1) * E + e) * N + n] = h;
          out.y[i] += in.C[(b * L + l) * N + n] * h;
        }
        out.state_out[(b * E + e) * N + n] = h;
      }
      for (size_t l = 0; l < L; ++l) {
        const size_t i = (b * L + l) * E + e;
        if (!in.D.empty()) out.y[i] += in.D[e] * in.u[i];
        if (!in.z.empty()) out.y[i] *= in.z[i] * sigmoid(in.z[i]);
      }
    }
  }
  return out;
}

/// Gradients of sum(dy * y) + sum(dstate_out * state_out).
template <class Real>
ScanGradients<Real> scan_backward(const ScanInputs<Real>& in) {
  const size_t L = in.length, E = in.d_inner, N = in.d_state;
  const std::vector<Real> states = scan_forward(in).states;
  ScanGradients<Real> d;
  d.u.resize(in.u.size());
  d.delta.resize(in.delta.size());
  d.A.resize(in.A.size());
  d.B.resize(in.B.size());
  d.C.resize(in.C.size());
  d.D.resize(in.D.size());
  d.z.resize(in.z.size());
  d.bias.resize(in.bias.size());
  d.state_in.resize(in.batch * E * N);
  for (size_t b = 0; b < in.batch; ++b) {
    for (size_t e = 0; e < E; ++e) {
      std::vector<Real> dh(N);
      for (size_t n = 0; n < N; ++n) {
        dh[n] = in.dstate_out.empty() ? 0 : in.dstate_out[(b * E + e) * N + n];
      }
      for (size_t l = L; l-- > 0;) {
        const size_t i = (b * L + l) * E + e;
        const Real raw = in.delta[i] + (in.bias.empty() ? 0 : in.bias[e]);
        const Real delta = softplus(raw);
        Real out = in.D.empty() ? 0 : in.D[e] * in.u[i];  // y before the gate
        for (size_t n = 0; n < N; ++n) {
          out += in.C[(b * L + l) * N + n] * states[((b * (L + 1) + l + 1) * E + e) * N + n];
        }
        Real dout = in.dy[i];
        if (!in.z.empty()) {
          const Real s = sigmoid(in.z[i]);
          d.z[i] = dout * out * (s + in.z[i] * s * (1 - s));
          dout *= in.z[i] * s;
        }
        if (!in.D.empty()) {
          d.D[e] += dout * in.u[i];
          d.u[i] += dout * in.D[e];
        }
        Real ddelta = 0;
        for (size_t n = 0; n < N; ++n) {
          const size_t token = (b * L + l) * N + n;
          const Real before = states[((b * (L + 1) + l) * E + e) * N + n];
          const Real after = states[((b * (L + 1) + l + 1) * E + e) * N + n];
          const Real decay = std::exp(delta * in.A[e * N + n]);
          d.C[token] += dout * after;
          dh[n] += dout * in.C[token];
          const Real ddecay = dh[n] * before;
          d.A[e * N + n] += ddecay * decay * delta;
          ddelta += ddecay * decay * in.A[e * N + n] + dh[n] * in.B[token] * in.u[i];
          d.B[token] += dh[n] * delta * in.u[i];
          d.u[i] += dh[n] * delta * in.B[token];
          dh[n] *= decay;
        }
        d.delta[i] = ddelta * (raw > 20 ? 1 : sigmoid(raw));
        if (!in.bias.empty()) d.bias[e] += d.delta[i];
      }
      for (size_t n = 0; n < N; ++n) d.state_in[(b * E + e) * N + n] = dh[n];
    }
  }
  return d;
}

}  // namespace gmamba::reference
