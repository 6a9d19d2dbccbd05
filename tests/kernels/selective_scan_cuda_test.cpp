// SPDX-License-Identifier: Apache-2.0
/// The scan on a GPU against the fp64 oracle, against the CPU, in pieces and in whole, twice. The
/// tests skip themselves where there is no GPU.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "tests/kernels/relative_error.h"
#include "tests/kernels/selective_scan_cuda_runner.h"

namespace gmamba::test {
namespace {

using reference::ScanGradients;

constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

template <class Real>
struct Field {
  const char* name;
  std::vector<Real> ScanGradients<Real>::*field;
  bool activation;  // of the activation type
};
template <class Real>
std::vector<Field<Real>> gradient_fields() {
  using G = ScanGradients<Real>;
  return {{"du", &G::u, true}, {"ddelta", &G::delta, true}, {"dA", &G::A, false},
          {"dB", &G::B, true}, {"dC", &G::C, true},         {"dD", &G::D, false},
          {"dz", &G::z, true}, {"dbias", &G::bias, false},  {"dstate_in", &G::state_in, false}};
}

/// The sums of the columns of rows that were rounded to an activation type.
std::vector<float> column_sums(std::vector<float> rows, size_t width, DType dtype) {
  round_to(dtype, rows);
  std::vector<float> sums(width, 0.0F);
  for (size_t i = 0; i < rows.size(); ++i) sums[i % width] += rows[i];
  return sums;
}

class SelectiveScanCuda : public testing::Test {
 protected:
  void SetUp() override {
    Backend& backend = backend_for(DeviceKind::kCuda);
    if (backend.device_count() == 0) GTEST_SKIP() << backend.why_none();
    ctx_ = std::make_unique<Context>(Device{DeviceKind::kCuda, 0});
  }
  Context& ctx() { return *ctx_; }

  void expect_matches_oracle(const ScanCase& scan, DType dtype) {
    expect_matches_oracle(scan_inputs(scan), dtype, scan.strided ? 13 : 0);
  }
  void expect_matches_oracle(const Inputs& given, DType dtype, int64_t gap) {
    const Inputs in = rounded_inputs(given, dtype);
    const OracleInputs wide = as_oracle(in);
    const auto oracle = reference::scan_forward(wide);
    auto naive = reference::scan_forward(in);
    const auto doracle = reference::scan_backward(wide);
    auto dnaive = reference::scan_backward(in);
    const ScanRun found = CudaScanRunner(ctx(), in, dtype, gap).run();
    round_to(dtype, naive.y);
    expect_close(found.y, oracle.y, naive.y, "y", kFloor);
    expect_close(found.y_again, oracle.y, naive.y, "y recomputed", kFloor);
    expect_close(found.state_out, oracle.state_out, naive.state_out, "state_out", kFloor);
    const auto narrow = gradient_fields<float>();
    const auto exact = gradient_fields<double>();
    if (dtype == DType::kBF16 && !in.bias.empty()) {
      // sums over states are of that precision, and the bias sums up what they give
      dnaive.bias = column_sums(dnaive.delta, in.d_inner, dtype);
    }
    for (size_t i = 0; i < narrow.size(); ++i) {
      if (narrow[i].activation) round_to(dtype, dnaive.*narrow[i].field);
      expect_close(found.d.*narrow[i].field, doracle.*exact[i].field, dnaive.*narrow[i].field,
                   narrow[i].name, kFloor);
    }
  }

  /// The exponential unit's relative error is 2^-22; a state of memory m gathers m of them.
  static constexpr double kFloor = 4e-6;

  /// (1, length, width) on the device in which `values`, (1, L, width), repeat; or nothing in it.
  TensorView rows(DType dtype, int64_t length, int64_t width, std::vector<float> values) {
    const TensorView view = owners_.emplace_back(ctx().make(dtype, {1, length, width})).view();
    if (values.empty()) return view;
    round_to(dtype, values);
    const Tensor source = DeviceRows::host_copy(values, dtype);
    const int64_t period = source.size() / width;
    const ConstTensorView all = source.view().reshape({1, period, width});
    for (int64_t i = 0; i < length; i += period) {
      const int64_t count = std::min(period, length - i);
      ctx().upload(all.slice(1, 0, count), view.slice(1, i, i + count));
    }
    return view;
  }
  TensorView fixed(const Shape& shape, const std::vector<float>& values) {
    const TensorView view = owners_.emplace_back(ctx().make(DType::kF32, shape)).view();
    if (!values.empty()) ctx().upload(owned(shape, values), view);
    return view;
  }
  std::vector<float> download(ConstTensorView view) {
    Tensor host({}, view.dtype, view.shape());
    ctx().download(view, host);
    if (view.dtype == DType::kF32) return flat(host);
    std::vector<float> values;
    for (int64_t i = 0; i < host.size(); ++i) values.push_back(DeviceRows::element(host, i));
    return values;
  }

