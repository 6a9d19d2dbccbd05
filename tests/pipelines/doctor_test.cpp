// SPDX-License-Identifier: Apache-2.0
#include "pipelines/doctor.h"

#include <cmath>

#include "pipelines/plain_model.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

TEST(Doctor, FindsThisMachineWell) {
  Context ctx;
  const auto checks = run_checks(ctx, 5);
  ASSERT_EQ(checks.size(), 7U);
  for (const DoctorCheck& check : checks) {
    EXPECT_NE(check.outcome, DoctorCheck::Outcome::kFailed) << check.name << ": " << check.error;
  }
  EXPECT_EQ(checks.back().outcome, DoctorCheck::Outcome::kSkipped);  // there is no GPU in `ctx`
}

/// A check can only find a fault in what its measure depends on: a change of any parameter shows.
TEST(Doctor, EveryParameterCountsInThePlainModel) {
  ModelConfig config = small_config();
  const Model model = tiny_model(3, config);
  PlainModel plain(config, model.parameters());
  std::vector<uint8_t> tokens;
  for (const char letter : random_bases(60, 9)) {
    tokens.push_back(static_cast<uint8_t>(model.vocabulary().bases[letter % 4]));
  }
  const std::vector<double> before = plain.hidden(tokens);
  for (const ParameterInfo& info : model.parameters().layout().all()) {
    const std::vector<double> kept = plain.values();
    for (int64_t i = 0; i < info.size; ++i) {
      plain.values()[static_cast<size_t>(info.offset + i)] *= 1.01;
    }
    const std::vector<double> after = plain.hidden(tokens);
    double difference = 0;
    double norm = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      difference += std::pow(after[i] - before[i], 2);
      norm += std::pow(before[i], 2);
    }
    EXPECT_GT(std::sqrt(difference / norm), 1e-7) << info.name;
    plain.values() = kept;
  }
}

/// The plain model and the fast one are written apart; here they meet on the tests' own model.
TEST(Doctor, ThePlainModelIsTheFastOne) {
  ModelConfig config = small_config();
  const Model model = tiny_model(4, config);
  std::vector<uint8_t> tokens;
  for (const char letter : random_bases(90, 2)) {
    tokens.push_back(static_cast<uint8_t>(model.vocabulary().bases[letter % 4]));
  }
  const auto length = static_cast<int64_t>(tokens.size());
  Context ctx;
  SequenceState state(config, 1, Device{});
  Tensor hidden(Device{}, DType::kF32, {1, length, config.d_model});
  model.forward(ctx, host_view(std::as_const(tokens).data(), {1, length}), state, hidden);
  const auto expected = PlainModel(config, model.parameters()).hidden(tokens);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(hidden.host<float>()[i], expected[i], 1e-5 * (1 + std::abs(expected[i]))) << i;
  }
}

}  // namespace
}  // namespace gmamba::test
