// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding.h"

#include "tests/kernels/kernel_test_helpers.h"
#include "tests/reference/embedding.h"

namespace gmamba {
namespace {

using test::dot;
using test::error_of;
using test::expect_gradient;
using test::expect_within_budget;
using test::garbage_tensor;
using test::random_tensor;
using test::same_bits;
using test::strided_copy;
using test::values;

struct Case {
  int64_t rows;
  int64_t vocab;
  int64_t width;
  int64_t gap;
};

// nothing, one, odd, a full byte of tokens, just over a tile, more chunks than one table each
const Case kCases[] = {{0, 5, 4, 0},    {3, 5, 0, 0},     {1, 1, 1, 0},    {7, 5, 3, 2},
                       {64, 256, 9, 0}, {513, 16, 33, 1}, {9000, 5, 7, 0}, {2000, 1, 2, 0}};

std::string name(const Case& c) {
  return concat("rows ", c.rows, " vocab ", c.vocab, " width ", c.width, " gap ", c.gap);
}

Tensor random_tokens(int64_t rows, int64_t vocab) {
  Tensor tokens(Device{}, DType::kU8, {rows});
  Random random(9, RandomUse::kTest);
  for (uint8_t& token : tokens.host<uint8_t>()) {
    token = static_cast<uint8_t>(random.below(static_cast<uint64_t>(vocab)));
  }
  return tokens;
}

std::vector<uint8_t> listed(const Tensor& tokens) {
  const auto span = tokens.host<uint8_t>();
  return {span.begin(), span.end()};
}

TEST(Embedding, ForwardCopiesRows) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    const Tensor tokens = random_tokens(c.rows, c.vocab);
    Tensor table_owner, y_owner;
    const TensorView table = strided_copy(table_owner, random_tensor({c.vocab, c.width}, 1), c.gap);
    const TensorView y = strided_copy(y_owner, garbage_tensor({c.rows, c.width}), c.gap);
    embedding_forward(ctx, tokens, table, y);
    EXPECT_EQ(values<float>(y), reference::embedding_forward(listed(tokens), values<float>(table),
                                                             static_cast<size_t>(c.width)))
        << name(c);
  }
}

TEST(Embedding, BackwardMatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      const Tensor tokens = random_tokens(c.rows, c.vocab);
      Tensor dy_owner, dtable_owner;
      const TensorView dy = strided_copy(dy_owner, random_tensor({c.rows, c.width}, 1), c.gap);
      const TensorView dtable =
          strided_copy(dtable_owner, random_tensor({c.vocab, c.width}, 2), c.gap);
      const auto expected = [&]<class Real>(Real) {
        auto start = values<Real>(dtable);
        if (mode == GradMode::kOverwrite) std::fill(start.begin(), start.end(), Real{0});
        return reference::embedding_backward(listed(tokens), values<Real>(dy),
                                             static_cast<size_t>(c.width), start);
      };
      const auto oracle = expected(0.0);
      const auto naive = expected(0.0F);
      embedding_backward(ctx, tokens, dy, dtable, mode);
      expect_within_budget(values<double>(dtable), oracle, naive, name(c));
    }
  }
}

TEST(Embedding, GradientOfTheOracleIsThatOfItsForward) {
  const std::vector<uint8_t> tokens = {2, 0, 2, 1, 2};
  const auto table = values<double>(random_tensor({4, 3}, 1).view());
  const auto dy = values<double>(random_tensor({5, 3}, 2).view());
  expect_gradient(
      [&](const auto& at) { return dot(reference::embedding_forward(tokens, at, 3), dy); }, table,
      reference::embedding_backward(tokens, dy, 3, std::vector<double>(table.size())), "table");
}

TEST(Embedding, HasTheSameBitsForAnyNumberOfThreads) {
  Tensor first;
  for (const int threads : {1, 2, 3, 4}) {
    Context ctx(Device{}, {.threads = threads});
    const Tensor tokens = random_tokens(9001, 16);
    const Tensor dy = random_tensor({9001, 20}, 1);
    Tensor dtable = random_tensor({16, 20}, 2);
    embedding_backward(ctx, tokens, dy, dtable, GradMode::kAccumulate);
    if (threads == 1) first = dtable.clone();
    EXPECT_TRUE(same_bits(first, dtable)) << threads << " threads";
  }
}

TEST(Embedding, NamesABadToken) {
  Context ctx;
  Tensor tokens = random_tokens(700, 5);
  tokens.host<uint8_t>()[611] = 5;
  tokens.host<uint8_t>()[650] = 9;
  const Tensor table = random_tensor({5, 3}, 1);
  Tensor y = garbage_tensor({700, 3});
  const auto [kind, message] = error_of([&] { embedding_forward(ctx, tokens, table, y); });
  EXPECT_EQ(kind, ErrorKind::kInput);
  EXPECT_EQ(message,
            "embedding_forward: token 5 at position 611 is not below the vocabulary's size 5");
  EXPECT_TRUE(same_bits(y, garbage_tensor({700, 3})));
  Tensor dtable = random_tensor({5, 3}, 1);
  EXPECT_EQ(
      error_of([&] { embedding_backward(ctx, tokens, y, dtable, GradMode::kAccumulate); }).first,
      ErrorKind::kInput);
  EXPECT_TRUE(same_bits(table, dtable));
  EXPECT_EQ(error_of([&] { embedding_forward(ctx, tokens, table, dtable); }).first,
            ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba
