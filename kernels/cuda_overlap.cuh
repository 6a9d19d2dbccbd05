// SPDX-License-Identifier: Apache-2.0
/// Kernels that begin while the one before them ends (programmatic dependent launch, sm_90 and
/// newer): the start of a grid, some microseconds, is spent beside the last blocks of its
/// predecessor. On older GPUs they follow each other as ever.
#pragma once

#include "kernels/cuda_common.cuh"

namespace gmamba::cuda {

/// First statement of a kernel that start_overlapping launches: nothing of memory may be touched
/// before it. Lets the next such kernel begin as soon as all blocks of this one have, and waits
/// until the kernel before is done and its writes are seen.
__device__ inline void after_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Its halves. A kernel may wait later, and first do what does not depend on the kernel before, if
/// all that it reads until then is known to be done. That it is, a kernel ahead of it sees to by
/// taking the halves in the other order: what follows begins when all that came before is done.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// True when the device of the calling thread can overlap kernels.
inline bool kernels_overlap() {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), "asking for the GPU in use");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "asking for the kind of a GPU");
  return major >= 9;
}

/// Launches a kernel that begins with after_previous_kernel.
template <class... Parameters, class... Arguments>
void start_overlapping(cudaStream_t stream, void (*kernel)(Parameters...), dim3 blocks,
                       dim3 threads, int shared_bytes, const Arguments&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = kernels_overlap() ? 1 : 0;
  // an error is the caller's check_launch to report
  (void)cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace gmamba::cuda
