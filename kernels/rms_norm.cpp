// SPDX-License-Identifier: Apache-2.0
/// CPU body: rows are independent, so each is read once into cache, added, summed and scaled there.
/// The weight's gradient sums 64 rows in fp32, then goes to fp64 partials added in fixed order.
#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"
#include "kernels/partials.h"
#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rms_norm.cpp"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "kernels/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {
/// One row: h += branch, then y = weight h / sqrt(mean(h^2) + epsilon). Returns the factor.
float forward_row(float* HWY_RESTRICT h, const float* HWY_RESTRICT branch,
                  const float* HWY_RESTRICT weight, int64_t width, float epsilon, float* y) {
  if (branch != nullptr) {
    OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
      hn::StoreU(hn::Add(hn::LoadU(d, h + i), hn::LoadU(d, branch + i)), d, h + i);
    });
  }
  const float squares = SumRow(width, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, h + i);
    return hn::Mul(v, v);
  });
  const float mean = squares / static_cast<float>(width);
  const float rstd = 1.0F / std::sqrt(mean + epsilon);
  OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(d, h + i), hn::Set(d, rstd));
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, y + i);
  });
  return rstd;
}

/// One row of the backward pass; adds to dh and to dweight. `inverse` is 1 / weight.
void backward_row(const float* HWY_RESTRICT dy, const float* HWY_RESTRICT y,
                  const float* HWY_RESTRICT weight, const float* HWY_RESTRICT inverse, float rstd,
                  int64_t width, float* HWY_RESTRICT dh, float* HWY_RESTRICT dweight) {
  const float dot = SumRow(width, [&](auto d, int64_t i) HWY_ATTR {
    return hn::Mul(hn::LoadU(d, dy + i), hn::LoadU(d, y + i));
  });
  const float pull = rstd * dot / static_cast<float>(width);
  OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, dy + i);
    const auto v = hn::Mul(hn::LoadU(d, y + i), hn::LoadU(d, inverse + i));
    hn::StoreU(hn::MulAdd(g, v, hn::LoadU(d, dweight + i)), d, dweight + i);
    const auto scaled = hn::Mul(g, hn::Set(d, rstd));
    const auto through = hn::MulAdd(scaled, hn::LoadU(d, weight + i), hn::LoadU(d, dh + i));
    hn::StoreU(hn::NegMulAdd(v, hn::Set(d, pull), through), d, dh + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {
namespace {

HWY_EXPORT(forward_row);
HWY_EXPORT(backward_row);

constexpr int64_t kTileElements = 16384;  // a tile's rows stay in the second-level cache
constexpr int64_t kSumRows = 64;          // rows that dweight sums in fp32
constexpr int64_t kMostChunks = 256;

/// The factors that weights stand for, or their inverses.
std::vector<float> scales(ConstTensorView weight, bool inverse) {
  std::vector<float> out;
  for (const float w : weight.flat<const float>()) {
    out.push_back(inverse ? 1.0F / norm_scale(w) : norm_scale(w));
  }
  return out;
}

int64_t tile_rows(int64_t width) { return std::max<int64_t>(1, kTileElements / (width + 1)); }

void forward_cpu(const Context& ctx, const RmsNormForward& args) {
  const auto h = args.residual.as<float, 2>();
  const auto branch = args.branch.as<const float, 2>();
  const std::vector<float> scale = scales(args.weight, false);
  const auto y = args.y.as<float, 2>();
  const auto rstd = args.rstd.as<float, 1>();
  const int64_t rows = y.extent[0];
  const int64_t width = y.extent[1];
  const int64_t step = tile_rows(width);
  parallel_for(ctx, pieces(rows, step), [&](int64_t tile) {
    const int64_t end = std::min(rows, (tile + 1) * step);
    for (int64_t m = tile * step; m < end; ++m) {
      const float* const added = branch.empty() ? nullptr : branch.at(m);
      const float factor = HWY_DYNAMIC_DISPATCH(forward_row)(h.at(m), added, scale.data(), width,
                                                             args.epsilon, y.at(m));
      if (!rstd.empty()) *rstd.at(m) = factor;
    }
  });
}

void backward_cpu(Context& ctx, const RmsNormBackward& args) {
  const auto dy = args.dy.as<const float, 2>();
  const auto y = args.y.as<const float, 2>();
  const float* const rstd = args.rstd.as<const float, 1>().data;
  const std::vector<float> scale = scales(args.weight, false);
  const std::vector<float> inverse = scales(args.weight, true);
  const auto dh = args.dresidual.as<float, 2>();
  const auto dbranch = args.dbranch.as<float, 2>();
  const int64_t rows = args.dy.dim(0);
  const int64_t width = args.dy.dim(1);
  const int64_t step = chunk_rows(rows, kSumRows, kMostChunks);
  const int64_t chunks = pieces(rows, step);
  const Arena::Scope scope(ctx.arena());
  const auto partials = ctx.arena().zeros(DType::kF64, {chunks, width}).as<double, 2>();
  const auto running = ctx.arena().f32({chunks, width}).as<float, 2>();
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    const int64_t end = std::min(rows, (chunk + 1) * step);
    float* const sums = running.at(chunk);
    double* const totals = partials.at(chunk);
    for (int64_t first = chunk * step; first < end; first += kSumRows) {
      std::fill_n(sums, width, 0.0F);
      for (int64_t m = first; m < std::min(end, first + kSumRows); ++m) {
        if (args.residual_mode == GradMode::kOverwrite) std::fill_n(dh.at(m), width, 0.0F);
        HWY_DYNAMIC_DISPATCH(backward_row)
        (dy.at(m), y.at(m), scale.data(), inverse.data(), rstd[m], width, dh.at(m), sums);
        if (!dbranch.empty()) std::copy_n(dh.at(m), width, dbranch.at(m));
      }
      for (int64_t i = 0; i < width; ++i) totals[i] += static_cast<double>(sums[i]);
    }
  });
  const View<const double, 2> sums{partials.data, {chunks, width}, {width, 1}};
  add_partials(ctx, sums, args.dweight.as<float, 1>().data, width, width, args.mode);
}

}  // namespace

