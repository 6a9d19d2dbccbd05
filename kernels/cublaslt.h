// SPDX-License-Identifier: Apache-2.0
/// Matrix products on the GPU through cuBLASLt, which is loaded at first use: a program built with
/// CUDA starts on machines without it. Plans are chosen once per shape and kept with the context.
/// Everything is row-major here:
///   c (M, N) = a b (+ bias) (+ c);   a (M, K) or given as (K, M);  b (K, N) or given as (N, K)
/// Reductions are those that give the same bits every time (no atomics).
#pragma once

#include <cstdint>

#include "libmamba/core/context.h"

namespace gmamba::cuda {

/// One matrix in memory: its address, distance of rows, and distance of batch items, in elements.
struct GemmMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;
  int64_t batch_stride = 0;
};

struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  int64_t batch = 1;
  bool a_is_transposed = false;  ///< a is stored as (K, M)
  bool b_is_transposed = false;  ///< b is stored as (N, K)
  GemmMatrix a, b, c;            ///< a and b of one type; c of that type or f32
  const void* bias = nullptr;    ///< (N) in the type of c, or null
  bool accumulate = false;       ///< c += instead of c =
};

/// Throws kUnsupported when the library is missing, kDevice when it refuses.
void gemm(Context& ctx, const Gemm& args);

}  // namespace gmamba::cuda
