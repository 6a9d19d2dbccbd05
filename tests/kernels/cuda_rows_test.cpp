// SPDX-License-Identifier: Apache-2.0
/// Convolution, embedding, cross-entropy and pooling on a GPU against the fp64 oracles, in fp32 and
/// bf16.
#include <algorithm>
#include <array>

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/pool.h"
#include "tests/kernels/conv1d_cases.h"
#include "tests/kernels/device_arrays.h"
#include "tests/kernels/relative_error.h"
#include "tests/reference/cross_entropy.h"
#include "tests/reference/embedding.h"
#include "tests/reference/pool.h"

namespace gmamba {
namespace {

using test::DeviceArray;
using test::expect_close;
using test::kept;
using test::kGpu;
using test::random_values;
using test::wide;

constexpr DType kF32 = DType::kF32;

class CudaRows : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(, CudaRows, testing::Values(kF32, DType::kBF16), test::type_name);

/// The results of a problem taken through the kernels in segments cut at `borders`.
test::ConvRun run_conv(Context& ctx, const test::ConvData& in, DType type, int64_t gap,
                       std::vector<int64_t> borders, GradMode mode) {
  const auto B = static_cast<int64_t>(in.batch);
  const auto L = static_cast<int64_t>(in.length);
  const auto E = static_cast<int64_t>(in.d_inner);
  const auto K = static_cast<int64_t>(in.d_conv);
  const Shape tail_shape = {B, K - 1, E};
  const DeviceArray x(ctx, {B, L, E}, type, in.x, gap), dy(ctx, {B, L, E}, type, in.dy, gap);
  const DeviceArray y(ctx, {B, L, E}, type, gap), dx(ctx, {B, L, E}, type, gap);
  const DeviceArray weight(ctx, {E, K}, kF32, in.weight);
  const std::vector<float> zeros(static_cast<size_t>(E * K));
  const DeviceArray dweight(ctx, {E, K}, kF32, zeros);
  DeviceArray bias, dbias;
  if (!in.bias.empty()) {
    bias = DeviceArray(ctx, {E}, kF32, in.bias);
    dbias = DeviceArray(ctx, {E}, kF32, zeros);
  }
  borders.insert(borders.begin(), 0);
  borders.push_back(L);
  std::vector<DeviceArray> tails(borders.size());
  if (!in.tail_in.empty()) tails[0] = DeviceArray(ctx, tail_shape, kF32, in.tail_in);
  const auto part = [&](const DeviceArray& array, size_t i) {
    return array.view().slice(1, borders[i], borders[i + 1]);
  };
  for (size_t i = 0; i + 1 < borders.size(); ++i) {
    tails[i + 1] = DeviceArray(ctx, tail_shape, kF32);
    conv1d_forward(ctx, {part(x, i), weight, bias, tails[i], part(y, i), tails[i + 1]});
  }
  DeviceArray dtail;
  if (!in.dtail_out.empty()) dtail = DeviceArray(ctx, tail_shape, kF32, in.dtail_out);
  for (size_t i = borders.size() - 1; i-- > 0;) {
    DeviceArray before(ctx, tail_shape, kF32);
    conv1d_backward(ctx, {.dy = part(dy, i),
                          .dtail_out = dtail,
                          .x = part(x, i),
                          .weight = weight,
                          .bias = bias,
                          .tail_in = tails[i],
                          .dx = part(dx, i),
                          .dtail_in = before,
                          .dweight = dweight,
                          .dbias = dbias,
                          .mode = mode});
    dtail = std::move(before);
  }
  return {y.values(),
          tails.back().values(),
          {dx.values(), dweight.values(), in.bias.empty() ? std::vector<float>{} : dbias.values(),
           dtail.values()}};
}

void round_inputs(test::ConvData& in, DType type) {
  in.x = kept(in.x, type);
  in.dy = kept(in.dy, type);
  in.tail_in = kept(in.tail_in, type);
}

void expect_conv(const test::ConvRun& run, const test::ConvData& in, DType type,
                 const std::string& name) {
  const auto oracle = reference::conv_forward(test::as_oracle(in));
  const auto naive = reference::conv_forward(in);
  const auto doracle = reference::conv_backward(test::as_oracle(in));
  const auto dnaive = reference::conv_backward(in);
  expect_close(run.y, oracle.y, kept(naive.y, type), name + " y");
  expect_close(run.tail_out, oracle.tail_out, naive.tail_out, name + " tail_out");
  expect_close(run.d.x, doracle.x, kept(dnaive.x, type), name + " dx");
  expect_close(run.d.weight, doracle.weight, dnaive.weight, name + " dweight", 4e-6);
  expect_close(run.d.bias, doracle.bias, dnaive.bias, name + " dbias", 4e-6);
  expect_close(run.d.tail_in, doracle.tail_in, dnaive.tail_in, name + " dtail_in", 4e-6);
}

/// The table of the CPU's tests without most of its lengths, and widths that vectors divide.
std::vector<test::ConvCase> cases() {
  std::vector<test::ConvCase> out;
  for (const test::ConvCase& conv : test::conv_cases()) {
    const bool row_of_lengths = conv.batch == 1 && conv.d_inner == 5;
    if (!row_of_lengths || conv.length < 10 || conv.length % 16 < 2) out.push_back(conv);
  }
  out.push_back({1, 3000, 64, 4, true, true, true});
  out.push_back({3, 1100, 512, 4});
  out.push_back({2, 70, 24, 3, false, true, true});
  return out;
}

TEST_P(CudaRows, ConvolutionMatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = GetParam()});
  for (const test::ConvCase& conv : cases()) {
    test::ConvData in = test::conv_inputs(conv);
    round_inputs(in, GetParam());
    const int64_t gap = conv.strided ? 8 : 0;
    expect_conv(run_conv(ctx, in, GetParam(), gap, {}, GradMode::kOverwrite), in, GetParam(),
                conv.name());
  }
}

