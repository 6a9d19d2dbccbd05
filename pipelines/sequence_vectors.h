// SPDX-License-Identifier: Apache-2.0
/// Hidden states of sequences, pooled to one vector a record, a bin or a base: what `embed` writes
/// and `classify` reads. Records of any length, in input order, in memory that does not grow with
/// them: a record that fits a segment is run in a batch with others of similar length (a causal
/// model does not see the padding behind it), a longer one is streamed with its state carried.
///
/// Reading the reverse complement of a long record needs its end first: its tokens, and vectors of
/// bins or bases, wait in a temporary file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "io/tokenizer.h"
#include "libmamba/model.h"
#include "pipelines/record_feed.h"
#include "pipelines/spill_file.h"

namespace gmamba {

class Progress;

struct VectorOptions {
  PoolMode pool = PoolMode::kMean;  ///< of whole records
  int64_t bin = 0;                  ///< 0: whole records; else the mean of each `bin` bases
  int layer = -1;                   ///< as Model::forward has it
  bool both_strands = false;
  int64_t segment = 4096;  ///< tokens computed at once
  std::filesystem::path scratch_folder;
};

/// Receives vectors in input order.
class VectorSink {
 public:
  virtual ~VectorSink() = default;
  /// [start, end) of the record; `reverse` is the vector of the same bases read as their reverse
  /// complement, empty when only one strand is read.
  virtual void add(const RecordInfo& record, int64_t start, int64_t end,
                   std::span<const float> forward, std::span<const float> reverse) = 0;
  /// After the last vector of a record; its length is known now.
  virtual void end_record(const RecordInfo& record) = 0;
};

/// Limits of a feed for these options.
FeedLimits vector_feed_limits(const ModelConfig& config, const VectorOptions& options);

/// Bytes that the vectors of a wave may take.
constexpr int64_t kWaveBytes = int64_t{32} << 20;

class SequenceVectors {
 public:
  SequenceVectors(Context& ctx, const Model& model, VectorOptions options, VectorSink& sink,
                  Progress* progress);
  /// Reads the feed to its end. Throws Stopped between segments when a stop was asked for.
  void run(RecordFeed& feed, const TokenSource& source);
  int64_t bases() const { return bases_; }

 private:
  struct Slot {  // vectors of a held record
    std::vector<float> forward, reverse;
  };
  class StrandPooler;

  void run_wave(const std::vector<HeldRecord>& wave);
  void run_batch(const std::vector<HeldRecord>& wave, const std::vector<size_t>& batch,
                 bool reverse, std::vector<Slot>& slots);
  void pool_batch(const std::vector<int64_t>& lengths, TensorView hidden, bool reverse,
                  const std::vector<size_t>& batch, std::vector<Slot>& slots);
  void run_long(RecordFeed& feed);
  void run_long_both(RecordFeed& feed);
  void read_reverse(const SpillFile& tokens, StrandPooler& pooler, SpillFile& rows);
  void read_forward(const RecordInfo& record, const SpillFile& tokens, StrandPooler& pooler,
                    const SpillFile& reverse_rows);
  void emit(const RecordInfo& record, int64_t first_row, int64_t known,
            std::span<const float> forward, std::span<const float> reverse);
  void advance(int64_t bases);
  void note_reverse(int64_t done, int64_t total);

  int64_t row_count(int64_t length) const;
  int64_t first_bin(int64_t length, bool reverse) const;
  void forward_segment(std::span<const uint8_t> tokens, int64_t batch, SequenceState& state,
                       TensorView hidden);
  SequenceState& state_for(int64_t batch);

  Context& ctx_;
  const Model& model_;
  Tokenizer tokenizer_;
  VectorOptions options_;
  VectorSink& sink_;
  Progress* progress_;
  const TokenSource* source_ = nullptr;
  SequenceState state_;
  std::optional<SpillFile> spilled_tokens_, spilled_rows_;
  int64_t bases_ = 0;
};

}  // namespace gmamba
