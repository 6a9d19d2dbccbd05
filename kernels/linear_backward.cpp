// SPDX-License-Identifier: Apache-2.0
/// Checks, and the operation as two products: the CPU's body, and the GPU's where its kernel does
/// not apply.
#include "kernels/linear_backward.h"

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"

namespace gmamba {

void linear_backward(Context& ctx, const LinearBackward& args) {
  const Door door(ctx, "linear_backward");
  const DType type = door.activation(args.dy);
  door.first("dy", args.dy, type, 2);
  door.first("x", args.x, type, 2);
  const int64_t rows = args.dy.dim(0);
  const int64_t outputs = args.dy.dim(1);
  const int64_t inputs = args.x.dim(1);
  door.expect("x", args.x, type, {rows, inputs});
  door.expect("weight", args.weight, type, {outputs, inputs});
  door.expect("dx", args.dx, args.dx.dtype == type ? type : DType::kF32, {rows, inputs});
  door.expect("dweight", args.dweight, DType::kF32, {outputs, inputs});
  require(args.dx.size() == 0 || args.dx.data != args.x.data, ErrorKind::kInternal,
          "linear_backward: x and dx are the same array");
  if (!ctx.device().is_cpu() && cuda::linear_backward(ctx, args)) return;
  linear_backward_weight(ctx, args.dy, args.x, args.dweight, {}, args.mode);
  linear_backward_input(ctx, args.dy, args.weight, args.dx);
}

}  // namespace gmamba
