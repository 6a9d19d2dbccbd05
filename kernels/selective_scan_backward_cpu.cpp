// SPDX-License-Identifier: Apache-2.0
/// CPU body of the selective scan, backward. A unit walks its tiles from the last to the first; in
/// a tile, for each vector of channels and group of states, it walks forward from the saved state,
/// keeping decays and states of the tile, and back again with the gradient of the state:
///   dh[t] = decay[t+1] dh[t+1] + C[t] g[t],   g = dy silu(z)
///   dC[t] = sum_e g h,  dB[t] = sum_e dh delta u,  ddelta[t] = u s + sum_n A p,  dA = sum_t delta
///   p du[t] = D g + delta s,   with s = sum_n dh B and p = dh decay h[t-1]
/// dB and dC of a tile are summed over the lanes and vectors of a block of channels; blocks write
/// partial sums that are added in order. So that these stay small, the length is walked in
/// stretches, the last first, and the batch in groups. Sums over time are fp64 across tiles.
#include "kernels/selective_scan_cpu.h"
#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/selective_scan_backward_cpu.cpp"
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
using cpu::ScanBackwardJob;

constexpr int kBackwardGroup = 4;

/// What a unit keeps while it walks. About 150 KB, of which a group of states touches 44 KB with
/// AVX2: more than an L1 cache of 32 KB, but walked in order.
struct BackwardScratch {
  HWY_ALIGN float delta[kScanBlock * kScanTile];        // [v][t][lane]
  HWY_ALIGN float delta_u[kScanBlock * kScanTile];      // [v][t][lane]
  HWY_ALIGN float ddelta_draw[kScanBlock * kScanTile];  // [v][t][lane] sigmoid(delta_raw + bias)
  HWY_ALIGN float g[kScanBlock * kScanTile];            // [v][t][lane] dy silu(z)
  HWY_ALIGN float gate_slope[kScanBlock * kScanTile];   // [v][t][lane] dy silu'(z)
  HWY_ALIGN float y[kScanBlock * kScanTile];            // [v][t][lane] before the gate
  HWY_ALIGN float s[kScanBlock * kScanTile];            // [v][t][lane] sum_n dh B
  HWY_ALIGN float Ap[kScanBlock * kScanTile];           // [v][t][lane] sum_n A p, times log2(e)
  HWY_ALIGN float A[kScanBlock * kScanMaxState];        // [v][n][lane], times log2(e)
  HWY_ALIGN float state[kScanBlock * kScanMaxState];    // [v][n][lane] before the tile
  HWY_ALIGN float dstate[kScanBlock * kScanMaxState];   // [v][n][lane] after, then before the tile
  HWY_ALIGN float dA[kScanBlock * kScanMaxState];       // [v][n][lane] of the tile
  HWY_ALIGN double dA_sum[kScanBlock * kScanMaxState];  // [v][n][lane]
  HWY_ALIGN float largest_A[kScanBlock];                // [v][lane]
  HWY_ALIGN float largest_delta[kScanBlock];            // [v][lane], of the tile
  HWY_ALIGN float delta_sum[kScanBlock];                // [v][lane], of the stretch
  HWY_ALIGN float dD[kScanBlock];                       // [v][lane], of the tile
  HWY_ALIGN float dbias[kScanBlock];                    // [v][lane], of the tile
  double dD_sum[kScanBlock];
  double dbias_sum[kScanBlock];
  // of one vector of channels and one group of states; h[0] is the state before the tile
  HWY_ALIGN float decay[kScanTile * kBackwardGroup * kLanes];    // [t][g][lane]
  HWY_ALIGN float h[(kScanTile + 1) * kBackwardGroup * kLanes];  // [t + 1][g][lane]
  // of one group of states, summed over the vectors of the block
  HWY_ALIGN float dB[kScanTile * kBackwardGroup * kLanes];  // [t][g][lane]
  HWY_ALIGN float dC[kScanTile * kBackwardGroup * kLanes];  // [t][g][lane]
};

