// SPDX-License-Identifier: Apache-2.0
/// Checks, and the operation as its two parts one after the other: the CPU's body, and the GPU's
/// where its kernel does not apply.
#include "kernels/conv_projection.h"

#include "kernels/checks.h"
#include "kernels/conv1d.h"
#include "kernels/cuda_sequence.h"

namespace gmamba {
namespace {

/// (B, L, E) as (B L, E), where rows lie at one distance throughout.
template <class Byte>
BasicTensorView<Byte> rows_of(const char* operation, const char* name,
                              const BasicTensorView<Byte>& view) {
  const int64_t batch = view.dim(0);
  const int64_t length = view.dim(1);
  require(batch <= 1 || length <= 1 || view.stride[0] == length * view.stride[1],
          ErrorKind::kInternal, operation, ": ", name, ": sequences of ", to_string(view.shape()),
          " do not follow each other at the distance of their rows");
  BasicTensorView<Byte> rows = view;
  rows.rank = 2;
  rows.extent = {batch * length, view.dim(2)};
  rows.stride = {length > 1 ? view.stride[1] : view.stride[0], view.stride[2]};
  return rows;
}

}  // namespace

namespace parts {

void conv_projection_forward(Context& ctx, const ConvProjectionForward& args) {
  conv1d_forward(ctx, {.x = args.x,
                       .weight = args.weight,
                       .bias = args.bias,
                       .tail_in = args.tail_in,
                       .y = args.y,
                       .tail_out = args.tail_out});
  linear_forward(ctx, rows_of("conv_projection_forward", "y", ConstTensorView(args.y)),
                 args.projection, {}, args.projected);
}

void conv_projection_backward(Context& ctx, const ConvProjectionBackward& args) {
  constexpr const char* kName = "conv_projection_backward";
  linear_backward_weight(ctx, args.dprojected, rows_of(kName, "y", args.y), args.dprojection, {},
                         args.mode);
  linear_backward_input(ctx, args.dprojected, args.projection, rows_of(kName, "dy", args.dy),
                        GradMode::kAccumulate);
  conv1d_backward(ctx, {.dy = args.dy,
                        .dtail_out = args.dtail_out,
                        .x = args.x,
                        .weight = args.weight,
                        .bias = args.bias,
                        .tail_in = args.tail_in,
                        .dx = args.dx,
                        .dtail_in = args.dtail_in,
                        .dweight = args.dweight,
                        .dbias = args.dbias,
                        .mode = args.mode});
}

}  // namespace parts

// What conv1d reads and writes is checked by it as well; here is what the kernel of both needs.

void conv_projection_forward(Context& ctx, const ConvProjectionForward& args) {
  const Door door(ctx, "conv_projection_forward");
  const DType type = door.activation(args.x);
  door.first("x", args.x, type, 3);
  door.first("weight", args.weight, DType::kF32, 2);
  door.first("projection", args.projection, type, 2);
  const int64_t batch = args.x.dim(0);
  const int64_t length = args.x.dim(1);
  const int64_t width = args.x.dim(2);
  const int64_t taps = args.weight.dim(1);
  const int64_t outputs = args.projection.dim(0);
  require(taps >= 1, ErrorKind::kShape, "conv_projection_forward: weight ",
          to_string(args.weight.shape()), " has no taps");
  door.expect("weight", args.weight, DType::kF32, {width, taps});
  door.optional("bias", args.bias, DType::kF32, {width});
  door.optional("tail_in", args.tail_in, DType::kF32, {batch, taps - 1, width});
  door.expect("projection", args.projection, type, {outputs, width});
  door.expect("y", args.y, type, {batch, length, width});
  door.expect("projected", args.projected, type, {batch * length, outputs});
  door.optional("tail_out", args.tail_out, DType::kF32, {batch, taps - 1, width});
  require(args.tail_in.empty() || args.tail_in.data != args.tail_out.data, ErrorKind::kInternal,
          "conv_projection_forward: tail_in and tail_out are the same array");
  if (!ctx.device().is_cpu() && cuda::conv_projection_forward(ctx, args)) return;
  parts::conv_projection_forward(ctx, args);
}

void conv_projection_backward(Context& ctx, const ConvProjectionBackward& args) {
  const Door door(ctx, "conv_projection_backward");
  const DType type = door.activation(args.x);
  door.first("x", args.x, type, 3);
  door.first("weight", args.weight, DType::kF32, 2);
  door.first("projection", args.projection, type, 2);
  const int64_t batch = args.x.dim(0);
  const int64_t length = args.x.dim(1);
  const int64_t width = args.x.dim(2);
  const int64_t taps = args.weight.dim(1);
  const int64_t outputs = args.projection.dim(0);
  require(taps >= 1, ErrorKind::kShape, "conv_projection_backward: weight ",
          to_string(args.weight.shape()), " has no taps");
  door.expect("dy", args.dy, type, {batch, length, width});
  door.expect("dprojected", args.dprojected, type, {batch * length, outputs});
  door.optional("dtail_out", args.dtail_out, DType::kF32, {batch, taps - 1, width});
  door.expect("y", args.y, type, {batch, length, width});
  door.expect("weight", args.weight, DType::kF32, {width, taps});
  door.optional("bias", args.bias, DType::kF32, {width});
  door.optional("tail_in", args.tail_in, DType::kF32, {batch, taps - 1, width});
  door.expect("projection", args.projection, type, {outputs, width});
  door.expect("dx", args.dx, type, {batch, length, width});
  door.optional("dtail_in", args.dtail_in, DType::kF32, {batch, taps - 1, width});
  door.expect("dweight", args.dweight, DType::kF32, {width, taps});
  door.optional("dbias", args.dbias, DType::kF32, {width});
  door.expect("dprojection", args.dprojection, DType::kF32, {outputs, width});
  if (!ctx.device().is_cpu() && cuda::conv_projection_backward(ctx, args)) return;
  parts::conv_projection_backward(ctx, args);
}

}  // namespace gmamba
