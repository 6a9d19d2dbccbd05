// SPDX-License-Identifier: Apache-2.0
#include "kernels/pool.h"

#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test_helpers.h"
#include "tests/reference/pool.h"

namespace gmamba {
namespace {

using reference::Pooling;
using test::dot;
using test::error_of;
using test::expect_gradient;
using test::expect_within_budget;
using test::garbage_tensor;
using test::random_tensor;
using test::same_bits;
using test::values;

struct Case {
  std::vector<int64_t> lengths;
  int64_t padded;  // L >= every length
  int64_t width;
  std::vector<int64_t> segments;  // sum to L
};

// nothing, one, odd, just over a tile of columns and of rows, segments of every kind
const std::vector<Case> kCases = {{{0}, 0, 3, {0}},
                                  {{0, 1}, 1, 1, {1}},
                                  {{5}, 5, 7, {5}},
                                  {{5, 3, 0}, 6, 65, {6}},
                                  {{9, 4}, 10, 3, {1, 1, 3, 5}},
                                  {{700}, 700, 130, {257, 443}},
                                  {{70, 300}, 300, 5, {100, 100, 100}}};

const std::pair<PoolMode, Pooling> kModes[] = {{PoolMode::kMean, Pooling::kMean},
                                               {PoolMode::kLast, Pooling::kLast},
                                               {PoolMode::kMax, Pooling::kMax}};

std::string name(const Case& c, PoolMode mode) {
  return concat("mode ", static_cast<int>(mode), " length ", c.lengths[0], " padded ", c.padded,
                " width ", c.width, " segments ", c.segments.size());
}

Tensor int_tensor(const std::vector<int64_t>& numbers) {
  Tensor tensor(Device{}, DType::kI64, {static_cast<int64_t>(numbers.size())});
  std::copy(numbers.begin(), numbers.end(), tensor.host<int64_t>().begin());
  return tensor;
}

/// Hidden states in whole and halves, so that a maximum often stands in several places.
Tensor coarse_hidden(const Case& c) {
  Tensor hidden =
      random_tensor({static_cast<int64_t>(c.lengths.size()), c.padded, c.width}, 1, 1.0);
  for (float& value : hidden.host<float>()) value = std::round(2 * value) / 2;
  return hidden;
}

/// Runs a case in its segments: pooled, positions and the gradient of hidden.
struct Pooled {
  Pooled(Context& ctx, const Case& c, PoolMode mode, const Tensor& hidden, const Tensor& dpooled)
      : accumulator(Device{}, DType::kF64, {static_cast<int64_t>(c.lengths.size()), c.width}),
        position(Device{}, DType::kI64, accumulator.shape()),
        pooled(garbage_tensor(accumulator.shape())),
        dhidden(garbage_tensor(hidden.shape())) {
    const Tensor lengths = int_tensor(c.lengths);
    int64_t offset = 0;
    for (const int64_t segment : c.segments) {
      std::vector<int64_t> valid;
      for (const int64_t length : c.lengths) {
        valid.push_back(std::clamp<int64_t>(length - offset, 0, segment));
      }
      const Tensor valid_rows = int_tensor(valid);
      pool_update(ctx, {mode, hidden.view().slice(1, offset, offset + segment), valid_rows, offset,
                        accumulator, position});
      parts.emplace_back(offset, segment);
      offset += segment;
    }
    pool_finish(ctx, mode, accumulator, lengths, pooled);
    for (const auto& [begin, segment] : parts) {
      pool_backward(ctx, {mode, dpooled, lengths, position, begin,
                          dhidden.view().slice(1, begin, begin + segment)});
    }
  }

  Tensor accumulator, position, pooled, dhidden;
  std::vector<std::pair<int64_t, int64_t>> parts;
};

/// One sequence of a batch, as Real.
template <class Real>
std::vector<Real> sequence(const Tensor& tensor, size_t b) {
  const auto all = tensor.host<float>();
  const size_t size = all.size() / static_cast<size_t>(tensor.shape()[0]);
  const auto begin = all.begin() + static_cast<int64_t>(b * size);
  return {begin, begin + static_cast<int64_t>(size)};
}

TEST(Pool, MatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const auto& [mode, naive_mode] : kModes) {
      const Tensor hidden = coarse_hidden(c);
      const Tensor dpooled = random_tensor({static_cast<int64_t>(c.lengths.size()), c.width}, 2);
      const Pooled result(ctx, c, mode, hidden, dpooled);
      for (size_t b = 0; b < c.lengths.size(); ++b) {
        const auto length = static_cast<size_t>(c.lengths[b]);
        const auto width = static_cast<size_t>(c.width);
        const std::string what = name(c, mode) + concat(" sequence ", b);
        expect_within_budget(
            sequence<double>(result.pooled, b),
            reference::pool(naive_mode, sequence<double>(hidden, b), length, width),
            reference::pool(naive_mode, sequence<float>(hidden, b), length, width), what);
        expect_within_budget(sequence<double>(result.dhidden, b),
                             reference::pool_backward(naive_mode, sequence<double>(hidden, b),
                                                      length, width, sequence<double>(dpooled, b)),
                             reference::pool_backward(naive_mode, sequence<float>(hidden, b),
                                                      length, width, sequence<float>(dpooled, b)),
                             what + " gradient");
      }
    }
  }
}

