// SPDX-License-Identifier: Apache-2.0
/// What the forward and the backward bodies of the selective scan share: layouts of a unit's
/// scratch, transposed loads and stores of states, and the decays of a group of states.
/// Layout  a unit's channels lie in vectors v of kLanes channels; an array over positions is
///         [v][t][lane], one over states [v][n][lane]
#include "kernels/selective_scan_cpu.h"
#include "kernels/simd_targets.h"

// The guard toggles, because the file is read once per instruction set.
#if defined(GMAMBA_KERNELS_SELECTIVE_SCAN_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GMAMBA_KERNELS_SELECTIVE_SCAN_TILE_INL_H_
#undef GMAMBA_KERNELS_SELECTIVE_SCAN_TILE_INL_H_
#else
#define GMAMBA_KERNELS_SELECTIVE_SCAN_TILE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "kernels/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Lanes()));
static_assert(cpu::kScanBlock % kLanes == 0);
constexpr int64_t kBlockVectors = cpu::kScanBlock / kLanes;

constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;

/// Offset of vector v at position or state i in an array of `extent` of them.
HWY_INLINE int64_t at(int64_t extent, int64_t v, int64_t i) { return (v * extent + i) * kLanes; }

/// Channels [begin, begin + width) of batch row b.
struct Channels {
  int64_t b;
  int64_t begin;
  int64_t width;
  int64_t vectors() const { return (width + kLanes - 1) / kLanes; }
  int64_t count(int64_t v) const { return std::min(kLanes, width - v * kLanes); }
};

/// The first `count` lanes from memory, zeros above.
HWY_INLINE Vector load_part(const float* from, int64_t count) {
  const Lanes d;
  if (HWY_LIKELY(count >= kLanes)) return hn::LoadU(d, from);
  HWY_ALIGN float part[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return hn::Load(d, part);
}

/// The first `count` lanes to memory.
HWY_INLINE void store_part(Vector value, float* to, int64_t count) {
  const Lanes d;
  if (HWY_LIKELY(count >= kLanes)) {
    hn::StoreU(value, d, to);
    return;
  }
  HWY_ALIGN float part[kLanes];
  hn::Store(value, d, part);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

#if HWY_TARGET != HWY_SCALAR

/// 128-bit block k of the result holds four floats from row 4k, rows `stride` apart.
template <class D>
HWY_INLINE hn::Vec<D> load_rows(D d, const float* from, int64_t stride) {
  constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));
  if constexpr (lanes == 4) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, load_rows(half, from + lanes / 2 * stride, stride),
                       load_rows(half, from, stride));
  }
}

template <class D>
HWY_INLINE void store_rows(D d, hn::Vec<D> value, float* to, int64_t stride) {
  constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));
  if constexpr (lanes == 4) {
    hn::StoreU(value, d, to);
  } else {
    const hn::Half<D> half;
    store_rows(half, hn::LowerHalf(half, value), to, stride);
    store_rows(half, hn::UpperHalf(half, value), to + lanes / 2 * stride, stride);
  }
}

/// Transposes the 4x4 matrix in each 128-bit block of four vectors.
template <class D>
HWY_INLINE void transpose_blocks(D d, hn::Vec<D> (&x)[4]) {
  const auto a = hn::InterleaveLower(d, x[0], x[2]);
  const auto b = hn::InterleaveLower(d, x[1], x[3]);
  const auto c = hn::InterleaveUpper(d, x[0], x[2]);
  const auto e = hn::InterleaveUpper(d, x[1], x[3]);
  x[0] = hn::InterleaveLower(d, a, b);
  x[1] = hn::InterleaveUpper(d, a, b);
  x[2] = hn::InterleaveLower(d, c, e);
  x[3] = hn::InterleaveUpper(d, c, e);
}

#endif  // HWY_SCALAR