 private:
  std::unique_ptr<Context> ctx_;
  std::vector<Tensor> owners_;
};

/// A problem of 512 channels x 16 states whose data repeat every 8,229 positions.
struct LongProblem {
  static constexpr int64_t kChannels = 512, kStates = 16;
  Inputs table = scan_inputs({1, 8192 + 37, kChannels, kStates});
  std::vector<float> raw = table.delta;  // small, of one sign nearly everywhere
  std::vector<float> rates = std::vector<float>(static_cast<size_t>(kChannels * kStates));

  LongProblem() {
    for (float& value : raw) value = 0.3F * (value + 2.5F);
    for (size_t i = 0; i < rates.size(); ++i) rates[i] = -1.0F - static_cast<float>(i % kStates);
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

void expect_same(const ScanRun& a, const ScanRun& b, double tolerance) {
  EXPECT_LE(relative_error(a.y, b.y), tolerance) << "y";
  EXPECT_LE(relative_error(a.y_again, b.y_again), tolerance) << "y recomputed";
  EXPECT_LE(relative_error(a.state_out, b.state_out), tolerance) << "state_out";
  for (const auto& field : gradient_fields<float>()) {
    EXPECT_LE(relative_error(a.d.*field.field, b.d.*field.field), tolerance) << field.name;
  }
}

TEST_F(SelectiveScanCuda, MatchesOracle) {
  for (const ScanCase& scan : scan_cases()) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(scan.name() + "_" + std::string(to_string(dtype)));
      expect_matches_oracle(scan, dtype);
    }
  }
}

TEST_F(SelectiveScanCuda, MatchesOracleWhenTimeIsSplit) {
  for (const ScanCase& scan :
       {ScanCase{1, 3000, 8, 16}, ScanCase{2, 2500, 64, 8}, ScanCase{1, 1500, 132, 32},
        ScanCase{1, 1111, 20, 64}, ScanCase{1, 2000, 12, 11}, ScanCase{1, 2500, 72, 12},
        ScanCase{1, 2048, 128, 16}, ScanCase{1, 1500, 136, 32}, ScanCase{1, 700, 24, 64},
        ScanCase{1, 1000, 136, 8}, ScanCase{3, 300, 200, 16, false, false, false, true},
        ScanCase{1, 700, 130, 16, true, true, true, true, true}}) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(scan.name() + "_" + std::string(to_string(dtype)));
      expect_matches_oracle(scan, dtype);
    }
  }
}

TEST_F(SelectiveScanCuda, MarksAreStatesAndKnownOnesGiveTheSame) {
  for (const ScanCase& scan :
       {ScanCase{2, 300, 11, 6}, ScanCase{1, 3000, 8, 16}, ScanCase{2, 2500, 64, 8},
        ScanCase{1, 1500, 132, 32}, ScanCase{1, 2048, 128, 64}, ScanCase{1, 20000, 8, 16}}) {
    for (const DType dtype : kTypes) {
      const Inputs in = rounded_inputs(scan_inputs(scan), dtype);
      CudaScanRunner runner(ctx(), in, dtype, scan.d_inner % 8 == 0 ? 8 : 5);
      const ScanRun plain = runner.run();
      const OracleInputs wide = as_oracle(in);
      const auto oracle = reference::scan_forward(wide);
      const double limit = dtype == DType::kF32 ? 4e-6 : 2e-5;
      const double rounding = dtype == DType::kF32 ? 4e-6 : 4e-3;
      for (const int64_t every : {16, 208, 512, 8192}) {
        SCOPED_TRACE(testing::Message()
                     << scan.name() << " " << to_string(dtype) << ", every " << every);
        const MarkedRuns found = runner.run_marked(every, every % 3 != 1);
        EXPECT_LE(relative_error(found.marks, states_at_marks(wide, oracle, every)), limit);
        for (const ScanRun* const run : {&found.writing, &found.between}) {
          EXPECT_LE(relative_error(run->y, plain.y), rounding);
          EXPECT_LE(relative_error(run->state_out, plain.state_out), limit);
        }
        EXPECT_LE(relative_error(found.between.saved, plain.saved), limit);
      }
    }
  }
}

