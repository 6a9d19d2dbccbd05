// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/version.h"

#include <gtest/gtest.h>

#include "libmamba/core/text.h"

namespace gmamba {
namespace {

TEST(Version, IsThreeNumbers) {
  const std::vector<std::string> parts = split(version(), '.');
  ASSERT_EQ(parts.size(), 3u);
  for (const std::string& part : parts) EXPECT_GE(parse_int(part, "version"), 0);
}

}  // namespace
}  // namespace gmamba
