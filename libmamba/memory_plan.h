// SPDX-License-Identifier: Apache-2.0
/// What a job needs before it starts: the memory of parameters, states and activations, item by
/// item. Commands print it (--plan), and refuse a job that cannot fit --max-memory, saying what
/// would.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "libmamba/config.h"
#include "libmamba/core/device.h"
#include "libmamba/core/dtype.h"

namespace gmamba {

/// Where a job computes and in which type of activations.
struct Arithmetic {
  Device device;
  DType activations = DType::kF32;
};

/// Tokens computed at once when --segment is not given: on a CPU few enough for its caches and
/// enough for its GEMMs, on a GPU enough to fill it from one sequence.
inline int64_t default_segment(Device device) {
  return device.is_cpu() ? int64_t{2048} : int64_t{1} << 18;
}

/// The same for training, where a search for what fits begins: a GPU is best filled by a whole
/// step, and a sequence that is one segment is read once instead of twice.
inline int64_t default_training_segment(Device device) {
  return device.is_cpu() ? default_segment(device) : int64_t{1} << 20;
}

/// Input of one position of a language model: a token, its target and its weight.
constexpr int64_t kTokenBytes = 9;

/// Where the search for a segment that fits ends.
constexpr int64_t kSmallestSegment = 64;

struct MemoryPlan {
  struct Item {
    std::string what;
    int64_t bytes = 0;
  };
  std::vector<Item> items;

  int64_t total_bytes() const;
  /// A table for people.
  std::string text() const;
};

/// Forward over (batch, segment) tokens.
MemoryPlan plan_forward(const ModelConfig& config, int64_t batch, int64_t segment,
                        const Arithmetic& arithmetic = {});

/// Scratch of a training step's segment of (batch, segment) tokens: what is kept for the backward
/// pass, what is in flight, and what kernels take themselves.
int64_t training_scratch(const ModelConfig& config, int64_t batch, int64_t segment,
                         const Arithmetic& arithmetic);
/// On a GPU, what that and a number of `extras` (ForwardSaved) take beyond it.
int64_t extras_bytes(const ModelConfig& config, int64_t batch, int64_t segment,
                     const Arithmetic& arithmetic, int64_t extras);
/// The most extras that take no more than `room`; 0 on a CPU.
int64_t extras_in(int64_t room, const ModelConfig& config, int64_t batch, int64_t segment,
                  const Arithmetic& arithmetic);

/// How the first reading of a sequence in segments goes on a GPU, from shapes alone: results depend
/// on it in the last bits.
struct FirstSweep {
  /// Tokens of a row read at once, whole segments: more than one where they need no more memory
  /// than a segment does later.
  int64_t length = 0;
  /// Positions between the scan's states that are kept beside those at borders, so that the second
  /// reading need not find them again; 0: none. Kept where they take little beside the segment.
  int64_t mark_every = 0;
  int64_t mark_bytes = 0;
};
FirstSweep first_sweep(const ModelConfig& config, int64_t batch, int64_t context, int64_t segment,
                       const Arithmetic& arithmetic);

/// A training step of (batch, context) tokens computed `segment` tokens at a time, on a GPU with
/// `extras` (ForwardSaved) kept.
MemoryPlan plan_training(const ModelConfig& config, int64_t batch, int64_t context, int64_t segment,
                         const Arithmetic& arithmetic = {}, int64_t extras = 0);
/// The same for whole sequences with a task head; without the `backbone` the head alone is trained.
MemoryPlan plan_sequence_training(const ModelConfig& config, int64_t batch, int64_t length,
                                  int64_t segment, const Arithmetic& arithmetic = {},
                                  int64_t extras = 0, bool backbone = true);
/// What a task head keeps of `batch` sequences while they are read.
int64_t pooling_bytes(const ModelConfig& config, int64_t batch);
/// Bytes of the input of `batch` such sequences on its way, on a GPU those of a segment.
int64_t sequence_input_bytes(int64_t batch, int64_t length, int64_t segment, Device device);
/// Of `most` bytes for a step, those that are left for its activations (Trainer::limit_scratch).
int64_t scratch_within(int64_t most, const ModelConfig& config, int64_t batch, int64_t segment);
int64_t scratch_within(int64_t most, const ModelConfig& config, int64_t input_bytes);
/// What a step may take of a GPU's `bytes`: `max_memory` of them, or where that is 0 all but a
/// reserve for other programs.
int64_t step_memory(int64_t max_memory, int64_t bytes);
/// The same of what is free of a device now; 0 on a CPU.
int64_t step_memory(int64_t max_memory, Device device);
/// The most extras of a GPU's step within `most` bytes; 0 on a CPU.
int64_t extras_within(int64_t most, const ModelConfig& config, int64_t batch, int64_t context,
                      int64_t segment, const Arithmetic& arithmetic);

}  // namespace gmamba
