// SPDX-License-Identifier: Apache-2.0
/// CPU body of the selective scan, forward. A unit walks time in tiles; per tile it first computes
/// delta and delta * u of all its channels, then for each vector of channels walks the tile once
/// per group of states, which stay in registers, and last gates and stores y. Where there are too
/// few units, the length is cut in chunks that are summarised, combined and finished.
/// Floor   one exponential per state update; per vector of them 9 multiplies or fused multiply-adds
///         (argument 1, polynomial 5, delta B u 1, state 1, output 1), 5 other vector instructions
///         and 2 broadcast loads
#include "kernels/selective_scan_cpu.h"
#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/selective_scan_forward_cpu.cpp"
#include "hwy/foreach_target.h"
// after foreach_target
#include "kernels/selective_scan_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {
namespace {

using cpu::kScanBlock;
using cpu::kScanMaxState;
using cpu::kScanTile;
using cpu::ScanForwardJob;

/// States of a group: what the registers hold beside the polynomial.
constexpr int kForwardGroup = kLanes == 16 ? 8 : 4;

/// What a unit keeps while it walks. About 40 KB.
struct ForwardScratch {
  HWY_ALIGN float delta[kScanBlock * kScanTile];      // [v][t][lane]
  HWY_ALIGN float delta_u[kScanBlock * kScanTile];    // [v][t][lane]
  HWY_ALIGN float y[kScanBlock * kScanTile];          // [v][t][lane]
  HWY_ALIGN float A[kScanBlock * kScanMaxState];      // [v][n][lane], times log2(e)
  HWY_ALIGN float state[kScanBlock * kScanMaxState];  // [v][n][lane]
  HWY_ALIGN float largest_A[kScanBlock];              // [v][lane]
  HWY_ALIGN float largest_delta[kScanBlock];          // [v][lane], of the tile
  HWY_ALIGN float delta_sum[kScanBlock];              // [v][lane], of the stretch
};

/// delta, delta * u and the start of y (D * u) of `steps` positions from t0 on.
HWY_INLINE void prepare_tile(const ScanForwardJob& job, const Channels& channels, int64_t t0,
                             int64_t steps, ForwardScratch& scratch) {
  const Lanes d;
  const int64_t vectors = channels.vectors();
  Vector largest[kBlockVectors];
  Vector sum[kBlockVectors];
  for (int64_t v = 0; v < vectors; ++v) largest[v] = sum[v] = hn::Zero(d);
  for (int64_t t = 0; t < steps; ++t) {
    const float* const u_row = job.u.at(channels.b, t0 + t, channels.begin);
    const float* const delta_row = job.delta.at(channels.b, t0 + t, channels.begin);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t e = channels.begin + v * kLanes;
      const int64_t count = channels.count(v);
      const Vector u = load_part(u_row + v * kLanes, count);
      Vector raw = load_part(delta_row + v * kLanes, count);
      if (!job.bias.empty()) raw = hn::Add(raw, load_part(job.bias.at(e), count));
      const Vector delta = Softplus(d, raw);
      largest[v] = hn::Max(largest[v], delta);
      sum[v] = hn::Add(sum[v], delta);
      const int64_t place = at(kScanTile, v, t);
      hn::Store(delta, d, scratch.delta + place);
      hn::Store(hn::Mul(delta, u), d, scratch.delta_u + place);
      const Vector skip = job.D.empty() ? hn::Zero(d) : load_part(job.D.at(e), count);
      hn::Store(hn::Mul(skip, u), d, scratch.y + place);
    }
  }
  for (int64_t v = 0; v < vectors; ++v) {
    hn::Store(largest[v], d, scratch.largest_delta + v * kLanes);
    float* const total = scratch.delta_sum + v * kLanes;
    hn::Store(hn::Add(hn::Load(d, total), sum[v]), d, total);
  }
}

/// Walks a tile with the G states from n on of one vector of channels in registers.
template <int G, bool kGuarded, bool kOutput>
HWY_INLINE void walk_group(const float* HWY_RESTRICT delta, const float* HWY_RESTRICT delta_u,
                           const float* HWY_RESTRICT B, int64_t B_stride,
                           const float* HWY_RESTRICT C, int64_t C_stride,
                           const float* HWY_RESTRICT A, int64_t steps, float* HWY_RESTRICT state,
                           float* HWY_RESTRICT y) {
  const Lanes d;
  Vector h[G];
  for (int g = 0; g < G; ++g) h[g] = hn::Load(d, state + g * kLanes);
  for (int64_t t = 0; t < steps; ++t) {
    Vector a[G];
    decays<G, kGuarded>(hn::Load(d, delta + t * kLanes), A, a);
    const Vector x = hn::Load(d, delta_u + t * kLanes);
    for (int g = 0; g < G; ++g) {
      h[g] = hn::MulAdd(a[g], h[g], hn::Mul(x, hn::Set(d, B[t * B_stride + g])));
    }
    if constexpr (kOutput) {
      Vector sum = hn::Load(d, y + t * kLanes);
      for (int g = 0; g < G; ++g) sum = hn::MulAdd(hn::Set(d, C[t * C_stride + g]), h[g], sum);
      hn::Store(sum, d, y + t * kLanes);
    }
  }
  for (int g = 0; g < G; ++g) hn::Store(h[g], d, state + g * kLanes);
}

