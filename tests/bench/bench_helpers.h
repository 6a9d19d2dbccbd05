// SPDX-License-Identifier: Apache-2.0
/// What the measurements share: contexts of a given width, filled tensors, and the counters that
/// set a rate beside its floor. Run with --benchmark_repetitions=5 and read medians; the floors are
/// BM_SgemmPeak (flops) and BM_StreamCopy (bytes) of the same run.
#pragma once

#include <benchmark/benchmark.h>

#include "libmamba/core/context.h"
#include "libmamba/core/random.h"

namespace gmamba::bench {

/// A context on all CPU threads that this process may use; OMP_NUM_THREADS narrows it.
inline Context& context() {
  static Context ctx;
  return ctx;
}

/// Small random numbers, so that no operation meets denormals or infinities.
inline Tensor filled(const Shape& shape, double scale = 1.0) {
  Tensor tensor(Device{}, DType::kF32, shape);
  Random random(1, RandomUse::kTest);
  for (float& value : tensor.host<float>()) {
    value = static_cast<float>(random.uniform(-scale, scale));
  }
  return tensor;
}

/// Floating-point operations per second as `flops`.
inline void count_flops(benchmark::State& state, double per_iteration) {
  state.counters["flops"] =
      benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

/// Bytes that must move once per iteration, as bytes_per_second.
inline void count_bytes(benchmark::State& state, int64_t per_iteration) {
  state.SetBytesProcessed(state.iterations() * per_iteration);
}

}  // namespace gmamba::bench