TEST_P(CudaRows, ConvolutionIsTheSameInSegments) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = GetParam()});
  const test::ConvCase conv{2, 200, 24, 4};
  test::ConvData in = test::conv_inputs(conv);
  round_inputs(in, GetParam());
  for (const std::vector<int64_t>& borders :
       {std::vector<int64_t>{1}, {1, 2, 3}, {64, 128}, {100, 100}, {198, 199}}) {
    expect_conv(run_conv(ctx, in, GetParam(), 0, borders, GradMode::kAccumulate), in, GetParam(),
                conv.name() + " in " + std::to_string(borders.size() + 1) + " segments");
  }
}

TEST(CudaFixedRows, EmbeddingMatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  struct Case {
    int64_t rows, vocab, width;
  };
  for (const Case& c : {Case{0, 16, 8},
                        {1, 1, 1},
                        {77, 16, 24},
                        {5000, 16, 256},
                        {40000, 12, 36},
                        {3000, 256, 20},
                        {900, 65, 130},
                        {300, 5, 7}}) {
    const std::string name = concat("M ", c.rows, " V ", c.vocab, " D ", c.width);
    Random random(3, RandomUse::kTest);
    std::vector<uint8_t> tokens;
    for (int64_t m = 0; m < c.rows; ++m) {
      tokens.push_back(static_cast<uint8_t>(random.below(static_cast<uint64_t>(c.vocab))));
    }
    const auto table = random_values(c.vocab * c.width, 1, kF32);
    const auto dy = random_values(c.rows * c.width, 2, kF32);
    const Tensor tokens_gpu = test::on_gpu(ctx, {c.rows}, tokens);
    const DeviceArray y(ctx, {c.rows, c.width}, kF32);
    embedding_forward(ctx, tokens_gpu, DeviceArray(ctx, {c.vocab, c.width}, kF32, table), y);
    const auto columns = static_cast<size_t>(c.width);
    EXPECT_EQ(y.values(), reference::embedding_forward(tokens, table, columns)) << name;
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      auto start = random_values(c.vocab * c.width, 4, kF32);
      const DeviceArray dtable(ctx, {c.vocab, c.width}, kF32, start);
      embedding_backward(ctx, tokens_gpu, DeviceArray(ctx, {c.rows, c.width}, kF32, dy), dtable,
                         mode);
      if (mode == GradMode::kOverwrite) std::fill(start.begin(), start.end(), 0.0F);
      expect_close(dtable.values(),
                   reference::embedding_backward(tokens, wide(dy), columns, wide(start)),
                   reference::embedding_backward(tokens, dy, columns, start), name);
    }
  }
}

