// SPDX-License-Identifier: Apache-2.0
/// What the driver says of how busy a device is.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "libmamba/core/device.h"

namespace gmamba {
namespace {

TEST(BusyShare, NobodySamplesACpu) {
  uint64_t since = 0;
  EXPECT_FALSE(backend_for(DeviceKind::kCpu).busy_share(0, since).has_value());
  EXPECT_EQ(since, 0U);
}

TEST(BusyShare, OfAGpuThatCopiesIsLargerThanOfOneThatRests) {
  Backend& backend = backend_for(DeviceKind::kCuda);
  if (backend.device_count() == 0) GTEST_SKIP() << backend.why_none();
  uint64_t since = 0;
  if (!backend.busy_share(0, since)) GTEST_SKIP() << "the driver does not say";
  EXPECT_GT(since, 0U);
  using Clock = std::chrono::steady_clock;
  using std::chrono::seconds;
  constexpr int64_t kBytes = int64_t{1} << 30;
  void* const memory = backend.allocate(0, 2 * kBytes);
  for (const auto begin = Clock::now(); Clock::now() - begin < seconds(3);) {
    for (int i = 0; i < 16; ++i) {
      backend.copy_within(0, nullptr, memory, static_cast<char*>(memory) + kBytes, kBytes);
    }
    backend.synchronize(0, nullptr);
  }
  backend.release(0, memory);
  const auto copying = backend.busy_share(0, since);
  std::this_thread::sleep_for(seconds(3));
  const auto resting = backend.busy_share(0, since);
  ASSERT_TRUE(copying && resting);
  EXPECT_LE(*copying, 1.0);
  EXPECT_GE(*resting, 0.0);
  EXPECT_GT(*copying, *resting + 0.2);
}

}  // namespace
}  // namespace gmamba