/// Channels are summarised in the order of how far they must be walked: all alike, slow or fast,
/// and mixed from a memory far beyond a chunk to less than a position.
TEST_F(SelectiveScanCuda, MatchesOracleWhateverTheSpeedOfItsChannels) {
  const std::vector<std::vector<float>> speeds = {
      {-9.0F}, {4.0F}, {-12.0F, -7.0F, 3.0F, 30.0F, -2.0F, 0.0F, -4.0F}};
  for (const ScanCase& scan :
       {ScanCase{1, 2500, 264, 16}, ScanCase{1, 1500, 72, 40}, ScanCase{1, 1700, 84, 7}}) {
    for (const auto& biases : speeds) {
      Inputs in = scan_inputs(scan);
      for (float& raw : in.delta) raw = 0.5F * (raw + 2.5F);
      for (size_t e = 0; e < in.d_inner; ++e) in.bias[e] = biases[e % biases.size()];
      for (const DType dtype : kTypes) {
        SCOPED_TRACE(scan.name() + "_" + testing::PrintToString(biases) + "_" +
                     std::string(to_string(dtype)));
        expect_matches_oracle(in, dtype, 0);
      }
    }
  }
}

TEST_F(SelectiveScanCuda, KeepsStatesForTheBackwardPass) {
  const Inputs in = scan_inputs({2, 700, 12, 16});
  const auto oracle = reference::scan_forward(as_oracle(in));
  const ScanRun found = CudaScanRunner(ctx(), in, DType::kF32).run();
  std::vector<double> expected;
  for (size_t b = 0; b < 2; ++b) {
    for (size_t l = 0; l < 700; l += static_cast<size_t>(kScanSavedEveryGpu)) {
      const auto* const state = oracle.states.data() + (b * 701 + l) * 192;
      expected.insert(expected.end(), state, state + 192);
    }
  }
  EXPECT_LE(relative_error(found.saved, expected), 4e-6);
}

TEST_F(SelectiveScanCuda, MatchesTheCpu) {
  for (const ScanCase& scan : {ScanCase{1, 20000, 128, 16}, ScanCase{3, 4097, 96, 16},
                               ScanCase{40, 300, 256, 16}, ScanCase{1, 9000, 64, 64}}) {
    SCOPED_TRACE(scan.name());
    const Inputs in = scan_inputs(scan);
    Context cpu;
    const ScanRun expected = ScanRunner(cpu, in, 0).run();
    const ScanRun found = CudaScanRunner(ctx(), in, DType::kF32).run();
    expect_same(found, expected, 2e-5);
  }
}

TEST_F(SelectiveScanCuda, SplittingChangesNothing) {
  const Inputs in = scan_inputs({2, 2100, 20, 16});
  const ScanRun whole = CudaScanRunner(ctx(), in, DType::kF32).run();
  const std::vector<std::vector<int64_t>> splits = {{1}, {64},   {63},       {1025},
                                                    {0}, {2100}, {100, 100}, {1, 2, 3, 130, 2099}};
  for (const auto& borders : splits) {
    SCOPED_TRACE(testing::PrintToString(borders));
    expect_same(CudaScanRunner(ctx(), in, DType::kF32).run(borders), whole, 5e-6);
    CudaScanRunner pieces(ctx(), in, DType::kF32);
    pieces.through_pieces = true;
    expect_same(pieces.run(borders), whole, 5e-6);
  }
}

TEST_F(SelectiveScanCuda, TwoRunsAreBitEqual) {
  for (const ScanCase& scan :
       {ScanCase{1, 6000, 512, 16}, ScanCase{70, 130, 256, 16}, ScanCase{2, 1000, 33, 7}}) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(scan.name());
      const Inputs in = scan_inputs(scan);
      const ScanRun first = CudaScanRunner(ctx(), in, dtype).run();
      expect_same(CudaScanRunner(ctx(), in, dtype).run(), first, 0);
    }
  }
}

