// SPDX-License-Identifier: Apache-2.0
#include "kernels/selective_scan.h"

#include <gtest/gtest.h>

#include "kernels/scan_grid.h"
#include "kernels/selective_scan_cpu.h"
#include "kernels/selective_scan_pieces.h"
#include "tests/kernels/kernel_test_helpers.h"
#include "tests/kernels/relative_error.h"
#include "tests/kernels/selective_scan_cases.h"
#include "tests/kernels/simd_targets_fixture.h"

namespace gmamba::test {
namespace {

using reference::ScanGradients;
using reference::ScanOutputs;

/// Names of the gradients and where they are.
template <class Real>
struct GradientField {
  const char* name;
  std::vector<Real> ScanGradients<Real>::*field;
};
template <class Real>
std::vector<GradientField<Real>> gradient_fields() {
  using G = ScanGradients<Real>;
  return {{"du", &G::u}, {"ddelta", &G::delta}, {"dA", &G::A},
          {"dB", &G::B}, {"dC", &G::C},         {"dD", &G::D},
          {"dz", &G::z}, {"dbias", &G::bias},   {"dstate_in", &G::state_in}};
}

void expect_matches_oracle(Context& ctx, const ScanCase& scan) {
  const Inputs in = scan_inputs(scan);
  const OracleInputs wide = as_oracle(in);
  const auto oracle = reference::scan_forward(wide);
  const auto naive = reference::scan_forward(in);
  const auto doracle = reference::scan_backward(wide);
  const auto dnaive = reference::scan_backward(in);
  const ScanRun found = ScanRunner(ctx, in, scan.strided ? 13 : 0).run();
  expect_close(found.y, oracle.y, naive.y, "y");
  EXPECT_EQ(found.y.size(), found.y_again.size());
  expect_close(found.y_again, oracle.y, naive.y, "y recomputed");
  expect_close(found.state_out, oracle.state_out, naive.state_out, "state_out");
  const auto narrow = gradient_fields<float>();
  const auto exact = gradient_fields<double>();
  for (size_t i = 0; i < narrow.size(); ++i) {
    expect_close(found.d.*narrow[i].field, doracle.*exact[i].field, dnaive.*narrow[i].field,
                 narrow[i].name);
  }
}

class SelectiveScanCase : public testing::TestWithParam<ScanCase> {};

TEST_P(SelectiveScanCase, MatchesOracle) {
  Context ctx({}, {.threads = 2});
  expect_matches_oracle(ctx, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectiveScanCase, testing::ValuesIn(scan_cases()),
                         [](const auto& test) { return test.param.name(); });

using SelectiveScanTarget = SimdTargetTest;

TEST_P(SelectiveScanTarget, MatchesOracle) {
  Context ctx({}, {.threads = 1});
  for (const ScanCase& scan : scan_cases()) {
    if (scan.length % 5 == 0 || scan.d_state % 7 == 0 || scan.extreme) {
      SCOPED_TRACE(scan.name());
      expect_matches_oracle(ctx, scan);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, SelectiveScanTarget, testing::ValuesIn(simd_targets()),
                         simd_target_name);

TEST(SelectiveScan, KeepsTheStatesAtTileBorders) {
  const Inputs in = scan_inputs({2, 200, 11, 6});
  const auto oracle = reference::scan_forward(as_oracle(in));
  Context ctx;
  const ScanRun found = ScanRunner(ctx, in, 0).run();
  std::vector<double> expected;
  for (size_t b = 0; b < 2; ++b) {
    for (size_t l = 0; l < 200; l += static_cast<size_t>(kScanSavedEvery)) {
      const auto* const state = oracle.states.data() + (b * 201 + l) * 66;
      expected.insert(expected.end(), state, state + 66);
    }
  }
  EXPECT_LE(relative_error(found.saved, expected), 1e-6);
}

TEST(SelectiveScan, MarksAreStatesAndKnownOnesGiveTheSame) {
  Context ctx;
  for (const ScanCase& scan : {ScanCase{2, 300, 11, 6}, ScanCase{1, 3000, 8, 16}}) {
    const Inputs in = scan_inputs(scan);
    ScanRunner runner(ctx, in, 5);
    const ScanRun plain = runner.run();
    const OracleInputs wide = as_oracle(in);
    const auto oracle = reference::scan_forward(wide);
    for (const int64_t every : {64, 128, 320, 4096}) {
      SCOPED_TRACE(testing::Message() << scan.name() << ", every " << every);
      const MarkedRuns found = runner.run_marked(every, every % 3 != 1);
      EXPECT_LE(relative_error(found.marks, states_at_marks(wide, oracle, every)), 1e-6);
      for (const ScanRun* const run : {&found.writing, &found.between}) {
        EXPECT_LE(relative_error(run->y, plain.y), 1e-6);
        EXPECT_LE(relative_error(run->state_out, plain.state_out), 1e-6);
      }
      EXPECT_LE(relative_error(found.between.saved, plain.saved), 1e-6);
    }
  }
}

TEST(SelectiveScan, SpacingOfMarksDividesLengthsAndFillsAGpu) {
  EXPECT_EQ(scan_mark_spacing(1, 65536, 512), 512);
  EXPECT_EQ(scan_mark_spacing(1, 98304, 512), 768);
  EXPECT_EQ(scan_mark_spacing(4, 16384, 512), 512);
  EXPECT_EQ(scan_mark_spacing(1024, 1024, 512), 0);  // rows enough
  EXPECT_EQ(scan_mark_spacing(1, 65537, 512), 0);
  EXPECT_EQ(scan_mark_spacing(1, 16 * 1009, 512), 0);  // a prime number of tiles
  EXPECT_EQ(scan_mark_spacing(1, 1024, 512), 0);       // too few tiles
  EXPECT_EQ(scan_mark_spacing(0, 1024, 512), 0);
}

TEST(SelectiveScan, TeamsShareABlockWhereTheyFillAGpuOnceAndItHasTheMemory) {
  using cuda::scan::team_grid;
  constexpr int kKb = 1024;
  const auto expect = [](const cuda::scan::TeamGrid& grid, int teams, int of_block, int kilobytes,
                         int blocks) {
    EXPECT_EQ(grid.teams, teams);
    EXPECT_EQ(grid.of_block, of_block);
    EXPECT_EQ(grid.bytes, kilobytes * kKb);
    EXPECT_EQ(grid.blocks, blocks);
  };
  using cuda::scan::turns_grid;
  const int h100 = 227 * kKb;
  expect(team_grid(396, 132, 3, 72 * kKb, h100), 3, 3, 216, 132);  // just once
  expect(team_grid(265, 132, 3, 72 * kKb, h100), 3, 3, 216, 89);   // in part
  expect(team_grid(397, 132, 3, 72 * kKb, h100), 3, 1, 72, 397);   // more than once
  expect(team_grid(264, 132, 3, 72 * kKb, h100), 2, 1, 76, 264);   // two on an SM, and no third
  expect(team_grid(100, 132, 3, 72 * kKb, h100), 1, 1, 114, 100);  // one, and no second
  expect(team_grid(0, 132, 3, 72 * kKb, h100), 1, 1, 114, 0);
  expect(team_grid(324, 108, 3, 72 * kKb, 163 * kKb), 3, 1, 72, 324);  // no memory for three
  expect(team_grid(80, 82, 3, 72 * kKb, 99 * kKb), 1, 1, 99, 80);      // what a block may have

  expect(turns_grid(528, 132, 4, 40 * kKb, h100, true), 4, 4, 160, 132);    // just once
  expect(turns_grid(384, 132, 4, 40 * kKb, h100, true), 3, 3, 120, 132);    // less
  expect(turns_grid(100, 132, 4, 40 * kKb, h100, true), 1, 1, 114, 100);    // one, and no second
  expect(turns_grid(529, 132, 4, 40 * kKb, h100, true), 4, 4, 160, 132);    // in turns
  expect(turns_grid(529, 132, 4, 40 * kKb, h100, false), 4, 1, 46, 529);    // one by one
  expect(turns_grid(1, 82, 4, 40 * kKb, 99 * kKb, true), 1, 1, 99, 1);      // what a block may have
  expect(turns_grid(900, 82, 4, 40 * kKb, 99 * kKb, true), 4, 1, 46, 900);  // no memory for four
}

TEST(SelectiveScan, OracleGradientsAreFiniteDifferences) {
  for (const ScanCase& scan : {ScanCase{2, 5, 3, 2}, ScanCase{1, 4, 2, 3, false, false, false}}) {
    const OracleInputs in = as_oracle(scan_inputs(scan));
    const auto gradients = reference::scan_backward(in);
    const auto check = [&](std::vector<double> OracleInputs::*field,
                           const std::vector<double>& gradient, const char* what) {
      if ((in.*field).empty()) return;
      const auto loss = [&](const std::vector<double>& point) {
        OracleInputs moved = in;
        moved.*field = point;
        const auto out = reference::scan_forward(moved);
        return dot(out.y, in.dy) + (in.dstate_out.empty() ? 0 : dot(out.state_out, in.dstate_out));
      };
      expect_gradient(loss, in.*field, gradient, what);
    };
    check(&OracleInputs::u, gradients.u, "du");
    check(&OracleInputs::delta, gradients.delta, "ddelta");
    check(&OracleInputs::A, gradients.A, "dA");
    check(&OracleInputs::B, gradients.B, "dB");
    check(&OracleInputs::C, gradients.C, "dC");
    check(&OracleInputs::D, gradients.D, "dD");
    check(&OracleInputs::z, gradients.z, "dz");
    check(&OracleInputs::bias, gradients.bias, "dbias");
    check(&OracleInputs::state_in, gradients.state_in, "dstate_in");
  }
}

/// All results of two runs agree within `tolerance`.
void expect_same(const ScanRun& a, const ScanRun& b, double tolerance) {
  EXPECT_LE(relative_error(a.y, b.y), tolerance) << "y";
  EXPECT_LE(relative_error(a.y_again, b.y_again), tolerance) << "y recomputed";
  EXPECT_LE(relative_error(a.state_out, b.state_out), tolerance) << "state_out";
  for (const auto& [name, field] : gradient_fields<float>()) {
    EXPECT_LE(relative_error(a.d.*field, b.d.*field), tolerance) << name;
  }
}

TEST(SelectiveScan, SplittingChangesNothing) {
  Context ctx;
  const Inputs in = scan_inputs({2, 259, 19, 16});
  const ScanRun whole = ScanRunner(ctx, in, 0).run();
  const std::vector<std::vector<int64_t>> splits = {
      {1}, {64}, {63}, {65}, {128, 192}, {0}, {259}, {100, 100}, {1, 2, 3, 130, 258}};
  for (const auto& borders : splits) {
    SCOPED_TRACE(testing::PrintToString(borders));
    expect_same(ScanRunner(ctx, in, 0).run(borders), whole, 2e-6);
  }
  std::vector<int64_t> every;
  for (int64_t i = 1; i < 259; ++i) every.push_back(i);
  expect_same(ScanRunner(ctx, in, 0).run(every), whole, 2e-6);
}

TEST(SelectiveScan, ChunkedEqualsUnchunked) {
  // 6 channels and 5000 positions are chunked; the same in segments below 2048 are not
  ASSERT_GT(cpu::plan_scan(1, 5000, 6).chunks, 1);
  ASSERT_EQ(cpu::plan_scan(1, 1250, 6).chunks, 1);
  Context ctx;
  const Inputs in = scan_inputs({1, 5000, 6, 16});
  const ScanRun whole = ScanRunner(ctx, in, 0).run();
  const ScanRun segments = ScanRunner(ctx, in, 0).run({1250, 2500, 3750});
  expect_same(whole, segments, 4e-6);
}

TEST(SelectiveScan, ThreadsChangeNoBit) {
  for (const ScanCase& scan :
       {ScanCase{3, 200, 70, 16}, ScanCase{1, 5000, 20, 8}, ScanCase{300, 70, 3, 2}}) {
    SCOPED_TRACE(scan.name());
    const Inputs in = scan_inputs(scan);
    Context one({}, {.threads = 1});
    const ScanRun expected = ScanRunner(one, in, 0).run();
    for (const int threads : {2, 4}) {
      Context ctx({}, {.threads = threads});
      expect_same(ScanRunner(ctx, in, 0).run(), expected, 0);
    }
  }
}

TEST(SelectiveScan, BatchMatesChangeNoBit) {
  Context ctx;
  const ScanCase both{2, 130, 24, 16};
  const Inputs in = scan_inputs(both);
  const ScanRun pair = ScanRunner(ctx, in, 0).run();
  Inputs first = in;
  first.batch = 1;
  for (auto field : {&Inputs::u, &Inputs::delta, &Inputs::B, &Inputs::C, &Inputs::z, &Inputs::dy,
                     &Inputs::state_in, &Inputs::dstate_out}) {
    (first.*field).resize((first.*field).size() / 2);
  }
  const ScanRun alone = ScanRunner(ctx, first, 0).run();
  const auto expect_prefix = [](const std::vector<float>& part, const std::vector<float>& all) {
    ASSERT_EQ(part.size() * 2, all.size());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin()));
  };
  expect_prefix(alone.y, pair.y);
  expect_prefix(alone.state_out, pair.state_out);
  expect_prefix(alone.d.u, pair.d.u);
  expect_prefix(alone.d.B, pair.d.B);
  expect_prefix(alone.d.state_in, pair.d.state_in);
}

TEST(SelectiveScan, ExtremesStayFinite) {
  Context ctx;
  for (const double raw : {-100.0, 0.0, 100.0}) {
    for (const double rate : {-1e4, -1.0, -1e-6, 0.0}) {
      Inputs in = scan_inputs({1, 200, 9, 6});
      std::fill(in.delta.begin(), in.delta.end(), static_cast<float>(raw));
      std::fill(in.A.begin(), in.A.end(), static_cast<float>(rate));
      const ScanRun found = ScanRunner(ctx, in, 0).run();
      const auto finite = [](const std::vector<float>& x) {
        return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
      };
      EXPECT_TRUE(finite(found.y) && finite(found.state_out)) << raw << " " << rate;
      for (const auto& [name, field] : gradient_fields<float>()) {
        EXPECT_TRUE(finite(found.d.*field)) << name << " " << raw << " " << rate;
      }
    }
  }
}

TEST(SelectiveScan, NanIsNotHidden) {
  Context ctx;
  Inputs in = scan_inputs({1, 100, 16, 16});
  in.delta[16 * 50 + 3] = NAN;
  const ScanRun found = ScanRunner(ctx, in, 0).run();
  EXPECT_TRUE(std::isnan(found.state_out[3 * 16]));
  EXPECT_TRUE(std::isnan(found.y[16 * 99 + 3]));
  EXPECT_FALSE(std::isnan(found.y[16 * 99 + 4]));
  EXPECT_TRUE(std::isnan(found.d.A[3 * 16]));
}

TEST(SelectiveScan, GradientsOfParametersAccumulateOnRequest) {
  Context ctx;
  const Inputs in = scan_inputs({2, 70, 10, 4});
  const ScanRun once = ScanRunner(ctx, in, 0).run();
  ScanRunner overwriting(ctx, in, 0);
  overwriting.mode = GradMode::kOverwrite;
  overwriting.repeats = 2;
  expect_same(overwriting.run(), once, 0);
  ScanRunner accumulating(ctx, in, 0);
  accumulating.repeats = 2;
  const ScanRun twice = accumulating.run();
  EXPECT_EQ(twice.d.u, once.d.u);
  EXPECT_EQ(twice.d.B, once.d.B);
  EXPECT_EQ(twice.d.state_in, once.d.state_in);
  for (auto field :
       {&ScanGradients<float>::A, &ScanGradients<float>::D, &ScanGradients<float>::bias}) {
    std::vector<float> expected;
    for (const float x : once.d.*field) expected.push_back(2 * x);
    EXPECT_LE(relative_error(twice.d.*field, expected), 1e-6);
  }
}

TEST(SelectiveScan, StepsAllocateNothingAfterTheFirst) {
  Context ctx;
  for (const ScanCase& scan : {ScanCase{2, 300, 40, 16}, ScanCase{1, 5000, 6, 4}}) {
    const Inputs in = scan_inputs(scan);
    ScanRunner(ctx, in, 0).run();
    const int64_t allocations = ctx.arena().allocations();
    ScanRunner(ctx, in, 0).run();
    EXPECT_EQ(ctx.arena().allocations(), allocations);
    EXPECT_EQ(ctx.arena().used_bytes(), 0);
  }
}

TEST(SelectiveScan, RefusesWhatDoesNotFit) {
  Context ctx;
  Tensor rows = ctx.make(DType::kF32, {2, 8, 4});
  Tensor y = ctx.make(DType::kF32, {2, 8, 4});
  Tensor tokens = ctx.make(DType::kF32, {2, 8, 3});
  Tensor A = ctx.make(DType::kF32, {4, 3});
  Tensor state = ctx.make(DType::kF32, {2, 4, 3});
  SelectiveScanForward good;
  good.u = good.delta = rows;
  good.A = A;
  good.B = good.C = tokens;
  good.y = y;
  EXPECT_NO_THROW(selective_scan_forward(ctx, good));
  const auto refused = [&](auto&& change) {
    SelectiveScanForward args = good;
    change(args);
    return error_of([&] { selective_scan_forward(ctx, args); });
  };
  EXPECT_EQ(refused([&](auto& a) { a.B = rows; }),
            std::make_pair(ErrorKind::kShape,
                           std::string("selective_scan_forward: B: expected shape (2, 8, 3), "
                                       "found (2, 8, 4)")));
  EXPECT_EQ(refused([&](auto& a) { a.u = {}; }).first, ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.state_in = tokens; }).first, ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) { a.saved_states = state; }).first, ErrorKind::kShape);
  EXPECT_EQ(refused([&](auto& a) {
              a.state_in = state;
              a.state_out = state;
            }).first,
            ErrorKind::kInternal);
  Tensor wide = ctx.make(DType::kF32, {4, 65});
  EXPECT_EQ(refused([&](auto& a) { a.A = wide; }).first, ErrorKind::kShape);
  Tensor half = ctx.make(DType::kBF16, {2, 8, 4});
  EXPECT_EQ(refused([&](auto& a) { a.u = half; }).first, ErrorKind::kUnsupported);

  SelectiveScanBackward backward;
  backward.dy = backward.u = backward.delta = rows;
  backward.A = A;
  backward.B = backward.C = tokens;
  const auto [kind, message] = error_of([&] { selective_scan_backward(ctx, backward); });
  EXPECT_EQ(kind, ErrorKind::kShape);
  EXPECT_NE(message.find("saved_states"), std::string::npos) << message;
}

