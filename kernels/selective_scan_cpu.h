// SPDX-License-Identifier: Apache-2.0
/// CPU bodies of the selective scan. A unit of work is one batch row of one block of channels over
/// one stretch of positions; units of a stretch are independent, so they run on any number of
/// threads with the same bits.
#pragma once

#include <algorithm>

#include "kernels/selective_scan.h"

namespace gmamba::cpu {

/// Channels of one unit at most; time is walked in tiles of kScanSavedEvery positions.
constexpr int64_t kScanBlock = 32;
constexpr int64_t kScanTile = kScanSavedEvery;
constexpr int64_t kScanMaxState = 64;

/// One stretch of positions of the whole problem; shared by its units.
struct ScanForwardJob {
  View<const float, 3> u;         // (B, L, E)
  View<const float, 3> delta;     // (B, L, E)
  View<const float, 2> A;         // (E, N)
  View<const float, 3> B;         // (B, L, N)
  View<const float, 3> C;         // (B, L, N)
  View<const float, 1> D;         // (E) or empty
  View<const float, 3> z;         // (B, L, E) or empty
  View<const float, 1> bias;      // (E) or empty
  View<const float, 3> state_in;  // (B, E, N) or empty
  View<float, 3> y;               // (B, L, E), or empty: only the state is wanted
  View<float, 3> state_out;       // (B, E, N) or empty
  View<float, 4> saved;           // (B, tiles, E, N) or empty
  View<float, 2> delta_sum;       // (B, E) or empty
};

/// One stretch of positions; shared by its units.
struct ScanBackwardJob {
  View<const float, 3> dy;          // (B, L, E)
  View<const float, 3> u;           // (B, L, E)
  View<const float, 3> delta;       // (B, L, E)
  View<const float, 2> A;           // (E, N)
  View<const float, 3> B;           // (B, L, N)
  View<const float, 3> C;           // (B, L, N)
  View<const float, 1> D;           // (E) or empty
  View<const float, 3> z;           // (B, L, E) or empty
  View<const float, 1> bias;        // (E) or empty
  View<const float, 4> saved;       // (B, tiles, E, N)
  View<const float, 3> dstate_out;  // (B, E, N) or empty: zeros
  View<float, 3> dstate_in;         // (B, E, N) or empty
  View<float, 3> du;                // (B, L, E)
  View<float, 3> ddelta;            // (B, L, E)
  View<float, 3> dz;                // (B, L, E) or empty
  View<float, 3> y;                 // (B, L, E) or empty
  View<float, 4> dB;                // (B, L, blocks, N) partial sums of each block
  View<float, 4> dC;                // (B, L, blocks, N)
  View<double, 3> dA;               // (B, E, N) added to
  View<double, 2> dD;               // (B, E) added to
  View<double, 2> dbias;            // (B, E) added to
  View<float, 2> delta_sum;         // (B, E): written by a summary only
};

/// One unit of a stretch: channels [begin, begin + width) of batch row b. A stretch without y only
/// computes the outgoing state.
void scan_forward_unit(const ScanForwardJob& job, int64_t b, int64_t begin, int64_t width);
/// The same, backward; `block` is the place of its partial sums of dB and dC.
void scan_backward_unit(const ScanBackwardJob& job, int64_t b, int64_t block, int64_t begin,
                        int64_t width);
/// dstate_in and delta_sum of a unit, from dy, delta, A, C, z, bias and dstate_out.
void scan_backward_summary_unit(const ScanBackwardJob& job, int64_t b, int64_t begin,
                                int64_t width);
/// after[n] = exp(A[n] * delta_sum) * before[n] + local[n] of one channel.
void scan_combine_channel(const float* A, float delta_sum, const float* local, const float* before,
                          float* after, int64_t d_state);

/// How a scan is cut into units: by shape alone.
struct ScanPlan {
  int64_t block = kScanBlock;  // channels of a unit
  int64_t blocks = 0;          // of d_inner
  int64_t chunks = 1;          // pieces of the length that run side by side
  int64_t chunk_length = 0;    // positions of a piece, a multiple of kScanTile when chunks > 1
};
ScanPlan plan_scan(int64_t batch, int64_t length, int64_t d_inner);

// The operations; arguments were checked at the door.
void selective_scan_forward(Context& ctx, const SelectiveScanForward& args);
void selective_scan_backward(Context& ctx, const SelectiveScanBackward& args);
void selective_scan_summarise(Context& ctx, const SelectiveScanForward& piece, TensorView delta_sum,
                              TensorView state);
void selective_scan_summarise_backward(Context& ctx, const SelectiveScanBackward& piece,
                                       TensorView delta_sum, TensorView dstate);
void selective_scan_combine(Context& ctx, ConstTensorView A, ConstTensorView delta_sum,
                            ConstTensorView local, ConstTensorView before, TensorView after);

}  // namespace gmamba::cpu
