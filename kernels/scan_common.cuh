// SPDX-License-Identifier: Apache-2.0
/// What the kernels of the selective scan share: rows over positions, scalar math on the
/// exponential unit, loads and stores with and without alignment, tiles of B and C.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/scan_ptx.cuh"
#include "libmamba/core/dtype.h"

namespace gmamba::cuda::scan {

constexpr unsigned kFullWarp = 0xffffffffU;
constexpr float kLog2e = 1.44269504088896341F;
constexpr float kLn2 = 0.69314718055994531F;

/// Elements (i, j, 0), (i, j, 1), ... of an array of rank 3 whose last axis is contiguous:
/// positions of a batch row, or channels of a state.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t outer = 0;  // elements from i to i + 1
  int64_t inner = 0;  // elements from j to j + 1, below 2^29

  __host__ __device__ bool empty() const { return data == nullptr; }
  __device__ T* at(int64_t i, int64_t j) const { return data + i * outer + j * inner; }
};

/// Warps of a team, one for each scheduler of an SM. Blocks are of one team or of several.
constexpr int kTeamWarps = 4;

/// Positions by which chunks may differ. Also those between two saved states.
constexpr int64_t kChunkTile = 16;

/// The first position of chunk `chunk`, the first `longer` of which are a tile longer than
/// `length`.
__device__ inline int64_t chunk_begin(int64_t chunk, int64_t length, int64_t longer) {
  return chunk * length + min(chunk, longer) * kChunkTile;
}
/// Its positions, of `total` in all.
__device__ inline int chunk_steps(int64_t chunk, int64_t length, int64_t longer, int64_t total) {
  const int64_t begin = chunk_begin(chunk, length, longer);
  return static_cast<int>(min(total - begin, length + (chunk < longer ? kChunkTile : 0)));
}

// ---- scalar math. NaN goes through all of it.

/// 2^(delta A), by which a state decays at a position. Where that is nearly 1 a walk gathers the
/// error of thousands of them, and ex2 is too small there: by 5 to 8e-9 on average for exponents
/// from -2^-16 to -2^-8 (an H100; a tenth of a unit in the last place). The exponent makes up for
/// it without an instruction.
__device__ inline float decay(float delta, float A) {
  constexpr float kShort = 8e-9F;
  return ex2(fmaf(delta, A, kShort));
}

/// log(1 + exp(x)) / `unit`, from x and t = exp(-|x|) with x in the same unit, for activations T.
/// f32: relative error a few 1e-7 also for the small deltas of long memories, by
/// log1p(t) = 2 atanh(t / (2 + t)) and a polynomial of degree 4 in the square. bf16: log1p(t) / t
/// as a polynomial of degree 6 that is 1 at 0, relative error at most 1.5e-6; no reciprocal.
template <class T>
__device__ inline float softplus_of(float x, float t, float unit) {
  if constexpr (sizeof(T) == 4) {
    const float s = t * reciprocal(2.0F + t);
    const float q = s * s;
    float p = 2.81577784e-1F / unit;
    p = fmaf(p, q, 2.79651577e-1F / unit);
    p = fmaf(p, q, 4.00245952e-1F / unit);
    p = fmaf(p, q, 6.66663216e-1F / unit);
    p = fmaf(p, q, 2.00000001F / unit);
    return fmaf(s, p, fmaxf(x, 0.0F));
  } else {
    float p = 1.45883383e-2F / unit;
    p = fmaf(p, t, -6.78512615e-2F / unit);
    p = fmaf(p, t, 1.51027758e-1F / unit);
    p = fmaf(p, t, -2.36113468e-1F / unit);
    p = fmaf(p, t, 3.31404272e-1F / unit);
    p = fmaf(p, t, -4.99907469e-1F / unit);
    p = fmaf(p, t, 1.0F / unit);
    return fmaf(t, p, fmaxf(x, 0.0F));
  }
}
/// log(1 + exp(x)), as exact as activations T ask for.
template <class T>
__device__ inline float softplus(float x) {
  return softplus_of<T>(x, ex2(-kLog2e * fabsf(x)), 1.0F);
}
/// log2(1 + 2^x): softplus in units of log(2), in which the exponential unit computes.
template <class T>
__device__ inline float softplus2(float x) {
  return softplus_of<T>(x, ex2(-fabsf(x)), kLn2);
}

/// delta as the scan uses it, from what comes in: `ready` (bf16 alone), or before bias and
/// softplus.
template <class T>
__device__ inline float delta_of(float v, float bias, bool ready) {
  return sizeof(T) == 2 && ready ? v : softplus<T>(v + bias);
}

/// 1 - exp(-d) for d >= 0, which is sigmoid(x) where d = softplus(x).
__device__ inline float one_minus_exp(float d) {
  float p = -1.12340422e-3F;
  p = fmaf(p, d, 8.18961363e-3F);
  p = fmaf(p, d, -4.16300728e-2F);
  p = fmaf(p, d, 1.66662419e-1F);
  p = fmaf(p, d, -4.99999819e-1F);
  p = fmaf(p, d, 1.0F);
  return d < 0.5F ? p * d : 1.0F - ex2(-kLog2e * d);
}

/// The same within 2^-14, which does beside activations of bf16.
__device__ inline float about_one_minus_exp(float d) {
  return d < 0.015625F ? fmaf(-0.5F * d, d, d) : 1.0F - ex2(-kLog2e * d);
}

__device__ inline float sigmoid(float x) { return reciprocal(1.0F + ex2(-kLog2e * x)); }

