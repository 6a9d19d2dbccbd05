// SPDX-License-Identifier: Apache-2.0
#include "libmamba/baseline_markov.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "libmamba/core/error.h"
#include "libmamba/core/random.h"

namespace gmamba {
namespace {

/// Counts by string, straight from the definition: order j = min(k, bases since the last break).
double naive_bits(const std::vector<std::string>& train, const std::string& held_out, size_t order,
                  double alpha) {
  const auto context_at = [](const std::string& text, size_t i, size_t most) {
    size_t begin = i;
    while (begin > 0 && i - begin < most && text[begin - 1] != 'N') --begin;
    return text.substr(begin, i - begin);
  };
  std::map<std::string, double> counts;  // context + base, all context lengths up to the order
  for (const std::string& text : train) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == 'N') continue;
      const std::string context = context_at(text, i, order);
      for (size_t drop = 0; drop <= context.size(); ++drop)
        counts[context.substr(drop) + text[i]]++;
    }
  }
  double bits = 0;
  for (size_t i = 0; i < held_out.size(); ++i) {
    if (held_out[i] == 'N') continue;
    const std::string context = context_at(held_out, i, order);
    double all = 0;
    for (const char base : {'A', 'C', 'G', 'T'}) all += counts[context + base] + alpha;
    bits -= std::log2((counts[context + held_out[i]] + alpha) / all);
  }
  return bits;
}

std::string random_text(Random& random, size_t length, double n_rate) {
  std::string text(length, 'A');
  for (char& letter : text) {
    letter = random.uniform() < n_rate ? 'N' : "AACGTT"[random.below(6)];
  }
  return text;
}

TEST(MarkovBaseline, EqualsTheDefinition) {
  Random random(7, RandomUse::kTest);
  for (int order = 0; order <= 5; ++order) {
    const std::vector<std::string> train = {random_text(random, 700, 0.05), "N", "",
                                            random_text(random, 3, 0), random_text(random, 90, 0)};
    const std::string held_out = random_text(random, 200, 0.1);
    MarkovBaseline markov({.order = order, .alpha = 0.5});
    for (const std::string& text : train) markov.add(encode_bases(text));
    markov.finish();
    const BitsScore score = markov.score(encode_bases(held_out));
    EXPECT_NEAR(score.bits, naive_bits(train, held_out, static_cast<size_t>(order), 0.5),
                1e-6 * score.bits);
    EXPECT_EQ(score.bases, std::count_if(held_out.begin(), held_out.end(),
                                         [](char letter) { return letter != 'N'; }));
  }
}

TEST(MarkovBaseline, OnePassServesAllOrders) {
  Random random(8, RandomUse::kTest);
  const std::vector<uint8_t> train = encode_bases(random_text(random, 5000, 0.01));
  const std::vector<uint8_t> held_out = encode_bases(random_text(random, 500, 0.01));
  MarkovBaseline high({.order = 6});
  high.add(train);
  high.finish();
  for (int order = 0; order <= 6; ++order) {
    MarkovBaseline own({.order = order});
    own.add(train);
    own.finish();
    EXPECT_DOUBLE_EQ(high.score(held_out, order).bits, own.score(held_out).bits) << order;
  }
}

TEST(MarkovBaseline, PartsEqualTheWhole) {
  Random random(9, RandomUse::kTest);
  const std::vector<uint8_t> train = encode_bases(random_text(random, 3000, 0.02));
  MarkovBaseline whole({.order = 4});
  MarkovBaseline parts({.order = 4});
  whole.add(train);
  MarkovContext context;
  const std::span<const uint8_t> codes = train;
  for (size_t i = 0; i < train.size(); i += 7) {
    parts.add(codes.subspan(i, std::min<size_t>(7, train.size() - i)), context);
  }
  whole.finish();
  parts.finish();
  MarkovContext at;
  BitsScore sum = parts.score(codes.first(1000), at);
  sum += parts.score(codes.subspan(1000), at);
  EXPECT_DOUBLE_EQ(whole.score(train).bits, sum.bits);

  // bases that are given and not predicted only move the context
  MarkovContext after;
  parts.advance(codes.first(1000), after);
  const double rest = parts.score(codes.subspan(1000), after).bits;
  EXPECT_NEAR(rest + parts.score(codes.first(1000)).bits, sum.bits, 1e-9 * sum.bits);
}

/// An order-2 chain whose next base is right with probability 0.85 reaches its own entropy.
TEST(MarkovBaseline, ReachesTheEntropyOfAKnownChain) {
  Random random(10, RandomUse::kTest);
  const auto chain = [&](size_t length) {
    std::vector<uint8_t> codes(length);
    for (size_t i = 0; i < length; ++i) {
      const size_t favoured = i < 2 ? 0 : (codes[i - 1] + 2 * codes[i - 2] + 1) % 4u;
      codes[i] = static_cast<uint8_t>(
          random.uniform() < 0.85 ? favoured : (favoured + 1 + random.below(3)) % 4);
    }
    return codes;
  };
  const double entropy = -0.85 * std::log2(0.85) - 0.15 * std::log2(0.05);
  MarkovBaseline markov({.order = 3});
  markov.add(chain(400000));
  markov.finish();
  const std::vector<uint8_t> held_out = chain(400000);
  EXPECT_NEAR(markov.score(held_out).bits_per_base(), entropy, 0.01);
  EXPECT_NEAR(markov.score(held_out, 2).bits_per_base(), entropy, 0.01);
  EXPECT_GT(markov.score(held_out, 1).bits_per_base(), entropy + 0.2);
}

TEST(MarkovBaseline, UntrainedIsTwoBits) {
  MarkovBaseline markov({.order = 2});
  markov.finish();
  const BitsScore score = markov.score(encode_bases("ACGTNACGT"));
  EXPECT_EQ(score.bases, 8);
  EXPECT_NEAR(score.bits_per_base(), 2.0, 1e-6);
  EXPECT_EQ(markov.score({}).bits_per_base(), 0);
}

TEST(MarkovBaseline, CountsPast32Bits) {
  CountTable table;
  table.low = {0, 0xFFFFFFFF};
  table.increment(0);
  table.increment(1);
  table.increment(1);
  EXPECT_EQ(table.value(0), 1u);
  EXPECT_EQ(table.value(1), (uint64_t{1} << 32) + 1);
}

TEST(MarkovBaseline, RefusesBadOptions) {
  EXPECT_THROW(MarkovBaseline({.order = 13}), Error);
  EXPECT_THROW(MarkovBaseline({.order = -1}), Error);
  EXPECT_THROW(MarkovBaseline({.order = 1, .alpha = 0}), Error);
  MarkovBaseline markov({.order = 1});
  EXPECT_THROW(markov.score({}), Error);
  markov.finish();
  EXPECT_THROW(markov.score({}, 2), Error);
  EXPECT_THROW(markov.add(std::vector<uint8_t>{0}), Error);
}

TEST(BaseCodes, ReadLettersAndTokens) {
  EXPECT_EQ(encode_bases("AcGtUNR-"), (std::vector<uint8_t>{0, 1, 2, 3, 3, 4, 4, 4}));
  const Vocabulary vocabulary = Vocabulary::characters();
  std::vector<uint8_t> tokens = {7, 8, 9, 10, 11, 4};
  tokens_to_bases(vocabulary, tokens, tokens);
  EXPECT_EQ(tokens, (std::vector<uint8_t>{0, 1, 2, 3, 4, 4}));
}

}  // namespace
}  // namespace gmamba
