// SPDX-License-Identifier: Apache-2.0
/// Dense products, norms and conversions on a GPU against the fp64 oracles, in fp32 and bf16:
/// within twice the error of the oracle's own formula in fp32, rounded to the type of the result.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/adamw.h"
#include "kernels/decay_rates.h"
#include "kernels/linear.h"
#include "kernels/rms_norm.h"
#include "tests/kernels/device_arrays.h"
#include "tests/kernels/relative_error.h"
#include "tests/reference/adamw.h"
#include "tests/reference/linear.h"
#include "tests/reference/rms_norm.h"

namespace gmamba {
namespace {

using reference::LinearShape;
using test::DeviceArray;
using test::expect_close;
using test::kept;
using test::kGpu;
using test::random_values;
using test::wide;

constexpr DType kF32 = DType::kF32;

class CudaBasic : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(, CudaBasic, testing::Values(kF32, DType::kBF16), test::type_name);

struct LinearCase {
  LinearShape shape;
  int64_t gap;
};

// one, odd, a model's projections, rows cut into chunks with a rest, empty axes
const LinearCase kLinearCases[] = {
    {{1, 1, 1}, 0},       {{5, 7, 3}, 1},      {{33, 16, 24}, 8},    {{0, 8, 8}, 0},
    {{9, 8, 0}, 0},       {{300, 48, 512}, 0}, {{300, 512, 16}, 32}, {{129, 1024, 256}, 0},
    {{257, 256, 512}, 0}, {{70000, 16, 8}, 0}, {{5000, 40, 12}, 4},  {{3, 300, 17}, 3}};

std::string name(const LinearCase& c) {
  return concat("M ", c.shape.rows, " N ", c.shape.outputs, " K ", c.shape.inputs, " gap ", c.gap);
}

TEST_P(CudaBasic, LinearMatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  const DType type = GetParam();
  Context ctx(kGpu, {.activations = type});
  for (const LinearCase& c : kLinearCases) {
    const LinearShape s = c.shape;
    const auto x = random_values(s.rows * s.inputs, 1, type);
    const auto w = random_values(s.outputs * s.inputs, 2, type);
    const auto bias = random_values(s.outputs, 3, type);
    const auto dy = random_values(s.rows * s.outputs, 4, type);
    const DeviceArray x_gpu(ctx, {s.rows, s.inputs}, type, x, c.gap);
    const DeviceArray w_gpu(ctx, {s.outputs, s.inputs}, type, w);
    const DeviceArray b_gpu(ctx, {s.outputs}, kF32, bias);
    const DeviceArray dy_gpu(ctx, {s.rows, s.outputs}, type, dy, c.gap);
    for (const DType out : {type, kF32}) {
      for (const bool with_bias : {false, true}) {
        const DeviceArray y(ctx, {s.rows, s.outputs}, out, c.gap);
        linear_forward(ctx, x_gpu, w_gpu, with_bias ? ConstTensorView(b_gpu) : ConstTensorView{},
                       y);
        const auto b = with_bias ? bias : std::vector<float>{};
        expect_close(y.values(), reference::linear_forward(s, wide(x), wide(w), wide(b)),
                     kept(reference::linear_forward(s, x, w, b), out), name(c) + " y");
      }
    }
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      const bool add = mode == GradMode::kAccumulate;
      auto start = random_values(s.rows * s.inputs, 5, type);
      const DeviceArray dx(ctx, {s.rows, s.inputs}, type, start, c.gap);
      linear_backward_input(ctx, dy_gpu, w_gpu, dx, mode);
      if (!add) std::fill(start.begin(), start.end(), 0.0F);
      expect_close(dx.values(), reference::linear_backward_input(s, wide(dy), wide(w), wide(start)),
                   kept(reference::linear_backward_input(s, dy, w, start), type), name(c) + " dx");
      auto dw_start = random_values(s.outputs * s.inputs, 6, kF32);
      auto db_start = random_values(s.outputs, 7, kF32);
      const DeviceArray dw(ctx, {s.outputs, s.inputs}, kF32, dw_start);
      const DeviceArray db(ctx, {s.outputs}, kF32, db_start);
      linear_backward_weight(ctx, dy_gpu, x_gpu, dw, db, mode);
      if (!add) std::fill(dw_start.begin(), dw_start.end(), 0.0F);
      if (!add) std::fill(db_start.begin(), db_start.end(), 0.0F);
      expect_close(dw.values(),
                   reference::linear_backward_weight(s, wide(dy), wide(x), wide(dw_start)),
                   reference::linear_backward_weight(s, dy, x, dw_start), name(c) + " dw");
      expect_close(db.values(), reference::linear_backward_bias(s, wide(dy), wide(db_start)),
                   reference::linear_backward_bias(s, dy, db_start), name(c) + " db");
    }
  }
}

struct NormCase {
  int64_t rows, width, gap;
  double scale;
};

const NormCase kNormCases[] = {
    {0, 8, 0, 1},    {1, 1, 0, 1},     {3, 2, 1, 1},      {4, 9, 0, 1},        {7, 64, 8, 1},
    {65, 256, 0, 1}, {9, 264, 8, 1e4}, {33, 512, 0, 1},   {20, 1024, 0, 1e-4}, {5, 2048, 0, 1},
    {3, 4096, 0, 1}, {20000, 8, 0, 1}, {9000, 256, 0, 1}, {6, 1027, 0, 1}};

std::string name(const NormCase& c) {
  return concat("rows ", c.rows, " width ", c.width, " gap ", c.gap, " scale ", c.scale);
}

TEST_P(CudaBasic, RmsNormForwardMatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  const DType type = GetParam();
  Context ctx(kGpu, {.activations = type});
  for (const NormCase& c : kNormCases) {
    const Shape shape = {c.rows, c.width};
    const auto h = random_values(c.rows * c.width, 1, kF32, c.scale);
    const auto branch = random_values(c.rows * c.width, 2, type, c.scale);
    const auto weight = random_values(c.width, 3, kF32);
    const DeviceArray branch_gpu(ctx, shape, type, branch, c.gap);
    const DeviceArray weight_gpu(ctx, {c.width}, kF32, weight);
    for (const bool adds : {false, true}) {
      for (const DType out : {type, kF32}) {
        const DeviceArray residual(ctx, shape, kF32, h, c.gap);
        const DeviceArray y(ctx, shape, out, c.gap);
        const DeviceArray rstd(ctx, {c.rows}, kF32);
        rms_norm_forward(ctx, {.residual = residual,
                               .branch = adds ? ConstTensorView(branch_gpu) : ConstTensorView{},
                               .weight = weight_gpu,
                               .y = y,
                               .rstd = rstd});
        const auto added = adds ? branch : std::vector<float>{};
        const auto oracle = reference::rms_norm_forward<double>(c.rows, c.width, wide(h),
                                                                wide(added), wide(weight), 1e-5F);
        const auto naive =
            reference::rms_norm_forward<float>(c.rows, c.width, h, added, weight, 1e-5F);
        expect_close(residual.values(), oracle.residual, naive.residual, name(c) + " residual");
        expect_close(y.values(), oracle.y, kept(naive.y, out), name(c) + " y");
        expect_close(rstd.values(), oracle.rstd, naive.rstd, name(c) + " rstd");
      }
    }
  }
}

TEST_P(CudaBasic, RmsNormBackwardMatchesTheOracle) {
  GMAMBA_NEEDS_GPU();
  const DType type = GetParam();
  Context ctx(kGpu, {.activations = type});
  for (const NormCase& c : kNormCases) {
    const Shape shape = {c.rows, c.width};
    const auto dy = random_values(c.rows * c.width, 1, type);
    const auto weight = random_values(c.width, 4, kF32);
    const auto forward = reference::rms_norm_forward<float>(
        c.rows, c.width, random_values(c.rows * c.width, 2, kF32, c.scale), {}, weight, 1e-5F);
    const auto rstd = forward.rstd;
    const auto y = kept(forward.y, type);
    const auto h = reference::before_rms_norm(y, rstd, weight);
    for (const GradMode mode : {GradMode::kOverwrite, GradMode::kAccumulate}) {
      const bool add = mode == GradMode::kAccumulate;
      auto stream = random_values(c.rows * c.width, 3, kF32);
      auto dweight_start = random_values(c.width, 5, kF32);
      const DeviceArray dresidual(ctx, shape, kF32, stream, c.gap);
      const DeviceArray dbranch(ctx, shape, type, c.gap);
      const DeviceArray dweight(ctx, {c.width}, kF32, dweight_start);
      rms_norm_backward(ctx, {.dy = DeviceArray(ctx, shape, type, dy, c.gap),
                              .y = DeviceArray(ctx, shape, type, y, c.gap),
                              .rstd = DeviceArray(ctx, {c.rows}, kF32, rstd),
                              .weight = DeviceArray(ctx, {c.width}, kF32, weight),
                              .dresidual = dresidual,
                              .dweight = dweight,
                              .mode = mode,
                              .residual_mode = mode,
                              .dbranch = dbranch});
      if (!add) std::fill(stream.begin(), stream.end(), 0.0F);
      if (!add) std::fill(dweight_start.begin(), dweight_start.end(), 0.0F);
      const auto oracle = reference::rms_norm_backward<double>(
          c.rows, c.width, wide(dy), reference::before_rms_norm(wide(y), wide(rstd), wide(weight)),
          wide(rstd), wide(weight), {wide(stream), wide(dweight_start)});
      const auto naive = reference::rms_norm_backward<float>(c.rows, c.width, dy, h, rstd, weight,
                                                             {stream, dweight_start});
      expect_close(dresidual.values(), oracle.dresidual, naive.dresidual, name(c) + " dresidual");
      expect_close(dbranch.values(), oracle.dresidual, kept(naive.dresidual, type),
                   name(c) + " dbranch");
      expect_close(dweight.values(), oracle.dweight, naive.dweight, name(c) + " dweight");
    }
  }
}

TEST_P(CudaBasic, RepeatsTheSameBits) {
  GMAMBA_NEEDS_GPU();
  const DType type = GetParam();
  const LinearShape s{70001, 48, 24};
  std::vector<float> first[3];
  for (int repeat = 0; repeat < 2; ++repeat) {
    Context ctx(kGpu, {.activations = type});
    const DeviceArray x(ctx, {s.rows, s.inputs}, type, random_values(s.rows * s.inputs, 1, type));
    const DeviceArray dy(ctx, {s.rows, s.outputs}, type,
                         random_values(s.rows * s.outputs, 2, type));
    const DeviceArray dw(ctx, {s.outputs, s.inputs}, kF32);
    const DeviceArray db(ctx, {s.outputs}, kF32);
    linear_backward_weight(ctx, dy, x, dw, db, GradMode::kOverwrite);
    const DeviceArray y(ctx, {s.rows, s.outputs}, type, random_values(s.rows * s.outputs, 3, type));
    const DeviceArray rstd(ctx, {s.rows}, kF32, random_values(s.rows, 4, kF32));
    const DeviceArray weight(ctx, {s.outputs}, kF32, random_values(s.outputs, 5, kF32));
    const DeviceArray dh(ctx, {s.rows, s.outputs}, kF32);
    const DeviceArray dweight(ctx, {s.outputs}, kF32);
    rms_norm_backward(ctx, {.dy = dy,
                            .y = y,
                            .rstd = rstd,
                            .weight = weight,
                            .dresidual = dh,
                            .dweight = dweight,
                            .mode = GradMode::kOverwrite,
                            .residual_mode = GradMode::kOverwrite});
    const std::vector<float> results[] = {dw.values(), db.values(), dweight.values()};
    for (int i = 0; i < 3; ++i) {
      if (repeat == 0) first[i] = results[i];
      EXPECT_EQ(results[i], first[i]) << "result " << i;
    }
  }
}

TEST(CudaFixed, ConvertsAndRounds) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  for (const int64_t width : {1, 7, 8, 40}) {
    for (const int64_t gap : {0, 3, 8}) {
      const auto values = random_values(13 * width, 1, kF32);
      const DeviceArray from(ctx, {13, width}, kF32, values, gap);
      const DeviceArray narrow(ctx, {13, width}, DType::kBF16, gap);
      const DeviceArray back(ctx, {13, width}, kF32);
      convert(ctx, from, narrow);
      convert(ctx, narrow, back);
      EXPECT_EQ(narrow.values(), kept(values, DType::kBF16)) << width << " " << gap;
      EXPECT_EQ(back.values(), kept(values, DType::kBF16)) << width << " " << gap;
    }
  }
}

