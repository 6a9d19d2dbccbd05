// SPDX-License-Identifier: Apache-2.0
/// Both gradients of a projection at once against the fp64 oracles, on the CPU and on a GPU in fp32
/// and bf16, where one kernel forms them and where two products do.
#include "kernels/linear_backward.h"

#include <algorithm>

#include "kernels/cuda_basic.h"
#include "tests/kernels/device_arrays.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/relative_error.h"
#include "tests/reference/linear.h"

namespace gmamba::test {
namespace {

using reference::LinearShape;

constexpr DType kF32 = DType::kF32;

struct Case {
  LinearShape shape;
  int64_t gap = 0;   // elements between rows of dy, x and dx, half of them before the first
  bool fits = true;  // the GPU's kernel of both applies to bf16

  std::string name() const {
    return concat("M ", shape.rows, " N ", shape.outputs, " K ", shape.inputs, " gap ", gap);
  }
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const int64_t rows : {1, 2, 15, 16, 17, 31, 32, 33, 127, 129, 1000}) {
    out.push_back({{rows, 512, 16}, 32});
    out.push_back({{rows, 64, 8}});
  }
  for (const int64_t inputs : {8, 16, 24, 32}) {
    out.push_back({{700, 256, inputs}});
    out.push_back({{333, 512, inputs}, 16});
  }
  for (const int64_t outputs : {576, 640, 1024}) {
    out.push_back({{5, outputs, 16}});
    out.push_back({{16, outputs, 8}, 16});
    out.push_back({{417, outputs, 16}, 32});
  }
  out.push_back({{77, 192, 16}});
  out.push_back({{203, 640, 24}, 16});
  out.push_back({{65539, 64, 8}, 16});
  out.push_back({{9001, 128, 16}});  // several tiles for each block
  // two products
  out.push_back({{0, 64, 16}, 0, false});
  out.push_back({{9, 0, 16}, 0, false});
  out.push_back({{9, 64, 0}, 0, false});
  out.push_back({{90, 48, 16}, 0, false});
  out.push_back({{90, 64, 12}, 0, false});
  out.push_back({{90, 64, 48}, 0, false});
  out.push_back({{90, 1024, 32}, 0, false});
  out.push_back({{90, 1088, 8}, 0, false});
  out.push_back({{90, 64, 16}, 4, false});  // rows not on 16 bytes
  out.push_back({{33, 7, 3}, 1, false});
  return out;
}

/// Inputs that `type` holds exactly where they are activations, and what gradients start with.
struct Data {
  Data(LinearShape s, DType type)
      : dy(random_values(s.rows * s.outputs, 1, type)),
        x(random_values(s.rows * s.inputs, 2, type)),
        weight(random_values(s.outputs * s.inputs, 3, type)),
        start(random_values(s.outputs * s.inputs, 4, kF32)) {}
  std::vector<float> dy, x, weight, start;
};

struct Arrays {
  Arrays(Context& ctx, LinearShape s, const Data& in, DType type, int64_t gap)
      : dy(ctx, {s.rows, s.outputs}, type, in.dy, gap),
        x(ctx, {s.rows, s.inputs}, type, in.x, gap),
        weight(ctx, {s.outputs, s.inputs}, type, in.weight),
        dx(ctx, {s.rows, s.inputs}, type, gap),
        dweight(ctx, {s.outputs, s.inputs}, kF32, in.start, gap) {}
  LinearBackward args(GradMode mode) const { return {dy, x, weight, dx, dweight, mode}; }

  DeviceArray dy, x, weight, dx, dweight;
};

void expect_oracle(Context& ctx, const Case& c, DType type) {
  const LinearShape s = c.shape;
  const Data in(s, type);
  const std::vector<float> zeros(static_cast<size_t>(s.rows * s.inputs));
  const auto dx = reference::linear_backward_input(s, wide(in.dy), wide(in.weight), wide(zeros));
  const auto dx_naive = reference::linear_backward_input(s, in.dy, in.weight, zeros);
  for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
    const Arrays on(ctx, s, in, type, c.gap);
    linear_backward(ctx, on.args(mode));
    auto start = in.start;
    if (mode == GradMode::kOverwrite) std::fill(start.begin(), start.end(), 0.0F);
    expect_close(on.dx.values(), dx, kept(dx_naive, type), c.name() + " dx");
    expect_close(on.dweight.values(),
                 reference::linear_backward_weight(s, wide(in.dy), wide(in.x), wide(start)),
                 reference::linear_backward_weight(s, in.dy, in.x, start), c.name() + " dweight");
  }
}

TEST(LinearBackward, MatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : cases()) expect_oracle(ctx, c, kF32);
}

class LinearBackwardCuda : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(, LinearBackwardCuda, testing::Values(kF32, DType::kBF16), type_name);

TEST_P(LinearBackwardCuda, MatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = GetParam()});
  for (const Case& c : cases()) expect_oracle(ctx, c, GetParam());
}

