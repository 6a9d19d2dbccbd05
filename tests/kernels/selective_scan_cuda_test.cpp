// SPDX-License-Identifier: Apache-2.0
/// The scan on a GPU against the fp64 oracle, against the CPU, in pieces and in whole, twice.
#include <cstring>

#include "tests/kernels/selective_scan_cuda_fixture.h"

namespace gmamba::test {
namespace {

TEST_F(SelectiveScanCuda, MatchesOracle) {
  for (const ScanCase& scan : scan_cases()) {
    {
      SCOPED_TRACE(scan.name() + "_ready");
      expect_ready_matches_oracle(scan);
    }
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
    {
      SCOPED_TRACE(scan.name() + "_ready");
      expect_ready_matches_oracle(scan);
    }
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(scan.name() + "_" + std::string(to_string(dtype)));
      expect_matches_oracle(scan, dtype);
    }
  }
}

// Every kernel once or twice, so small that a tool which watches each access of shared memory, some
// thousand times as slow, still ends in seconds.
TEST_F(SelectiveScanCuda, MatchesOracleInFewShortChunks) {
  for (const ScanCase& scan :
       {ScanCase{1, 200, 64, 8}, ScanCase{1, 200, 64, 16}, ScanCase{1, 200, 32, 32},
        ScanCase{1, 200, 16, 64}, ScanCase{1, 150, 9, 11}, ScanCase{1, 150, 9, 40}}) {
    {
      SCOPED_TRACE(scan.name() + "_ready");
      expect_ready_matches_oracle(scan);
    }
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
      {
        SCOPED_TRACE(scan.name() + "_" + testing::PrintToString(biases) + "_ready");
        expect_ready_matches_oracle(in, 0);
      }
      for (const DType dtype : kTypes) {
        SCOPED_TRACE(scan.name() + "_" + testing::PrintToString(biases) + "_" +
                     std::string(to_string(dtype)));
        expect_matches_oracle(in, dtype, 0);
      }
    }
  }
}

// Rows side by side, apart on 16 bytes, on 8, on none: tiles come whole, in pieces, by element.
TEST_F(SelectiveScanCuda, AlignmentChangesNoBitOfTheOutputs) {
  for (const ScanCase& scan :
       {ScanCase{3, 61, 64, 16}, ScanCase{2, 64, 72, 8}, ScanCase{3, 41, 96, 32},
        ScanCase{2, 23, 40, 64}, ScanCase{1, 1, 8, 16}, ScanCase{2, 33, 64, 12}}) {
    for (const DType dtype : kTypes) {
      const Inputs in = rounded_inputs(scan_inputs(scan), dtype);
      const ScanRun whole = CudaScanRunner(ctx(), in, dtype).run();
      for (const int64_t gap : {16, 8, 4, 5}) {
        SCOPED_TRACE(testing::Message() << scan.name() << " " << to_string(dtype) << ", rows "
                                        << gap << " elements apart");
        CudaScanRunner runner(ctx(), in, dtype, gap);
        const ScanRun found = runner.run();
        EXPECT_EQ(found.y, whole.y);
        EXPECT_EQ(found.state_out, whole.state_out);
        EXPECT_EQ(found.saved, whole.saved);
        EXPECT_EQ(runner.written_between_rows(), 0);
      }
    }
  }
}

// Gradients of 8 states: tiles come whole where rows of B and C lie on 16 bytes, else in pieces.
TEST_F(SelectiveScanCuda, AlignmentOfTokensChangesNoBitOfGradients) {
  for (const ScanCase& scan : {ScanCase{2, 700, 160, 8}, ScanCase{1, 61, 40, 8, false, false},
                               ScanCase{1, 1, 8, 8}, ScanCase{3, 128, 136, 8}}) {
    const Inputs in = rounded_inputs(scan_inputs(scan), DType::kBF16);
    for (const bool ready : {false, true}) {
      if (ready && !scan.z) continue;
      const Inputs given = ready ? with_ready_steps(in) : in;
      const auto run = [&](int64_t gap) {
        CudaScanRunner runner(ctx(), given, DType::kBF16);
        runner.ready = ready;
        runner.token_gap = gap;
        return runner.run();
      };
      const ScanRun whole = run(0);
      const ScanRun pieces = run(8);
      SCOPED_TRACE(testing::Message() << scan.name() << (ready ? ", ready" : ""));
      EXPECT_EQ(whole.y_again, pieces.y_again);
      for (const auto& field : gradient_fields<float>()) {
        EXPECT_EQ(whole.d.*field.field, pieces.d.*field.field) << field.name;
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

}  // namespace
}  // namespace gmamba::test