TEST(CudaFixed, DecayRatesMatchTheirFormula) {
  GMAMBA_NEEDS_GPU();
  Context ctx(kGpu);
  const auto log_rates = random_values(512 * 16, 1, kF32);
  const auto gradient = random_values(512 * 16, 2, kF32);
  const auto start = random_values(512 * 16, 3, kF32);
  const DeviceArray A(ctx, {512, 16}, kF32);
  const DeviceArray dA_log(ctx, {512, 16}, kF32, start);
  decay_rates_forward(ctx, DeviceArray(ctx, {512, 16}, kF32, log_rates), A);
  decay_rates_backward(ctx, DeviceArray(ctx, {512, 16}, kF32, gradient), A, dA_log);
  const auto rates = A.values();
  const auto sums = dA_log.values();
  for (size_t i = 0; i < rates.size(); ++i) {
    const double rate = -std::exp(static_cast<double>(log_rates[i]));
    ASSERT_NEAR(rates[i], rate, 3e-7 * std::fabs(rate));
    const double sum = static_cast<double>(start[i]) + static_cast<double>(gradient[i]) * rate;
    ASSERT_NEAR(sums[i], sum, 1e-6 * (1 + std::fabs(sum)));
  }
}

TEST(CudaFixed, AdamWMovesAsOnTheCpu) {
  GMAMBA_NEEDS_GPU();
  Context host;
  Context ctx(kGpu);
  for (const int64_t count : {1, 5, 64, 100003}) {
    const DecayRange ranges[] = {{0, count / 3, 0.1F}, {count / 2, count, 0.02F}};
    auto p = random_values(count, 1, kF32);
    auto m = random_values(count, 2, kF32, 0.01);
    auto v = random_values(count, 3, kF32, 0.01);
    for (float& value : v) value = std::fabs(value);
    auto g = random_values(count, 4, kF32);
    const Shape shape = {count};
    const DeviceArray p_gpu(ctx, shape, kF32, p), m_gpu(ctx, shape, kF32, m);
    const DeviceArray v_gpu(ctx, shape, kF32, v), g_gpu(ctx, shape, kF32, g);
    const Tensor norm_gpu = ctx.make(DType::kF64, {1});
    Tensor norm(Device{}, DType::kF64, {1});
    Tensor gpu_norm = ctx.make(DType::kF64, {1});
    global_norm(host, host_view(std::as_const(g).data(), shape), norm);
    global_norm(ctx, g_gpu, gpu_norm);
    EXPECT_NEAR(test::from_gpu<double>(ctx, gpu_norm)[0], norm.host<double>()[0],
                1e-12 * norm.host<double>()[0]);
    const auto step = [&](Context& where, TensorView values, ConstTensorView gradient,
                          TensorView first, TensorView second, ConstTensorView length) {
      adamw_step(where, {.parameters = values,
                         .gradients = gradient,
                         .exp_avg = first,
                         .exp_avg_sq = second,
                         .norm = length,
                         .max_norm = 1,
                         .learning_rate = 0.01F,
                         .step = 3,
                         .decay = ranges});
    };
    step(host, host_view(p.data(), shape), host_view(std::as_const(g).data(), shape),
         host_view(m.data(), shape), host_view(v.data(), shape), norm);
    step(ctx, p_gpu, g_gpu, m_gpu, v_gpu, gpu_norm);
    EXPECT_LE(test::relative_error(p_gpu.values(), p), 3e-7) << count;
    EXPECT_LE(test::relative_error(m_gpu.values(), m), 3e-7) << count;
    EXPECT_LE(test::relative_error(v_gpu.values(), v), 3e-7) << count;
    // a norm that isn't finite skips the step
    const auto before = p_gpu.values();
    const Tensor broken =
        test::on_gpu<double>(ctx, {1}, {std::numeric_limits<double>::quiet_NaN()});
    step(ctx, p_gpu, g_gpu, m_gpu, v_gpu, broken);
    EXPECT_EQ(p_gpu.values(), before) << count;
  }
}

}  // namespace
}  // namespace gmamba