/// Summaries of pieces, forward and backward, against the states that the whole goes through.
TEST(SelectiveScanPieces, SummariesCombineToTheWhole) {
  for (const ScanCase& scan : {ScanCase{2, 300, 21, 16}, ScanCase{1, 9000, 6, 5}}) {
    SCOPED_TRACE(scan.name());
    Context ctx;
    const Inputs in = scan_inputs(scan);
    const ScanRun whole = ScanRunner(ctx, in, 0).run();
    const int64_t B = scan.batch, L = scan.length, E = scan.d_inner, N = scan.d_state;
    const auto view = [](const std::vector<float>& x, const Shape& shape) {
      return host_view(x.data(), shape);
    };
    const std::vector<int64_t> borders = {0, L / 3, L / 3, L / 2 + 1, L};
    const size_t pieces = borders.size() - 1;
    std::vector<Tensor> sums(pieces), states(pieces), dstates(pieces);
    for (size_t i = 0; i < pieces; ++i) {
      sums[i] = ctx.make(DType::kF32, {B, E});
      states[i] = ctx.make(DType::kF32, {B, E, N});
      dstates[i] = ctx.make(DType::kF32, {B, E, N});
      const auto part = [&](const std::vector<float>& x, int64_t width) {
        return view(x, {B, L, width}).slice(1, borders[i], borders[i + 1]);
      };
      SelectiveScanForward piece;
      piece.u = part(in.u, E);
      piece.delta = part(in.delta, E);
      piece.A = view(in.A, {E, N});
      piece.B = part(in.B, N);
      piece.delta_bias = view(in.bias, {E});
      selective_scan_summarise(ctx, piece, sums[i], states[i]);
      SelectiveScanBackward back;
      back.dy = part(in.dy, E);
      back.delta = piece.delta;
      back.A = piece.A;
      back.C = part(in.C, N);
      back.z = part(in.z, E);
      back.delta_bias = piece.delta_bias;
      Tensor again = ctx.make(DType::kF32, {B, E});
      selective_scan_summarise_backward(ctx, back, again, dstates[i]);
      EXPECT_LE(relative_error(values<double>(again.view()), values<double>(sums[i].view())), 1e-6);
    }
    const ConstTensorView A = view(in.A, {E, N});
    Tensor state = ctx.make(DType::kF32, {B, E, N});
    ctx.copy(view(in.state_in, {B, E, N}), state);
    for (size_t i = 0; i < pieces; ++i) {
      selective_scan_combine(ctx, A, sums[i], states[i], state, state);
    }
    Tensor dstate = ctx.make(DType::kF32, {B, E, N});
    ctx.copy(view(in.dstate_out, {B, E, N}), dstate);
    for (size_t i = pieces; i-- > 0;) {
      selective_scan_combine(ctx, A, sums[i], dstates[i], dstate, dstate);
    }
    const auto flat = [](const Tensor& x) {
      return std::vector<float>(x.host<float>().begin(), x.host<float>().end());
    };
    EXPECT_LE(relative_error(flat(state), whole.state_out), 2e-6);
    EXPECT_LE(relative_error(flat(dstate), whole.d.state_in), 2e-6);
  }
}

}  // namespace
}  // namespace gmamba::test
