// SPDX-License-Identifier: Apache-2.0
/// Takes a problem of the scan's tests through the kernels of a GPU, in f32 or bf16, in as many
/// segments as asked, and brings everything back as plain arrays.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/selective_scan_pieces.h"
#include "tests/kernels/selective_scan_cases.h"

namespace gmamba::test {

/// The nearest bf16, as float; ties to even.
inline float rounded_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return value;
  bits += 0x7fffU + (bits >> 16 & 1U);
  bits &= 0xffff0000U;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
inline void round_to(DType dtype, std::vector<float>& values) {
  if (dtype != DType::kBF16) return;
  for (float& value : values) value = rounded_to_bf16(value);
}
/// Activations of a problem as the device will see them.
inline Inputs rounded_inputs(Inputs in, DType dtype) {
  for (auto field : {&Inputs::u, &Inputs::delta, &Inputs::B, &Inputs::C, &Inputs::z, &Inputs::dy}) {
    round_to(dtype, in.*field);
  }
  return in;
}

/// (batch, length, width) on a device with `gap` elements between rows; NaN wherever nothing was
/// written.
class DeviceRows {
 public:
  DeviceRows() = default;
  DeviceRows(Context& ctx, DType dtype, int64_t batch, int64_t length, int64_t width, int64_t gap,
             const std::vector<float>& values = {})
      : ctx_(&ctx),
        width_(width),
        gap_(gap),
        owner_(ctx.make(dtype, {batch, length, width + gap})) {
    std::vector<float> padded(static_cast<size_t>(owner_.size()),
                              std::numeric_limits<float>::quiet_NaN());
    for (int64_t row = 0; row < batch * length && !values.empty(); ++row) {
      std::copy_n(values.data() + row * width, width,
                  padded.data() + row * (width + gap) + gap / 2);
    }
    if (owner_.size() > 0) ctx.upload(host_copy(padded, dtype), owner_);
    view_ = owner_.view().slice(2, gap / 2, gap / 2 + width);
  }

