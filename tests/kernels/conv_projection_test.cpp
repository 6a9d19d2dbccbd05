// SPDX-License-Identifier: Apache-2.0
/// Convolution with projection against the fp64 oracles of both, on the CPU and on a GPU in fp32
/// and bf16: whole, in segments, twice over.
#include "kernels/conv_projection.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda_sequence.h"
#include "tests/kernels/conv1d_cases.h"
#include "tests/kernels/device_arrays.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/relative_error.h"
#include "tests/reference/linear.h"

namespace gmamba::test {
namespace {

constexpr DType kF32 = DType::kF32;

struct Case {
  ConvCase conv;
  int64_t outputs = 48;
  int64_t gap = 0;        // elements between rows
  bool fits = true;       // the GPU's kernels of both apply to bf16,
  bool too_wide = false;  // but not the forward one

  std::string name() const {
    return conv.name() + "_P" + std::to_string(outputs) + "_gap" + std::to_string(gap);
  }
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const int64_t length : {1, 2, 3, 4, 5, 28, 29, 30, 31, 32, 33, 35, 61, 62, 63, 64, 65, 67}) {
    out.push_back({{2, length, 64, 4}});
    out.push_back({{1, length, 24, 4, length % 2 == 0, length % 3 == 0}, 16});
  }
  out.push_back({{1, 1, 512, 4}});
  out.push_back({{1, 3001, 512, 4}});
  out.push_back({{3, 1100, 512, 4, true, false}});
  out.push_back({{1, 700, 128, 4, false, true}});
  out.push_back({{40, 33, 136, 4}, 40});
  out.push_back({{2, 200, 200, 4}, 56});
  out.push_back({{2, 140, 512, 4}, 40});
  out.push_back({{2, 140, 512, 4}, 64});
  out.push_back({{2, 140, 1024, 4}, 64, 0, true, true});
  out.push_back({{2, 77, 8, 4}, 8});
  out.push_back({{3, 150, 72, 4}, 48, 16});  // rows apart
  out.push_back({{2, 130, 64, 4, true, true, false, 1000}});
  // two operations one after the other
  out.push_back({{2, 0, 64, 4}, 48, 0, false});
  out.push_back({{0, 10, 64, 4}, 48, 0, false});
  out.push_back({{3, 150, 72, 4}, 48, 8, false});  // rows not on 16 bytes
  out.push_back({{2, 90, 20, 4}, 48, 0, false});
  out.push_back({{2, 90, 19, 4}, 11, 0, false});
  out.push_back({{2, 90, 64, 4}, 44, 0, false});
  out.push_back({{2, 90, 64, 4}, 80, 0, false});
  for (const int64_t taps : {1, 2, 3}) out.push_back({{2, 90, 64, taps}, 48, 0, false});
  return out;
}

struct Data {
  ConvData conv;
  int64_t outputs = 0;
  std::vector<float> projection;  // (P, E)
  std::vector<float> dprojected;  // (B L, P)
};

/// Inputs that `type` holds exactly where they are activations.
Data inputs(const Case& c, DType type) {
  Data in{conv_inputs(c.conv), c.outputs, {}, {}};
  in.conv.x = kept(in.conv.x, type);
  in.conv.dy = kept(in.conv.dy, type);
  const auto width = static_cast<double>(c.conv.d_inner);
  in.projection = random_values(c.outputs * c.conv.d_inner, 21, type, 1 / std::sqrt(width));
  in.dprojected = random_values(c.conv.batch * c.conv.length * c.outputs, 22, type);
  return in;
}

/// What the operation gives: of a kernel, of the oracle in double, or naively in float.
template <class Real>
struct Results {
  std::vector<Real> y, projected, tail_out, dx, dtail_in, dweight, dbias, dprojection;
};

/// By the definitions; `round` is what storing an activation does to it.
template <class Real, class Round>
Results<Real> expected(const reference::ConvInputs<Real>& conv, const std::vector<Real>& projection,
                       const std::vector<Real>& dprojected, int64_t outputs, Round round) {
  const reference::LinearShape shape{static_cast<int64_t>(conv.batch * conv.length), outputs,
                                     static_cast<int64_t>(conv.d_inner)};
  Results<Real> out;
  auto forward = reference::conv_forward(conv);
  out.y = round(forward.y);
  out.tail_out = forward.tail_out;
  out.projected = round(reference::linear_forward(shape, out.y, projection, {}));
  auto inner = conv;
  inner.dy = round(reference::linear_backward_input(shape, dprojected, projection, conv.dy));
  auto d = reference::conv_backward(inner);
  out.dx = round(d.x);
  out.dtail_in = d.tail_in;
  out.dweight = d.weight;
  out.dbias = d.bias;
  out.dprojection = reference::linear_backward_weight(shape, dprojected, out.y,
                                                      std::vector<Real>(projection.size()));
  return out;
}

Results<double> oracle(const Data& in) {
  return expected(as_oracle(in.conv), wide(in.projection), wide(in.dprojected), in.outputs,
                  [](const std::vector<double>& values) { return values; });
}

Results<float> naive(const Data& in, DType type) {
  return expected(in.conv, in.projection, in.dprojected, in.outputs,
                  [&](const std::vector<float>& values) { return kept(values, type); });
}

/// A problem on a device, taken through the kernels in segments.
class Runner {
 public:
  Runner(Context& ctx, const Data& in, DType type, int64_t gap = 0)
      : ctx_(ctx),
        in_(in),
        B(static_cast<int64_t>(in.conv.batch)),
        L(static_cast<int64_t>(in.conv.length)),
        E(static_cast<int64_t>(in.conv.d_inner)),
        K(static_cast<int64_t>(in.conv.d_conv)),
        P(in.outputs),
        x(ctx, {B, L, E}, type, in.conv.x, gap),
        dy(ctx, {B, L, E}, type, in.conv.dy, gap),
        y(ctx, {B, L, E}, type, gap),
        dx(ctx, {B, L, E}, type, gap),
        projection(ctx, {P, E}, type, in.projection),
        projected(ctx, {B * L, P}, type),
        dprojected(ctx, {B * L, P}, type, in.dprojected),
        weight(ctx, {E, K}, kF32, in.conv.weight),
        dweight(ctx, {E, K}, kF32, std::vector<float>(in.conv.weight.size())),
        dprojection(ctx, {P, E}, kF32, std::vector<float>(in.projection.size())) {
    if (in.conv.bias.empty()) return;
    bias = DeviceArray(ctx, {E}, kF32, in.conv.bias);
    dbias = DeviceArray(ctx, {E}, kF32, std::vector<float>(in.conv.bias.size()));
  }

