// SPDX-License-Identifier: Apache-2.0
/// What a model knows: one contiguous fp32 buffer with a named registry over it. Gradients and
/// moments are buffers of the same layout, so one kernel updates, one copy saves.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/adamw.h"
#include "libmamba/config.h"
#include "libmamba/core/tensor.h"

namespace gmamba {

/// One parameter. Names are those of transformers (`backbone.layers.0.mixer.in_proj.weight`).
struct ParameterInfo {
  std::string name;
  Shape shape;  ///< as published: conv1d.weight is (E, 1, K)
  int64_t offset = 0;
  int64_t size = 0;
  bool decay = false;  ///< weight decay applies: weight matrices only, not A_log, D, biases, norms
};

/// Parameters that decay come first, so that one range covers them; each starts on 64 bytes.
class ParameterLayout {
 public:
  /// All parameters of a model: backbone, `lm_head.weight` when untied, `score.weight` (labels, D)
  /// when it has a task.
  explicit ParameterLayout(const ModelConfig& config);

  const std::vector<ParameterInfo>& all() const { return all_; }
  /// Index of a name, or -1.
  int find(std::string_view name) const;
  /// Elements of the buffer, alignment gaps included (gaps are zero).
  int64_t buffer_size() const { return buffer_size_; }
  /// Elements of [0, decay_end) decay.
  int64_t decay_end() const { return decay_end_; }
  /// Parameters without the gaps.
  int64_t count() const { return count_; }

 private:
  std::vector<ParameterInfo> all_;
  std::map<std::string, int, std::less<>> index_;
  int64_t buffer_size_ = 0;
  int64_t decay_end_ = 0;
  int64_t count_ = 0;
};

/// A buffer in a layout: values, gradients, or moments.
class ParameterBuffer {
 public:
  ParameterBuffer(std::shared_ptr<const ParameterLayout> layout, Device device);

  const ParameterLayout& layout() const { return *layout_; }
  const std::shared_ptr<const ParameterLayout>& shared_layout() const { return layout_; }
  Device device() const { return data_.device(); }
  /// The whole buffer, (buffer_size).
  TensorView flat() { return data_.view(); }
  ConstTensorView flat() const { return data_.view(); }
  /// One parameter in its published shape.
  TensorView view(int index);
  ConstTensorView view(int index) const;
  TensorView view(std::string_view name);
  ConstTensorView view(std::string_view name) const;
  void fill_zero() { data_.fill_zero(); }
  ParameterBuffer clone() const;
  /// A copy on another device.
  ParameterBuffer clone_to(Device device) const;

 private:
  ParameterBuffer(std::shared_ptr<const ParameterLayout> layout, Tensor data);

  std::shared_ptr<const ParameterLayout> layout_;
  Tensor data_;
};

/// The values of a buffer on the host: the buffer itself when it lives there, else a copy.
class HostParameters {
 public:
  explicit HostParameters(const ParameterBuffer& values);
  const ParameterBuffer& get() const { return copy_ ? *copy_ : values_; }

 private:
  const ParameterBuffer& values_;
  std::optional<ParameterBuffer> copy_;
};

/// Random initialisation as mamba_ssm does it (A_log = ln(n+1), D = 1, dt bias by inverse softplus,
/// out_proj divided by sqrt(n_layers), embedding N(0, 0.02^2), score N(0, 0.02^2)). Each parameter
/// has its own random stream, so adding one does not change the others. CPU buffers only.
void initialize(ParameterBuffer& values, const ModelConfig& config, uint64_t seed);

}  // namespace gmamba
