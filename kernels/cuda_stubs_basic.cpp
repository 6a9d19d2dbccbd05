// SPDX-License-Identifier: Apache-2.0
/// Stand-ins for the CUDA bodies in a build without CUDA: each says that it is one.
#include "kernels/cuda_basic.h"
#include "kernels/cuda_replay.h"
#include "kernels/cuda_sequence.h"
#include "kernels/exp_rate.h"

namespace gmamba::cuda {
namespace {

[[noreturn]] void refuse(const char* operation) {
  fail(ErrorKind::kUnsupported, operation,
       ": this build of gmamba has no CUDA support; run on --device cpu");
}

}  // namespace

void linear_forward(Context&, ConstTensorView, ConstTensorView, ConstTensorView, TensorView) {
  refuse("linear_forward");
}
void linear_backward_input(Context&, ConstTensorView, ConstTensorView, TensorView, GradMode) {
  refuse("linear_backward_input");
}
void linear_backward_weight(Context&, ConstTensorView, ConstTensorView, TensorView, TensorView,
                            GradMode) {
  refuse("linear_backward_weight");
}
bool linear_backward(Context&, const LinearBackward&) { refuse("linear_backward"); }
void rms_norm_forward(Context&, const RmsNormForward&) { refuse("rms_norm_forward"); }
void rms_norm_backward(Context&, const RmsNormBackward&) { refuse("rms_norm_backward"); }
void embedding_forward(Context&, ConstTensorView, ConstTensorView, TensorView) {
  refuse("embedding_forward");
}
void embedding_backward(Context&, ConstTensorView, ConstTensorView, TensorView, GradMode) {
  refuse("embedding_backward");
}
void cross_entropy(Context&, const CrossEntropy&) { refuse("cross_entropy"); }
void adamw_step(Context&, const AdamW&) { refuse("adamw_step"); }
void global_norm(Context&, ConstTensorView, TensorView) { refuse("global_norm"); }
void pool_update(Context&, const PoolUpdate&) { refuse("pool_update"); }
void pool_finish(Context&, PoolMode, ConstTensorView, ConstTensorView, TensorView) {
  refuse("pool_finish");
}
void pool_backward(Context&, const PoolBackward&) { refuse("pool_backward"); }
void conv1d_forward(Context&, const Conv1dForward&) { refuse("conv1d_forward"); }
void conv1d_backward(Context&, const Conv1dBackward&) { refuse("conv1d_backward"); }
bool conv_projection_forward(Context&, const ConvProjectionForward&) {
  refuse("conv_projection_forward");
}
bool conv_projection_backward(Context&, const ConvProjectionBackward&) {
  refuse("conv_projection_backward");
}
void decay_rates_forward(Context&, ConstTensorView, TensorView) { refuse("decay_rates_forward"); }
void decay_rates_backward(Context&, ConstTensorView, ConstTensorView, TensorView) {
  refuse("decay_rates_backward");
}
void convert(Context&, ConstTensorView, TensorView) { refuse("convert"); }
void replay(Context&, PassKey, const std::function<void()>&) { refuse("replay"); }
void allow_replay(Context&, bool) { refuse("allow_replay"); }
ReplayCounts replay_counts(Context&) { refuse("replay_counts"); }
double measure_exp_rate(Context&) { refuse("measure_exp_rate"); }

}  // namespace gmamba::cuda
