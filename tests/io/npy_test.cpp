// SPDX-License-Identifier: Apache-2.0
#include "io/npy.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>

#include "tests/io/io_test_util.h"

namespace gmamba {
namespace {

using test::error_of;
using test::TemporaryFolder;
using namespace std::string_literals;

/// A version 1.0 file with the given dictionary.
std::string npy(const std::string& dictionary, const std::string& data) {
  return "\x93NUMPY\x01\x00"s + test::little_endian(dictionary.size(), 2) + dictionary + data;
}

std::string message_of(const std::string& bytes, ErrorKind kind = ErrorKind::kInput) {
  const TemporaryFolder folder;
  return error_of([&] { read_npy(folder.write("x.npy", bytes)); }, kind);
}

TEST(Npy, HalfPrecisionRoundsToNearestEven) {
  // every half is itself
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f32_from_f16(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f32_from_f16(f16_from_f32(value))));
    } else {
      ASSERT_EQ(f16_from_f32(value), half) << bits;
      const int exponent = static_cast<int>(bits >> 10 & 31);
      const double fraction = (bits & 1023) / 1024.0;
      const double magnitude = exponent == 0    ? std::ldexp(fraction, -14)
                               : exponent == 31 ? HUGE_VAL
                                                : std::ldexp(1 + fraction, exponent - 15);
      ASSERT_EQ(value, bits >> 15 ? -magnitude : magnitude);
    }
  }
  // halfway between neighbours goes to the even one, a little to either side to the nearer
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const double low = f32_from_f16(static_cast<uint16_t>(bits));
    const double high = f32_from_f16(static_cast<uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(f16_from_f32(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(f16_from_f32(std::nextafter(middle, 0.0F)), bits);
    ASSERT_EQ(f16_from_f32(std::nextafter(middle, 1e9F)), bits + 1);
    ASSERT_EQ(f16_from_f32(-middle), 0x8000U | (bits % 2 == 0 ? bits : bits + 1));
  }
  EXPECT_EQ(f16_from_f32(65504.0F), 0x7BFF);
  EXPECT_EQ(f16_from_f32(65519.99F), 0x7BFF);
  EXPECT_EQ(f16_from_f32(65520.0F), 0x7C00);
  EXPECT_EQ(f16_from_f32(1e-30F), 0);
}

TEST(Npy, WritesRowsAndReadsThemBack) {
  const TemporaryFolder folder;
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    for (const int64_t rows : {0, 1, 1000}) {
      const std::string path = folder.file("a.npy");
      NpyWriter writer(path, 3, dtype);
      for (int64_t i = 0; i < rows; ++i) {
        const auto value = static_cast<float>(i);
        writer.add_row(std::vector<float>{value, -value, 0.5F});
      }
      EXPECT_EQ(writer.rows(), rows);
      EXPECT_FALSE(rows == 0 && dtype == DType::kF32 && std::filesystem::exists(path));
      writer.commit();
      const std::string bytes = read_file(path, 1 << 20);
      EXPECT_EQ(static_cast<int64_t>(bytes.size()), 128 + rows * 3 * size_of(dtype));
      EXPECT_EQ(bytes.substr(0, 10), "\x93NUMPY\x01\x00\x76\x00"s);
      EXPECT_EQ(bytes[127], '\n');
      const std::string start = "{'descr': '"s + (dtype == DType::kF32 ? "<f4" : "<f2") +
                                "', 'fortran_order': False, 'shape': (" + std::to_string(rows) +
                                ", 3), }";
      EXPECT_EQ(bytes.substr(10, start.size()), start);
      const NpyArray array = read_npy(path);
      EXPECT_EQ(array.values.shape(), (Shape{rows, 3}));
      EXPECT_EQ(array.values.dtype(), dtype);
      if (dtype == DType::kF32 && rows > 0) {
        const auto values = array.values.host<float>();
        EXPECT_EQ(values[3 * static_cast<size_t>(rows) - 2], static_cast<float>(1 - rows));
      }
    }
  }
}

