// SPDX-License-Identifier: Apache-2.0
#include "pipelines/training_run.h"

#include <gtest/gtest.h>

namespace gmamba::test {
namespace {

TEST(RatioSince, IsOfWhatWasAddedSinceTheLastCall) {
  RatioSince speed;
  EXPECT_EQ(speed.next(100, 2), 50);
  EXPECT_EQ(speed.next(130, 5), 10) << "not the 26 of the whole";
  EXPECT_EQ(speed.next(130, 5), 0) << "nothing was done";
  EXPECT_EQ(speed.next(230, 6), 100);
}

}  // namespace
}  // namespace gmamba::test