TEST(Pool, GradientOfTheOracleIsThatOfItsForward) {
  const auto hidden = values<double>(random_tensor({5, 3}, 1).view());
  const auto dpooled = values<double>(random_tensor({3}, 2).view());
  for (const Pooling mode : {Pooling::kMean, Pooling::kLast, Pooling::kMax}) {
    for (const size_t length : {size_t{1}, size_t{4}, size_t{5}}) {
      expect_gradient(
          [&](const auto& at) { return dot(reference::pool(mode, at, length, 3), dpooled); },
          hidden, reference::pool_backward(mode, hidden, length, 3, dpooled), "hidden");
    }
  }
}

TEST(Pool, SegmentsAndThreadsGiveTheSameBits) {
  const Case whole{{900, 333}, 900, 70, {900}};
  Case cut = whole;
  cut.segments = {1, 256, 76, 0, 300, 267};
  const Tensor hidden = random_tensor({2, 900, 70}, 1);
  const Tensor dpooled = random_tensor({2, 70}, 2);
  for (const auto& modes : kModes) {
    Context one(Device{}, {.threads = 1});
    const Pooled expected(one, whole, modes.first, hidden, dpooled);
    for (const int threads : {1, 2, 3, 4}) {
      Context ctx(Device{}, {.threads = threads});
      const Pooled found(ctx, cut, modes.first, hidden, dpooled);
      EXPECT_TRUE(same_bits(expected.accumulator, found.accumulator)) << name(cut, modes.first);
      EXPECT_TRUE(same_bits(expected.position, found.position)) << name(cut, modes.first);
      EXPECT_TRUE(same_bits(expected.dhidden, found.dhidden)) << name(cut, modes.first);
    }
  }
}

TEST(Pool, MaxStartsAfreshAndKeepsNaN) {
  Context ctx;
  Tensor hidden(Device{}, DType::kF32, {1, 3, 2});
  const std::vector<float> rows = {-5, -7, std::numeric_limits<float>::quiet_NaN(), -9, -1, -8};
  std::copy(rows.begin(), rows.end(), hidden.host<float>().begin());
  Tensor accumulator(Device{}, DType::kF64, {1, 2});
  Tensor position(Device{}, DType::kI64, {1, 2});
  accumulator.host<double>()[1] = 100;  // of the sequence before
  position.host<int64_t>()[1] = 5;
  const Tensor valid = int_tensor({3});
  pool_update(ctx, {PoolMode::kMax, hidden, valid, 0, accumulator, position});
  EXPECT_TRUE(std::isnan(accumulator.host<double>()[0]));
  EXPECT_EQ(position.host<int64_t>()[0], 1);
  EXPECT_EQ(accumulator.host<double>()[1], -7);
  EXPECT_EQ(position.host<int64_t>()[1], 0);
}

TEST(Pool, RefusesWhatDoesNotFit) {
  Context ctx;
  const Tensor hidden = random_tensor({2, 5, 3}, 1);
  Tensor accumulator(Device{}, DType::kF64, {2, 3});
  Tensor pooled(Device{}, DType::kF32, {2, 3});
  const Tensor valid = int_tensor({5, 6});
  EXPECT_EQ(error_of([&] {
              pool_update(ctx, {PoolMode::kMean, hidden, valid, 0, accumulator, {}});
            }).second,
            "pool_update: valid rows of sequence 1: 6, outside of 0 to 5");
  const Tensor good = int_tensor({5, 5});
  EXPECT_EQ(error_of([&] {
              pool_update(ctx, {PoolMode::kMax, hidden, good, 0, accumulator, {}});
            }).second,
            "pool_update: position: expected shape (2, 3), found none");
  const Tensor three = int_tensor({1, 1, 1});
  EXPECT_EQ(error_of([&] { pool_finish(ctx, PoolMode::kMean, accumulator, three, pooled); }).first,
            ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba
