// SPDX-License-Identifier: Apache-2.0
/// Matrix products whose inner extent is small (the rank of the step-size projection, a
/// vocabulary):
///   c = a b + bias   or   c += a b
/// A general BLAS spends more on setting up such a product than on computing it. Here b is packed
/// once into panels, the sums of 4 rows stay in registers and c is written once.
/// Shapes  a (M, K) rows strided  b (K, N)  bias (N)  c (M, N) rows strided
/// Limits  K <= kNarrowInner; pays from kNarrowRows rows on
#pragma once

#include <cstdint>

#include "libmamba/core/tensor.h"

namespace gmamba {

constexpr int64_t kNarrowInner = 48;
constexpr int64_t kNarrowRows = 32;

/// Floats that pack_narrow writes.
int64_t narrow_packed_size(int64_t inner, int64_t columns);

/// Packs b, given as (K, N) or, when `transposed`, as (N, K), and bias (null: zeros).
void pack_narrow(View<const float, 2> b, bool transposed, const float* bias, float* packed);

/// Rows of c from rows of a; `accumulate` adds to c instead of replacing it.
void narrow_product(View<const float, 2> a, const float* packed, View<float, 2> c, bool accumulate);

}  // namespace gmamba