void rms_norm_forward(Context& ctx, const RmsNormForward& args) {
  const Door door(ctx, "rms_norm_forward");
  door.first("residual", args.residual, DType::kF32, 2);
  const int64_t rows = args.residual.dim(0);
  const int64_t width = args.residual.dim(1);
  door.optional("branch", args.branch, door.activation(args.branch), {rows, width});
  door.expect("weight", args.weight, DType::kF32, {width});
  door.expect("y", args.y, door.activation(args.y), {rows, width});
  door.optional("rstd", args.rstd, DType::kF32, {rows});
  if (!ctx.device().is_cpu()) {
    return cuda::rms_norm_forward(ctx, args);
  }
  if (args.y.size() > 0) {
    forward_cpu(ctx, args);
  }
}

void rms_norm_backward(Context& ctx, const RmsNormBackward& args) {
  const Door door(ctx, "rms_norm_backward");
  door.first("dy", args.dy, door.activation(args.dy), 2);
  const int64_t rows = args.dy.dim(0);
  const int64_t width = args.dy.dim(1);
  door.expect("y", args.y, args.dy.dtype, {rows, width});
  door.expect("rstd", args.rstd, DType::kF32, {rows});
  door.expect("weight", args.weight, DType::kF32, {width});
  door.expect("dresidual", args.dresidual, DType::kF32, {rows, width});
  door.expect("dweight", args.dweight, DType::kF32, {width});
  door.optional("dbranch", args.dbranch, door.activation(args.dbranch), {rows, width});
  if (!ctx.device().is_cpu()) {
    return cuda::rms_norm_backward(ctx, args);
  }
  if (width > 0) {
    backward_cpu(ctx, args);
  }
}

}  // namespace gmamba
#endif  // HWY_ONCE
