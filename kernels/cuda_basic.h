// SPDX-License-Identifier: Apache-2.0
/// The CUDA bodies of the operations other than scan and convolution. The public functions check
/// their arguments and come here when the context is on a GPU; a build without CUDA links
/// cuda_stubs_basic.cpp in their place.
#pragma once

#include "kernels/adamw.h"
#include "kernels/convert.h"
#include "kernels/cross_entropy.h"
#include "kernels/decay_rates.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"
#include "kernels/linear_backward.h"
#include "kernels/pool.h"
#include "kernels/rms_norm.h"

namespace gmamba::cuda {

void linear_forward(Context& ctx, ConstTensorView x, ConstTensorView weight, ConstTensorView bias,
                    TensorView y);
void linear_backward_input(Context& ctx, ConstTensorView dy, ConstTensorView weight, TensorView dx,
                           GradMode mode);
void linear_backward_weight(Context& ctx, ConstTensorView dy, ConstTensorView x, TensorView dweight,
                            TensorView dbias, GradMode mode);
/// False, with nothing done, where the kernel of both gradients does not apply.
bool linear_backward(Context& ctx, const LinearBackward& args);
void rms_norm_forward(Context& ctx, const RmsNormForward& args);
void rms_norm_backward(Context& ctx, const RmsNormBackward& args);
void embedding_forward(Context& ctx, ConstTensorView tokens, ConstTensorView table, TensorView y);
void embedding_backward(Context& ctx, ConstTensorView tokens, ConstTensorView dy, TensorView dtable,
                        GradMode mode);
void cross_entropy(Context& ctx, const CrossEntropy& args);
void adamw_step(Context& ctx, const AdamW& args);
void global_norm(Context& ctx, ConstTensorView values, TensorView norm);
void pool_update(Context& ctx, const PoolUpdate& args);
void pool_finish(Context& ctx, PoolMode mode, ConstTensorView accumulator, ConstTensorView lengths,
                 TensorView pooled);
void pool_backward(Context& ctx, const PoolBackward& args);
void decay_rates_forward(Context& ctx, ConstTensorView A_log, TensorView A);
void decay_rates_backward(Context& ctx, ConstTensorView dA, ConstTensorView A, TensorView dA_log);
void convert(Context& ctx, ConstTensorView from, TensorView to);

}  // namespace gmamba::cuda