TEST_F(SelectiveScanCuda, LongMemoryKeepsItsPrecision) {
  // deltas near 1e-3 and rates of -1: a memory of thousands of positions
  Inputs in = scan_inputs({1, 12000, 8, 8});
  for (float& raw : in.delta) raw = raw * 0.2F - 6.5F;
  for (float& bias : in.bias) bias = 0;
  for (float& rate : in.A) rate = rate * 0.1F - 0.5F;
  const OracleInputs wide = as_oracle(in);
  const auto oracle = reference::scan_forward(wide);
  const auto doracle = reference::scan_backward(wide);
  const ScanRun found = CudaScanRunner(ctx(), in, DType::kF32).run();
  EXPECT_LE(relative_error(found.y, oracle.y), 2e-5);
  EXPECT_LE(relative_error(found.d.u, doracle.u), 2e-5);
  EXPECT_LE(relative_error(found.d.delta, doracle.delta), 1e-4);
}

TEST_F(SelectiveScanCuda, ExtremesStayFinite) {
  for (const double raw : {-100.0, 0.0, 100.0}) {
    for (const double rate : {-1e4, -1.0, -1e-6, 0.0}) {
      Inputs in = scan_inputs({1, 600, 9, 6});
      std::fill(in.delta.begin(), in.delta.end(), static_cast<float>(raw));
      std::fill(in.A.begin(), in.A.end(), static_cast<float>(rate));
      const ScanRun found = CudaScanRunner(ctx(), in, DType::kF32).run();
      const auto finite = [](const std::vector<float>& x) {
        return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
      };
      EXPECT_TRUE(finite(found.y) && finite(found.state_out)) << raw << " " << rate;
      for (const auto& field : gradient_fields<float>()) {
        EXPECT_TRUE(finite(found.d.*field.field)) << field.name << " " << raw << " " << rate;
      }
    }
  }
}

TEST_F(SelectiveScanCuda, NanIsNotHidden) {
  Inputs in = scan_inputs({1, 100, 16, 16});
  in.delta[16 * 50 + 3] = NAN;
  const ScanRun found = CudaScanRunner(ctx(), in, DType::kF32).run();
  EXPECT_TRUE(std::isnan(found.state_out[3 * 16]));
  EXPECT_TRUE(std::isnan(found.y[16 * 99 + 3]));
  EXPECT_FALSE(std::isnan(found.y[16 * 99 + 4]));
  EXPECT_TRUE(std::isnan(found.d.A[3 * 16]));
}

TEST_F(SelectiveScanCuda, NanIsNotHiddenBySummaries) {
  Inputs in = scan_inputs({1, 3000, 16, 16});
  std::fill(in.bias.begin(), in.bias.end(), -9.0F);  // slow: a memory longer than the sequence
  in.delta[16 * 1500 + 3] = NAN;
  in.u[16 * 1500 + 7] = NAN;
  const ScanRun found = CudaScanRunner(ctx(), in, DType::kF32).run();
  for (size_t e = 0; e < 16; ++e) {
    const bool expected = e == 3 || e == 7;
    EXPECT_EQ(std::isnan(found.state_out[e * 16]), expected) << e;
    EXPECT_EQ(std::isnan(found.y[16 * 2999 + e]), expected) << e;
    EXPECT_EQ(std::isnan(found.d.A[e * 16]), expected) << e;
    EXPECT_EQ(std::isnan(found.d.u[e]), e == 3) << e;
    EXPECT_FALSE(std::isnan(found.d.u[16 * 2999 + e])) << e;
  }
}

