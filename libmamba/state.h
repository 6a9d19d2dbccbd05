// SPDX-License-Identifier: Apache-2.0
/// What a causal model remembers of everything it has read: per layer the last d_conv-1 inputs of
/// the convolution and the state of the scan. A value: copy it, save it, fork it, hand it on.
#pragma once

#include <cstdint>

#include "libmamba/config.h"
#include "libmamba/core/context.h"
#include "libmamba/core/tensor.h"

namespace gmamba {

class SequenceState {
 public:
  SequenceState() = default;
  /// Zeros: nothing read yet.
  SequenceState(const ModelConfig& config, int64_t batch, Device device);

  bool empty() const { return ssm_.empty(); }
  int64_t batch() const { return ssm_.empty() ? 0 : ssm_.shape()[1]; }
  int64_t n_layers() const { return ssm_.empty() ? 0 : ssm_.shape()[0]; }
  TensorView conv(int64_t layer);  // (B, K-1, E)
  TensorView ssm(int64_t layer);   // (B, E, N) fp32
  ConstTensorView conv(int64_t layer) const;
  ConstTensorView ssm(int64_t layer) const;
  int64_t bytes() const { return conv_.bytes() + ssm_.bytes(); }
  static int64_t bytes(const ModelConfig& config, int64_t batch);

  SequenceState clone() const;
  /// Back to nothing read.
  void reset();

 private:
  Tensor conv_;  // (layers, B, K-1, E)
  Tensor ssm_;   // (layers, B, E, N)
};

}  // namespace gmamba
