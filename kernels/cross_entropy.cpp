// SPDX-License-Identifier: Apache-2.0
/// CPU body: a row is copied to a padded buffer, so that every vector is whole, and read,
/// exponented and scaled there. Totals are fp64 per chunk of rows and added in order of chunks.
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/checks.h"
#include "kernels/cuda_basic.h"
#include "kernels/partials.h"
#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cross_entropy.cpp"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "kernels/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Turns the row's logits in `row` (padded with -inf) into softmax times `factor`; returns
/// logsumexp - logits[target]. A row that holds NaN or +inf becomes NaN as a whole.
double softmax_row(float* HWY_RESTRICT row, int64_t vocab, int64_t target, float factor,
                   bool* is_argmax) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float aim = row[target];
  auto highest = hn::Load(d, row);
  for (int64_t i = lanes; i < vocab; i += lanes) highest = hn::Max(highest, hn::Load(d, row + i));
  highest = hn::MaxOfLanes(d, highest);
  const float top = hn::GetLane(highest);
  *is_argmax = aim == top && std::find(row, row + target, top) == row + target;
  auto sum = hn::Zero(d);
  auto broken = hn::Ne(sum, sum);
  for (int64_t i = 0; i < vocab; i += lanes) {
    const auto below = hn::Sub(hn::Load(d, row + i), highest);
    const auto e = Exp(d, below);
    broken = hn::Or(broken, hn::Ne(below, below));
    sum = hn::Add(sum, e);
    hn::Store(e, d, row + i);
  }
  const bool finite = hn::AllFalse(d, broken);
  const float total =
      finite ? hn::GetLane(hn::SumOfLanes(d, sum)) : std::numeric_limits<float>::quiet_NaN();
  const auto scale = hn::Set(d, factor / total);
  for (int64_t i = 0; i < vocab; i += lanes) {
    hn::Store(hn::Mul(hn::Load(d, row + i), scale), d, row + i);
  }
  return std::log(static_cast<double>(total)) -
         (static_cast<double>(aim) - static_cast<double>(top));
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {
namespace {

HWY_EXPORT(softmax_row);

constexpr int64_t kRowTile = 128;
constexpr int64_t kMostChunks = 256;
constexpr int64_t kPadding = 64;  // floats; a multiple of every vector's length

void check_targets(View<const int32_t, 1> targets, int64_t vocab) {
  for (int64_t m = 0; m < targets.extent[0]; ++m) {
    const int32_t target = *targets.at(m);
    require(target == kIgnoreTarget || (target >= 0 && target < vocab), ErrorKind::kInput,
            "cross_entropy: target ", target, " of row ", m, " is neither in [0, ", vocab,
            ") nor the ignore index ", kIgnoreTarget);
  }
}

/// The typed arguments and the body of one row.
class Rows {
 public:
  explicit Rows(const CrossEntropy& args)
      : logits_(args.logits.as<const float, 2>()),
        targets_(args.targets.as<const int32_t, 1>()),
        weights_(args.weights.as<const float, 1>()),
        scale_(args.scale),
        losses_(args.losses.as<float, 1>()),
        dlogits_(args.dlogits.as<float, 2>()) {}

  /// `buffer` holds the row, padded with -inf from `vocab` on; `totals` is added to.
  void run(int64_t m, float* buffer, double* totals) const {
    const int64_t vocab = logits_.extent[1];
    const int32_t target = *targets_.at(m);
    const float weight = weights_.empty() ? 1.0F : *weights_.at(m);
    if (target == kIgnoreTarget || weight == 0.0F) {
      if (!losses_.empty()) *losses_.at(m) = 0.0F;
      if (!dlogits_.empty()) std::fill_n(dlogits_.at(m), vocab, 0.0F);
      return;
    }
    std::copy_n(logits_.at(m), vocab, buffer);
    std::fill(buffer + vocab, buffer + pieces(vocab, kPadding) * kPadding,
              -std::numeric_limits<float>::infinity());
    const float factor = weight * scale_;
    bool is_argmax = false;
    const double loss =
        HWY_DYNAMIC_DISPATCH(softmax_row)(buffer, vocab, target, factor, &is_argmax);
    if (!losses_.empty()) *losses_.at(m) = static_cast<float>(loss);
    if (!dlogits_.empty()) {
      buffer[target] -= factor;
      std::copy_n(buffer, vocab, dlogits_.at(m));
    }
    totals[0] += static_cast<double>(weight) * loss;
    totals[1] += static_cast<double>(weight);
    totals[2] += is_argmax ? static_cast<double>(weight) : 0.0;
    totals[3] += 1.0;
  }

 private:
  View<const float, 2> logits_;
  View<const int32_t, 1> targets_;
  View<const float, 1> weights_;
  float scale_;
  View<float, 1> losses_;
  View<float, 2> dlogits_;
};

void cross_entropy_cpu(Context& ctx, const CrossEntropy& args) {
  const int64_t rows = args.logits.dim(0);
  const int64_t padded = pieces(args.logits.dim(1), kPadding) * kPadding;
  const int64_t step = chunk_rows(rows, kRowTile, kMostChunks);
  const int64_t chunks = pieces(rows, step);
  const Arena::Scope scope(ctx.arena());
  const auto buffers = ctx.arena().f32({chunks, padded}).as<float, 2>();
  const auto partials = ctx.arena().zeros(DType::kF64, {chunks, 4}).as<double, 2>();
  const Rows body(args);
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    const int64_t end = std::min(rows, (chunk + 1) * step);
    for (int64_t m = chunk * step; m < end; ++m) {
      body.run(m, buffers.at(chunk), partials.at(chunk));
    }
  });
  if (args.totals.empty()) {
    return;
  }
  double* const totals = args.totals.as<double, 1>().data;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < 4; ++i) {
      totals[i] += *partials.at(chunk, i);
    }
  }
}

}  // namespace

void cross_entropy(Context& ctx, const CrossEntropy& args) {
  const Door door(ctx, "cross_entropy");
  door.first("logits", args.logits, DType::kF32, 2);
  const int64_t rows = args.logits.dim(0);
  const int64_t vocab = args.logits.dim(1);
  door.expect("targets", args.targets, DType::kI32, {rows});
  door.optional("weights", args.weights, DType::kF32, {rows});
  door.optional("losses", args.losses, DType::kF32, {rows});
  door.optional("dlogits", args.dlogits, door.activation(args.dlogits), {rows, vocab});
  door.optional("totals", args.totals, DType::kF64, {4});
  if (!ctx.device().is_cpu()) {
    return cuda::cross_entropy(ctx, args);
  }
  if (rows > 0) {
    check_targets(args.targets.as<const int32_t, 1>(), vocab);
    cross_entropy_cpu(ctx, args);
  }
}

}  // namespace gmamba
#endif  // HWY_ONCE
