// SPDX-License-Identifier: Apache-2.0
#include "libmamba/state.h"

#include <utility>

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

Shape conv_shape(const ModelConfig& config, int64_t batch) {
  return {config.n_layers, batch, config.d_conv - 1, config.d_inner()};
}

Shape ssm_shape(const ModelConfig& config, int64_t batch) {
  return {config.n_layers, batch, config.d_inner(), config.d_state};
}

/// An owned copy, made after all work on the source's device.
Tensor owned_copy(ConstTensorView from) {
  Tensor copy(from.device, from.dtype, from.shape());
  Backend& backend = backend_for(from.device.kind);
  backend.copy_within(from.device.index, nullptr, copy.view().data, from.data, copy.bytes());
  backend.synchronize(from.device.index, nullptr);
  return copy;
}

void clear(TensorView view) {
  Backend& backend = backend_for(view.device.kind);
  backend.fill_zero(view.device.index, nullptr, view.data, view.size() * size_of(view.dtype));
  backend.synchronize(view.device.index, nullptr);
}

}  // namespace

SequenceState::SequenceState(const ModelConfig& config, int64_t batch, Device device)
    : conv_owned_(device, DType::kF32, conv_shape(config, batch)),
      ssm_owned_(device, DType::kF32, ssm_shape(config, batch)),
      conv_(conv_owned_.view()),
      ssm_(ssm_owned_.view()) {}

SequenceState::SequenceState(SequenceState&& other) noexcept
    : conv_owned_(std::move(other.conv_owned_)),
      ssm_owned_(std::move(other.ssm_owned_)),
      conv_(std::exchange(other.conv_, {})),
      ssm_(std::exchange(other.ssm_, {})) {}

SequenceState& SequenceState::operator=(SequenceState&& other) noexcept {
  // what this one had goes with `taken`
  SequenceState taken(std::move(other));
  std::swap(conv_owned_, taken.conv_owned_);
  std::swap(ssm_owned_, taken.ssm_owned_);
  std::swap(conv_, taken.conv_);
  std::swap(ssm_, taken.ssm_);
  return *this;
}

SequenceState SequenceState::scratch(Context& ctx, const ModelConfig& config, int64_t batch) {
  SequenceState state;
  state.conv_ = ctx.arena().zeros(DType::kF32, conv_shape(config, batch), ctx.stream());
  state.ssm_ = ctx.arena().zeros(DType::kF32, ssm_shape(config, batch), ctx.stream());
  return state;
}

TensorView SequenceState::conv(int64_t layer) { return layer_of(conv_, layer); }
TensorView SequenceState::ssm(int64_t layer) { return layer_of(ssm_, layer); }
ConstTensorView SequenceState::conv(int64_t layer) const {
  return layer_of(ConstTensorView(conv_), layer);
}
ConstTensorView SequenceState::ssm(int64_t layer) const {
  return layer_of(ConstTensorView(ssm_), layer);
}

int64_t SequenceState::bytes() const {
  return empty() ? 0 : (conv_.size() + ssm_.size()) * size_of(DType::kF32);
}

int64_t SequenceState::bytes(const ModelConfig& config, int64_t batch) {
  return checked_product({config.n_layers, batch, config.d_inner(),
                          config.d_conv - 1 + config.d_state, size_of(DType::kF32)},
                         "sequence state");
}

SequenceState SequenceState::clone() const {
  SequenceState copy;
  if (empty()) return copy;
  copy.conv_owned_ = owned_copy(conv_);
  copy.ssm_owned_ = owned_copy(ssm_);
  copy.conv_ = copy.conv_owned_.view();
  copy.ssm_ = copy.ssm_owned_.view();
  return copy;
}

void SequenceState::assign(Context& ctx, const SequenceState& other) {
  ctx.copy(other.conv_, conv_);
  ctx.copy(other.ssm_, ssm_);
}

void SequenceState::reset() {
  if (empty()) return;
  clear(conv_);
  clear(ssm_);
}

void SequenceState::reset_rows(Context& ctx, int64_t begin, int64_t end) {
  if (begin == end) return;
  for (int64_t layer = 0; layer < n_layers(); ++layer) {
    ctx.fill_zero(conv(layer).slice(0, begin, end));
    ctx.fill_zero(ssm(layer).slice(0, begin, end));
  }
}

}  // namespace gmamba