/// Chunks of the forward pass so long that the device chooses how to summarise them, in every order
/// of channels that matters to the choice, against segments whose chunks are short.
TEST_F(SelectiveScanCuda, LongChunksMatchShortOnesInAnyOrderOfChannels) {
  constexpr int64_t kLength = 655360;
  constexpr int64_t kSegment = 32768;
  constexpr int64_t kChannels = LongProblem::kChannels;
  constexpr int64_t kStates = LongProblem::kStates;
  constexpr DType kType = DType::kBF16;
  const LongProblem problem;
  SelectiveScanForward whole;
  whole.u = rows(kType, kLength, kChannels, problem.table.u);
  whole.delta = rows(kType, kLength, kChannels, problem.raw);
  whole.z = rows(kType, kLength, kChannels, problem.table.z);
  whole.B = rows(kType, kLength, kStates, problem.table.B);
  whole.C = rows(kType, kLength, kStates, problem.table.C);
  whole.A = fixed({kChannels, kStates}, problem.rates);
  whole.y = rows(kType, kLength, kChannels, {});
  const TensorView y = rows(kType, kLength, kChannels, {});
  const std::vector<float> zeros(static_cast<size_t>(kChannels * kStates));
  const auto shuffled = [](int64_t e) { return e * 37 % kChannels; };
  const auto in_order = [](int64_t e) { return e; };
  const auto all_slow = [](int64_t) { return int64_t{32}; };
  const auto check = [&](const char* name, auto&& rank) {
    SCOPED_TRACE(name);
    whole.delta_bias = fixed({kChannels}, LongProblem::bias(rank));
    whole.state_out = fixed({1, kChannels, kStates}, zeros);
    selective_scan_forward(ctx(), whole);
    SelectiveScanForward part = whole;
    part.state_out = fixed({1, kChannels, kStates}, zeros);
    for (int64_t begin = 0; begin < kLength; begin += kSegment) {
      const int64_t end = begin + kSegment;
      for (auto field :
           {&SelectiveScanForward::u, &SelectiveScanForward::delta, &SelectiveScanForward::z,
            &SelectiveScanForward::B, &SelectiveScanForward::C}) {
        part.*field = (whole.*field).slice(1, begin, end);
      }
      part.y = y.slice(1, begin, end);
      selective_scan_forward(ctx(), part);
      part.state_in = part.state_out;
      part.state_out = fixed({1, kChannels, kStates}, zeros);
    }
    EXPECT_LE(relative_error(download(whole.state_out), download(part.state_in)), 1e-5);
    // outputs near the end of a chunk and of a segment, where starts matter and rounding differs
    for (const int64_t at : {int64_t{0}, kSegment - 64, kLength / 2, kLength - 64}) {
      EXPECT_LE(relative_error(download(whole.y.slice(1, at, at + 64)),
                               download(y.slice(1, at, at + 64))),
                5e-4)
          << at;
    }
  };
  check("shuffled", shuffled);
  check("in order", in_order);
  check("all slow", all_slow);
}

/// Chunks of the backward pass so long that their summaries go in two rounds, against two segments
/// of half as long chunks, which go in one. Memories from ten positions to beyond a chunk.
TEST_F(SelectiveScanCuda, GradientsOfLongChunksMatchThoseOfShortOnes) {
  constexpr int64_t kLength = 131072;
  constexpr int64_t kChannels = LongProblem::kChannels;
  constexpr int64_t kStates = LongProblem::kStates;
  const LongProblem problem;
  const auto given = [&](int64_t width, const std::vector<float>& values) {
    return rows(DType::kF32, kLength, width, values);
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
  const TensorView middle = backward(kLength / 2, kLength, du[1], ddelta[1], {});
  backward(0, kLength / 2, du[1], ddelta[1], middle);
  for (int64_t begin = 0; begin < kLength; begin += kLength / 4) {
    const auto piece = [&](const TensorView& view) {
      return download(view.slice(1, begin, begin + kLength / 4));
    };
    EXPECT_LE(relative_error(piece(du[0]), piece(du[1])), 1e-5) << begin;
    EXPECT_LE(relative_error(piece(ddelta[0]), piece(ddelta[1])), 1e-5) << begin;
  }
}

TEST_F(SelectiveScanCuda, GradientsOfParametersAccumulateOnRequest) {
  const Inputs in = scan_inputs({2, 70, 10, 4});
  const ScanRun once = CudaScanRunner(ctx(), in, DType::kF32).run();
  CudaScanRunner overwriting(ctx(), in, DType::kF32);
  overwriting.mode = GradMode::kOverwrite;
  overwriting.repeats = 2;
  expect_same(overwriting.run(), once, 0);
  CudaScanRunner accumulating(ctx(), in, DType::kF32);
  accumulating.repeats = 2;
  const ScanRun twice = accumulating.run();
  EXPECT_EQ(twice.d.u, once.d.u);
  for (auto field :
       {&ScanGradients<float>::A, &ScanGradients<float>::D, &ScanGradients<float>::bias}) {
    std::vector<float> expected;
    for (const float x : once.d.*field) expected.push_back(2 * x);
    EXPECT_LE(relative_error(twice.d.*field, expected), 1e-6);
  }
}

TEST_F(SelectiveScanCuda, StepsAllocateNothingAfterTheFirst) {
  const Inputs in = scan_inputs({1, 3000, 40, 16});
  CudaScanRunner(ctx(), in, DType::kF32).run();
  const int64_t allocations = ctx().arena().allocations();
  CudaScanRunner(ctx(), in, DType::kF32).run();
  EXPECT_EQ(ctx().arena().allocations(), allocations);
  EXPECT_EQ(ctx().arena().used_bytes(), 0);
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
