// SPDX-License-Identifier: Apache-2.0
/// Step sizes from their projection against the fp64 oracle, on the CPU in fp32 and on a GPU in
/// bf16.
#include "kernels/delta_projection.h"

#include <cmath>

#include "tests/kernels/device_arrays.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/relative_error.h"
#include "tests/reference/linear.h"
#include "tests/reference/selective_scan.h"

namespace gmamba::test {
namespace {

using reference::LinearShape;

constexpr DType kF32 = DType::kF32;
constexpr DType kBF16 = DType::kBF16;

struct Case {
  LinearShape shape;
  bool bias = true;
  int64_t gap = 0;  // elements between rows of x and delta

  std::string name() const {
    return concat("M ", shape.rows, " E ", shape.outputs, " R ", shape.inputs, " gap ", gap);
  }
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const int64_t rows : {0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 1000}) {
    out.push_back({{rows, 512, 16}, true, 32});
    out.push_back({{rows, 72, 16}});
  }
  for (const int64_t rank : {2, 6, 8, 14, 16, 18, 24, 32, 34, 48, 64}) {
    out.push_back({{203, 256, rank}, true, 16});
    out.push_back({{50, 1032, rank}, false});
  }
  for (const int64_t channels : {8, 16, 40, 64, 88, 136}) out.push_back({{90, channels, 4}});
  out.push_back({{70001, 64, 16}});  // many tiles for each warp
  return out;
}

struct Data {
  Data(const Case& c, DType type)
      : x(random_values(c.shape.rows * c.shape.inputs, 1, type)),
        weight(random_values(c.shape.outputs * c.shape.inputs, 2, type)) {
    if (!c.bias) return;
    bias = random_values(c.shape.outputs, 3, kF32);
    // steps from 1e-4 to 20
    for (size_t e = 0; e < bias.size(); ++e) bias[e] += -9.0F + static_cast<float>(e % 30);
  }
  std::vector<float> x, weight, bias;
};

template <class Real>
std::vector<Real> expected(const LinearShape& s, const std::vector<Real>& x,
                           const std::vector<Real>& weight, const std::vector<Real>& bias) {
  std::vector<Real> delta = reference::linear_forward(s, x, weight, bias);
  for (Real& value : delta) value = reference::softplus(value);
  return delta;
}

std::vector<float> run(Context& ctx, const Case& c, const Data& in, DType type) {
  const LinearShape& s = c.shape;
  const DeviceArray x(ctx, {s.rows, s.inputs}, type, in.x, c.gap);
  const DeviceArray weight(ctx, {s.outputs, s.inputs}, type, in.weight);
  const DeviceArray delta(ctx, {s.rows, s.outputs}, type, c.gap);
  const DeviceArray bias =
      c.bias ? DeviceArray(ctx, {s.outputs}, kF32, in.bias) : DeviceArray(ctx, {0}, kF32);
  delta_projection(ctx, {x, weight, c.bias ? bias.view() : TensorView{}, delta});
  return delta.values();
}

void expect_oracle(Context& ctx, const Case& c, DType type) {
  const Data in(c, type);
  const auto naive = expected(c.shape, in.x, in.weight, in.bias);
  const auto exact = expected(c.shape, wide(in.x), wide(in.weight), wide(in.bias));
  const std::vector<float> found = run(ctx, c, in, type);
  expect_close(found, exact, kept(naive, type), c.name());
  // each to its own size: small steps are long memories
  const double limit = type == kF32 ? 2e-5 : 4e-3;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], exact[i], limit * exact[i] + 1e-30) << c.name() << " element " << i;
  }
}

TEST(DeltaProjection, MatchesTheOracle) {
  Context ctx(Device{}, {.threads = 2});
  for (const Case& c : cases()) expect_oracle(ctx, c, kF32);
}

TEST(DeltaProjectionCuda, MatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = kBF16});
  for (const Case& c : cases()) expect_oracle(ctx, c, kBF16);
}

TEST(DeltaProjectionCuda, RepeatsItsBitsAndKeepsToItsRows) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = kBF16});
  const Case whole{{4099, 512, 16}};
  const Data in(whole, kBF16);
  const std::vector<float> all = run(ctx, whole, in, kBF16);
  EXPECT_EQ(run(ctx, whole, in, kBF16), all);
  // fewer rows: the same values, and nothing behind them
  const DeviceArray x(ctx, {4099, 16}, kBF16, in.x);
  const DeviceArray weight(ctx, {512, 16}, kBF16, in.weight);
  const DeviceArray bias(ctx, {512}, kF32, in.bias);
  const DeviceArray delta(ctx, {4099, 512}, kBF16);
  delta_projection(ctx, {x.view().slice(0, 0, 1234), weight, bias, delta.view().slice(0, 0, 1234)});
  const std::vector<float> part = delta.values();
  for (size_t i = 0; i < part.size(); ++i) {
    ASSERT_EQ(part[i], i < 1234 * 512 ? all[i] : kept(-12345.0F, kBF16)) << i;
  }
}

TEST(DeltaProjectionCuda, RefusesWhatItHasNoKernelFor) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = kBF16});
  for (const LinearShape s : {LinearShape{9, 64, 3}, {9, 64, 66}, {9, 12, 16}}) {
    const Case c{s};
    EXPECT_EQ(error_of([&] { run(ctx, c, Data(c, kBF16), kBF16); }).first, ErrorKind::kUnsupported);
  }
}

TEST(DeltaProjection, NamesWhatDoesNotFit) {
  Context ctx;
  Tensor x = random_tensor({4, 3}, 1), weight = random_tensor({6, 3}, 2);
  Tensor bias = random_tensor({6}, 3), delta = random_tensor({4, 6}, 4);
  const DeltaProjection good{x, weight, bias, delta};
  EXPECT_NO_THROW(delta_projection(ctx, good));
  const auto refused = [&](auto&& change) {
    DeltaProjection args = good;
    change(args);
    return error_of([&] { delta_projection(ctx, args); }).first;
  };
  EXPECT_EQ(refused([&](auto& a) { a.x = delta.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.weight = x.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.bias = x.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.delta = bias.view(); }), ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba::test