/// to[v][n][lane] = from[channel][n] * scale for `width` channels, zeros in lanes above.
HWY_INLINE void load_states(const float* from, int64_t stride, int64_t width, int64_t d_state,
                            float scale, float* HWY_RESTRICT to) {
  for (int64_t v = 0; v * kLanes < width; ++v) {
    const float* const rows = from + v * kLanes * stride;
    const int64_t count = std::min(kLanes, width - v * kLanes);
    int64_t n = 0;
#if HWY_TARGET != HWY_SCALAR
    const Lanes d;
    for (; count == kLanes && n + 4 <= d_state; n += 4) {
      Vector x[4];
      for (int64_t i = 0; i < 4; ++i) x[i] = load_rows(d, rows + i * stride + n, stride);
      transpose_blocks(d, x);
      for (int64_t i = 0; i < 4; ++i) {
        hn::Store(hn::Mul(x[i], hn::Set(d, scale)), d, to + at(d_state, v, n + i));
      }
    }
#endif
    for (; n < d_state; ++n) {
      float* const lanes = to + at(d_state, v, n);
      for (int64_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? rows[i * stride + n] * scale : 0;
    }
  }
}

/// to[channel][n] = from[v][n][lane] for `width` channels.
HWY_INLINE void store_states(const float* HWY_RESTRICT from, int64_t width, int64_t d_state,
                             float* to, int64_t stride) {
  for (int64_t v = 0; v * kLanes < width; ++v) {
    float* const rows = to + v * kLanes * stride;
    const int64_t count = std::min(kLanes, width - v * kLanes);
    int64_t n = 0;
#if HWY_TARGET != HWY_SCALAR
    const Lanes d;
    for (; count == kLanes && n + 4 <= d_state; n += 4) {
      Vector x[4];
      for (int64_t i = 0; i < 4; ++i) x[i] = hn::Load(d, from + at(d_state, v, n + i));
      transpose_blocks(d, x);
      for (int64_t i = 0; i < 4; ++i) store_rows(d, x[i], rows + i * stride + n, stride);
    }
#endif
    for (; n < d_state; ++n) {
      const float* const lanes = from + at(d_state, v, n);
      for (int64_t i = 0; i < count; ++i) rows[i * stride + n] = lanes[i];
    }
  }
}

/// decay[g] = 2^(delta * A[g]), A scaled by log2(e). The steps of the G exponentials are written
/// side by side, so that independent instructions stand next to each other. Unguarded exponents
/// must lie in [-126, 126].
template <int G, bool kGuarded>
HWY_INLINE void decays(Vector delta, const float* HWY_RESTRICT A, Vector (&decay)[G]) {
  const Lanes d;
  Vector x[G];
  for (int g = 0; g < G; ++g) x[g] = hn::Mul(delta, hn::Load(d, A + g * kLanes));
  if constexpr (kGuarded) {
    for (int g = 0; g < G; ++g) decay[g] = Exp2(d, x[g]);
  } else {
    Exp2InRange(d, x, decay);
  }
}

/// Runs body.template operator()<G>(n) over groups of at most kMost states that cover d_state.
template <int kMost, class Body>
HWY_INLINE void for_state_groups(int64_t d_state, Body&& body) {
  int64_t n = 0;
  for (; n + kMost <= d_state; n += kMost) body.template operator()<kMost>(n);
  if constexpr (kMost > 4) {
    if (n + 4 <= d_state) {
      body.template operator()<4>(n);
      n += 4;
    }
  }
  switch (d_state - n) {
    case 3:
      body.template operator()<3>(n);
      break;
    case 2:
      body.template operator()<2>(n);
      break;
    case 1:
      body.template operator()<1>(n);
      break;
    default:
      break;
  }
}

/// Whether delta * A of every state of a vector of channels stays within +-126 (base 2), given the
/// largest delta and the largest |A| of each channel. False for NaN.
HWY_INLINE bool exponents_in_range(Vector largest_delta, Vector largest_A) {
  const Lanes d;
  return hn::AllTrue(d, hn::Le(hn::Mul(largest_delta, largest_A), hn::Set(d, 126.0F)));
}

/// largest[v][lane] = max over n of |A|.
HWY_INLINE void largest_rates(const float* HWY_RESTRICT A, int64_t vectors, int64_t d_state,
                              float* HWY_RESTRICT largest) {
  const Lanes d;
  for (int64_t v = 0; v < vectors; ++v) {
    Vector most = hn::Zero(d);
    for (int64_t n = 0; n < d_state; ++n) {
      const Vector rate = hn::Abs(hn::Load(d, A + at(d_state, v, n)));
      most = hn::IfThenElse(hn::Le(rate, most), most, rate);  // keeps a NaN
    }
    hn::Store(most, d, largest + v * kLanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#endif  // GMAMBA_KERNELS_SELECTIVE_SCAN_TILE_INL_H_