/// Everything of `steps` positions from t0 on that doesn't depend on the states.
HWY_INLINE void prepare_tile(const ScanBackwardJob& job, const Channels& channels, int64_t t0,
                             int64_t steps, BackwardScratch& scratch) {
  const Lanes d;
  const int64_t vectors = channels.vectors();
  Vector largest[kBlockVectors];
  for (int64_t v = 0; v < vectors; ++v) largest[v] = hn::Zero(d);
  for (int64_t t = 0; t < steps; ++t) {
    const float* const u_row = job.u.at(channels.b, t0 + t, channels.begin);
    const float* const delta_row = job.delta.at(channels.b, t0 + t, channels.begin);
    const float* const dy_row = job.dy.at(channels.b, t0 + t, channels.begin);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t e = channels.begin + v * kLanes;
      const int64_t count = channels.count(v);
      const int64_t place = at(kScanTile, v, t);
      const Vector u = load_part(u_row + v * kLanes, count);
      Vector raw = load_part(delta_row + v * kLanes, count);
      if (!job.bias.empty()) raw = hn::Add(raw, load_part(job.bias.at(e), count));
      Vector slope;
      const Vector delta = SoftplusAndSigmoid(d, raw, slope);
      largest[v] = hn::Max(largest[v], delta);
      hn::Store(delta, d, scratch.delta + place);
      hn::Store(slope, d, scratch.ddelta_draw + place);
      hn::Store(hn::Mul(delta, u), d, scratch.delta_u + place);
      const Vector skip = job.D.empty() ? hn::Zero(d) : load_part(job.D.at(e), count);
      hn::Store(hn::Mul(skip, u), d, scratch.y + place);
      const Vector dy = load_part(dy_row + v * kLanes, count);
      if (job.z.empty()) {
        hn::Store(dy, d, scratch.g + place);
      } else {
        const Vector z = load_part(job.z.at(channels.b, t0 + t, e), count);
        const Vector s = Sigmoid(d, z);
        hn::Store(hn::Mul(dy, hn::Mul(z, s)), d, scratch.g + place);
        hn::Store(hn::Mul(dy, SiluDerivative(d, z, s)), d, scratch.gate_slope + place);
      }
      hn::Store(hn::Zero(d), d, scratch.s + place);
      hn::Store(hn::Zero(d), d, scratch.Ap + place);
    }
  }
  for (int64_t v = 0; v < vectors; ++v) {
    hn::Store(largest[v], d, scratch.largest_delta + v * kLanes);
  }
}

/// What the walks of one vector of channels and one group of states read and write.
struct Group {
  const float* delta;    // [t][lane]
  const float* delta_u;  // [t][lane]
  const float* g;        // [t][lane]
  float* y;              // [t][lane]
  float* s;              // [t][lane]
  float* Ap;             // [t][lane]
  const float* A;        // [g][lane]
  const float* state;    // [g][lane]
  float* dstate;         // [g][lane]
  float* dA;             // [g][lane]
  const float* B;
  const float* C;
  int64_t B_stride;
  int64_t C_stride;
};

/// Forward through the tile: keeps decays and states, adds to y.
template <int G, bool kGuarded>
HWY_INLINE void walk_forward(const Group& group, int64_t steps, float* HWY_RESTRICT decay,
                             float* HWY_RESTRICT states) {
  const Lanes d;
  const float* HWY_RESTRICT delta = group.delta;
  const float* HWY_RESTRICT delta_u = group.delta_u;
  const float* HWY_RESTRICT A = group.A;
  float* HWY_RESTRICT y = group.y;
  Vector h[G];
  for (int g = 0; g < G; ++g) {
    h[g] = hn::Load(d, group.state + g * kLanes);
    hn::Store(h[g], d, states + g * kLanes);
  }
  for (int64_t t = 0; t < steps; ++t) {
    Vector a[G];
    decays<G, kGuarded>(hn::Load(d, delta + t * kLanes), A, a);
    const Vector x = hn::Load(d, delta_u + t * kLanes);
    Vector sum = hn::Load(d, y + t * kLanes);
    for (int g = 0; g < G; ++g) {
      hn::Store(a[g], d, decay + (t * G + g) * kLanes);
      h[g] = hn::MulAdd(a[g], h[g], hn::Mul(x, hn::Set(d, group.B[t * group.B_stride + g])));
      hn::Store(h[g], d, states + ((t + 1) * G + g) * kLanes);
      sum = hn::MulAdd(hn::Set(d, group.C[t * group.C_stride + g]), h[g], sum);
    }
    hn::Store(sum, d, y + t * kLanes);
  }
}