  ConvProjectionForward forward(int64_t begin, int64_t end, const DeviceArray& tail_in,
                                const DeviceArray& tail_out) const {
    return {.x = x.view().slice(1, begin, end),
            .weight = weight,
            .bias = bias,
            .tail_in = tail_in,
            .projection = projection,
            .y = y.view().slice(1, begin, end),
            .projected = projected.view().slice(0, B * begin, B * end),
            .tail_out = tail_out};
  }
  ConvProjectionBackward backward(int64_t begin, int64_t end, const DeviceArray& tail_in,
                                  const DeviceArray& dtail_out, const DeviceArray& dtail_in,
                                  GradMode mode) const {
    return {.dy = dy.view().slice(1, begin, end),
            .dprojected = dprojected.view().slice(0, B * begin, B * end),
            .dtail_out = dtail_out,
            .x = x.view().slice(1, begin, end),
            .y = y.view().slice(1, begin, end),
            .weight = weight,
            .bias = bias,
            .tail_in = tail_in,
            .projection = projection,
            .dx = dx.view().slice(1, begin, end),
            .dtail_in = dtail_in,
            .dweight = dweight,
            .dbias = dbias,
            .dprojection = dprojection,
            .mode = mode};
  }
  DeviceArray tail(const std::vector<float>& values) const {
    return values.empty() ? DeviceArray() : DeviceArray(ctx_, {B, K - 1, E}, kF32, values);
  }

