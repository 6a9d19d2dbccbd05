// SPDX-License-Identifier: Apache-2.0
#include "libmamba/baseline_markov.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "libmamba/core/error.h"

namespace gmamba {
namespace {

constexpr int kMaxOrder = 12;

size_t table_size(int order) { return size_t{4} << (2 * order); }

/// Appends a base to the context, or forgets everything at anything else.
inline void push(MarkovContext& context, uint8_t code, int order) {
  if (code >= kNoBase) {
    context = {};
    return;
  }
  context.word = (context.word << 2) | code;
  context.known = std::min(context.known + 1, order);
}

inline size_t table_index(const MarkovContext& context, int known, uint8_t code) {
  const uint32_t mask = (uint32_t{1} << (2 * known)) - 1;
  return (static_cast<size_t>(context.word & mask) << 2) | code;
}

}  // namespace

uint64_t CountTable::value(size_t index) const {
  const uint64_t count = low[index];
  if (wrapped.empty()) return count;
  const auto found = wrapped.find(index);
  return found == wrapped.end() ? count : count + (found->second << 32);
}

MarkovBaseline::MarkovBaseline(MarkovOptions options) : options_(options) {
  require(options.order >= 0 && options.order <= kMaxOrder, ErrorKind::kUsage,
          "Markov baseline: order ", options.order, " is outside 0 to ", kMaxOrder);
  require(options.alpha > 0 && std::isfinite(options.alpha), ErrorKind::kUsage,
          "Markov baseline: the smoothing count must be above 0, found ", options.alpha);
  counts_.resize(static_cast<size_t>(options.order) + 1);
  for (int j = 0; j <= options.order; ++j) {
    counts_[static_cast<size_t>(j)].low.resize(table_size(j));
  }
}

void MarkovBaseline::add(std::span<const uint8_t> codes, MarkovContext& context) {
  require(bits_.empty(), ErrorKind::kInternal, "Markov baseline: sequence added after finish()");
  for (const uint8_t code : codes) {
    if (code < kNoBase) {
      counts_[static_cast<size_t>(context.known)].increment(
          table_index(context, context.known, code));
    }
    push(context, code, options_.order);
  }
}

void MarkovBaseline::add(std::span<const uint8_t> codes) {
  MarkovContext context;
  add(codes, context);
}

void MarkovBaseline::finish() {
  require(bits_.empty(), ErrorKind::kInternal, "Markov baseline: finish() called twice");
  bits_.resize(counts_.size());
  std::vector<uint64_t> longer;  // totals of order j + 1 below the highest, which has only its own
  for (int j = options_.order; j >= 0; --j) {
    const size_t size = table_size(j);
    const CountTable& own = counts_[static_cast<size_t>(j)];
    // a base with j + 1 known is one with j known too, whatever the oldest is
    const auto total = [&](size_t index) {
      uint64_t sum = own.value(index);
      for (size_t oldest = 0; j < options_.order && oldest < 4; ++oldest) {
        const size_t at = oldest * size + index;
        sum += longer.empty() ? counts_[static_cast<size_t>(j) + 1].value(at) : longer[at];
      }
      return sum;
    };
    std::vector<uint64_t> totals(j < options_.order ? size : 0);
    std::vector<float>& bits = bits_[static_cast<size_t>(j)];
    bits.resize(size);
    for (size_t i = 0; i < size; i += 4) {
      std::array<uint64_t, 4> row{};
      for (size_t base = 0; base < 4; ++base) row[base] = total(i + base);
      if (!totals.empty()) std::copy(row.begin(), row.end(), totals.data() + i);
      const double all = static_cast<double>(row[0] + row[1] + row[2] + row[3]);
      for (size_t base = 0; base < 4; ++base) {
        const double count = static_cast<double>(row[base]) + options_.alpha;
        bits[i + base] = static_cast<float>(std::log2((all + 4 * options_.alpha) / count));
      }
    }
    if (j < options_.order) counts_[static_cast<size_t>(j) + 1] = {};
    longer = std::move(totals);
  }
  counts_[0] = {};
}

BitsScore MarkovBaseline::score(std::span<const uint8_t> codes, MarkovContext& context,
                                int order) const {
  require(!bits_.empty(), ErrorKind::kInternal, "Markov baseline: score() before finish()");
  require(order <= options_.order, ErrorKind::kInternal, "Markov baseline: order ", order,
          " asked of a model of order ", options_.order);
  const int used_order = order < 0 ? options_.order : order;
  BitsScore score;
  for (const uint8_t code : codes) {
    if (code < kNoBase) {
      const int known = std::min(context.known, used_order);
      const size_t index = table_index(context, known, code);
      score.bits += static_cast<double>(bits_[static_cast<size_t>(known)][index]);
      ++score.bases;
    }
    push(context, code, options_.order);
  }
  return score;
}

BitsScore MarkovBaseline::score(std::span<const uint8_t> codes, int order) const {
  MarkovContext context;
  return score(codes, context, order);
}

void MarkovBaseline::advance(std::span<const uint8_t> codes, MarkovContext& context) const {
  for (const uint8_t code : codes) push(context, code, options_.order);
}

int64_t MarkovBaseline::peak_bytes(int order) {
  // counts and probabilities of all orders (4/3 of the largest), totals of the two below it
  const auto size = static_cast<int64_t>(table_size(order));
  return size * 4 / 3 * static_cast<int64_t>(sizeof(uint32_t) + sizeof(float)) +
         size * 5 / 16 * static_cast<int64_t>(sizeof(uint64_t));
}

}  // namespace gmamba
