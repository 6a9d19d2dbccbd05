// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <cmath>

#include "kernels/cuda_basic.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/simd_targets_fixture.h"
#include "tests/reference/linear.h"

namespace gmamba {
namespace {

using reference::LinearShape;
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
  LinearShape shape;
  int64_t gap;  // rows of x, y and their gradients are this many elements further apart
};

// nothing, one, odd, just over a tile of rows or columns, the shapes of a model, chunked reductions
const Case kCases[] = {
    {{0, 3, 4}, 0},
    {{3, 0, 4}, 0},
    {{3, 4, 0}, 0},
    {{0, 0, 0}, 0},
    {{1, 1, 1}, 0},
    {{1, 7, 5}, 3},
    {{3, 5, 7}, 2},
    {{17, 33, 9}, 5},
    {{65, 129, 66}, 0},
    {{257, 3, 5}, 4},
    {{300, 48, 100}, 8},
    {{257, 130, 257}, 1},
    {{512, 16, 64}, 16},
    {{2049, 16, 48}, 32},
    {{1, 1200, 900}, 0},
    {{3000, 20, 17}, 0},
    {{8195, 20, 17}, 3},
    // a small inner extent forward, backward, both; edges of panels and groups of rows
    {{32, 64, 16}, 0},
    {{33, 31, 48}, 1},
    {{35, 33, 1}, 2},
    {{300, 512, 16}, 0},
    {{290, 48, 70}, 3},
    {{64, 5, 200}, 0},
    {{31, 40, 16}, 0},
    {{40, 49, 49}, 0},
};

std::string name(const Case& c) {
  return concat("rows ", c.shape.rows, " outputs ", c.shape.outputs, " inputs ", c.shape.inputs,
                " gap ", c.gap);
}

/// The tensors of a case, rows of the activations strided by its gap.
struct Problem {
  explicit Problem(const Case& c)
      : shape(c.shape),
        x(strided_copy(x_owner, random_tensor({shape.rows, shape.inputs}, 1), c.gap)),
        weight(random_tensor({shape.outputs, shape.inputs}, 2)),
        bias(random_tensor({shape.outputs}, 3)),
        dy(strided_copy(dy_owner, random_tensor({shape.rows, shape.outputs}, 4), c.gap)),
        y(strided_copy(y_owner, garbage_tensor({shape.rows, shape.outputs}), c.gap)),
        dx(strided_copy(dx_owner, garbage_tensor({shape.rows, shape.inputs}), c.gap)) {}

  LinearShape shape;
  Tensor x_owner, dy_owner, y_owner, dx_owner;
  TensorView x;   // (M, K)
  Tensor weight;  // (N, K)
  Tensor bias;    // (N)
  TensorView dy;  // (M, N)
  TensorView y;   // (M, N)
  TensorView dx;  // (M, K)
};

class LinearTargets : public test::SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(, LinearTargets, testing::ValuesIn(test::simd_targets()),
                         test::simd_target_name);

TEST_P(LinearTargets, ForwardMatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const bool with_bias : {false, true}) {
      Problem p(c);
      const ConstTensorView bias = with_bias ? ConstTensorView(p.bias) : ConstTensorView{};
      linear_forward(ctx, p.x, p.weight, bias, p.y);
      expect_within_budget(
          values<double>(p.y),
          reference::linear_forward(c.shape, values<double>(p.x), values<double>(p.weight.view()),
                                    values<double>(bias)),
          reference::linear_forward(c.shape, values<float>(p.x), values<float>(p.weight.view()),
                                    values<float>(bias)),
          name(c));
    }
  }
}

TEST_P(LinearTargets, BackwardInputMatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      Problem p(c);
      std::vector<double> start(static_cast<size_t>(p.dx.size()));
      if (mode == GradMode::kAccumulate) {
        p.dx = strided_copy(p.dx_owner, random_tensor({c.shape.rows, c.shape.inputs}, 7), c.gap);
        start = values<double>(p.dx);
      }
      linear_backward_input(ctx, p.dy, p.weight, p.dx, mode);
      expect_within_budget(values<double>(p.dx),
                           reference::linear_backward_input(c.shape, values<double>(p.dy),
                                                            values<double>(p.weight.view()), start),
                           reference::linear_backward_input(
                               c.shape, values<float>(p.dy), values<float>(p.weight.view()),
                               std::vector<float>(start.begin(), start.end())),
                           name(c));
    }
  }
}

