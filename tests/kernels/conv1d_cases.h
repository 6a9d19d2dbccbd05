// SPDX-License-Identifier: Apache-2.0
/// Shapes and data of the convolution's tests, and a runner that takes plain arrays through the
/// kernels in as many segments as asked. One table feeds parity, gradients and invariances.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/conv1d.h"
#include "libmamba/core/random.h"
#include "tests/kernels/row_arrays.h"
#include "tests/reference/conv1d.h"

namespace gmamba::test {

using ConvData = reference::ConvInputs<float>;

struct ConvCase {
  int64_t batch = 1, length = 1, d_inner = 1, d_conv = 4;
  bool bias = true, tail = true, strided = false;
  double scale = 1;  // of the inputs

  std::string name() const {
    return "B" + std::to_string(batch) + "_L" + std::to_string(length) + "_E" +
           std::to_string(d_inner) + "_K" + std::to_string(d_conv) + (bias ? "_bias" : "") +
           (tail ? "_tail" : "") + (strided ? "_strided" : "") + (scale > 1 ? "_extreme" : "");
  }
};

inline std::vector<ConvCase> conv_cases() {
  std::vector<ConvCase> cases;
  for (int64_t length = 0; length <= 130; ++length) cases.push_back({1, length, 5, 4});
  for (int64_t d_conv = 1; d_conv <= 4; ++d_conv) {
    for (int64_t length : {0, 1, 2, 3, 4, 127, 128, 129, 257}) {
      cases.push_back({2, length, 19, d_conv});
      cases.push_back({1, length, 8, d_conv, false, false});
      cases.push_back({3, length, 20, d_conv, true, false, true});
    }
  }
  for (int64_t d_inner : {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 100, 511, 512, 513, 1030}) {
    cases.push_back({2, 9, d_inner, 4});
  }
  cases.push_back({0, 10, 8, 4});
  cases.push_back({2, 3000, 6, 4});
  cases.push_back({200, 5, 6, 3});
  cases.push_back({2, 130, 16, 4, true, true, true, 1000});
  return cases;
}

/// Data of a case: a pure function of it.
inline ConvData conv_inputs(const ConvCase& conv) {
  Random random(20240918, RandomUse::kTest,
                static_cast<uint64_t>(conv.length * 10000 + conv.d_inner * 8 + conv.d_conv));
  const auto fill = [&](int64_t count, double scale) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = static_cast<float>(scale * random.normal());
    return out;
  };
  const int64_t values = conv.batch * conv.length * conv.d_inner;
  const int64_t kept = conv.batch * (conv.d_conv - 1) * conv.d_inner;
  ConvData in;
  in.batch = static_cast<size_t>(conv.batch);
  in.length = static_cast<size_t>(conv.length);
  in.d_inner = static_cast<size_t>(conv.d_inner);
  in.d_conv = static_cast<size_t>(conv.d_conv);
  in.x = fill(values, conv.scale);
  in.weight = fill(conv.d_inner * conv.d_conv, 0.7);
  if (conv.bias) in.bias = fill(conv.d_inner, 0.5);
  if (conv.tail) in.tail_in = fill(kept, conv.scale);
  in.dy = fill(values, 1);
  if (conv.tail) in.dtail_out = fill(kept, 1);
  return in;
}

inline reference::ConvInputs<double> as_oracle(const ConvData& in) {
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {in.batch,        in.length,     in.d_inner,       in.d_conv,   wide(in.x),
          wide(in.weight), wide(in.bias), wide(in.tail_in), wide(in.dy), wide(in.dtail_out)};
}

/// Everything that the kernels return for a problem.
struct ConvRun {
  std::vector<float> y, tail_out;
  reference::ConvGradients<float> d;
};

/// Takes a problem through the kernels, forward and backward, cut at `borders` (ascending, within
/// the length): the tail goes from segment to segment and its gradient back.
class ConvRunner {
 public:
  ConvRunner(Context& ctx, const ConvData& in, int64_t gap) : ctx_(ctx), in_(in), gap_(gap) {}

  GradMode mode = GradMode::kAccumulate;
  int repeats = 1;  // of each backward call

  ConvRun run(std::vector<int64_t> borders = {}) {
    borders.insert(borders.begin(), 0);
    borders.push_back(length_);
    prepare();
    const size_t segments = borders.size() - 1;
    std::vector<Tensor> tails;  // incoming tail of each segment, and the last
    tails.push_back(owned(tail_shape_, in_.tail_in));
    for (size_t i = 0; i < segments; ++i) {
      tails.push_back(ctx_.make(DType::kF32, tail_shape_));
      Conv1dForward args{x_.part(borders[i], borders[i + 1]), weight_,     bias_, tails[i],
                         y_.part(borders[i], borders[i + 1]), tails[i + 1]};
      conv1d_forward(ctx_, args);
    }
    Tensor dtail = owned(tail_shape_, in_.dtail_out);
    for (size_t i = segments; i-- > 0;) {
      Tensor before = ctx_.make(DType::kF32, tail_shape_);
      for (float& x : before.host<float>()) x = std::numeric_limits<float>::quiet_NaN();
      backward(borders[i], borders[i + 1], tails[i], dtail, before);
      dtail = std::move(before);
    }
    return {
        y_.values(), flat(tails.back()), {dx_.values(), flat(dweight_), flat(dbias_), flat(dtail)}};
  }

 private:
  void prepare() {
    x_ = RowArray(batch_, length_, d_inner_, gap_, in_.x);
    dy_ = RowArray(batch_, length_, d_inner_, gap_, in_.dy);
    y_ = RowArray(batch_, length_, d_inner_, gap_);
    dx_ = RowArray(batch_, length_, d_inner_, gap_);
    weight_ = owned({d_inner_, d_conv_}, in_.weight);
    bias_ = owned({d_inner_}, in_.bias);
    dweight_ = ctx_.make(DType::kF32, {d_inner_, d_conv_});
    if (!in_.bias.empty()) dbias_ = ctx_.make(DType::kF32, {d_inner_});
  }

  void backward(int64_t begin, int64_t end, const Tensor& tail_in, const Tensor& dtail_out,
                Tensor& dtail_in) {
    Conv1dBackward args;
    args.dy = dy_.part(begin, end);
    args.dtail_out = dtail_out;
    args.x = x_.part(begin, end);
    args.weight = weight_;
    args.bias = bias_;
    args.tail_in = tail_in;
    args.dx = dx_.part(begin, end);
    args.dtail_in = dtail_in;
    args.dweight = dweight_;
    args.dbias = dbias_;
    args.mode = mode;
    for (int i = 0; i < repeats; ++i) conv1d_backward(ctx_, args);
  }

  Context& ctx_;
  const ConvData& in_;
  int64_t gap_;
  int64_t batch_ = static_cast<int64_t>(in_.batch), length_ = static_cast<int64_t>(in_.length);
  int64_t d_inner_ = static_cast<int64_t>(in_.d_inner), d_conv_ = static_cast<int64_t>(in_.d_conv);
  Shape tail_shape_ = {batch_, d_conv_ - 1, d_inner_};
  RowArray x_, dy_, y_, dx_;
  Tensor weight_, bias_, dweight_, dbias_;
};

}  // namespace gmamba::test
