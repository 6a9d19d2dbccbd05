// SPDX-License-Identifier: Apache-2.0
/// The naive weighted cross-entropy: softmax from its definition, shifted by the largest logit.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace gmamba::reference {

template <class Real>
struct CrossEntropyResult {
  std::vector<Real> losses;   // (M)
  std::vector<Real> dlogits;  // (M, V)
  Real weighted_loss{0};
  Real weight{0};
  Real weight_right{0};
  Real rows{0};
};

/// Rows with target -100 or weight 0 are left out; `weights` may be empty.
template <class Real>
CrossEntropyResult<Real> cross_entropy(const std::vector<Real>& logits, size_t vocab,
                                       const std::vector<int32_t>& targets,
                                       const std::vector<Real>& weights, double scale) {
  CrossEntropyResult<Real> out;
  for (size_t m = 0; m < targets.size(); ++m) {
    const Real* const row = logits.data() + m * vocab;
    const Real weight = weights.empty() ? Real{1} : weights[m];
    if (targets[m] == -100 || weight == Real{0}) {
      out.losses.push_back(Real{0});
      out.dlogits.insert(out.dlogits.end(), vocab, Real{0});
      continue;
    }
    const auto target = static_cast<size_t>(targets[m]);
    size_t best = 0;
    for (size_t v = 1; v < vocab; ++v) {
      if (row[v] > row[best]) best = v;
    }
    Real sum{0};
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - row[best]);
    for (size_t v = 0; v < vocab; ++v) {
      const Real softmax = std::exp(row[v] - row[best]) / sum;
      const Real wanted = v == target ? Real{1} : Real{0};
      out.dlogits.push_back((softmax - wanted) * weight * static_cast<Real>(scale));
    }
    out.losses.push_back(std::log(sum) + row[best] - row[target]);
    out.weighted_loss += weight * out.losses.back();
    out.weight += weight;
    out.weight_right += best == target ? weight : Real{0};
    out.rows += Real{1};
  }
  return out;
}

}  // namespace gmamba::reference