TEST(Npy, NumpyReadsWhatWeWrite) {
  if (std::system("python3 -c 'import numpy' >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "python3 with numpy is not installed";
  }
  const TemporaryFolder folder;
  NpyWriter writer(folder.file("a.npy"), 2, DType::kF16);
  writer.add_row(std::vector<float>{1.5F, -2});
  writer.commit();
  const std::string script = "import numpy; a = numpy.load('" + folder.file("a.npy") +
                             "'); assert a.shape == (1, 2) and a[0, 0] == 1.5 and a[0, 1] == -2";
  EXPECT_EQ(std::system(("python3 -c \"" + script + "\"").c_str()), 0);
}

TEST(Npy, WriterRefusesWrongRowsAndHalvesThatOverflow) {
  const TemporaryFolder folder;
  NpyWriter writer(folder.file("a.npy"), 2, DType::kF16);
  error_of([&] { writer.add_row(std::vector<float>{1}); }, ErrorKind::kInternal);
  EXPECT_NE(error_of([&] {
              writer.add_row(std::vector<float>{1, 70000});
            }).find("write f32"),
            std::string::npos);
  error_of([&] { NpyWriter(folder.file("b.npy"), 2, DType::kI32); }, ErrorKind::kInternal);
  EXPECT_THROW(NpyWriter("/no/such/folder/a.npy", 2, DType::kF32), Error);
  NpyWriter full("/dev/full", 2, DType::kF32);
  error_of([&] { full.commit(); }, ErrorKind::kIo);
}

TEST(Npy, ReadsTypesShapesAndVersions) {
  const TemporaryFolder folder;
  const auto read = [&](const std::string& bytes) {
    return read_npy(folder.write("x.npy", bytes));
  };
  const NpyArray scalar =
      read(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n", std::string(8, '\0')));
  EXPECT_EQ(scalar.values.size(), 1);
  EXPECT_EQ(scalar.values.shape(), Shape{});
  const NpyArray longs = read(npy("{\"shape\": (2,), 'fortran_order': True,'descr':'<i8'}",
                                  test::little_endian(5, 8) + test::little_endian(7, 8)));
  EXPECT_EQ(longs.values.host<int64_t>()[1], 7);
  const NpyArray bytes =
      read(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 1, 2), }", "abcd"));
  EXPECT_EQ(bytes.values.shape(), (Shape{1, 2, 1, 2}));
  EXPECT_EQ(bytes.values.host<uint8_t>()[3], 'd');
  const std::string dictionary = "{'descr': '<i4', 'fortran_order': False, 'shape': (0, 5), }";
  for (const char version : {'\2', '\3'}) {
    const NpyArray none = read("\x93NUMPY"s + version + "\0"s +
                               test::little_endian(dictionary.size(), 4) + dictionary);
    EXPECT_EQ(none.values.shape(), (Shape{0, 5}));
  }
  const auto golden = std::filesystem::path(GMAMBA_SOURCE_DIR) / "test_data/golden/mamba";
  EXPECT_EQ(read_npy(golden / "input_ids.npy").values.shape().size(), 2u);
  EXPECT_EQ(read_npy(golden / "logits.npy").values.dtype(), DType::kF32);
}

TEST(Npy, RefusesWhatItShould) {
  const auto dictionary = [](const std::string& descr, const std::string& shape,
                             const std::string& order = "False") {
    return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  };
  const auto expect = [&](const std::string& bytes, std::string_view part,
                          ErrorKind kind = ErrorKind::kInput) {
    const std::string message = message_of(bytes, kind);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  const ErrorKind unsupported = ErrorKind::kUnsupported;
  expect(npy(dictionary("'|O'", "(1,)"), ""), "pickle", unsupported);
  expect(npy(dictionary("'>f4'", "(1,)"), "abcd"), "big-endian", unsupported);
  expect(npy(dictionary("[('a', '<f4')]", "(1,)"), "abcd"), "structured", unsupported);
  expect(npy(dictionary("'<U3'", "(1,)"), std::string(12, 'a')), "type '<U3'", unsupported);
  expect(npy(dictionary("'|V2'", "(1,)"), "ab"), "type '|V2'", unsupported);
  expect(npy(dictionary("'<f4'", "(2, 2)", "True"), std::string(16, 'a')), "column-major",
         unsupported);
  expect(npy(dictionary("'<f4'", "(1, 1, 1, 1, 1)"), "abcd"), "dimensions", unsupported);
  expect(npy(dictionary("'<f4'", "(2,)"), "abcd"), "4 bytes of data, but its shape");
  expect(npy(dictionary("'<f4'", "(1,)"), "abcde"), "5 bytes of data");
  expect(npy(dictionary("'<f4'", "(4611686018427387904, 4)"), ""), "shape");
  expect(npy(dictionary("'<f4'", "(-1,)"), ""), "no sizes");
  expect(npy(dictionary("'<f4'", "(1.5,)"), "abcd"), "damaged NumPy header");
  expect(npy(dictionary("'<f4'", "(99999999999999999999,)"), ""), "no sizes");
  expect(npy(dictionary("'<f4'", "(1,)", "false"), "abcd"), "neither True nor False");
  expect(npy("{'descr': '<f4', 'shape': (1,)}", "abcd"), "is missing");
  expect(npy("{'descr': '<f4', 'descr': '<f4', 'shape': (1,)}", "abcd"), "twice");
  expect(npy(dictionary("'<f4'", "(1,)") + "x", "abcd"), "follows");
  expect(npy("", ""), "expected '{'");
  expect("", "too short");
  expect(std::string(100, 'a'), "no NumPy file");
  expect("PK\x03\x04" + std::string(100, 'a'), "no NumPy file");
  expect("\x93NUMPY\x04\x00"s + std::string(100, 'a'), "format 4.0", unsupported);
  expect("\x93NUMPY\x02\x00\xff\xff\xff\x7f"s + std::string(100, 'a'), "header of 2147483647");
  const std::string good = npy(dictionary("'<f4'", "(3,)"), std::string(12, 'a'));
  for (size_t length = 0; length < good.size(); ++length) message_of(good.substr(0, length));
  error_of([] { read_npy("/no/such.npy"); }, ErrorKind::kIo);
  error_of([] { read_npy("/"); }, ErrorKind::kIo);
}

}  // namespace
}  // namespace gmamba
