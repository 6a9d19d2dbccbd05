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
  SequenceState(SequenceState&& other) noexcept;
  SequenceState& operator=(SequenceState&& other) noexcept;
  /// Zeros: nothing read yet.
  SequenceState(const ModelConfig& config, int64_t batch, Device device);
  /// Zeros in the context's arena, valid until the enclosing scope ends: no allocation in a loop.
  static SequenceState scratch(Context& ctx, const ModelConfig& config, int64_t batch);

  bool empty() const { return ssm_.empty(); }
  int64_t batch() const { return ssm_.empty() ? 0 : ssm_.dim(1); }
  int64_t n_layers() const { return ssm_.empty() ? 0 : ssm_.dim(0); }
  /// All layers: (layers, B, K-1, E) and (layers, B, E, N).
  TensorView all_conv() { return conv_; }
  TensorView all_ssm() { return ssm_; }
  ConstTensorView all_conv() const { return conv_; }
  ConstTensorView all_ssm() const { return ssm_; }
  TensorView conv(int64_t layer);  // (B, K-1, E)
  TensorView ssm(int64_t layer);   // (B, E, N) fp32
  ConstTensorView conv(int64_t layer) const;
  ConstTensorView ssm(int64_t layer) const;
  int64_t bytes() const;
  static int64_t bytes(const ModelConfig& config, int64_t batch);
  /// True when a pass holds the states that it leaves of all layers at once, not layer by layer.
  static bool small(const ModelConfig& config, int64_t batch) {
    return bytes(config, batch) <= int64_t{8} << 20;
  }

  SequenceState clone() const;
  /// Takes the values of a state of the same shape, ordered on the context's stream.
  void assign(Context& ctx, const SequenceState& other);
  /// Back to nothing read.
  void reset();
  /// The same for rows [begin, end) of the batch, ordered on the context's stream.
  void reset_rows(Context& ctx, int64_t begin, int64_t end);

 private:
  Tensor conv_owned_;  // the memory, unless it is an arena's
  Tensor ssm_owned_;
  TensorView conv_;  // (layers, B, K-1, E)
  TensorView ssm_;   // (layers, B, E, N)
};

}  // namespace gmamba
