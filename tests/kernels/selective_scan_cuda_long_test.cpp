// SPDX-License-Identifier: Apache-2.0
/// The scan on a GPU over sequences whose chunks are long, and over more elements than 32 bits
/// count.
#include "tests/kernels/selective_scan_cuda_fixture.h"

namespace gmamba::test {
namespace {

/// A problem of 512 channels whose data repeat every 8,229 positions.
struct LongProblem {
  static constexpr int64_t kChannels = 512;
  int64_t states;
  Inputs table = scan_inputs({1, 8192 + 37, kChannels, states});
  std::vector<float> raw = table.delta;  // small, of one sign nearly everywhere
  std::vector<float> rates = std::vector<float>(static_cast<size_t>(kChannels * states));

  explicit LongProblem(int64_t d_state) : states(d_state) {
    for (float& value : raw) value = 0.3F * (value + 2.5F);
    for (size_t i = 0; i < rates.size(); ++i) {
      rates[i] = -1.0F - static_cast<float>(i % static_cast<size_t>(states));
    }
  }
  /// Memories from ten positions to beyond a chunk, channels in the order of `rank`.
  template <class Rank>
  static std::vector<float> bias(Rank&& rank) {
    std::vector<float> values;
    for (int64_t e = 0; e < kChannels; ++e) {
      values.push_back(-9.0F + static_cast<float>(rank(e)) / 64);
    }
    return values;
  }
};

/// Chunks of the forward pass so long that the device chooses how to summarise them, in every order
/// of channels that matters to the choice, against segments whose chunks are short.
/// With 8 states lanes of long chunks have four channels, those of short ones one.
TEST_F(SelectiveScanCuda, LongChunksMatchShortOnesInAnyOrderOfChannels) {
  constexpr int64_t kSegment = 32768;
  constexpr int64_t kChannels = LongProblem::kChannels;
  constexpr DType kType = DType::kBF16;
  struct Size {
    int64_t length, states;
  };
  for (const auto [length, states] :
       {Size{655360, 16}, Size{425984, 16}, Size{131072, 16}, Size{655360, 8}}) {
    const LongProblem problem(states);
    SelectiveScanForward whole;
    whole.u = rows(kType, length, kChannels, problem.table.u);
    whole.delta = rows(kType, length, kChannels, problem.raw);
    whole.z = rows(kType, length, kChannels, problem.table.z);
    whole.B = rows(kType, length, states, problem.table.B);
    whole.C = rows(kType, length, states, problem.table.C);
    whole.A = fixed({kChannels, states}, problem.rates);
    whole.y = rows(kType, length, kChannels, {});
    const TensorView y = rows(kType, length, kChannels, {});
    const std::vector<float> zeros(static_cast<size_t>(kChannels * states));
    const auto shuffled = [](int64_t e) { return e * 37 % kChannels; };
    const auto in_order = [](int64_t e) { return e; };
    const auto all_slow = [](int64_t) { return int64_t{32}; };
    const auto check = [&](const char* name, auto&& rank, bool ready = false) {
      SCOPED_TRACE(testing::Message() << name << ", " << length << ", " << states << " states");
      const std::vector<float> bias = LongProblem::bias(rank);
      whole.delta_bias = fixed({kChannels}, bias);
      whole.delta_ready = ready;
      if (ready) {
        Inputs steps = problem.table;
        steps.delta = problem.raw;
        steps.bias = bias;
        whole.delta = rows(kType, length, kChannels, with_ready_steps(steps).delta);
      }
      whole.state_out = fixed({1, kChannels, states}, zeros);
      selective_scan_forward(ctx(), whole);
      SelectiveScanForward part = whole;
      part.state_out = fixed({1, kChannels, states}, zeros);
      for (int64_t begin = 0; begin < length; begin += kSegment) {
        const int64_t end = begin + kSegment;
        for (auto field :
             {&SelectiveScanForward::u, &SelectiveScanForward::delta, &SelectiveScanForward::z,
              &SelectiveScanForward::B, &SelectiveScanForward::C}) {
          part.*field = (whole.*field).slice(1, begin, end);
        }
        part.y = y.slice(1, begin, end);
        selective_scan_forward(ctx(), part);
        part.state_in = part.state_out;
        part.state_out = fixed({1, kChannels, states}, zeros);
      }
      EXPECT_LE(relative_error(download(whole.state_out), download(part.state_in)), 1e-5);
      // outputs near the end of a chunk and of a segment, where starts matter and rounding differs
      for (const int64_t at : {int64_t{0}, kSegment - 64, length / 2, length - 64}) {
        EXPECT_LE(relative_error(download(whole.y.slice(1, at, at + 64)),
                                 download(y.slice(1, at, at + 64))),
                  5e-4)
            << at;
      }
    };
    check("shuffled", shuffled);
    check("in order", in_order);
    check("all slow", all_slow);
    check("shuffled, ready", shuffled, true);
    check("in order, ready", in_order, true);
  }
}

/// Chunks of the backward pass so long that their summaries are made in parts, of time (fp32) or of
/// channels (bf16), against segments of shorter chunks, whose are not. Memories from ten positions
/// to beyond a chunk.
TEST_F(SelectiveScanCuda, GradientsOfLongChunksMatchThoseOfShortOnes) {
  constexpr int64_t kLength = 131072;
  constexpr int64_t kChannels = LongProblem::kChannels;
  constexpr int64_t kStates = 16;
  const LongProblem problem(kStates);
  for (const DType type : kTypes) {
    SCOPED_TRACE(to_string(type));
    const auto given = [&](int64_t width, const std::vector<float>& values) {
      return rows(type, kLength, width, values);
    };
    const auto wanted = [&](int64_t width) { return given(width, {}); };
    SelectiveScanForward f;
    SelectiveScanBackward g;
    f.u = g.u = given(kChannels, problem.table.u);
    f.delta = g.delta = given(kChannels, problem.raw);
    f.z = g.z = given(kChannels, problem.table.z);
    f.B = g.B = given(kStates, problem.table.B);
    f.C = g.C = given(kStates, problem.table.C);
    g.dy = given(kChannels, problem.table.dy);
    f.A = g.A = fixed({kChannels, kStates}, problem.rates);
    f.delta_bias = g.delta_bias =
        fixed({kChannels}, LongProblem::bias([](int64_t e) { return e * 37 % kChannels; }));
    f.y = wanted(kChannels);
    const int64_t saved = scan_saved_states(kLength, ctx().device());
    f.saved_states = fixed({1, saved, kChannels, kStates}, {});
    selective_scan_forward(ctx(), f);
    g.saved_states = f.saved_states;
    g.dA = fixed({kChannels, kStates}, {});
    const auto backward = [&](int64_t begin, int64_t end, TensorView du, TensorView ddelta,
                              ConstTensorView dstate_out) {
      SelectiveScanBackward part = g;
      for (auto field :
           {&SelectiveScanBackward::dy, &SelectiveScanBackward::u, &SelectiveScanBackward::delta,
            &SelectiveScanBackward::z, &SelectiveScanBackward::B, &SelectiveScanBackward::C}) {
        part.*field = (g.*field).slice(1, begin, end);
      }
      part.saved_states =
          g.saved_states.slice(1, begin / kScanSavedEveryGpu, end / kScanSavedEveryGpu);
      part.du = du.slice(1, begin, end);
      part.ddelta = ddelta.slice(1, begin, end);
      const TensorView dz = wanted(kChannels);
      const TensorView dB = wanted(kStates);
      const TensorView dC = wanted(kStates);
      part.dz = dz.slice(1, begin, end);
      part.dB = dB.slice(1, begin, end);
      part.dC = dC.slice(1, begin, end);
      part.dstate_out = dstate_out;
      part.dstate_in = fixed({1, kChannels, kStates}, {});
      selective_scan_backward(ctx(), part);
      return part.dstate_in;
    };
    const TensorView du[] = {wanted(kChannels), wanted(kChannels)};
    const TensorView ddelta[] = {wanted(kChannels), wanted(kChannels)};
    backward(0, kLength, du[0], ddelta[0], {});
    const int64_t segment = kLength / (type == DType::kF32 ? 2 : 4);
    TensorView behind;
    for (int64_t end = kLength; end > 0; end -= segment) {
      behind = backward(end - segment, end, du[1], ddelta[1], behind);
    }
    const double limit = type == DType::kF32 ? 1e-5 : 5e-4;  // in bf16 values that round otherwise
    for (int64_t begin = 0; begin < kLength; begin += kLength / 4) {
      const auto piece = [&](const TensorView& view) {
        return download(view.slice(1, begin, begin + kLength / 4));
      };
      EXPECT_LE(relative_error(piece(du[0]), piece(du[1])), limit) << begin;
      EXPECT_LE(relative_error(piece(ddelta[0]), piece(ddelta[1])), limit) << begin;
    }
  }
}

/// More than 2^31 elements in every activation: the last positions of a long problem whose other
/// inputs are zero are those of a short problem. Takes 55 GB of the GPU's memory.
TEST_F(SelectiveScanCuda, OffsetsBeyond32Bits) {
  constexpr int64_t kChannels = 512;
  constexpr int64_t kStates = 16;
  constexpr int64_t kLength = 4202496;
  constexpr int64_t kTail = 1000;
  static_assert(kLength * kChannels > (int64_t{1} << 31));
  const Inputs in = rounded_inputs(
      scan_inputs({1, kTail, kChannels, kStates, true, true, true, false}), DType::kBF16);
  const ScanRun expected = CudaScanRunner(ctx(), in, DType::kBF16).run();
  SelectiveScanForward f;
  SelectiveScanBackward g;
  std::vector<Tensor> owners;
  const auto make = [&](DType dtype, const Shape& shape) -> TensorView {
    return owners.emplace_back(ctx().make(dtype, shape)).view();
  };
  const auto rows = [&](int64_t width, const std::vector<float>& tail) {
    const TensorView view = make(DType::kBF16, {1, kLength, width});
    if (!tail.empty()) {
      const DeviceRows source(ctx(), DType::kBF16, 1, kTail, width, 0, tail);
      ctx().copy(source.part(0, kTail), view.slice(1, kLength - kTail, kLength));
    }
    return view;
  };
  const auto vector = [&](const Shape& shape, const std::vector<float>& values) {
    const TensorView view = make(DType::kF32, shape);
    ctx().upload(owned(shape, values), view);
    return view;
  };
  try {
    f.u = g.u = rows(kChannels, in.u);
    f.delta = g.delta = rows(kChannels, in.delta);
    f.z = g.z = rows(kChannels, in.z);
    f.B = g.B = rows(kStates, in.B);
    f.C = g.C = rows(kStates, in.C);
    g.dy = rows(kChannels, in.dy);
    f.y = rows(kChannels, {});
    g.du = rows(kChannels, {});
    g.ddelta = rows(kChannels, {});
    g.dz = rows(kChannels, {});
    g.dB = rows(kStates, {});
    g.dC = rows(kStates, {});
    f.saved_states =
        make(DType::kF32, {1, scan_saved_states(kLength, ctx().device()), kChannels, kStates});
    ctx().arena().reserve(int64_t{6} << 30);
  } catch (const Error& error) {
    GTEST_SKIP() << "needs 55 GB of GPU memory: " << error.message();
  }
  g.saved_states = f.saved_states;
  f.A = g.A = vector({kChannels, kStates}, in.A);
  f.D = g.D = vector({kChannels}, in.D);
  f.delta_bias = g.delta_bias = vector({kChannels}, in.bias);
  g.dA = make(DType::kF32, {kChannels, kStates});
  selective_scan_forward(ctx(), f);
  selective_scan_backward(ctx(), g);
  const auto tail = [&](TensorView view) {
    DeviceRows out(ctx(), DType::kBF16, 1, kTail, view.dim(2), 0);
    ctx().copy(view.slice(1, kLength - kTail, kLength), out.part(0, kTail));
    return out.values();
  };
  EXPECT_LE(relative_error(tail(f.y), expected.y), 1e-3);
  EXPECT_LE(relative_error(tail(g.du), expected.d.u), 1e-3);
  EXPECT_LE(relative_error(tail(g.ddelta), expected.d.delta), 1e-3);
  EXPECT_LE(relative_error(tail(g.dz), expected.d.z), 1e-3);
  EXPECT_LE(relative_error(tail(g.dB), expected.d.B), 1e-3);
  EXPECT_LE(relative_error(tail(g.dC), expected.d.C), 1e-3);
}

}  // namespace
}  // namespace gmamba::test
