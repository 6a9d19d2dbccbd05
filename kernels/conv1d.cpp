// SPDX-License-Identifier: Apache-2.0
/// CPU body: channels in vector lanes, time cut into blocks that run in parallel. A block reaches
/// K-1 rows before itself (the tail for the first block); in the backward pass it computes the
/// gradient of the pre-activation for K-1 rows past its end as well, so that blocks share nothing.
#include "kernels/conv1d.h"

#include <algorithm>
#include <array>

#include "kernels/checks.h"
#include "kernels/cuda_sequence.h"
#include "kernels/partials.h"
#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/conv1d.cpp"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "kernels/simd_math-inl.h"
#include "kernels/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gmamba {
namespace HWY_NAMESPACE {

constexpr int kMostTaps = 4;
using Rows = std::array<const float*, kMostTaps>;

/// bias + sum_k weight[k] rows[k], for the lanes at `i`; weight is (K, E).
template <class D>
HWY_INLINE hn::Vec<D> PreActivation(D d, int64_t i, int taps, const Rows& rows, const float* weight,
                                    const float* bias, int64_t width) {
  auto sum = bias != nullptr ? hn::LoadU(d, bias + i) : hn::Zero(d);
  for (int k = 0; k < taps; ++k) {
    sum = hn::MulAdd(hn::LoadU(d, weight + k * width + i),
                     hn::LoadU(d, rows[static_cast<size_t>(k)] + i), sum);
  }
  return sum;
}

void conv_row(int taps, const Rows& rows, const float* weight, const float* bias, int64_t width,
              float* HWY_RESTRICT y) {
  OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(Silu(d, PreActivation(d, i, taps, rows, weight, bias, width)), d, y + i);
  });
}

/// Gradient of the pre-activation of one row.
void conv_row_gradient(int taps, const Rows& rows, const float* weight, const float* bias,
                       const float* HWY_RESTRICT dy, int64_t width, float* HWY_RESTRICT dpre) {
  OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = PreActivation(d, i, taps, rows, weight, bias, width);
    const auto slope = SiluDerivative(d, v, Sigmoid(d, v));
    hn::StoreU(hn::Mul(hn::LoadU(d, dy + i), slope), d, dpre + i);
  });
}

/// dx = add + sum_k weight[K-1-k] dpre[k], where dpre[k] is the row k positions later (null: none).
void conv_row_input(int taps, const Rows& dpre, const float* weight, const float* add,
                    int64_t width, float* HWY_RESTRICT dx) {
  OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
    auto sum = add != nullptr ? hn::LoadU(d, add + i) : hn::Zero(d);
    for (int k = 0; k < taps; ++k) {
      const float* const row = dpre[static_cast<size_t>(k)];
      if (row == nullptr) continue;
      sum =
          hn::MulAdd(hn::LoadU(d, weight + (taps - 1 - k) * width + i), hn::LoadU(d, row + i), sum);
    }
    hn::StoreU(sum, d, dx + i);
  });
}