/// Back through the tile with the gradient of the state; see the equations at the top.
template <int G>
HWY_INLINE void walk_back(const Group& group, int64_t steps, const float* HWY_RESTRICT decay,
                          const float* HWY_RESTRICT states, float* HWY_RESTRICT dB,
                          float* HWY_RESTRICT dC) {
  const Lanes d;
  const float* HWY_RESTRICT A = group.A;
  float* HWY_RESTRICT s_row = group.s;
  float* HWY_RESTRICT Ap_row = group.Ap;
  Vector carried[G];
  Vector dA[G];
  for (int g = 0; g < G; ++g) {
    carried[g] = hn::Load(d, group.dstate + g * kLanes);
    dA[g] = hn::Zero(d);
  }
  for (int64_t t = steps - 1; t >= 0; --t) {
    const Vector gradient = hn::Load(d, group.g + t * kLanes);
    const Vector x = hn::Load(d, group.delta_u + t * kLanes);
    const Vector delta = hn::Load(d, group.delta + t * kLanes);
    Vector s = hn::Load(d, s_row + t * kLanes);
    Vector Ap = hn::Load(d, Ap_row + t * kLanes);
    for (int g = 0; g < G; ++g) {
      const int64_t i = (t * G + g) * kLanes;
      const Vector dh =
          hn::MulAdd(hn::Set(d, group.C[t * group.C_stride + g]), gradient, carried[g]);
      const Vector h = hn::Load(d, states + i + G * kLanes);
      hn::Store(hn::MulAdd(gradient, h, hn::Load(d, dC + i)), d, dC + i);
      hn::Store(hn::MulAdd(dh, x, hn::Load(d, dB + i)), d, dB + i);
      s = hn::MulAdd(hn::Set(d, group.B[t * group.B_stride + g]), dh, s);
      carried[g] = hn::Mul(dh, hn::Load(d, decay + i));
      const Vector p = hn::Mul(carried[g], hn::Load(d, states + i));
      dA[g] = hn::MulAdd(p, delta, dA[g]);
      Ap = hn::MulAdd(p, hn::Load(d, A + g * kLanes), Ap);
    }
    hn::Store(s, d, s_row + t * kLanes);
    hn::Store(Ap, d, Ap_row + t * kLanes);
  }
  for (int g = 0; g < G; ++g) {
    hn::Store(carried[g], d, group.dstate + g * kLanes);
    hn::Store(dA[g], d, group.dA + g * kLanes);
  }
}

/// to[g] = sum over the lanes of vector g of `from`.
template <int G>
HWY_INLINE void sum_lanes(const float* HWY_RESTRICT from, float* HWY_RESTRICT to) {
  const Lanes d;
#if HWY_TARGET == HWY_SCALAR
  for (int g = 0; g < G; ++g) to[g] = hn::GetLane(hn::Load(d, from + g * kLanes));
#else
  Vector x[4];
  for (int g = 0; g < 4; ++g) x[g] = g < G ? hn::Load(d, from + g * kLanes) : hn::Zero(d);
  transpose_blocks(d, x);
  const Vector sums = hn::Add(hn::Add(x[0], x[2]), hn::Add(x[1], x[3]));
  HWY_ALIGN float lanes[kLanes];
  hn::Store(sums, d, lanes);
  for (int g = 0; g < G; ++g) {
    float sum = lanes[g];
    for (int64_t i = 4; i < kLanes; i += 4) sum += lanes[i + g];
    to[g] = sum;
  }
#endif
}

