// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/staging.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <numeric>
#include <optional>

#include "libmamba/core/context.h"

namespace gmamba {
namespace {

/// Arrays of three types, their values told by `first`.
struct Arrays {
  std::vector<uint8_t> bytes;
  std::vector<int32_t> integers;
  std::vector<float> numbers;

  Arrays(size_t count, int first) : bytes(count), integers(count), numbers(count) {
    std::iota(bytes.begin(), bytes.end(), static_cast<uint8_t>(first));
    std::iota(integers.begin(), integers.end(), first);
    std::iota(numbers.begin(), numbers.end(), static_cast<float>(first));
  }
  std::array<ConstTensorView, 3> views() const {
    const Shape shape = {static_cast<int64_t>(bytes.size())};
    return {host_view(bytes.data(), shape), host_view(integers.data(), shape),
            host_view(numbers.data(), shape)};
  }
};

void expect_holds(const Staged& staged, const Arrays& arrays) {
  const auto views = arrays.views();
  for (size_t i = 0; i < views.size(); ++i) {
    ASSERT_EQ(staged.view(i).shape(), views[i].shape());
    ASSERT_EQ(staged.view(i).dtype, views[i].dtype);
    const auto bytes = static_cast<size_t>(views[i].size() * size_of(views[i].dtype));
    if (bytes == 0) continue;
    EXPECT_EQ(std::memcmp(staged.view(i).data, views[i].data, bytes), 0);
  }
}

TEST(Staging, HostArraysServeTheHostAsTheyAre) {
  Context ctx;
  const Arrays arrays(100, 1);
  const Staged staged = ctx.stage(arrays.views());
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(staged.view(i).data, arrays.views()[i].data);
  EXPECT_THROW((void)staged.view(3), std::out_of_range);
}

TEST(Staging, CopiesStayWhileTheyAreHeld) {
  StagingPool pool(Device{}, true);
  std::vector<Arrays> arrays;
  std::vector<Staged> held;
  for (int i = 0; i < 6; ++i) {
    arrays.emplace_back(static_cast<size_t>(100 + 37 * i), i);
    Arrays passing = arrays.back();
    held.push_back(pool.stage(passing.views(), nullptr));
    std::fill(passing.numbers.begin(), passing.numbers.end(), -1.0F);  // it was read already
    std::fill(passing.bytes.begin(), passing.bytes.end(), uint8_t{0});
  }
  EXPECT_EQ(pool.slots(), 6);
  for (size_t i = 0; i < held.size(); ++i) {
    expect_holds(held[i], arrays[i]);
    EXPECT_NE(held[i].view(0).data, arrays[i].views()[0].data);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(held[i].view(1).data) % 64, 0U);
  }
  // moved ones hold what they held, and give back one slot
  Staged moved = std::move(held[2]);
  EXPECT_TRUE(held[2].empty());
  expect_holds(moved, arrays[2]);
  held.clear();
  expect_holds(moved, arrays[2]);
}

TEST(Staging, SlotsTakeTurnsAndAreKept) {
  StagingPool pool(Device{}, true);
  const int64_t before = backend_for(DeviceKind::kCpu).allocated_bytes(0);
  std::vector<const std::byte*> places;
  int64_t held_after_first = 0;
  for (int i = 0; i < 12; ++i) {
    const Arrays arrays(1000, i);
    const Staged staged = pool.stage(arrays.views(), nullptr);
    expect_holds(staged, arrays);
    places.push_back(staged.view(0).data);
    if (i == 2) held_after_first = pool.held_bytes();
    // the next one must not wait for the work of this one
    const size_t last = places.size() - 1;
    for (size_t back = 1; back <= std::min<size_t>(2, last); ++back) {
      EXPECT_NE(places[last - back], places[last]);
    }
    if (last > 2) {
      EXPECT_EQ(places[last - 3], places[last]);
    }
  }
  EXPECT_EQ(pool.slots(), 3);
  EXPECT_EQ(pool.held_bytes(), held_after_first);
  EXPECT_EQ(backend_for(DeviceKind::kCpu).allocated_bytes(0) - before, held_after_first);
}

TEST(Staging, GrowsForLargerArraysAndTakesEmptyOnes) {
  StagingPool pool(Device{}, true);
  for (const size_t count : {10UL, 5000UL, 0UL, 200UL, 5000UL, 5000UL}) {
    const Arrays arrays(count, 3);
    expect_holds(pool.stage(arrays.views(), nullptr), arrays);
  }
  EXPECT_EQ(pool.slots(), 3);
}

TEST(Staging, RowsThatLieApartTravelTogether) {
  StagingPool pool(Device{}, true);
  Tensor square(Device{}, DType::kI32, {4, 5});
  const auto values = square.host<int32_t>();
  std::iota(values.begin(), values.end(), 0);
  const std::vector<uint8_t> others = {1, 2, 3};
  const std::array<ConstTensorView, 2> host = {square.view().slice(1, 2, 4),
                                               host_view(others.data(), {3})};
  const Staged staged = pool.stage(host, nullptr);
  EXPECT_EQ(staged.view(0).shape(), (Shape{4, 2}));
  const auto got = staged.view(0).flat<const int32_t>();
  EXPECT_EQ(std::vector<int32_t>(got.begin(), got.end()),
            (std::vector<int32_t>{2, 3, 7, 8, 12, 13, 17, 18}));
  EXPECT_EQ(staged.view(1).flat<const uint8_t>()[2], 3);
  EXPECT_EQ(pool.slots(), 1);
  // nothing else is gathered
  const std::array<ConstTensorView, 1> cube = {
      make_view(square.view().data, DType::kI32, Device{}, {2, 2, 5}).slice(2, 0, 3)};
  EXPECT_THROW(pool.stage(cube, nullptr), Error);
}

TEST(DeviceMemory, IsCounted) {
  Backend& backend = backend_for(DeviceKind::kCpu);
  const int64_t before = backend.allocated_bytes(0);
  backend.reset_peak(0);
  {
    const Tensor one(Device{}, DType::kF32, {1000});
    EXPECT_EQ(backend.allocated_bytes(0) - before, 4000);
    std::optional<Tensor> two(std::in_place, Device{}, DType::kF64, Shape{1000});
    EXPECT_EQ(backend.allocated_bytes(0) - before, 12000);
    two.reset();
    EXPECT_EQ(backend.allocated_bytes(0) - before, 4000);
  }
  EXPECT_EQ(backend.allocated_bytes(0), before);
  EXPECT_EQ(backend.peak_allocated_bytes(0) - before, 12000);
  backend.reset_peak(0);
  EXPECT_EQ(backend.peak_allocated_bytes(0), before);
  EXPECT_GT(backend.total_bytes(0), int64_t{1} << 27);
}

}  // namespace
}  // namespace gmamba