  /// Borders are for a batch of 1, where the rows of a segment follow each other.
  Results<float> run(std::vector<int64_t> borders = {}) const {
    borders.insert(borders.begin(), 0);
    borders.push_back(L);
    const GradMode mode = borders.size() > 2 ? GradMode::kAccumulate : GradMode::kOverwrite;
    std::vector<DeviceArray> tails(borders.size());
    tails[0] = tail(in_.conv.tail_in);
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      tails[i + 1] = DeviceArray(ctx_, {B, K - 1, E}, kF32);
      conv_projection_forward(ctx_, forward(borders[i], borders[i + 1], tails[i], tails[i + 1]));
    }
    DeviceArray dtail = tail(in_.conv.dtail_out);
    for (size_t i = borders.size() - 1; i-- > 0;) {
      DeviceArray before(ctx_, {B, K - 1, E}, kF32);
      conv_projection_backward(ctx_,
                               backward(borders[i], borders[i + 1], tails[i], dtail, before, mode));
      dtail = std::move(before);
    }
    return {y.values(),
            projected.values(),
            tails.back().values(),
            dx.values(),
            dtail.values(),
            dweight.values(),
            bias.view().empty() ? std::vector<float>{} : dbias.values(),
            dprojection.values()};
  }

 private:
  Context& ctx_;
  const Data& in_;
  int64_t B, L, E, K, P;

 public:
  DeviceArray x, dy, y, dx, projection, projected, dprojected, weight, dweight, dprojection, bias,
      dbias;
};

void expect_results(const Results<float>& found, const Data& in, DType type,
                    const std::string& name) {
  const auto want = oracle(in);
  const auto plain = naive(in, type);
  expect_close(found.y, want.y, plain.y, name + " y");
  expect_close(found.projected, want.projected, plain.projected, name + " projected");
  expect_close(found.tail_out, want.tail_out, plain.tail_out, name + " tail_out");
  expect_close(found.dx, want.dx, plain.dx, name + " dx");
  expect_close(found.dtail_in, want.dtail_in, plain.dtail_in, name + " dtail_in", 4e-6);
  expect_close(found.dweight, want.dweight, plain.dweight, name + " dweight", 4e-6);
  expect_close(found.dbias, want.dbias, plain.dbias, name + " dbias", 4e-6);
  expect_close(found.dprojection, want.dprojection, plain.dprojection, name + " dprojection", 4e-6);
}

void expect_same(const Results<float>& a, const Results<float>& b) {
  EXPECT_EQ(a.y, b.y);
  EXPECT_EQ(a.projected, b.projected);
  EXPECT_EQ(a.tail_out, b.tail_out);
  EXPECT_EQ(a.dx, b.dx);
  EXPECT_EQ(a.dtail_in, b.dtail_in);
  EXPECT_EQ(a.dweight, b.dweight);
  EXPECT_EQ(a.dbias, b.dbias);
  EXPECT_EQ(a.dprojection, b.dprojection);
}

struct Place {
  const char* name;
  Device device;
  DType type;
};

