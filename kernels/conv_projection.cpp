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

namespace {

// What conv1d reads and writes is checked by it as well; here is what the kernel of both needs.

struct Extents {
  DType type;  // of activations
  int64_t batch, length, width, taps, outputs;
};

/// What both passes read.
template <class Args>
Extents check_inputs(const Door& door, const char* operation, const Args& args) {
  const DType type = door.activation(args.x);
  door.first("x", args.x, type, 3);
  door.first("weight", args.weight, DType::kF32, 2);
  door.first("projection", args.projection, type, 2);
  const Extents is = {type,          args.x.dim(0),      args.x.dim(1),
                      args.x.dim(2), args.weight.dim(1), args.projection.dim(0)};
  require(is.taps >= 1, ErrorKind::kShape, operation, ": weight ", to_string(args.weight.shape()),
          " has no taps");
  door.expect("weight", args.weight, DType::kF32, {is.width, is.taps});
  door.optional("bias", args.bias, DType::kF32, {is.width});
  door.optional("tail_in", args.tail_in, DType::kF32, {is.batch, is.taps - 1, is.width});
  door.expect("projection", args.projection, type, {is.outputs, is.width});
  door.expect("y", args.y, type, {is.batch, is.length, is.width});
  return is;
}

}  // namespace

void conv_projection_forward(Context& ctx, const ConvProjectionForward& args) {
  constexpr const char* kName = "conv_projection_forward";
  const Door door(ctx, kName);
  const Extents is = check_inputs(door, kName, args);
  door.expect("projected", args.projected, is.type, {is.batch * is.length, is.outputs});
  door.optional("tail_out", args.tail_out, DType::kF32, {is.batch, is.taps - 1, is.width});
  require(args.tail_in.empty() || args.tail_in.data != args.tail_out.data, ErrorKind::kInternal,
          "conv_projection_forward: tail_in and tail_out are the same array");
  if (!ctx.device().is_cpu() && cuda::conv_projection_forward(ctx, args)) return;
  parts::conv_projection_forward(ctx, args);
}

void conv_projection_backward(Context& ctx, const ConvProjectionBackward& args) {
  constexpr const char* kName = "conv_projection_backward";
  const Door door(ctx, kName);
  const Extents is = check_inputs(door, kName, args);
  const std::initializer_list<int64_t> shape = {is.batch, is.length, is.width};
  const std::initializer_list<int64_t> tail = {is.batch, is.taps - 1, is.width};
  door.expect("dy", args.dy, is.type, shape);
  door.expect("dprojected", args.dprojected, is.type, {is.batch * is.length, is.outputs});
  door.optional("dtail_out", args.dtail_out, DType::kF32, tail);
  door.expect("dx", args.dx, is.type, shape);
  door.optional("dtail_in", args.dtail_in, DType::kF32, tail);
  door.expect("dweight", args.dweight, DType::kF32, {is.width, is.taps});
  door.optional("dbias", args.dbias, DType::kF32, {is.width});
  door.expect("dprojection", args.dprojection, DType::kF32, {is.outputs, is.width});
  if (!ctx.device().is_cpu() && cuda::conv_projection_backward(ctx, args)) return;
  parts::conv_projection_backward(ctx, args);
}

}  // namespace gmamba