/// All vectors of channels of one group of states, and the group's dB and dC.
template <int G>
HWY_INLINE void walk_group(const ScanBackwardJob& job, const Channels& channels, int64_t n,
                           int64_t t0, int64_t steps, int64_t block, BackwardScratch& scratch) {
  const Lanes d;
  const int64_t d_state = job.A.extent[1];
  std::fill_n(scratch.dB, steps * G * kLanes, 0.0F);
  std::fill_n(scratch.dC, steps * G * kLanes, 0.0F);
  for (int64_t v = 0; v < channels.vectors(); ++v) {
    const int64_t column = at(kScanTile, v, 0);
    const int64_t row = at(d_state, v, n);
    const Group group{scratch.delta + column,
                      scratch.delta_u + column,
                      scratch.g + column,
                      scratch.y + column,
                      scratch.s + column,
                      scratch.Ap + column,
                      scratch.A + row,
                      scratch.state + row,
                      scratch.dstate + row,
                      scratch.dA + row,
                      job.B.at(channels.b, t0, n),
                      job.C.at(channels.b, t0, n),
                      job.B.stride[1],
                      job.C.stride[1]};
    if (exponents_in_range(hn::Load(d, scratch.largest_delta + v * kLanes),
                           hn::Load(d, scratch.largest_A + v * kLanes))) {
      walk_forward<G, false>(group, steps, scratch.decay, scratch.h);
    } else {
      walk_forward<G, true>(group, steps, scratch.decay, scratch.h);
    }
    walk_back<G>(group, steps, scratch.decay, scratch.h, scratch.dB, scratch.dC);
  }
  for (int64_t t = 0; t < steps; ++t) {
    sum_lanes<G>(scratch.dB + t * G * kLanes, job.dB.at(channels.b, t0 + t, block, n));
    sum_lanes<G>(scratch.dC + t * G * kLanes, job.dC.at(channels.b, t0 + t, block, n));
  }
}

/// Gradients of u, delta and z, and y, from the sums over states.
HWY_INLINE void finish_tile(const ScanBackwardJob& job, const Channels& channels, int64_t t0,
                            int64_t steps, BackwardScratch& scratch) {
  const Lanes d;
  const int64_t b = channels.b;
  std::fill_n(scratch.dD, kScanBlock, 0.0F);
  std::fill_n(scratch.dbias, kScanBlock, 0.0F);
  for (int64_t t = 0; t < steps; ++t) {
    for (int64_t v = 0; v < channels.vectors(); ++v) {
      const int64_t e = channels.begin + v * kLanes;
      const int64_t count = channels.count(v);
      const int64_t place = at(kScanTile, v, t);
      const Vector u = load_part(job.u.at(b, t0 + t, e), count);
      const Vector g = hn::Load(d, scratch.g + place);
      const Vector s = hn::Load(d, scratch.s + place);
      Vector du = hn::Mul(hn::Load(d, scratch.delta + place), s);
      if (!job.D.empty()) du = hn::MulAdd(load_part(job.D.at(e), count), g, du);
      store_part(du, job.du.at(b, t0 + t, e), count);
      const Vector Ap = hn::Mul(hn::Load(d, scratch.Ap + place), hn::Set(d, kLn2));
      const Vector ddelta = hn::Mul(hn::MulAdd(u, s, Ap), hn::Load(d, scratch.ddelta_draw + place));
      store_part(ddelta, job.ddelta.at(b, t0 + t, e), count);
      float* const dbias = scratch.dbias + v * kLanes;
      hn::Store(hn::Add(hn::Load(d, dbias), ddelta), d, dbias);
      float* const dD = scratch.dD + v * kLanes;
      hn::Store(hn::MulAdd(g, u, hn::Load(d, dD)), d, dD);
      Vector y = hn::Load(d, scratch.y + place);
      if (!job.dz.empty()) {
        store_part(hn::Mul(y, hn::Load(d, scratch.gate_slope + place)), job.dz.at(b, t0 + t, e),
                   count);
      }
      if (!job.y.empty()) {
        if (!job.z.empty()) y = hn::Mul(y, Silu(d, load_part(job.z.at(b, t0 + t, e), count)));
        store_part(y, job.y.at(b, t0 + t, e), count);
      }
    }
  }
  for (int64_t i = 0; i < channels.width; ++i) {
    scratch.dD_sum[i] += static_cast<double>(scratch.dD[i]);
    scratch.dbias_sum[i] += static_cast<double>(scratch.dbias[i]);
  }
  const int64_t states = channels.vectors() * job.A.extent[1] * kLanes;
  for (int64_t i = 0; i < states; ++i) scratch.dA_sum[i] += static_cast<double>(scratch.dA[i]);
}

