// SPDX-License-Identifier: Apache-2.0
#include "pipelines/held_out.h"

#include <algorithm>
#include <array>

#include "kernels/cross_entropy.h"
#include "libmamba/baseline_markov.h"
#include "pipelines/stop.h"

namespace gmamba {

LossTotals stream_loss(Context& ctx, const Model& model, const Genome& genome,
                       const Tokenizer& tokenizer, const Interval& interval, int64_t segment) {
  const Arena::Scope whole(ctx.arena());
  const int64_t vocab = model.config().vocab_size;
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  SequenceState state(model.config(), 1, ctx.device());
  const TensorView totals = ctx.arena().zeros(DType::kF64, {4}, ctx.stream());
  std::vector<uint8_t> ids;
  std::vector<int32_t> targets;
  for (int64_t start = interval.start; start < interval.end; start += segment) {
    check_stop();
    // one base more than is read, as the last one's target
    const int64_t end = std::min(interval.end, start + segment);
    const int64_t seen = std::min(interval.end, end + 1) - start;
    const std::string letters = genome.read({interval.file, interval.contig, start, start + seen});
    ids.resize(letters.size());
    tokenizer.encode(letters, ids);
    const int64_t length = end - start;
    targets.assign(static_cast<size_t>(length), kIgnoreTarget);
    for (int64_t t = 0; t + 1 < seen; ++t) {
      const uint8_t next = ids[static_cast<size_t>(t + 1)];
      if (vocabulary.is_base(next)) targets[static_cast<size_t>(t)] = next;
    }
    const Arena::Scope scope(ctx.arena());
    const TensorView tokens = ctx.arena().tensor(DType::kU8, {1, length});
    const TensorView device_targets = ctx.arena().tensor(DType::kI32, {length});
    const TensorView hidden = ctx.arena().f32({1, length, model.config().d_model});
    const TensorView logits = ctx.arena().f32({length, vocab});
    ctx.upload(host_view(std::as_const(ids).data(), {1, length}), tokens);
    ctx.upload(host_view(std::as_const(targets).data(), {length}), device_targets);
    model.forward(ctx, tokens, state, hidden);
    model.logits(ctx, hidden.reshape({length, model.config().d_model}), logits);
    cross_entropy(ctx, {.logits = logits, .targets = device_targets, .totals = totals});
  }
  std::array<double, 4> values{};
  ctx.download(totals, host_view(values.data(), {4}));
  return {values[0], values[1], values[2], static_cast<int64_t>(values[3])};
}

namespace {

/// Calls use(codes, fresh) for stretches of the intervals; `fresh`: it does not continue the one before.
template <class Use>
void for_codes(const Genome& genome, const Tokenizer& tokenizer,
               const std::vector<Interval>& intervals, Use&& use) {
  constexpr int64_t kPiece = int64_t{1} << 22;
  std::vector<uint8_t> ids;
  for (const Interval& interval : intervals) {
    for (int64_t start = interval.start; start < interval.end; start += kPiece) {
      check_stop();
      const int64_t end = std::min(interval.end, start + kPiece);
      const std::string letters = genome.read({interval.file, interval.contig, start, end});
      ids.resize(letters.size());
      tokenizer.encode(letters, ids);
      tokens_to_bases(tokenizer.vocabulary(), ids, ids);
      use(std::span<const uint8_t>(ids), start == interval.start);
    }
  }
}

}  // namespace

std::vector<double> markov_bits_per_base(const Genome& genome, const Tokenizer& tokenizer,
                                         const std::vector<Interval>& train,
                                         const std::vector<Interval>& valid,
                                         const std::vector<int>& orders) {
  MarkovBaseline model({.order = *std::max_element(orders.begin(), orders.end())});
  MarkovContext context;
  for_codes(genome, tokenizer, train, [&](std::span<const uint8_t> codes, bool fresh) {
    if (fresh) context = {};
    model.add(codes, context);
  });
  model.finish();
  std::vector<double> result;
  for (const int order : orders) {
    BitsScore total;
    for_codes(genome, tokenizer, valid, [&](std::span<const uint8_t> codes, bool fresh) {
      if (fresh) {  // the first base is context only, as it is for the model
        context = {};
        model.advance(codes.first(1), context);
        codes = codes.subspan(1);
      }
      total += model.score(codes, context, order);
    });
    result.push_back(total.bits_per_base());
  }
  return result;
}

}  // namespace gmamba
