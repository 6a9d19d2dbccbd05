// SPDX-License-Identifier: Apache-2.0
/// Which instruction sets the vector code is compiled for. Include this before any Highway header,
/// in every file that uses one, so that all of them agree. On x86-64: the baseline, SSE4, AVX2 and
/// AVX-512 (Skylake's), picked when the program runs; on aarch64: NEON. Vectors whose size the
/// compiler doesn't know (SVE, RVV) can't be kept in arrays and are left out.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