TEST_P(CudaRows, CrossEntropyMatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  const DType type = GetParam();
  Context ctx(kGpu, {.activations = type});
  for (const int64_t vocab : {1, 2, 5, 12, 16, 20, 32, 33, 200}) {
    for (const int64_t rows : {0, 1, 300, 5000}) {
      const std::string name = concat("M ", rows, " V ", vocab);
      const auto logits = random_values(rows * vocab, 1, kF32, 3);
      auto weights = random_values(rows, 2, kF32);
      Random random(3, RandomUse::kTest);
      std::vector<int32_t> targets;
      for (float& weight : weights) {
        const bool ignored = random.below(5) == 0;
        targets.push_back(ignored
                              ? kIgnoreTarget
                              : static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab))));
        weight = random.below(7) == 0 ? 0.0F : std::fabs(weight);
      }
      const DeviceArray losses(ctx, {rows}, kF32);
      const DeviceArray dlogits(ctx, {rows, vocab}, type);
      Tensor totals = test::on_gpu<double>(ctx, {4}, {1, 2, 3, 4});
      cross_entropy(ctx, {.logits = DeviceArray(ctx, {rows, vocab}, kF32, logits),
                          .targets = test::on_gpu(ctx, {rows}, targets),
                          .weights = DeviceArray(ctx, {rows}, kF32, weights),
                          .scale = 0.5F,
                          .losses = losses,
                          .dlogits = dlogits,
                          .totals = totals});
      const auto columns = static_cast<size_t>(vocab);
      const auto oracle =
          reference::cross_entropy(wide(logits), columns, targets, wide(weights), 0.5);
      const auto naive = reference::cross_entropy(logits, columns, targets, weights, 0.5);
      expect_close(losses.values(), oracle.losses, naive.losses, name + " losses");
      expect_close(dlogits.values(), oracle.dlogits, kept(naive.dlogits, type), name + " dlogits");
      const auto sums = test::from_gpu<double>(ctx, totals);
      EXPECT_NEAR(sums[0], 1 + oracle.weighted_loss, 2e-6 * (1 + oracle.weighted_loss)) << name;
      EXPECT_NEAR(sums[1], 2 + oracle.weight, 1e-9 * (1 + oracle.weight)) << name;
      EXPECT_NEAR(sums[2], 3 + oracle.weight_right, 1e-9 * (1 + oracle.weight)) << name;
      EXPECT_EQ(sums[3], 4 + oracle.rows) << name;
    }
  }
}

TEST(CudaFixedRows, NothingIsReadOutsideForTokensAndTargetsThatDontExist) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  const DeviceArray table(ctx, {4, 8}, kF32, random_values(32, 1, kF32));
  const DeviceArray y(ctx, {3, 8}, kF32);
  const Tensor tokens = test::on_gpu<uint8_t>(ctx, {3}, {1, 200, 3});
  embedding_forward(ctx, tokens, table, y);
  const auto rows = y.values();
  EXPECT_FALSE(std::isnan(rows[0]));
  EXPECT_TRUE(std::isnan(rows[8]));
  EXPECT_FALSE(std::isnan(rows[16]));
  const DeviceArray dtable(ctx, {4, 8}, kF32);
  embedding_backward(ctx, tokens, table.view().slice(0, 0, 3), dtable, GradMode::kOverwrite);
  EXPECT_EQ(dtable.values()[0], 0.0F);
  for (const int64_t vocab : {4, 40}) {
    const DeviceArray losses(ctx, {2}, kF32);
    cross_entropy(ctx,
                  {.logits = DeviceArray(ctx, {2, vocab}, kF32, random_values(2 * vocab, 2, kF32)),
                   .targets = test::on_gpu<int32_t>(ctx, {2}, {1, 77}),
                   .losses = losses});
    EXPECT_FALSE(std::isnan(losses.values()[0]));
    EXPECT_TRUE(std::isnan(losses.values()[1]));
  }
}

