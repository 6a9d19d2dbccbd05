// SPDX-License-Identifier: Apache-2.0
/// Stand-ins for the CUDA bodies of the scan in a build without CUDA: each says that it is one.
#include "kernels/cuda_sequence.h"

namespace gmamba::cuda {
namespace {

[[noreturn]] void refuse(const char* operation) {
  fail(ErrorKind::kUnsupported, operation,
       ": this build of gmamba has no CUDA support; run on --device cpu");
}

}  // namespace

void selective_scan_forward(Context&, const SelectiveScanForward&) {
  refuse("selective_scan_forward");
}
void selective_scan_backward(Context&, const SelectiveScanBackward&) {
  refuse("selective_scan_backward");
}
void selective_scan_summarise(Context&, const SelectiveScanForward&, TensorView, TensorView) {
  refuse("selective_scan_summarise");
}
void selective_scan_summarise_backward(Context&, const SelectiveScanBackward&, TensorView,
                                       TensorView) {
  refuse("selective_scan_summarise_backward");
}
void selective_scan_combine(Context&, ConstTensorView, ConstTensorView, ConstTensorView,
                            ConstTensorView, TensorView) {
  refuse("selective_scan_combine");
}
void delta_projection(Context&, const DeltaProjection&) { refuse("delta_projection"); }

}  // namespace gmamba::cuda