TEST(LinearBackwardKernel, AppliesWhereItsContractSays) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = DType::kBF16});
  for (const Case& c : cases()) {
    const Arrays on(ctx, c.shape, Data(c.shape, DType::kBF16), DType::kBF16, c.gap);
    EXPECT_EQ(cuda::linear_backward(ctx, on.args(GradMode::kOverwrite)), c.fits) << c.name();
  }
  const LinearShape s{90, 64, 16};
  const Arrays on(ctx, s, Data(s, DType::kBF16), DType::kBF16, 0);
  const DeviceArray dx(ctx, {s.rows, s.inputs}, kF32);
  LinearBackward wide_dx = on.args(GradMode::kOverwrite);
  wide_dx.dx = dx;
  EXPECT_FALSE(cuda::linear_backward(ctx, wide_dx));
  linear_backward(ctx, wide_dx);
  linear_backward(ctx, on.args(GradMode::kOverwrite));
  EXPECT_LE(relative_error(on.dx.values(), dx.values()), 4e-3);
}

/// A model's shape, too large for the oracle: against the two products, and twice over.
TEST(LinearBackwardKernel, AgreesWithTwoProductsAndRepeatsItsBits) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = DType::kBF16});
  for (const LinearShape s : {LinearShape{65539, 512, 16}, {70001, 256, 8}, {20011, 1024, 16}}) {
    const Arrays on(ctx, s, Data(s, DType::kBF16), DType::kBF16, 32);
    linear_backward_weight(ctx, on.dy, on.x, on.dweight, {}, GradMode::kOverwrite);
    linear_backward_input(ctx, on.dy, on.weight, on.dx);
    std::vector<float> dx = on.dx.values();
    std::vector<float> dweight = on.dweight.values();
    for (int repeat = 0; repeat < 3; ++repeat) {
      LinearBackward args = on.args(GradMode::kOverwrite);
      const DeviceArray dx_again(ctx, {s.rows, s.inputs}, DType::kBF16, 32);
      const DeviceArray dweight_again(ctx, {s.outputs, s.inputs}, kF32, 32);
      args.dx = dx_again;
      args.dweight = dweight_again;
      ASSERT_TRUE(cuda::linear_backward(ctx, args));
      if (repeat == 0) {
        EXPECT_LE(relative_error(dx_again.values(), dx), 3e-4);  // a sum rounded the other way
        EXPECT_LE(relative_error(dweight_again.values(), dweight), 2e-6);
        dx = dx_again.values();
        dweight = dweight_again.values();
      } else {
        EXPECT_EQ(dx_again.values(), dx) << s.rows;
        EXPECT_EQ(dweight_again.values(), dweight) << s.rows;
      }
    }
  }
}

TEST(LinearBackwardKernel, WritesOnlyItsOwnElements) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = DType::kBF16});
  const int64_t rows = 45, outputs = 128, inputs = 16;
  const LinearShape s{rows, outputs, inputs};
  const Data in(s, DType::kBF16);
  const Arrays on(ctx, s, in, DType::kBF16, 0);
  const DeviceArray dx(ctx, {rows + 20, 48}, DType::kBF16);
  const DeviceArray dweight(ctx, {outputs + 4, 24}, kF32);
  LinearBackward args = on.args(GradMode::kOverwrite);
  args.dx = dx.view().slice(0, 0, rows).slice(1, 16, 32);
  args.dweight = dweight.view().slice(0, 0, outputs).slice(1, 4, 20);
  linear_backward(ctx, args);
  linear_backward(ctx, on.args(GradMode::kOverwrite));
  const auto expect_inside = [](const DeviceArray& array, const DeviceArray& same, int64_t first,
                                int64_t width) {
    const auto all = array.values();
    const auto want = same.values();
    const int64_t columns = array.view().dim(1);
    for (int64_t i = 0; i < array.view().size(); ++i) {
      const int64_t row = i / columns;
      const int64_t column = i % columns - first;
      const bool inside = row < same.view().dim(0) && column >= 0 && column < width;
      ASSERT_EQ(all[static_cast<size_t>(i)], inside
                                                 ? want[static_cast<size_t>(row * width + column)]
                                                 : kept(-12345.0F, array.view().dtype))
          << row << ' ' << column;
    }
  };
  expect_inside(dx, on.dx, 16, inputs);
  expect_inside(dweight, on.dweight, 4, inputs);
}

TEST(LinearBackward, NamesWhatDoesNotFit) {
  Context ctx;
  Tensor dy = random_tensor({4, 6}, 1), x = random_tensor({4, 3}, 2), dx = random_tensor({4, 3}, 3);
  Tensor weight = random_tensor({6, 3}, 4), dweight = random_tensor({6, 3}, 5);
  const LinearBackward good{dy, x, weight, dx, dweight};
  EXPECT_NO_THROW(linear_backward(ctx, good));
  const auto refused = [&](auto&& change) {
    LinearBackward args = good;
    change(args);
    return error_of([&] { linear_backward(ctx, args); }).first;
  };
  EXPECT_EQ(refused([&](auto& a) { a.dy = x.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.x = dy.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.weight = x.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.dx = dweight.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.dweight = dx.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.dx = x.view(); }), ErrorKind::kInternal);
}

}  // namespace
}  // namespace gmamba::test