TEST(Linear, BackwardWeightMatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : kCases) {
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      Problem p(c);
      Tensor dweight = random_tensor({c.shape.outputs, c.shape.inputs}, 5);
      Tensor dbias = random_tensor({c.shape.outputs}, 6);
      auto start = values<double>(dweight.view());
      auto bias_start = values<double>(dbias.view());
      if (mode == GradMode::kOverwrite) {
        std::fill(start.begin(), start.end(), 0.0);
        std::fill(bias_start.begin(), bias_start.end(), 0.0);
      }
      linear_backward_weight(ctx, p.dy, p.x, dweight, dbias, mode);
      const auto dy = values<double>(p.dy);
      const auto dy_f = values<float>(p.dy);
      expect_within_budget(
          values<double>(dweight.view()),
          reference::linear_backward_weight(c.shape, dy, values<double>(p.x), start),
          reference::linear_backward_weight(c.shape, dy_f, values<float>(p.x),
                                            std::vector<float>(start.begin(), start.end())),
          name(c));
      expect_within_budget(
          values<double>(dbias.view()), reference::linear_backward_bias(c.shape, dy, bias_start),
          reference::linear_backward_bias(c.shape, dy_f,
                                          std::vector<float>(bias_start.begin(), bias_start.end())),
          name(c) + " bias");
    }
  }
}

TEST(Linear, WritesOnlyItsOwnElements) {
  Context ctx(Device{}, {.threads = 2});
  const Case c{{70, 10, 6}, 6};
  Problem p(c);
  linear_forward(ctx, p.x, p.weight, p.bias, p.y);
  linear_backward_input(ctx, p.dy, p.weight, p.dx);
  for (Tensor* owner : {&p.y_owner, &p.dx_owner}) {
    const auto all = owner->view().as<float, 2>();
    for (int64_t m = 0; m < all.extent[0]; ++m) {
      for (const int64_t n : {int64_t{0}, int64_t{2}, all.extent[1] - 1, all.extent[1] - 3}) {
        EXPECT_EQ(*all.at(m, n), -12345.0F) << m << ' ' << n;
      }
    }
  }
}

TEST(Linear, GradientsOfTheOracleAreThoseOfItsForward) {
  for (const LinearShape s : {LinearShape{1, 1, 1}, {3, 5, 7}, {4, 2, 3}}) {
    const Problem p({s, 0});
    const auto x = values<double>(p.x);
    const auto weight = values<double>(p.weight.view());
    const auto bias = values<double>(p.bias.view());
    const auto dy = values<double>(p.dy);
    expect_gradient(
        [&](const auto& at) { return dot(reference::linear_forward(s, at, weight, bias), dy); }, x,
        reference::linear_backward_input(s, dy, weight, std::vector<double>(x.size())), "x");
    expect_gradient(
        [&](const auto& at) { return dot(reference::linear_forward(s, x, at, bias), dy); }, weight,
        reference::linear_backward_weight(s, dy, x, std::vector<double>(weight.size())), "weight");
    expect_gradient(
        [&](const auto& at) { return dot(reference::linear_forward(s, x, weight, at), dy); }, bias,
        reference::linear_backward_bias(s, dy, std::vector<double>(bias.size())), "bias");
  }
}

