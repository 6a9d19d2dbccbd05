// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "libmamba/core/checked.h"
#include "libmamba/core/context.h"
#include "libmamba/core/file.h"
#include "libmamba/core/json.h"
#include "libmamba/core/parallel.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

TEST(Checked, RefusesOverflowAndNegatives) {
  EXPECT_EQ(checked_mul(1 << 20, 1 << 20, "x"), int64_t{1} << 40);
  EXPECT_THROW(checked_mul(int64_t{1} << 40, int64_t{1} << 40, "x"), Error);
  EXPECT_THROW(checked_add(INT64_MAX, 1, "x"), Error);
  EXPECT_THROW(checked_add(-1, 5, "x"), Error);
  EXPECT_EQ(checked_product({3, 4, 0}, "x"), 0);
}

TEST(Text, ParsesSizes) {
  EXPECT_EQ(parse_count("16k", "n"), 16000);
  EXPECT_EQ(parse_count("1048576", "n"), 1048576);
  EXPECT_EQ(parse_bytes("2GiB", "n"), int64_t{2} << 30);
  EXPECT_EQ(parse_bytes("1.5M", "n"), 1572864);
  for (const char* bad : {"", "x", "-3", "1e", "nan", "5kk", "9e99"}) {
    EXPECT_THROW(parse_count(bad, "n"), Error) << bad;
    EXPECT_THROW(parse_bytes(bad, "n"), Error) << bad;
  }
  try {
    parse_bytes("3X", "--max-memory");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.message(),
              "--max-memory: expected a size such as 4096, 512MiB or 2GiB, found '3X'");
  }
}

TEST(Text, MakesNamesSafe) {
  EXPECT_EQ(printable("chr1"), "chr1");
  EXPECT_EQ(printable("a\x1b[31m"), "a\\x1b[31m");
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\xc2\x9b"), "\\xc2\\x9b");  // a C1 control is an escape sequence too
  EXPECT_LT(printable(std::string(5000, 'x')).size(), 200u);
}

TEST(Text, KnowsWellFormedUtf8) {
  EXPECT_TRUE(is_utf8(""));
  EXPECT_TRUE(is_utf8("a \xc3\xa9 \xe2\x82\xac \xf0\x9f\xa7\xac"));
  for (const char* bad : {"\xff", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xc3", "\xe2\x82"}) {
    EXPECT_FALSE(is_utf8(bad)) << printable(bad);
  }
}

TEST(Text, FormatsForPeople) {
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-12), "-12");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_duration(3723), "1h 02m 03s");
}

TEST(JsonText, RefusesWhatItShould) {
  EXPECT_EQ(parse_json("{\"a\": [1, 2]}", "f")["a"][1], 2);
  EXPECT_THROW(parse_json("{\"a\": 1, \"a\": 2}", "f"), Error);
  EXPECT_THROW(parse_json("{} x", "f"), Error);
  EXPECT_THROW(parse_json("{\"a\": NaN}", "f"), Error);
  EXPECT_THROW(parse_json(std::string(100000, '['), "f"), Error);
  EXPECT_THROW(parse_json("\"\xff\"", "f"), Error);
  EXPECT_THROW(parse_json(std::string_view("{}\0x", 4), "f"), Error);
  EXPECT_THROW(parse_json("\xef\xbb\xbf{}", "f"), Error);
  EXPECT_EQ(parse_json("{\"b\":[{},[[]],{\"x\":null}],\"a\":-1}", "f").dump(),
            "{\"b\":[{},[[]],{\"x\":null}],\"a\":-1}");
  const Json json = parse_json("{\"limit\": [0.0, Infinity], \"s\": \"NaN, \\\"Infinity\"}", "f",
                               {.allow_nonfinite = true});
  EXPECT_EQ(json["limit"][1], "Infinity");
  EXPECT_EQ(json["s"], "NaN, \"Infinity");
}

TEST(JsonText, ManyKeysCostLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 300000; ++i) text += concat(i == 0 ? "" : ",", "\"key", i, "\":", i);
  const Json json = parse_json(text + "}", "f");
  EXPECT_EQ(json.size(), 300000u);
  EXPECT_EQ(json.dump(), text + "}");
}