void start_unit(const ScanBackwardJob& job, const Channels& channels, BackwardScratch& scratch) {
  const int64_t d_state = job.A.extent[1];
  const int64_t states = channels.vectors() * d_state * kLanes;
  load_states(job.A.at(channels.begin), job.A.stride[0], channels.width, d_state, kLog2E,
              scratch.A);
  largest_rates(scratch.A, channels.vectors(), d_state, scratch.largest_A);
  if (job.dstate_out.empty()) {
    std::fill_n(scratch.dstate, states, 0.0F);
  } else {
    load_states(job.dstate_out.at(channels.b, channels.begin), job.dstate_out.stride[1],
                channels.width, d_state, 1.0F, scratch.dstate);
  }
  std::fill_n(scratch.dA_sum, states, 0.0);
  std::fill_n(scratch.dD_sum, kScanBlock, 0.0);
  std::fill_n(scratch.dbias_sum, kScanBlock, 0.0);
  std::fill_n(scratch.delta_sum, kScanBlock, 0.0F);
}

void store_dstate(const ScanBackwardJob& job, const Channels& channels,
                  const BackwardScratch& scratch) {
  if (job.dstate_in.empty()) return;
  store_states(scratch.dstate, channels.width, job.A.extent[1],
               job.dstate_in.at(channels.b, channels.begin), job.dstate_in.stride[1]);
}

/// One unit of a stretch: block number `block`, channels [begin, begin + width).
void backward_unit(const ScanBackwardJob& job, int64_t b, int64_t block, int64_t begin,
                   int64_t width) {
  const int64_t d_state = job.A.extent[1];
  const int64_t length = job.u.extent[1];
  const Channels channels{b, begin, width};
  BackwardScratch scratch;
  start_unit(job, channels, scratch);
  for (int64_t tile = (length + kScanTile - 1) / kScanTile; tile-- > 0;) {
    const int64_t t0 = tile * kScanTile;
    const int64_t steps = std::min(kScanTile, length - t0);
    load_states(job.saved.at(b, tile, begin), job.saved.stride[2], width, d_state, 1.0F,
                scratch.state);
    prepare_tile(job, channels, t0, steps, scratch);
    for_state_groups<kBackwardGroup>(d_state, [&]<int G>(int64_t n) HWY_ATTR {
      walk_group<G>(job, channels, n, t0, steps, block, scratch);
    });
    finish_tile(job, channels, t0, steps, scratch);
  }
  store_dstate(job, channels, scratch);
  for (int64_t i = 0; i < width; ++i) {
    *job.dD.at(b, begin + i) += scratch.dD_sum[i];
    *job.dbias.at(b, begin + i) += scratch.dbias_sum[i];
    double* const dA = job.dA.at(b, begin + i);
    const double* const lanes = scratch.dA_sum + at(d_state, i / kLanes, 0) + i % kLanes;
    for (int64_t n = 0; n < d_state; ++n) dA[n] += lanes[n * kLanes];
  }
}

