// SPDX-License-Identifier: Apache-2.0
#include "pipelines/held_out.h"

#include <algorithm>

#include "libmamba/baseline_markov.h"
#include "pipelines/language_loss.h"
#include "pipelines/stop.h"

namespace gmamba {

LossTotals stream_loss(Context& ctx, const Model& model, const Genome& genome,
                       const Tokenizer& tokenizer, const Interval& interval, int64_t segment) {
  const Arena::Scope scope(ctx.arena());
  SequenceState state(model.config(), 1, ctx.device());
  const TensorView totals = ctx.arena().zeros(DType::kF64, {4}, ctx.stream());
  std::vector<uint8_t> ids;
  for (int64_t start = interval.start; start < interval.end; start += segment) {
    check_stop();
    // one base more than is read, as the last one's target
    const int64_t end = std::min(interval.end, start + segment);
    const int64_t seen = std::min(interval.end, end + 1);
    const std::string letters = genome.read({interval.file, interval.contig, start, seen});
    ids.resize(letters.size());
    tokenizer.encode(letters, ids);
    add_language_loss(ctx, model, ids, 1, end - start, state, totals);
  }
  return download_totals(ctx, totals);
}

namespace {

/// Calls use(codes, fresh) for stretches of the intervals; `fresh`: it does not continue the one
/// before.
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