/// dweight[k] += dpre rows[k] and dbias += dpre.
void conv_row_weights(int taps, const Rows& rows, const float* HWY_RESTRICT dpre, int64_t width,
                      float* HWY_RESTRICT dweight, float* HWY_RESTRICT dbias) {
  OverRow(width, [&](auto d, int64_t i) HWY_ATTR {
    const auto g = hn::LoadU(d, dpre + i);
    hn::StoreU(hn::Add(g, hn::LoadU(d, dbias + i)), d, dbias + i);
    for (int k = 0; k < taps; ++k) {
      float* const to = dweight + k * width + i;
      hn::StoreU(hn::MulAdd(g, hn::LoadU(d, rows[static_cast<size_t>(k)] + i), hn::LoadU(d, to)), d,
                 to);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace gmamba
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gmamba {
namespace {

HWY_EXPORT(conv_row);
HWY_EXPORT(conv_row_gradient);
HWY_EXPORT(conv_row_input);
HWY_EXPORT(conv_row_weights);

constexpr int kMostTaps = 4;
constexpr int64_t kTimeBlock = 128;    // rows of a block: amortises the K-1 rows read twice
constexpr int64_t kMostPartials = 64;  // blocks of the weight gradient that are added in order
using Rows = std::array<const float*, kMostTaps>;

/// x with the tail before position 0, as rows.
class Input {
 public:
  Input(View<const float, 3> x, View<const float, 3> tail, const float* zeros, int taps)
      : x_(x), tail_(tail), zeros_(zeros), taps_(taps) {}

  const float* row(int64_t b, int64_t l) const {
    if (l >= 0) return x_.at(b, l, 0);
    return tail_.empty() ? zeros_ : tail_.at(b, l + taps_ - 1, 0);
  }
  /// The K rows that position l reads.
  Rows window(int64_t b, int64_t l) const {
    Rows rows{};
    for (int k = 0; k < taps_; ++k) rows[static_cast<size_t>(k)] = row(b, l - taps_ + 1 + k);
    return rows;
  }

 private:
  View<const float, 3> x_;
  View<const float, 3> tail_;
  const float* zeros_;
  int taps_;
};

/// (E, K) -> (K, E), so that taps are rows.
TensorView transposed(Context& ctx, ConstTensorView weight) {
  const auto from = weight.as<const float, 2>();
  const TensorView out = ctx.arena().f32({from.extent[1], from.extent[0]});
  const auto to = out.as<float, 2>();
  for (int64_t e = 0; e < from.extent[0]; ++e) {
    for (int64_t k = 0; k < from.extent[1]; ++k) *to.at(k, e) = *from.at(e, k);
  }
  return out;
}

int checked_taps(const char* operation, ConstTensorView weight) {
  require(weight.rank == 2 && weight.dim(1) >= 1 && weight.dim(1) <= kMostTaps, ErrorKind::kShape,
          operation, ": weight must be (E, K) with K from 1 to ", kMostTaps, ", found ",
          to_string(weight.shape()));
  return static_cast<int>(weight.dim(1));
}

const float* bias_data(ConstTensorView bias) {
  return bias.empty() ? nullptr : bias.flat<const float>().data();
}

void forward_cpu(Context& ctx, const Conv1dForward& args) {
  const Arena::Scope scope(ctx.arena());
  const auto x = args.x.as<const float, 3>();
  const auto y = args.y.as<float, 3>();
  const auto tail_out = args.tail_out.as<float, 3>();
  const int64_t batch = x.extent[0];
  const int64_t length = x.extent[1];
  const int64_t width = x.extent[2];
  const auto taps = static_cast<int>(args.weight.dim(1));
  const TensorView weight_rows = transposed(ctx, args.weight);
  const float* const weight = weight_rows.flat<const float>().data();
  const TensorView zeros = ctx.arena().zeros(DType::kF32, {std::max<int64_t>(1, width)});
  const Input input(x, args.tail_in.as<const float, 3>(), zeros.flat<const float>().data(), taps);
  const float* const bias = bias_data(args.bias);
  const int64_t blocks = pieces(length, kTimeBlock);
  parallel_for(ctx, batch * blocks, [&](int64_t i) {
    const int64_t b = i / blocks;
    const int64_t begin = i % blocks * kTimeBlock;
    const int64_t end = std::min(length, begin + kTimeBlock);
    for (int64_t l = begin; l < end; ++l) {
      HWY_DYNAMIC_DISPATCH(conv_row)
      (taps, input.window(b, l), weight, bias, width, y.at(b, l, 0));
    }
  });
  if (tail_out.empty()) return;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < taps - 1; ++k) {
      std::copy_n(input.row(b, length - taps + 1 + k), width, tail_out.at(b, k, 0));
    }
  }
}

/// One batch row's part of the backward pass over positions [begin, end).
struct BackwardBlock {
  const Conv1dBackward& args;
  const Input& input;
  const float* weight;  // (K, E)
  const float* bias;
  int taps;
  int64_t length, width;
  float* dpre;     // (end - begin + K - 1, E) scratch
  float* dweight;  // (K + 1, E) partial sums, the last row is dbias

  const float* dtail_row(int64_t b, int64_t l) const {  // gradient of tail_out that falls on x[l]
    const int64_t k = l - (length - taps + 1);
    return args.dtail_out.empty() || k < 0 ? nullptr
                                           : args.dtail_out.as<const float, 3>().at(b, k, 0);
  }

  /// Rows of dpre at l, l + 1, ... that exist; `first` is the position of dpre's row 0.
  Rows later(int64_t l, int64_t first, int64_t stop) const {
    Rows rows{};
    for (int k = 0; k < taps; ++k) {
      const int64_t at = l + k;
      if (at >= first && at < stop) rows[static_cast<size_t>(k)] = dpre + (at - first) * width;
    }
    return rows;
  }

  void run(int64_t b, int64_t begin, int64_t end) const {
    const auto dy = args.dy.as<const float, 3>();
    const auto dx = args.dx.as<float, 3>();
    const auto dtail_in = args.dtail_in.as<float, 3>();
    const int64_t stop = std::min(length, end + taps - 1);
    for (int64_t l = begin; l < stop; ++l) {
      float* const row = dpre + (l - begin) * width;
      const Rows rows = input.window(b, l);
      HWY_DYNAMIC_DISPATCH(conv_row_gradient)
      (taps, rows, weight, bias, dy.at(b, l, 0), width, row);
      if (l < end) {
        HWY_DYNAMIC_DISPATCH(conv_row_weights)
        (taps, rows, row, width, dweight, dweight + taps * width);
      }
    }
    for (int64_t l = begin; l < end; ++l) {
      HWY_DYNAMIC_DISPATCH(conv_row_input)
      (taps, later(l, begin, stop), weight, dtail_row(b, l), width, dx.at(b, l, 0));
    }
    if (begin == 0 && !dtail_in.empty()) {
      for (int64_t k = 0; k < taps - 1; ++k) {
        const int64_t l = k - taps + 1;
        HWY_DYNAMIC_DISPATCH(conv_row_input)
        (taps, later(l, 0, stop), weight, dtail_row(b, l), width, dtail_in.at(b, k, 0));
      }
    }
  }
};

void backward_cpu(Context& ctx, const Conv1dBackward& args) {
  const Arena::Scope scope(ctx.arena());
  const auto x = args.x.as<const float, 3>();
  const int64_t batch = x.extent[0];
  const int64_t length = x.extent[1];
  const int64_t width = x.extent[2];
  const auto taps = static_cast<int>(args.weight.dim(1));
  const TensorView weight_rows = transposed(ctx, args.weight);
  const TensorView zeros = ctx.arena().zeros(DType::kF32, {std::max<int64_t>(1, width)});
  const Input input(x, args.tail_in.as<const float, 3>(), zeros.flat<const float>().data(), taps);

  // an empty segment still hands the tail's gradient on: it has one block without positions
  const int64_t blocks = std::max<int64_t>(1, pieces(length, kTimeBlock));
  const int64_t per_chunk = chunk_rows(batch * blocks, 1, kMostPartials);
  const int64_t chunks = pieces(batch * blocks, per_chunk);
  const TensorView dpre = ctx.arena().f32({chunks, kTimeBlock + taps - 1, width});
  const TensorView sums = ctx.arena().f32({chunks, (taps + 1) * width});
  const TensorView partials = ctx.arena().zeros(DType::kF64, {chunks, (taps + 1) * width});
  parallel_for(ctx, chunks, [&](int64_t chunk) {
    float* const sum = sums.as<float, 2>().at(chunk, 0);
    double* const partial = partials.as<double, 2>().at(chunk, 0);
    const BackwardBlock block{args,
                              input,
                              weight_rows.flat<const float>().data(),
                              bias_data(args.bias),
                              taps,
                              length,
                              width,
                              dpre.as<float, 3>().at(chunk, 0, 0),
                              sum};
    const int64_t last = std::min(batch * blocks, (chunk + 1) * per_chunk);
    for (int64_t i = chunk * per_chunk; i < last; ++i) {
      const int64_t begin = i % blocks * kTimeBlock;
      std::fill_n(sum, (taps + 1) * width, 0.0F);
      block.run(i / blocks, begin, std::min(length, begin + kTimeBlock));
      for (int64_t k = 0; k < (taps + 1) * width; ++k) partial[k] += static_cast<double>(sum[k]);
    }
  });

  const auto all = partials.as<const double, 2>();
  const auto dweight = args.dweight.as<float, 2>();
  const auto dbias = args.dbias.as<float, 1>();
  const auto add = [&](float* to, int64_t column) {
    double sum = args.mode == GradMode::kAccumulate ? static_cast<double>(*to) : 0.0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += *all.at(chunk, column);
    *to = static_cast<float>(sum);
  };
  for (int64_t e = 0; e < width; ++e) {
    for (int64_t k = 0; k < taps; ++k) add(dweight.at(e, k), k * width + e);
    if (!dbias.empty()) add(dbias.at(e), taps * width + e);
  }
}

}  // namespace

void conv1d_forward(Context& ctx, const Conv1dForward& args) {
  const Door door(ctx, "conv1d_forward");
  const DType type = door.activation(args.x);
  door.first("x", args.x, type, 3);
  const int64_t taps = checked_taps("conv1d_forward", args.weight);
  const int64_t batch = args.x.dim(0);
  const int64_t width = args.x.dim(2);
  door.expect("weight", args.weight, DType::kF32, {width, taps});
  door.optional("bias", args.bias, DType::kF32, {width});
  door.optional("tail_in", args.tail_in, DType::kF32, {batch, taps - 1, width});
  door.expect("y", args.y, type, {batch, args.x.dim(1), width});
  door.optional("tail_out", args.tail_out, DType::kF32, {batch, taps - 1, width});
  require(args.tail_in.empty() || args.tail_in.data != args.tail_out.data, ErrorKind::kInternal,
          "conv1d_forward: tail_in and tail_out are the same array");
  if (!ctx.device().is_cpu()) return cuda::conv1d_forward(ctx, args);
  forward_cpu(ctx, args);
}

void conv1d_backward(Context& ctx, const Conv1dBackward& args) {
  const Door door(ctx, "conv1d_backward");
  const DType type = door.activation(args.x);
  door.first("x", args.x, type, 3);
  const int64_t taps = checked_taps("conv1d_backward", args.weight);
  const int64_t batch = args.x.dim(0);
  const int64_t length = args.x.dim(1);
  const int64_t width = args.x.dim(2);
  door.expect("dy", args.dy, type, {batch, length, width});
  door.expect("weight", args.weight, DType::kF32, {width, taps});
  door.optional("bias", args.bias, DType::kF32, {width});
  door.optional("tail_in", args.tail_in, DType::kF32, {batch, taps - 1, width});
  door.optional("dtail_out", args.dtail_out, DType::kF32, {batch, taps - 1, width});
  door.expect("dx", args.dx, type, {batch, length, width});
  door.optional("dtail_in", args.dtail_in, DType::kF32, {batch, taps - 1, width});
  door.expect("dweight", args.dweight, DType::kF32, {width, taps});
  door.optional("dbias", args.dbias, DType::kF32, {width});
  if (!ctx.device().is_cpu()) return cuda::conv1d_backward(ctx, args);
  backward_cpu(ctx, args);
}

}  // namespace gmamba
#endif  // HWY_ONCE
