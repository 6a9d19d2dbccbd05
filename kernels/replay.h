// SPDX-License-Identifier: Apache-2.0
/// Passes of many short kernels. A host takes some microseconds to launch one, on little input more
/// than a GPU takes to run it. A pass that comes again with the same key is therefore recorded, and
/// from then on given to the GPU as one piece of work (a CUDA graph): the same kernels with the
/// same arguments in the same order, and so the same bits.
///
///   replay(ctx, key, [&] { model reads a segment });
///
/// What is recorded are addresses and numbers, so the key must name whatever the pass takes from
/// its arguments: extents, strides and types, the address of every array, host values that kernels
/// get as numbers. The values in the arrays are free, and scratch of the context's arena is looked
/// after here: when the arena has grown or has been freed, nothing recorded before is used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "libmamba/core/context.h"

namespace gmamba {

using PassKey = std::vector<int64_t>;

/// Adds what a kernel may know of an array: address, type, extents and strides.
void add_to(PassKey& key, ConstTensorView view);

/// Does what `pass` does: by calling it, or, on a GPU when it has come often enough, by doing again
/// what an earlier call with this key did. On the host `pass` may change nothing but scratch of the
/// arena that it gives back. It may throw; where recording it fails, it is called as ever.
void replay(Context& ctx, PassKey key, const std::function<void()>& pass);

/// Whether the context may replay passes: at first yes, unless GMAMBA_CUDA_GRAPHS=0 is set in the
/// environment, or GMAMBA_CUDA_SYNC, which wants each kernel launched by itself.
void allow_replay(Context& ctx, bool allowed);

/// What came of passes so far, for tests and measurements.
struct ReplayCounts {
  int64_t called = 0;    ///< passes that were called
  int64_t recorded = 0;  ///< recordings made
  int64_t refused = 0;   ///< recordings that failed
  int64_t replayed = 0;  ///< passes done by a recording
  int64_t held = 0;      ///< recordings held now
};
ReplayCounts replay_counts(Context& ctx);

}  // namespace gmamba
