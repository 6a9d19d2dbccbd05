// SPDX-License-Identifier: Apache-2.0
/// CUDA bodies of the operations along the sequence: scan and convolution. The public functions
/// check their arguments and come here when the context is on a GPU; a build without CUDA links
/// cuda_stubs_*.cpp in their place.
#pragma once

#include "kernels/conv1d.h"
#include "kernels/conv_projection.h"
#include "kernels/delta_projection.h"
#include "kernels/selective_scan.h"

namespace gmamba::cuda {

void selective_scan_forward(Context& ctx, const SelectiveScanForward& args);
void selective_scan_backward(Context& ctx, const SelectiveScanBackward& args);
void selective_scan_summarise(Context& ctx, const SelectiveScanForward& piece, TensorView delta_sum,
                              TensorView state);
void selective_scan_summarise_backward(Context& ctx, const SelectiveScanBackward& piece,
                                       TensorView delta_sum, TensorView dstate);
void selective_scan_combine(Context& ctx, ConstTensorView A, ConstTensorView delta_sum,
                            ConstTensorView local, ConstTensorView before, TensorView after);
/// Where delta_projection_fits says so.
void delta_projection(Context& ctx, const DeltaProjection& args);
void conv1d_forward(Context& ctx, const Conv1dForward& args);
void conv1d_backward(Context& ctx, const Conv1dBackward& args);
/// False, with nothing done, where the kernels of both together do not apply.
bool conv_projection_forward(Context& ctx, const ConvProjectionForward& args);
bool conv_projection_backward(Context& ctx, const ConvProjectionBackward& args);

}  // namespace gmamba::cuda
