// SPDX-License-Identifier: Apache-2.0
#include "libmamba/state.h"

#include "libmamba/core/checked.h"

namespace gmamba {
namespace {

/// One layer of (layers, B, X, Y): (B, X, Y).
template <class View>
View layer_of(View all, int64_t layer) {
  require(!all.empty() && layer >= 0 && layer < all.dim(0), ErrorKind::kInternal,
          "sequence state: layer ", layer, " of ", all.empty() ? 0 : all.dim(0));
  return all.slice(0, layer, layer + 1).reshape({all.dim(1), all.dim(2), all.dim(3)});
}

}  // namespace

SequenceState::SequenceState(const ModelConfig& config, int64_t batch, Device device)
    : conv_(device, DType::kF32, {config.n_layers, batch, config.d_conv - 1, config.d_inner()}),
      ssm_(device, DType::kF32, {config.n_layers, batch, config.d_inner(), config.d_state}) {}

TensorView SequenceState::conv(int64_t layer) { return layer_of(conv_.view(), layer); }
TensorView SequenceState::ssm(int64_t layer) { return layer_of(ssm_.view(), layer); }
ConstTensorView SequenceState::conv(int64_t layer) const { return layer_of(conv_.view(), layer); }
ConstTensorView SequenceState::ssm(int64_t layer) const { return layer_of(ssm_.view(), layer); }

int64_t SequenceState::bytes(const ModelConfig& config, int64_t batch) {
  return checked_product({config.n_layers, batch, config.d_inner(),
                          config.d_conv - 1 + config.d_state, size_of(DType::kF32)},
                         "sequence state");
}

SequenceState SequenceState::clone() const {
  SequenceState copy;
  copy.conv_ = conv_.clone();
  copy.ssm_ = ssm_.clone();
  return copy;
}

void SequenceState::reset() {
  conv_.fill_zero();
  ssm_.fill_zero();
}

}  // namespace gmamba
