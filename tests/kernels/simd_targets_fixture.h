// SPDX-License-Identifier: Apache-2.0
/// Runs a test once for each instruction set that this program was built for and this CPU has.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/simd_targets.h"
// after simd_targets.h
#include "hwy/highway.h"

namespace gmamba::test {

/// Highway picks this instruction set while the object lives.
class ChosenSimdTarget {
 public:
  explicit ChosenSimdTarget(int64_t target) { choose(target); }
  ~ChosenSimdTarget() { choose(0); }
  ChosenSimdTarget(const ChosenSimdTarget&) = delete;
  ChosenSimdTarget& operator=(const ChosenSimdTarget&) = delete;

 private:
  static void choose(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
  }
};

class SimdTargetTest : public testing::TestWithParam<int64_t> {
 private:
  ChosenSimdTarget target_{GetParam()};
};

inline std::vector<int64_t> simd_targets() { return hwy::SupportedAndGeneratedTargets(); }

inline std::string simd_target_name(const testing::TestParamInfo<int64_t>& target) {
  return hwy::TargetName(target.param);
}

}  // namespace gmamba::test