TEST(Linear, HasTheSameBitsForAnyNumberOfThreads) {
  // every way of cutting: rows, columns, blocks of the weight's gradient, chunks of the reduction
  for (const LinearShape s :
       {LinearShape{2048, 64, 64}, {700, 16, 70}, {100, 700, 300}, {2500, 48, 130}}) {
    Tensor first[4];
    for (const int threads : {1, 2, 3, 4}) {
      Context ctx(Device{}, {.threads = threads});
      Problem p({s, 0});
      Tensor dweight = random_tensor({s.outputs, s.inputs}, 5);
      Tensor dbias = random_tensor({s.outputs}, 6);
      linear_forward(ctx, p.x, p.weight, p.bias, p.y);
      linear_backward_input(ctx, p.dy, p.weight, p.dx);
      linear_backward_weight(ctx, p.dy, p.x, dweight, dbias, GradMode::kAccumulate);
      Tensor* const results[4] = {&p.y_owner, &p.dx_owner, &dweight, &dbias};
      for (int i = 0; i < 4; ++i) {
        if (threads == 1) {
          first[i] = results[i]->clone();
        } else {
          EXPECT_TRUE(same_bits(first[i], *results[i])) << threads << " threads, result " << i;
        }
      }
    }
  }
}

TEST(Linear, AllocatesNothingAfterItsFirstStep) {
  Context ctx(Device{}, {.threads = 2});
  Problem p({{8195, 16, 48}, 0});
  Tensor dweight(Device{}, DType::kF32, {16, 48});
  Tensor dbias(Device{}, DType::kF32, {16});
  linear_backward_weight(ctx, p.dy, p.x, dweight, dbias, GradMode::kAccumulate);
  const int64_t before = ctx.arena().allocations();
  linear_backward_weight(ctx, p.dy, p.x, dweight, dbias, GradMode::kAccumulate);
  EXPECT_EQ(ctx.arena().allocations(), before);
  EXPECT_EQ(ctx.arena().used_bytes(), 0);
}

TEST(Linear, NamesWhatDoesNotFit) {
  Context ctx;
  Tensor x = random_tensor({4, 6}, 1);
  Tensor weight = random_tensor({5, 7}, 2);
  Tensor y = random_tensor({4, 5}, 3);
  const auto [kind, message] = error_of([&] { linear_forward(ctx, x, weight, {}, y); });
  EXPECT_EQ(kind, ErrorKind::kShape);
  EXPECT_EQ(message, "linear_forward: weight: expected shape (5, 6), found (5, 7)");
  EXPECT_EQ(error_of([&] { linear_backward_input(ctx, y, weight, x); }).first, ErrorKind::kShape);
  EXPECT_EQ(
      error_of([&] { linear_backward_weight(ctx, y, x, weight, {}, GradMode::kOverwrite); }).first,
      ErrorKind::kShape);
  EXPECT_EQ(error_of([&] { linear_forward(ctx, x, {}, {}, y); }).first, ErrorKind::kShape);

  Tensor narrow(Device{}, DType::kBF16, {5, 6});
  EXPECT_EQ(error_of([&] { linear_forward(ctx, x, narrow, {}, y); }).first,
            ErrorKind::kUnsupported);
  Tensor wrong(Device{}, DType::kI32, {5, 6});
  EXPECT_EQ(error_of([&] { linear_forward(ctx, x, wrong, {}, y); }).first, ErrorKind::kInternal);

  ConstTensorView elsewhere = random_tensor({5, 6}, 2).view();
  elsewhere.device = Device{DeviceKind::kCuda, 0};
  EXPECT_EQ(error_of([&] { linear_forward(ctx, x, elsewhere, {}, y); }).first,
            ErrorKind::kInternal);
  ConstTensorView overlapping = x;
  overlapping.stride[0] = 3;
  EXPECT_EQ(error_of([&] { linear_forward(ctx, overlapping, weight, {}, y); }).first,
            ErrorKind::kInternal);
}

TEST(CudaStandIns, SayThatThisBuildHasNone) {
  const std::string why = backend_for(DeviceKind::kCuda).why_none();
  if (why.find("no CUDA support") == std::string::npos) {
    GTEST_SKIP() << "this build has the CUDA bodies";
  }
  Context ctx;
  const auto [kind, message] = error_of([&] { cuda::linear_forward(ctx, {}, {}, {}, {}); });
  EXPECT_EQ(kind, ErrorKind::kUnsupported);
  EXPECT_NE(message.find("no CUDA support"), std::string::npos);
}

}  // namespace
}  // namespace gmamba