/// The gradient of the state alone, back through a tile.
template <int G>
HWY_INLINE void walk_back_summary(const Group& group, int64_t steps) {
  const Lanes d;
  Vector carried[G];
  for (int g = 0; g < G; ++g) carried[g] = hn::Load(d, group.dstate + g * kLanes);
  for (int64_t t = steps - 1; t >= 0; --t) {
    const Vector gradient = hn::Load(d, group.g + t * kLanes);
    Vector a[G];
    decays<G, true>(hn::Load(d, group.delta + t * kLanes), group.A, a);
    for (int g = 0; g < G; ++g) {
      const Vector c = hn::Set(d, group.C[t * group.C_stride + g]);
      carried[g] = hn::Mul(hn::MulAdd(c, gradient, carried[g]), a[g]);
    }
  }
  for (int g = 0; g < G; ++g) hn::Store(carried[g], d, group.dstate + g * kLanes);
}

/// delta and g of a tile, for a summary.
HWY_INLINE void prepare_summary(const ScanBackwardJob& job, const Channels& channels, int64_t t0,
                                int64_t steps, BackwardScratch& scratch) {
  const Lanes d;
  for (int64_t v = 0; v < channels.vectors(); ++v) {
    const int64_t e = channels.begin + v * kLanes;
    const int64_t count = channels.count(v);
    Vector sum = hn::Zero(d);
    for (int64_t t = 0; t < steps; ++t) {
      Vector raw = load_part(job.delta.at(channels.b, t0 + t, e), count);
      if (!job.bias.empty()) raw = hn::Add(raw, load_part(job.bias.at(e), count));
      const Vector delta = Softplus(d, raw);
      sum = hn::Add(sum, delta);
      hn::Store(delta, d, scratch.delta + at(kScanTile, v, t));
      Vector g = load_part(job.dy.at(channels.b, t0 + t, e), count);
      if (!job.z.empty()) {
        const Vector z = load_part(job.z.at(channels.b, t0 + t, e), count);
        g = hn::Mul(g, hn::Mul(z, Sigmoid(d, z)));
      }
      hn::Store(g, d, scratch.g + at(kScanTile, v, t));
    }
    float* const total = scratch.delta_sum + v * kLanes;
    hn::Store(hn::Add(hn::Load(d, total), sum), d, total);
  }
}

/// dstate_in and delta_sum of a stretch.
void summary_unit(const ScanBackwardJob& job, int64_t b, int64_t begin, int64_t width) {
  const int64_t d_state = job.A.extent[1];
  const int64_t length = job.dy.extent[1];
  const Channels channels{b, begin, width};
  BackwardScratch scratch;
  start_unit(job, channels, scratch);
  for (int64_t tile = (length + kScanTile - 1) / kScanTile; tile-- > 0;) {
    const int64_t t0 = tile * kScanTile;
    const int64_t steps = std::min(kScanTile, length - t0);
    prepare_summary(job, channels, t0, steps, scratch);
    for (int64_t v = 0; v < channels.vectors(); ++v) {
      for_state_groups<kBackwardGroup>(d_state, [&]<int G>(int64_t n) HWY_ATTR {
        Group group{};
        group.delta = scratch.delta + at(kScanTile, v, 0);
        group.g = scratch.g + at(kScanTile, v, 0);
        group.A = scratch.A + at(d_state, v, n);
        group.dstate = scratch.dstate + at(d_state, v, n);
        group.C = job.C.at(b, t0, n);
        group.C_stride = job.C.stride[1];
        walk_back_summary<G>(group, steps);
      });
    }
  }
  store_dstate(job, channels, scratch);
  std::copy_n(scratch.delta_sum, width, job.delta_sum.at(b, begin));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba::cpu {

HWY_EXPORT(backward_unit);
HWY_EXPORT(summary_unit);

void scan_backward_unit(const ScanBackwardJob& job, int64_t b, int64_t block, int64_t begin,
                        int64_t width) {
  HWY_DYNAMIC_DISPATCH(backward_unit)(job, b, block, begin, width);
}

void scan_backward_summary_unit(const ScanBackwardJob& job, int64_t b, int64_t begin,
                                int64_t width) {
  HWY_DYNAMIC_DISPATCH(summary_unit)(job, b, begin, width);
}

}  // namespace gmamba::cpu
#endif  // HWY_ONCE