TEST(RandomNumbers, MatchPublishedVectors) {
  // Random123 known-answer vectors for philox4x32-10
  const auto zero = philox({0, 0, 0, 0}, {0, 0});
  EXPECT_EQ(zero, (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const auto ones = philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u});
  EXPECT_EQ(ones, (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(RandomNumbers, HaveTheRightMoments) {
  Random random(7, RandomUse::kTest);
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; ++i) {
    const double value = random.normal();
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.01);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
  for (int i = 0; i < 1000; ++i) EXPECT_LT(random.below(7), 7u);
}

TEST(ArenaMemory, IsTakenBackAndKept) {
  Context ctx;
  const auto once = [&] {
    const Arena::Scope scope(ctx.arena());
    const TensorView a = ctx.arena().f32({1000, 1000});
    const TensorView b = ctx.arena().f32({3});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % 256, 0u);
    EXPECT_NE(a.data, b.data);
  };
  once();
  const int64_t after_first = ctx.arena().allocations();
  for (int i = 0; i < 10; ++i) once();
  EXPECT_EQ(ctx.arena().allocations(), after_first);
  EXPECT_EQ(ctx.arena().used_bytes(), 0);
  EXPECT_GE(ctx.arena().peak_bytes(), 4000000);
  {
    const Arena::Scope scope(ctx.arena());
    ctx.arena().f32({10});
    EXPECT_THROW(ctx.arena().release_all(), Error);
  }
  ctx.arena().release_all();
  EXPECT_EQ(ctx.arena().held_bytes(), 0);
  once();
}

TEST(ArenaMemory, AReservedBlockTakesThePlaceOfSmallerOnes) {
  Context ctx;
  Arena& arena = ctx.arena();
  for (const int64_t mebibytes : {2, 5, 3, 20}) {
    const Arena::Scope scope(arena);
    arena.reserve(mebibytes << 20);
    EXPECT_GE(arena.largest_block(), mebibytes << 20);
    EXPECT_EQ(arena.held_bytes(), arena.largest_block());
    arena.f32({1000});
  }
  // what is in use stays
  const Arena::Scope scope(arena);
  const TensorView one = arena.zeros(DType::kF32, {1000});
  arena.reserve(40 << 20);
  EXPECT_GE(arena.held_bytes(), 60 << 20);
  EXPECT_EQ(one.flat<float>()[999], 0);
}

TEST(TensorViews, SliceAndCheck) {
  Tensor tensor(Device{}, DType::kF32, {2, 3, 8});
  auto values = tensor.host<float>();
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const auto half = tensor.view().slice(2, 4, 8).as<const float, 3>();
  EXPECT_EQ(*half.at(1, 2, 0), 44.0F);
  EXPECT_FALSE(tensor.view().slice(2, 4, 8).contiguous());
  EXPECT_THROW((tensor.view().as<float, 2>()), Error);
  EXPECT_THROW(tensor.view().slice(2, 4, 9), Error);
}

TEST(Parallel, BringsExceptionsBack) {
  const Context ctx(Device{}, {.threads = 4});
  std::atomic<int> sum{0};
  parallel_for(ctx, 100, [&](int64_t i) { sum += static_cast<int>(i); });
  EXPECT_EQ(sum, 4950);
  EXPECT_THROW(
      parallel_for(ctx, 100, [](int64_t i) { require(i != 50, ErrorKind::kInput, "fifty"); }),
      Error);
}

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / concat("gmamba_core_", ::getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_F(FileTest, AppearsWholeOrNotAtAll) {
  const auto path = folder_ / "out";
  {
    AtomicFile file(path);
    file.write("half");
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
  AtomicFile file(path);
  file.write(std::string(3 << 20, 'a'));
  file.overwrite(1, "bc");
  EXPECT_THROW(file.overwrite(3 << 20, "x"), Error);
  EXPECT_FALSE(std::filesystem::exists(path));
  file.commit();
  const std::string back = read_file(path, 4 << 20);
  EXPECT_EQ(back.substr(0, 4), "abca");
  EXPECT_THROW(read_file(path, 100), Error);
  EXPECT_THROW(read_file(folder_ / "absent", 100), Error);
}

TEST_F(FileTest, LinksAreFollowedAndDevicesKept) {
  write_file(folder_ / "real", "old");
  std::filesystem::create_symlink("real", folder_ / "link");
  write_file(folder_ / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
  EXPECT_EQ(read_file(folder_ / "real", 100), "new");

  const auto pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  write_file(pipe, "through");
  char got[16] = {};
  EXPECT_EQ(::read(reader, got, sizeof(got)), 7);
  ::close(reader);
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  write_file("/dev/null", "nothing");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_THROW(write_file("/dev/full", "x"), Error);
}

TEST_F(FileTest, DigestsMatchTheStandard) {
  EXPECT_EQ(sha256_bytes("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  write_file(folder_ / "abc", "abc");
  EXPECT_EQ(sha256_file(folder_ / "abc"), sha256_bytes("abc"));
}

TEST(Devices, AreNamedOrRefused) {
  EXPECT_EQ(to_string(parse_device("cpu")), "cpu");
  EXPECT_THROW(parse_device("tpu"), Error);
  EXPECT_THROW(parse_device("cuda:x"), Error);
}

}  // namespace
}  // namespace gmamba