TEST_P(CudaRows, PoolingMatchesTheOracleInAnySegments) {
  GMAMBA_NEEDS_GPU();
  const DType type = GetParam();
  Context ctx(kGpu, {.activations = type});
  const int64_t batch = 3, length = 500, width = 37;
  const std::vector<int64_t> lengths = {500, 1, 333};
  const auto hidden = random_values(batch * length * width, 1, type);
  const auto dpooled = random_values(batch * width, 2, kF32);
  const Tensor lengths_gpu = test::on_gpu(ctx, {batch}, lengths);
  const std::array<std::pair<PoolMode, reference::Pooling>, 3> modes = {
      {{PoolMode::kMean, reference::Pooling::kMean},
       {PoolMode::kLast, reference::Pooling::kLast},
       {PoolMode::kMax, reference::Pooling::kMax}}};
  for (const int64_t segment : {500, 64, 7}) {
    for (const auto& [mode, named] : modes) {
      Tensor accumulator = ctx.make(DType::kF64, {batch, width});
      Tensor position = ctx.make(DType::kI64, {batch, width});
      const DeviceArray hidden_gpu(ctx, {batch, length, width}, type, hidden);
      const DeviceArray dhidden(ctx, {batch, length, width}, type);
      for (int64_t begin = 0; begin < length; begin += segment) {
        const int64_t end = std::min(length, begin + segment);
        std::vector<int64_t> valid;
        for (const int64_t whole : lengths) {
          valid.push_back(std::clamp<int64_t>(whole - begin, 0, end - begin));
        }
        pool_update(ctx, {.mode = mode,
                          .hidden = hidden_gpu.view().slice(1, begin, end),
                          .valid = test::on_gpu(ctx, {batch}, valid),
                          .offset = begin,
                          .accumulator = accumulator,
                          .position = position});
      }
      const DeviceArray pooled(ctx, {batch, width}, kF32);
      pool_finish(ctx, mode, accumulator, lengths_gpu, pooled);
      for (int64_t begin = 0; begin < length; begin += segment) {
        pool_backward(
            ctx, {.mode = mode,
                  .dpooled = DeviceArray(ctx, {batch, width}, kF32, dpooled),
                  .lengths = lengths_gpu,
                  .position = position,
                  .offset = begin,
                  .dhidden = dhidden.view().slice(1, begin, std::min(length, begin + segment))});
      }
      const auto all = pooled.values();
      const auto gradient = dhidden.values();
      for (int64_t b = 0; b < batch; ++b) {
        const auto count = static_cast<size_t>(lengths[static_cast<size_t>(b)]);
        const auto columns = static_cast<size_t>(width);
        const auto cut = [&](const auto& from, int64_t rows, size_t kept_rows) {
          const auto first = from.begin() + b * rows * width;
          return std::vector<float>(first, first + static_cast<int64_t>(kept_rows) * width);
        };
        const auto rows = cut(hidden, length, count);
        const auto mine = cut(dpooled, 1, 1);
        const std::string name = concat("segment ", segment, " mode ", static_cast<int>(mode));
        expect_close(cut(all, 1, 1), reference::pool(named, wide(rows), count, columns),
                     reference::pool(named, rows, count, columns), name);
        const auto want = reference::pool_backward(named, wide(rows), count, columns, wide(mine));
        const auto naive = reference::pool_backward(named, rows, count, columns, mine);
        expect_close(cut(gradient, length, count), want, kept(naive, type), name + " gradient");
        const auto row = cut(gradient, length, static_cast<size_t>(length));
        for (size_t i = count * columns; i < row.size(); ++i) ASSERT_EQ(row[i], 0.0F) << name;
      }
    }
  }
}

}  // namespace
}  // namespace gmamba