class ConvProjection : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    if (GetParam().device.is_cpu()) return;
    GMAMBA_NEEDS_GPU();
  }
  Context context() const { return Context(GetParam().device, {.activations = GetParam().type}); }
};
INSTANTIATE_TEST_SUITE_P(, ConvProjection,
                         testing::Values(Place{"cpu", {}, kF32}, Place{"Cuda_f32", kGpu, kF32},
                                         Place{"Cuda_bf16", kGpu, DType::kBF16}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_P(ConvProjection, MatchesTheOracle) {
  Context ctx = context();
  for (const Case& c : cases()) {
    const Data in = inputs(c, GetParam().type);
    expect_results(Runner(ctx, in, GetParam().type, c.gap).run(), in, GetParam().type, c.name());
  }
}

TEST_P(ConvProjection, IsTheSameInSegments) {
  Context ctx = context();
  const Case c{{1, 200, 72, 4}};
  const Data in = inputs(c, GetParam().type);
  for (const std::vector<int64_t>& borders :
       {std::vector<int64_t>{1}, {1, 2, 3}, {32, 64, 96}, {100, 100}, {198, 199}}) {
    expect_results(Runner(ctx, in, GetParam().type).run(borders), in, GetParam().type,
                   c.name() + " in " + std::to_string(borders.size() + 1) + " segments");
  }
}

TEST_P(ConvProjection, HasTheSameBitsEveryTime) {
  Context ctx = context();
  const Data in = inputs({{2, 5000, 136, 4}}, GetParam().type);
  const auto first = Runner(ctx, in, GetParam().type).run();
  for (int i = 0; i < 3; ++i) expect_same(Runner(ctx, in, GetParam().type).run(), first);
}

/// The convolution is that of conv1d to the last bit, for what computes it again.
TEST_P(ConvProjection, ConvolvesAsTheConvolutionAloneDoes) {
  Context ctx = context();
  for (const Case& c : cases()) {
    if (c.conv.batch == 0 || c.conv.d_conv == 1) continue;
    const Data in = inputs(c, GetParam().type);
    const Runner run(ctx, in, GetParam().type, c.gap);
    const Results<float> found = run.run();
    const DeviceArray tail_in = run.tail(in.conv.tail_in);
    const DeviceArray tail_out = run.tail(std::vector<float>(found.tail_out.size()));
    conv1d_forward(ctx, {.x = run.x,
                         .weight = run.weight,
                         .bias = run.bias,
                         .tail_in = tail_in,
                         .y = run.y,
                         .tail_out = tail_out});
    EXPECT_EQ(found.y, run.y.values()) << c.name();
    EXPECT_EQ(found.tail_out, tail_out.values()) << c.name();
  }
}

TEST(ConvProjectionCuda, OneKernelDoesWhatFits) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu, {.activations = DType::kBF16});
  for (const Case& c : cases()) {
    const Data in = inputs(c, DType::kBF16);
    const Runner run(ctx, in, DType::kBF16, c.gap);
    const auto length = c.conv.length;
    EXPECT_EQ(cuda::conv_projection_forward(ctx, run.forward(0, length, {}, {})),
              c.fits && !c.too_wide)
        << c.name();
    EXPECT_EQ(cuda::conv_projection_backward(
                  ctx, run.backward(0, length, {}, {}, {}, GradMode::kAccumulate)),
              c.fits)
        << c.name();
  }
}

TEST(ConvProjectionShapes, RefusesWhatDoesNotFit) {
  Context ctx;
  const Data in = inputs({{2, 8, 16, 4}, 12}, kF32);
  const Runner run(ctx, in, kF32);
  const DeviceArray tail = run.tail(in.conv.tail_in), tail_out = run.tail(in.conv.tail_in);
  const auto good = run.forward(0, 8, tail, tail_out);
  EXPECT_NO_THROW(conv_projection_forward(ctx, good));
  const auto refused = [&](auto&& change) {
    ConvProjectionForward args = good;
    change(args);
    return error_of([&] { conv_projection_forward(ctx, args); }).first;
  };
  EXPECT_EQ(refused([&](auto& a) { a.projection = run.x.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.projection = run.weight.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.projected = run.dprojection.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.y = tail.view(); }), ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.tail_out = tail.view(); }), ErrorKind::kInternal);
  const auto good_backward = run.backward(0, 8, tail, tail_out, tail, GradMode::kOverwrite);
  EXPECT_NO_THROW(conv_projection_backward(ctx, good_backward));
  const auto refused_backward = [&](auto&& change) {
    ConvProjectionBackward args = good_backward;
    change(args);
    return error_of([&] { conv_projection_backward(ctx, args); }).first;
  };
  EXPECT_EQ(refused_backward([&](auto& a) { a.dprojected = run.projection.view(); }),
            ErrorKind::kShape);
  EXPECT_EQ(refused_backward([&](auto& a) { a.dprojection = run.dweight.view(); }),
            ErrorKind::kShape);
  EXPECT_EQ(refused_backward([&](auto& a) { a.y = {}; }), ErrorKind::kShape);
}

}  // namespace
}  // namespace gmamba::test