// ---- conversion

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
template <class T>
__device__ inline T narrow(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  }
}
__device__ inline uint32_t narrow_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// One, two or four neighbouring elements as they lie in memory.
template <class T, int Count>
struct Packed;
template <>
struct Packed<float, 2> {
  float2 raw;
  __device__ void widen(float (&to)[2]) const { to[0] = raw.x, to[1] = raw.y; }
  __device__ static Packed of(const float (&v)[2]) { return {make_float2(v[0], v[1])}; }
};
template <>
struct Packed<float, 4> {
  float4 raw;
  __device__ void widen(float (&to)[4]) const {
    to[0] = raw.x, to[1] = raw.y, to[2] = raw.z, to[3] = raw.w;
  }
  __device__ static Packed of(const float (&v)[4]) { return {make_float4(v[0], v[1], v[2], v[3])}; }
};
template <>
struct Packed<bf16, 1> {
  uint16_t raw;
  __device__ void widen(float (&to)[1]) const { to[0] = gmamba::cuda::scan::widen(bf16{raw}); }
  __device__ static Packed of(const float (&v)[1]) { return {narrow<bf16>(v[0]).bits}; }
};
template <>
struct Packed<bf16, 2> {
  uint32_t raw;
  __device__ void widen(float (&to)[2]) const {
    to[0] = __uint_as_float(raw << 16), to[1] = __uint_as_float(raw & 0xffff0000U);
  }
  __device__ static Packed of(const float (&v)[2]) { return {narrow_pair(v[0], v[1])}; }
};
template <>
struct Packed<bf16, 4> {
  uint2 raw;
  __device__ void widen(float (&to)[4]) const {
    to[0] = __uint_as_float(raw.x << 16), to[1] = __uint_as_float(raw.x & 0xffff0000U);
    to[2] = __uint_as_float(raw.y << 16), to[3] = __uint_as_float(raw.y & 0xffff0000U);
  }
  __device__ static Packed of(const float (&v)[4]) {
    return {make_uint2(narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]))};
  }
};

/// Count elements from `from`: one access when kVector, else element by element, with the last of
/// `valid` elements in place of those behind it (they are computed on, never stored).
template <int Count, bool kVector, class T>
__device__ inline Packed<T, Count> load_packed(const T* from, int valid) {
  Packed<T, Count> packed;
  if constexpr (kVector) {
    packed = *reinterpret_cast<const Packed<T, Count>*>(from);
  } else {
    T* const to = reinterpret_cast<T*>(&packed);
#pragma unroll
    for (int i = 0; i < Count; ++i) to[i] = from[i < valid ? i : valid - 1];
  }
  return packed;
}
template <int Count, bool kVector, class T>
__device__ inline void store_packed(T* to, int valid, const float (&values)[Count]) {
  if constexpr (kVector) {
    *reinterpret_cast<Packed<T, Count>*>(to) = Packed<T, Count>::of(values);
  } else {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if (i < valid) to[i] = narrow<T>(values[i]);
    }
  }
}

template <int Count>
__device__ inline void load_shared(const float* from, float (&to)[Count]) {
  static_assert(Count % 4 == 0 || Count == 2 || Count == 1);
  if constexpr (Count % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else if constexpr (Count == 2) {
    const float2 v = *reinterpret_cast<const float2*>(from);
    to[0] = v.x, to[1] = v.y;
  } else {
    to[0] = from[0];
  }
}
template <int Count>
__device__ inline void store_shared(float* to, const float (&from)[Count]) {
  static_assert(Count % 4 == 0 || Count == 2 || Count == 1);
  if constexpr (Count % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
      *reinterpret_cast<float4*>(to + i) =
          make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  } else if constexpr (Count == 2) {
    *reinterpret_cast<float2*>(to) = make_float2(from[0], from[1]);
  } else {
    to[0] = from[0];
  }
}

/// Count fp32 values of a state from global memory, zeros from `valid` on.
template <int Count, bool kVector>
__device__ inline void load_state(const float* from, int valid, float (&to)[Count]) {
  if constexpr (kVector) {
    load_shared(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < Count; ++i) to[i] = i < valid ? from[i] : 0.0F;
  }
}
template <int Count, bool kVector>
__device__ inline void store_state(float* to, int valid, const float (&from)[Count]) {
  if constexpr (kVector) {
    store_shared(to, from);
  } else {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if (i < valid) to[i] = from[i];
    }
  }
}

/// Rows [first, first + kRows) of one array (L, N) of a batch row, as fp32 with row stride kStride
/// in shared memory, by `threads` threads; zeros outside [0, length) and in columns from n on.
template <int kRows, int kColumns, int kStride, bool kVector, class T>
__device__ inline void stage_tile(float* to, const T* from, int64_t row_stride, int64_t first,
                                  int64_t length, int n, int thread, int threads) {
  constexpr int kQuads = kColumns / 4;
  for (int i = thread; i < kRows * kQuads; i += threads) {
    const int row = i / kQuads;
    const int column = i % kQuads * 4;
    float v[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    const int64_t t = first + row;
    if (t >= 0 && t < length && column < n) {
      const T* const source = from + t * row_stride + column;
      if constexpr (kVector) {
        load_packed<4, true>(source, 4).widen(v);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (column + k < n) v[k] = widen(source[k]);
        }
      }
    }
    store_shared(to + row * kStride + column, v);
  }
}

}  // namespace gmamba::cuda::scan