  TensorView part(int64_t begin, int64_t end) const {
    return view_.rank == 0 ? view_ : view_.slice(1, begin, end);
  }
  std::vector<float> values() const {
    std::vector<float> out;
    if (view_.rank == 0 || owner_.size() == 0) return out;
    Tensor host({}, owner_.dtype(), owner_.shape());
    ctx_->download(owner_, host);
    const int64_t rows = owner_.shape()[0] * owner_.shape()[1];
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width_; ++i) {
        out.push_back(element(host, row * (width_ + gap_) + gap_ / 2 + i));
      }
    }
    return out;
  }

  /// Elements between the rows that are no longer NaN.
  int64_t written_between() const {
    if (view_.rank == 0 || owner_.size() == 0) return 0;
    Tensor host({}, owner_.dtype(), owner_.shape());
    ctx_->download(owner_, host);
    int64_t count = 0;
    for (int64_t i = 0; i < owner_.size(); ++i) {
      const int64_t column = i % (width_ + gap_) - gap_ / 2;
      if ((column < 0 || column >= width_) && !std::isnan(element(host, i))) ++count;
    }
    return count;
  }

  static float element(Tensor& host, int64_t index) {
    const auto i = static_cast<size_t>(index);
    if (host.dtype() == DType::kF32) return host.host<float>()[i];
    const uint32_t bits = static_cast<uint32_t>(host.host<bf16>()[i].bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  /// Values that are numbers of `dtype`, in it.
  static Tensor host_copy(const std::vector<float>& values, DType dtype) {
    Tensor host({}, dtype, {static_cast<int64_t>(values.size())});
    if (dtype == DType::kF32) {
      std::copy(values.begin(), values.end(), host.host<float>().begin());
      return host;
    }
    const auto to = host.host<bf16>();
    for (size_t i = 0; i < values.size(); ++i) {
      const float value = rounded_to_bf16(values[i]);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      to[i].bits = static_cast<uint16_t>(bits >> 16);
    }
    return host;
  }

 private:
  Context* ctx_ = nullptr;
  int64_t width_ = 0, gap_ = 0;
  Tensor owner_;
  TensorView view_;
};

class CudaScanRunner {
 public:
  CudaScanRunner(Context& ctx, const Inputs& in, DType dtype, int64_t gap = 0)
      : ctx_(ctx),
        in_(in),
        dtype_(dtype),
        batch_(static_cast<int64_t>(in.batch)),
        length_(static_cast<int64_t>(in.length)),
        d_inner_(static_cast<int64_t>(in.d_inner)),
        d_state_(static_cast<int64_t>(in.d_state)),
        gap_(gap) {}
  CudaScanRunner(Context&, Inputs&&, DType, int64_t = 0) = delete;  // a problem it does not keep

  GradMode mode = GradMode::kAccumulate;
  int repeats = 1;
  bool ready = false;           // the problem's deltas are behind bias and softplus
  int64_t token_gap = -1;       // elements between rows of B and C, if not as for all
  bool through_pieces = false;  // states at the borders come from summaries and their combination

  ScanRun run(std::vector<int64_t> borders = {}) {
    borders.insert(borders.begin(), 0);
    borders.push_back(length_);
    prepare();
    const size_t segments = borders.size() - 1;
    std::vector<Tensor> states;
    std::vector<Tensor> saved;
    states.push_back(fp32(state_shape(), in_.state_in));
    if (states[0].empty()) states[0] = ctx_.make(DType::kF32, state_shape());
    for (size_t i = 0; i < segments; ++i) {
      const int64_t begin = borders[i];
      const int64_t end = borders[i + 1];
      saved.push_back(ctx_.make(DType::kF32, {batch_, scan_saved_states(end - begin, ctx_.device()),
                                              d_inner_, d_state_}));
      states.push_back(ctx_.make(DType::kF32, state_shape()));
      SelectiveScanForward args = forward_args(begin, end);
      if (through_pieces) {
        selective_scan_summarise(ctx_, args, delta_sum_, local_);
        selective_scan_combine(ctx_, A_, delta_sum_, local_, states[i], states[i + 1]);
      }
      args.state_in = states[i];
      if (!through_pieces) args.state_out = states[i + 1];
      args.saved_states = saved[i];
      selective_scan_forward(ctx_, args);
    }
    Tensor dstate = fp32(state_shape(), in_.dstate_out);
    if (dstate.empty()) dstate = ctx_.make(DType::kF32, state_shape());
    for (size_t i = segments; i-- > 0;) {
      Tensor before = ctx_.make(DType::kF32, state_shape());
      SelectiveScanBackward args = backward_args(borders[i], borders[i + 1]);
      if (through_pieces) {
        selective_scan_summarise_backward(ctx_, args, delta_sum_, local_);
        selective_scan_combine(ctx_, A_, delta_sum_, local_, dstate, before);
      }
      args.saved_states = saved[i];
      args.dstate_out = dstate;
      if (!through_pieces) args.dstate_in = before;
      for (int k = 0; k < repeats; ++k) selective_scan_backward(ctx_, args);
      dstate = std::move(before);
    }
    ScanRun out = results();
    out.state_out = plain(states.back());
    out.d.state_in = plain(dstate);
    if (segments == 1) out.saved = plain(saved[0]);
    return out;
  }

  /// Elements between rows of what the last run wrote that it had no business with.
  int64_t written_between_rows() const {
    int64_t count = 0;
    for (const DeviceRows* rows : {&y_, &y_again_, &du_, &ddelta_, &dz_, &dB_, &dC_}) {
      count += rows->written_between();
    }
    return count;
  }

  /// Forward with marks every `every` positions, which lie in the midst of a larger array; those of
  /// a second call that finds the states alone, where asked.
  MarkedRuns run_marked(int64_t every, bool states_alone = false) {
    MarkedRuns out;
    const int64_t count = (length_ + every - 1) / every;
    Tensor room = ctx_.make(DType::kF32, {batch_, count + 2, d_inner_, d_state_});
    const TensorView marks = room.view().slice(1, 1, 1 + count);
    const Tensor state_in = fp32(state_shape(), in_.state_in);
    Tensor state_out = ctx_.make(DType::kF32, state_shape());
    Tensor saved = ctx_.make(
        DType::kF32, {batch_, scan_saved_states(length_, ctx_.device()), d_inner_, d_state_});
    prepare();
    SelectiveScanForward args = forward_args(0, length_);
    args.state_in = state_in;
    args.state_out = state_out;
    args.marks = marks;
    args.mark_every = every;
    selective_scan_forward(ctx_, args);
    out.writing = results();
    out.writing.state_out = plain(state_out);
    if (states_alone) {
      args.y = {};
      ctx_.fill_zero(room);
      ctx_.fill_zero(state_out);
      selective_scan_forward(ctx_, args);
      out.writing.state_out = plain(state_out);
    }
    const std::vector<float> all = plain(room);
    const auto state = static_cast<std::ptrdiff_t>(d_inner_ * d_state_);
    for (int64_t b = 0; b < batch_; ++b) {
      const auto first = all.begin() + (b * (count + 2) + 1) * state;
      out.marks.insert(out.marks.end(), first, first + count * state);
    }
    prepare();
    args = forward_args(0, length_);
    args.state_out = state_out;
    args.known = marks;
    args.mark_every = every;
    args.saved_states = saved;
    selective_scan_forward(ctx_, args);
    out.between = results();
    out.between.state_out = plain(state_out);
    out.between.saved = plain(saved);
    return out;
  }

 private:
  Shape state_shape() const { return {batch_, d_inner_, d_state_}; }
  Tensor fp32(const Shape& shape, const std::vector<float>& values) {
    if (values.empty()) return {};
    Tensor tensor = ctx_.make(DType::kF32, shape);
    ctx_.upload(owned(shape, values), tensor);
    return tensor;
  }
  std::vector<float> plain(const Tensor& tensor) {
    if (tensor.empty() || tensor.size() == 0) return {};
    Tensor host({}, DType::kF32, tensor.shape());
    ctx_.download(tensor, host);
    return flat(host);
  }
  DeviceRows given(int64_t width, const std::vector<float>& values) {
    return DeviceRows(ctx_, dtype_, batch_, length_, width, gap_, values);
  }
  DeviceRows wanted(int64_t width) { return given(width, {}); }

  void prepare() {
    u_ = given(d_inner_, in_.u);
    delta_ = given(d_inner_, in_.delta);
    const int64_t gap = token_gap < 0 ? gap_ : token_gap;
    B_ = DeviceRows(ctx_, dtype_, batch_, length_, d_state_, gap, in_.B);
    C_ = DeviceRows(ctx_, dtype_, batch_, length_, d_state_, gap, in_.C);
    dy_ = given(d_inner_, in_.dy);
    if (!in_.z.empty()) z_ = given(d_inner_, in_.z);
    if (!in_.z.empty()) dz_ = wanted(d_inner_);
    y_ = wanted(d_inner_);
    y_again_ = wanted(d_inner_);
    du_ = wanted(d_inner_);
    ddelta_ = wanted(d_inner_);
    dB_ = wanted(d_state_);
    dC_ = wanted(d_state_);
    A_ = fp32({d_inner_, d_state_}, in_.A);
    D_ = fp32({d_inner_}, in_.D);
    bias_ = fp32({d_inner_}, in_.bias);
    dA_ = ctx_.make(DType::kF32, {d_inner_, d_state_});
    if (!in_.D.empty()) dD_ = ctx_.make(DType::kF32, {d_inner_});
    if (!in_.bias.empty()) dbias_ = ctx_.make(DType::kF32, {d_inner_});
    delta_sum_ = ctx_.make(DType::kF32, {batch_, d_inner_});
    local_ = ctx_.make(DType::kF32, state_shape());
  }

  SelectiveScanForward forward_args(int64_t begin, int64_t end) {
    SelectiveScanForward args;
    args.u = u_.part(begin, end);
    args.delta = delta_.part(begin, end);
    args.A = A_;
    args.B = B_.part(begin, end);
    args.C = C_.part(begin, end);
    args.D = D_;
    args.z = z_.part(begin, end);
    args.delta_bias = bias_;
    args.y = y_.part(begin, end);
    args.delta_ready = ready;
    return args;
  }

  SelectiveScanBackward backward_args(int64_t begin, int64_t end) {
    SelectiveScanBackward args;
    args.dy = dy_.part(begin, end);
    args.u = u_.part(begin, end);
    args.delta = delta_.part(begin, end);
    args.A = A_;
    args.B = B_.part(begin, end);
    args.C = C_.part(begin, end);
    args.D = D_;
    args.z = z_.part(begin, end);
    args.delta_bias = bias_;
    args.du = du_.part(begin, end);
    args.ddelta = ddelta_.part(begin, end);
    args.dB = dB_.part(begin, end);
    args.dC = dC_.part(begin, end);
    args.dz = dz_.part(begin, end);
    args.y = y_again_.part(begin, end);
    args.dA = dA_;
    args.dD = dD_;
    args.ddelta_bias = dbias_;
    args.mode = mode;
    args.delta_ready = ready;
    return args;
  }

  ScanRun results() {
    ScanRun out;
    out.y = y_.values();
    out.y_again = y_again_.values();
    out.d.u = du_.values();
    out.d.delta = ddelta_.values();
    out.d.A = plain(dA_);
    out.d.B = dB_.values();
    out.d.C = dC_.values();
    out.d.D = plain(dD_);
    out.d.z = dz_.values();
    out.d.bias = plain(dbias_);
    return out;
  }

  Context& ctx_;
  const Inputs& in_;
  DType dtype_;
  int64_t batch_, length_, d_inner_, d_state_, gap_;
  DeviceRows u_, delta_, B_, C_, z_, dy_, y_, y_again_, du_, ddelta_, dz_, dB_, dC_;
  Tensor A_, D_, bias_, dA_, dD_, dbias_, delta_sum_, local_;
};

}  // namespace gmamba::test
