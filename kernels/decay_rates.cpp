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
  const auto in = A_log.flat<const float>();
  const auto out = A.flat<float>();
  for (size_t i = 0; i < in.size(); ++i) out[i] = -std::exp(in[i]);
}

void decay_rates_backward(Context& ctx, ConstTensorView dA, ConstTensorView A, TensorView dA_log) {
  check(ctx, dA, A, "decay_rates_backward");
  check(ctx, dA, dA_log, "decay_rates_backward");
  if (!ctx.device().is_cpu()) return cuda::decay_rates_backward(ctx, dA, A, dA_log);
  const auto gradient = dA.flat<const float>();
  const auto rate = A.flat<const float>();
  const auto out = dA_log.flat<float>();
  for (size_t i = 0; i < out.size(); ++i) out[i] += gradient[i] * rate[i];
}

}  // namespace gmamba
