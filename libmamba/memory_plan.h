// SPDX-License-Identifier: Apache-2.0
/// What a job needs before it starts: the memory of parameters, states and activations, item by
/// item. Commands print it (--plan), and refuse a job that cannot fit --max-memory, saying what
/// would.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "libmamba/config.h"

namespace gmamba {

/// Tokens computed at once when --segment is not given: small enough for the caches of a CPU, large
/// enough for its GEMMs.
constexpr int64_t kDefaultSegment = 2048;

struct MemoryPlan {
  struct Item {
    std::string what;
    int64_t bytes = 0;
  };
  std::vector<Item> items;

  int64_t total_bytes() const;
  /// A table for people.
  std::string text() const;
  /// Throws kUsage when the total exceeds `most` (0: no limit), with the settings to change.
  void require_within(int64_t most) const;
};

/// Forward over (batch, segment) tokens.
MemoryPlan plan_forward(const ModelConfig& config, int64_t batch, int64_t segment);

/// A training step of (batch, context) tokens computed `segment` tokens at a time.
MemoryPlan plan_training(const ModelConfig& config, int64_t batch, int64_t context,
                         int64_t segment);

}  // namespace gmamba
