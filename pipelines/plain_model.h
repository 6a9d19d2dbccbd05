// SPDX-License-Identifier: Apache-2.0
/// A Mamba in double precision, one loop per equation and nothing else: what `doctor` holds the
/// fast model against on the user's machine. Slow; for small models and short sequences.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "libmamba/parameters.h"

namespace gmamba {

class PlainModel {
 public:
  /// Copies the values, which lie on the CPU. Causal Mamba-1 without projection biases.
  PlainModel(const ModelConfig& config, const ParameterBuffer& values);

  /// All values in the order of the layout's buffer; change them to take differences.
  std::vector<double>& values() { return values_; }

  /// Hidden states (L, D) after the final norm.
  std::vector<double> hidden(std::span<const uint8_t> tokens) const;
  /// Sum of the next-token cross-entropy over positions 0 to L-2.
  double loss(std::span<const uint8_t> tokens) const;

 private:
  std::span<const double> parameter(const std::string& name) const;
  void add_block(int64_t layer, int64_t length, std::vector<double>& residual) const;

  ModelConfig config_;
  std::shared_ptr<const ParameterLayout> layout_;
  std::vector<double> values_;
};

}  // namespace gmamba
