// SPDX-License-Identifier: Apache-2.0
/// How well a language model predicts each base from all before it, record by record: streamed over
/// whole records with the state carried, or in windows that each start afresh. Every base but a
/// record's first is predicted; targets other than A, C, G and T are left out.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "libmamba/segmented.h"
#include "pipelines/record_feed.h"

namespace gmamba {

class Progress;

struct LossOptions {
  int64_t segment = 4096;  ///< tokens computed at once
  int64_t context = 0;     ///< the state starts afresh every so many bases; 0: never
};

struct RecordLoss {
  RecordInfo record;
  LossTotals model;
};

/// Sees the tokens of each record in order, for baselines that are scored beside the model.
class TokenListener {
 public:
  virtual ~TokenListener() = default;
  /// `first`: these tokens begin a record.
  virtual void listen(int64_t record, bool first, std::span<const uint8_t> tokens) = 0;
};

/// targets[i] is the token after position i where that is a base; positions without a next token
/// have none.
std::vector<int32_t> next_base_targets(const Vocabulary& vocabulary,
                                       std::span<const uint8_t> tokens, int64_t count);

/// Reads batch * length tokens from `state` on, rows being consecutive windows of one record, and
/// adds their loss to `totals` (4, as of cross_entropy). A further token, if there is one, is the
/// last row's last target.
void add_language_loss(Context& ctx, const Model& model, std::span<const uint8_t> tokens,
                       int64_t batch, int64_t length, SequenceState& state, TensorView totals);

class LanguageLossReader {
 public:
  LanguageLossReader(Context& ctx, const Model& model, LossOptions options, TokenListener* listener,
                     Progress* progress);
  /// Reads the feed to its end; one entry a record, in input order.
  std::vector<RecordLoss> run(RecordFeed& feed, const TokenSource& source);
  static FeedLimits feed_limits(const LossOptions& options);

 private:
  void run_wave(const std::vector<HeldRecord>& wave, std::vector<RecordLoss>& losses);
  void read_rows(ConstTensorView tokens, ConstTensorView targets, SequenceState& state,
                 TensorView hidden, TensorView logits, TensorView totals);
  LossTotals run_long(RecordFeed& feed);
  int64_t block_tokens(int64_t at) const;
  void run_block(std::span<const uint8_t> tokens, int64_t at, int64_t count, TensorView totals);
  SequenceState& state_for(int64_t batch);
  void advance(int64_t bases);

  Context& ctx_;
  const Model& model_;
  LossOptions options_;
  TokenListener* listener_;
  Progress* progress_;
  const TokenSource* source_ = nullptr;
  SequenceState state_;
};

}  // namespace gmamba
