// SPDX-License-Identifier: Apache-2.0
/// Checks, and the CPU's body: a product and a pass over its rows.
#include "kernels/delta_projection.h"

#include <cmath>

#include "kernels/checks.h"
#include "kernels/cuda_sequence.h"
#include "libmamba/core/parallel.h"

namespace gmamba {
namespace {

/// log(1 + exp(v)) without overflow.
float softplus(float v) { return std::fmax(v, 0.0F) + std::log1p(std::exp(-std::fabs(v))); }

void on_cpu(Context& ctx, const DeltaProjection& args) {
  linear_forward(ctx, args.x, args.weight, args.bias, args.delta);
  const auto delta = args.delta.as<float, 2>();
  parallel_for(ctx, delta.extent[0], [&](int64_t row) {
    float* const values = delta.at(row, 0);
    for (int64_t e = 0; e < delta.extent[1]; ++e) values[e] = softplus(values[e]);
  });
}

}  // namespace

void delta_projection(Context& ctx, const DeltaProjection& args) {
  const Door door(ctx, "delta_projection");
  const DType type = door.activation(args.delta);
  door.first("delta", args.delta, type, 2);
  door.first("x", args.x, type, 2);
  const int64_t rows = args.delta.dim(0);
  const int64_t d_inner = args.delta.dim(1);
  const int64_t rank = args.x.dim(1);
  door.expect("x", args.x, type, {rows, rank});
  door.expect("weight", args.weight, type, {d_inner, rank});
  door.optional("bias", args.bias, DType::kF32, {d_inner});
  if (ctx.device().is_cpu()) return on_cpu(ctx, args);
  require(delta_projection_fits(ctx.device(), type, rank, d_inner), ErrorKind::kUnsupported,
          "delta_projection: a GPU computes it in bf16 for even ranks up to 64 and channels in "
          "multiples of 8; found rank ",
          rank, ", ", d_inner, " channels in ", to_string(type));
  cuda::delta_projection(ctx, args);
}

}  // namespace gmamba