template <bool kGuarded, bool kOutput>
void walk_vector(const ScanForwardJob& job, int64_t b, int64_t v, int64_t t0, int64_t steps,
                 ForwardScratch& scratch) {
  const int64_t d_state = job.A.extent[1];
  const float* const B = job.B.at(b, t0);
  const float* const C = kOutput ? job.C.at(b, t0) : nullptr;
  for_state_groups<kForwardGroup>(d_state, [&]<int G>(int64_t n) HWY_ATTR {
    walk_group<G, kGuarded, kOutput>(
        scratch.delta + at(kScanTile, v, 0), scratch.delta_u + at(kScanTile, v, 0), B + n,
        job.B.stride[1], kOutput ? C + n : nullptr, job.C.stride[1], scratch.A + at(d_state, v, n),
        steps, scratch.state + at(d_state, v, n), scratch.y + at(kScanTile, v, 0));
  });
}

/// y, times silu(z) where there is a gate.
HWY_INLINE void store_output(const ScanForwardJob& job, const Channels& channels, int64_t t0,
                             int64_t steps, const ForwardScratch& scratch) {
  const Lanes d;
  for (int64_t t = 0; t < steps; ++t) {
    float* const y_row = job.y.at(channels.b, t0 + t, channels.begin);
    const float* const z_row =
        job.z.empty() ? nullptr : job.z.at(channels.b, t0 + t, channels.begin);
    for (int64_t v = 0; v < channels.vectors(); ++v) {
      Vector y = hn::Load(d, scratch.y + at(kScanTile, v, t));
      if (z_row != nullptr) {
        y = hn::Mul(y, Silu(d, load_part(z_row + v * kLanes, channels.count(v))));
      }
      store_part(y, y_row + v * kLanes, channels.count(v));
    }
  }
}

void walk_tile(const ScanForwardJob& job, const Channels& channels, int64_t t0, int64_t steps,
               ForwardScratch& scratch) {
  const Lanes d;
  const bool output = !job.y.empty();
  for (int64_t v = 0; v < channels.vectors(); ++v) {
    const bool in_range = exponents_in_range(hn::Load(d, scratch.largest_delta + v * kLanes),
                                             hn::Load(d, scratch.largest_A + v * kLanes));
    const auto walk = output ? (in_range ? walk_vector<false, true> : walk_vector<true, true>)
                             : (in_range ? walk_vector<false, false> : walk_vector<true, false>);
    walk(job, channels.b, v, t0, steps, scratch);
  }
}

/// One unit of a stretch.
void forward_unit(const ScanForwardJob& job, int64_t b, int64_t begin, int64_t width) {
  const int64_t length = job.u.extent[1];
  const int64_t d_state = job.A.extent[1];
  const Channels channels{b, begin, width};
  ForwardScratch scratch;
  std::fill_n(scratch.delta_sum, kScanBlock, 0.0F);
  load_states(job.A.at(begin), job.A.stride[0], width, d_state, kLog2E, scratch.A);
  largest_rates(scratch.A, channels.vectors(), d_state, scratch.largest_A);
  if (job.state_in.empty()) {
    std::fill_n(scratch.state, channels.vectors() * d_state * kLanes, 0.0F);
  } else {
    load_states(job.state_in.at(b, begin), job.state_in.stride[1], width, d_state, 1.0F,
                scratch.state);
  }
  for (int64_t t0 = 0; t0 < length; t0 += kScanTile) {
    const int64_t steps = std::min(kScanTile, length - t0);
    if (!job.saved.empty()) {
      store_states(scratch.state, width, d_state, job.saved.at(b, t0 / kScanTile, begin),
                   job.saved.stride[2]);
    }
    prepare_tile(job, channels, t0, steps, scratch);
    walk_tile(job, channels, t0, steps, scratch);
    if (!job.y.empty()) store_output(job, channels, t0, steps, scratch);
  }
  if (!job.state_out.empty()) {
    store_states(scratch.state, width, d_state, job.state_out.at(b, begin),
                 job.state_out.stride[1]);
  }
  if (!job.delta_sum.empty()) {
    std::copy_n(scratch.delta_sum, width, job.delta_sum.at(b, begin));
  }
}

/// after[n] = exp(A[n] * delta_sum) * before[n] + local[n], one channel.
void combine_channel(const float* A, float delta_sum, const float* local, const float* before,
                     float* after, int64_t d_state) {
  const Lanes d;
  for (int64_t n = 0; n < d_state; n += kLanes) {
    const int64_t count = std::min(kLanes, d_state - n);
    const Vector decay = Exp(d, hn::Mul(load_part(A + n, count), hn::Set(d, delta_sum)));
    const Vector state =
        hn::MulAdd(decay, load_part(before + n, count), load_part(local + n, count));
    store_part(state, after + n, count);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba::cpu {

HWY_EXPORT(forward_unit);
HWY_EXPORT(combine_channel);

void scan_forward_unit(const ScanForwardJob& job, int64_t b, int64_t begin, int64_t width) {
  HWY_DYNAMIC_DISPATCH(forward_unit)(job, b, begin, width);
}

void scan_combine_channel(const float* A, float delta_sum, const float* local, const float* before,
                          float* after, int64_t d_state) {
  HWY_DYNAMIC_DISPATCH(combine_channel)(A, delta_sum, local, before, after, d_state);
}

}  // namespace gmamba::cpu
#endif  // HWY_ONCE
