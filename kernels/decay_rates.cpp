// SPDX-License-Identifier: Apache-2.0
#include "kernels/decay_rates.h"

#include <cmath>

#include "kernels/cuda_basic.h"

namespace gmamba {
namespace {

void check(const Context& ctx, ConstTensorView a, ConstTensorView b, const char* name) {
  require(a.shape() == b.shape(), ErrorKind::kShape, name, ": ", to_string(a.shape()), " and ",
          to_string(b.shape()), " differ");
  require(a.device == ctx.device() && b.device == ctx.device(), ErrorKind::kInternal, name,
          ": the arrays are on ", to_string(a.device), " and ", to_string(b.device),
          ", the context on ", to_string(ctx.device()));
}

}  // namespace

void decay_rates_forward(Context& ctx, ConstTensorView A_log, TensorView A) {
  check(ctx, A_log, A, "decay_rates_forward");
  if (!ctx.device().is_cpu()) return cuda::decay_rates_forward(ctx, A_log, A);
  const auto in = A_log.as<const float, 2>();
  const auto out = A.as<float, 2>();
  for (int64_t m = 0; m < in.extent[0]; ++m) {
    for (int64_t i = 0; i < in.extent[1]; ++i) *out.at(m, i) = -std::exp(*in.at(m, i));
  }
}

void decay_rates_backward(Context& ctx, ConstTensorView dA, ConstTensorView A, TensorView dA_log) {
  check(ctx, dA, A, "decay_rates_backward");
  check(ctx, dA, dA_log, "decay_rates_backward");
  if (!ctx.device().is_cpu()) return cuda::decay_rates_backward(ctx, dA, A, dA_log);
  const auto gradient = dA.as<const float, 2>();
  const auto rate = A.as<const float, 2>();
  const auto out = dA_log.as<float, 2>();
  for (int64_t m = 0; m < out.extent[0]; ++m) {
    for (int64_t i = 0; i < out.extent[1]; ++i) {
      *out.at(m, i) += *gradient.at(m, i) * *rate.at(m, i);
    }
  }
}

}  // namespace gmamba
