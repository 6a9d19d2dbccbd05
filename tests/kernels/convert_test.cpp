// SPDX-License-Identifier: Apache-2.0
#include "kernels/convert.h"

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/rms_norm.h"
#include "tests/kernels/kernel_test_helpers.h"

namespace gmamba {
namespace {

using test::error_of;
using test::random_tensor;
using test::same_bits;

TEST(Convert, RoundsToTheNearestAndTiesToEven) {
  const auto bits = [](float value) { return to_bf16(value).bits; };
  EXPECT_EQ(bits(1.0F), 0x3f80);
  EXPECT_EQ(bits(-2.5F), 0xc020);
  EXPECT_EQ(bits(std::bit_cast<float>(0x3f808000U)), 0x3f80);  // half way, even below
  EXPECT_EQ(bits(std::bit_cast<float>(0x3f818000U)), 0x3f82);  // half way, even above
  EXPECT_EQ(bits(std::bit_cast<float>(0x3f808001U)), 0x3f81);
  EXPECT_EQ(bits(std::numeric_limits<float>::infinity()), 0x7f80);
  EXPECT_EQ(bits(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001U)))));
  for (uint32_t upper = 0; upper < 0x7f80; ++upper) {
    const bf16 value{static_cast<uint16_t>(upper)};
    ASSERT_EQ(to_bf16(to_float(value)).bits, upper);
  }
}

TEST(Convert, CopiesStridedRowsThereAndBack) {
  Context ctx;
  Tensor wide = random_tensor({3, 5, 9}, 1);
  Tensor narrow(Device{}, DType::kBF16, {3, 5, 4});
  Tensor back(Device{}, DType::kF32, {3, 5, 4});
  convert(ctx, wide.view().slice(2, 2, 6), narrow);
  convert(ctx, narrow, back);
  const auto from = wide.view().as<const float, 3>();
  const auto to = back.view().as<const float, 3>();
  for (int64_t a = 0; a < 3; ++a) {
    for (int64_t b = 0; b < 5; ++b) {
      for (int64_t c = 0; c < 4; ++c) {
        const float value = *from.at(a, b, c + 2);
        EXPECT_EQ(*to.at(a, b, c), to_float(to_bf16(value)));
        EXPECT_LE(std::fabs(*to.at(a, b, c) - value), std::fabs(value) / 256);
      }
    }
  }
}

TEST(Convert, RefusesOtherTypesAndShapes) {
  Context ctx;
  Tensor values = random_tensor({4}, 1);
  Tensor other = random_tensor({5}, 1);
  Tensor codes(Device{}, DType::kU8, {4});
  EXPECT_EQ(error_of([&] { convert(ctx, values, other); }).first, ErrorKind::kShape);
  EXPECT_EQ(error_of([&] { convert(ctx, values, codes); }).first, ErrorKind::kUnsupported);
}

TEST(RmsNorm, OverwritesAndCopiesTheStreamsGradient) {
  Context ctx;
  const Shape shape = {6, 10};
  const Tensor dy = random_tensor(shape, 1), h = random_tensor(shape, 2);
  const Tensor rstd = random_tensor({6}, 3), weight = random_tensor({10}, 4);
  Tensor from_zero(Device{}, DType::kF32, shape), overwritten = random_tensor(shape, 5);
  Tensor copy(Device{}, DType::kF32, shape);
  Tensor dweight(Device{}, DType::kF32, {10}), same_dweight(Device{}, DType::kF32, {10});
  rms_norm_backward(ctx, {.dy = dy,
                          .y = h,
                          .rstd = rstd,
                          .weight = weight,
                          .dresidual = from_zero,
                          .dweight = dweight});
  rms_norm_backward(ctx, {.dy = dy,
                          .y = h,
                          .rstd = rstd,
                          .weight = weight,
                          .dresidual = overwritten,
                          .dweight = same_dweight,
                          .residual_mode = GradMode::kOverwrite,
                          .dbranch = copy});
  EXPECT_TRUE(same_bits(overwritten, from_zero));
  EXPECT_TRUE(same_bits(copy, from_zero));
  EXPECT_TRUE(same_bits(same_dweight, dweight));
}

}  // namespace
}  // namespace gmamba
