// SPDX-License-Identifier: Apache-2.0
#include "pipelines/finetune_feed.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "libmamba/core/random.h"

namespace gmamba {
namespace {

constexpr int kStepsAhead = 4;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One random strand per draw, a pure function of (seed, index).
bool reverse_strand(uint64_t seed, uint64_t index) {
  return (Random(seed, RandomUse::kAugment, index).bits() & 1) != 0;
}

}  // namespace

FinetuneFeed::FinetuneFeed(Context& ctx, const ExampleSource& source, const Tokenizer& tokenizer,
                           const FinetuneOptions& options, int64_t segment, uint64_t next_draw)
    : ctx_(ctx),
      source_(source),
      tokenizer_(tokenizer),
      options_(options),
      segment_(segment),
      drawn_(next_draw),
      next_draw_(next_draw),
      steps_([this](const std::atomic<bool>&) { return make_step(); }, kStepsAhead) {}

FinetuneFeed::Step FinetuneFeed::make_step() {
  const auto seed = static_cast<uint64_t>(options_.common.seed);
  std::vector<Example> examples;
  std::vector<Ids> sequences;
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < options_.batch; ++i, ++drawn_) {
    examples.push_back(source_.draw(drawn_));
    Ids& ids = examples.back().ids;
    if (options_.rc_augment && reverse_strand(seed, drawn_)) tokenizer_.reverse_complement(ids);
    lengths.push_back(static_cast<int64_t>(ids.size()));
    sequences.push_back(std::move(ids));
  }
  const auto pad = static_cast<uint8_t>(std::max(0, tokenizer_.vocabulary().pad));
  Step step;
  step.next_draw = drawn_;
  for (const std::vector<size_t>& which : batches_by_length(lengths, segment_)) {
    Rows rows;
    rows.padded = pad_batch(sequences, which, pad);
    for (const size_t index : which) {
      if (options_.task == TaskKind::kClassification) {
        rows.classes.push_back(examples[index].label);
      } else {
        rows.values.push_back(examples[index].value);
      }
      step.tokens += lengths[index];
    }
    step.batches.push_back(std::move(rows));
  }
  return step;
}

SequenceBatch FinetuneFeed::stage(const Rows& rows) {
  return {ctx_, rows.padded.tokens, rows.padded.lengths, rows.classes, rows.values, segment_};
}

StepReport FinetuneFeed::step(Trainer& trainer) {
  const auto start = Clock::now();
  if (!next_) {
    next_ = steps_.next();
    waited_seconds_ += seconds_since(start);
  }
  const Step now = std::move(*next_);
  next_.reset();
  trainer.begin_step();
  for (size_t i = 0; i < now.batches.size(); ++i) {
    const SequenceBatch batch = first_ ? std::move(*first_) : stage(now.batches[i]);
    first_.reset();
    trainer.add_sequence_batch(batch, 1.0 / static_cast<double>(options_.batch));
    // the one after it goes to the device while that computes
    if (i + 1 < now.batches.size()) first_ = stage(now.batches[i + 1]);
  }
  if (steps_.ready()) {
    next_ = steps_.next();
    first_ = stage(next_->batches.front());
  }
  next_draw_ = now.next_draw;
  step_tokens_ = now.tokens;
  const StepReport report = trainer.end_step();
  step_seconds_ += seconds_since(start);
  return report;
}

}  // namespace gmamba
