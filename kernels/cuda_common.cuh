// SPDX-License-Identifier: Apache-2.0
/// What all CUDA bodies share: launch checks, 16-byte loads and stores of float and bf16 as floats,
/// reductions over warps and blocks in fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>

#include "libmamba/core/context.h"

namespace gmamba::cuda {

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kWarp = 32;

template <class A, class B>
constexpr int64_t ceil_div(A a, B b) {
  return (static_cast<int64_t>(a) + static_cast<int64_t>(b) - 1) / static_cast<int64_t>(b);
}

// ---- host side

inline void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) [[unlikely]] {
    cudaGetLastError();
    fail(ErrorKind::kDevice, what, ": ", cudaGetErrorString(result));
  }
}

/// The context's stream, its device made current: call before every launch.
inline cudaStream_t stream_of(const Context& ctx) {
  ctx.backend().make_current(ctx.device().index);
  return static_cast<cudaStream_t>(ctx.stream());
}

/// After every launch: throws kDevice naming the kernel and the parts of its shape. With
/// GMAMBA_CUDA_SYNC set in the environment it waits for the kernel, so that a fault is found where
/// it happens.
template <class... Parts>
void check_launch(const Context& ctx, const char* kernel, const Parts&... shape) {
  static const bool wait = std::getenv("GMAMBA_CUDA_SYNC") != nullptr;
  cudaError_t result = cudaGetLastError();
  if (result == cudaSuccess && wait) {
    result = cudaStreamSynchronize(static_cast<cudaStream_t>(ctx.stream()));
  }
  if (result != cudaSuccess) [[unlikely]] {
    fail(ErrorKind::kDevice, "CUDA kernel ", kernel, " over ", concat(shape...), " on ",
         to_string(ctx.device()), ": ", cudaGetErrorString(result));
  }
}

/// A property of the context's device.
inline int device_attribute(const Context& ctx, cudaDeviceAttr which, const char* what) {
  ctx.backend().make_current(ctx.device().index);
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "asking for the current GPU");
  check(cudaDeviceGetAttribute(&value, which, device), what);
  return value;
}
inline int multiprocessors(const Context& ctx) {
  return device_attribute(ctx, cudaDevAttrMultiProcessorCount,
                          "asking for the GPU's multiprocessors");
}
/// Bytes of shared memory that a block may ask for.
inline int most_shared_bytes(const Context& ctx) {
  return device_attribute(ctx, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                          "asking for the GPU's shared memory");
}

/// True when `view`'s rows all start on a multiple of `bytes`, so that vectors of that size fit.
template <class T, int Rank>
bool aligned(const View<T, Rank>& view, int64_t bytes) {
  if (view.empty()) return true;
  const int64_t size = sizeof(T);
  bool fits = reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bytes) == 0;
  for (int i = 0; i < Rank - 1; ++i) {
    fits = fits && (view.extent[i] <= 1 || view.stride[i] * size % bytes == 0);
  }
  return fits;
}

/// Calls body with a value of the element type that `dtype` names: float or bf16.
template <class Body>
void over_activation(DType dtype, Body&& body) {
  if (dtype == DType::kBF16) {
    body(bf16{});
  } else {
    body(float{});
  }
}

// ---- device side

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ inline void store_as(float* to, float value) { *to = value; }
__device__ inline void store_as(bf16* to, float value) {
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

/// Two floats in the 32 bits of two bf16, the first in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// N elements from aligned memory: 16 bytes at a time where N allows.
template <int N>
__device__ inline void load_floats(const float* from, float (&to)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else if constexpr (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const float2 v = *reinterpret_cast<const float2*>(from + i);
      to[i] = v.x, to[i + 1] = v.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from[i];
  }
}

__device__ inline void unpack_bf16(uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000U);
}

template <int N>
__device__ inline void load_floats(const bf16* from, float (&to)[N]) {
  if constexpr (N % 8 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 8) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i);
      unpack_bf16(v.x, to[i], to[i + 1]);
      unpack_bf16(v.y, to[i + 2], to[i + 3]);
      unpack_bf16(v.z, to[i + 4], to[i + 5]);
      unpack_bf16(v.w, to[i + 6], to[i + 7]);
    }
  } else if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const uint2 v = *reinterpret_cast<const uint2*>(from + i);
      unpack_bf16(v.x, to[i], to[i + 1]);
      unpack_bf16(v.y, to[i + 2], to[i + 3]);
    }
  } else if constexpr (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      unpack_bf16(*reinterpret_cast<const uint32_t*>(from + i), to[i], to[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = as_float(from[i]);
  }
}

template <int N>
__device__ inline void store_floats(float* to, const float (&from)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      *reinterpret_cast<float4*>(to + i) =
          make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  } else if constexpr (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      *reinterpret_cast<float2*>(to + i) = make_float2(from[i], from[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from[i];
  }
}

template <int N>
__device__ inline void store_floats(bf16* to, const float (&from)[N]) {
  if constexpr (N % 8 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 8) {
      *reinterpret_cast<uint4*>(to + i) =
          make_uint4(pack_bf16(from[i], from[i + 1]), pack_bf16(from[i + 2], from[i + 3]),
                     pack_bf16(from[i + 4], from[i + 5]), pack_bf16(from[i + 6], from[i + 7]));
    }
  } else if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      *reinterpret_cast<uint2*>(to + i) =
          make_uint2(pack_bf16(from[i], from[i + 1]), pack_bf16(from[i + 2], from[i + 3]));
    }
  } else if constexpr (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      *reinterpret_cast<uint32_t*>(to + i) = pack_bf16(from[i], from[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) store_as(to + i, from[i]);
  }
}

/// Sum over the warp, the same bits in every lane.
template <class Real>
__device__ inline Real warp_sum(Real value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

/// Sum over a block of `Threads` threads, in every thread; `scratch` is shared, one Real per warp,
/// and free again when the call returns.
template <int Threads, class Real>
__device__ inline Real block_sum(Real value, Real* scratch) {
  constexpr int kWarps = Threads / kWarp;
  static_assert(Threads % kWarp == 0);
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  Real sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += scratch[i];
  __syncthreads();
  return sum;
}

__device__ inline float sigmoid(float v) { return 1.0F / (1.0F + __expf(-v)); }

}  // namespace gmamba::cuda
