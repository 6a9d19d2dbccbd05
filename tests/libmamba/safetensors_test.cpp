// SPDX-License-Identifier: Apache-2.0
#include "libmamba/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "libmamba/core/file.h"
#include "libmamba/core/random.h"
#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::slurp;
using test::spit;

/// A file of this header and data; `pad` makes the data begin at a multiple of 8.
std::string file_of(std::string header, std::string_view data, bool pad = false) {
  while (pad && header.size() % 8 != 0) header += ' ';
  std::string out;
  for (size_t i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return out + header + std::string(data);
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

class SafetensorsTest : public test::FolderTest {
 protected:
  fs::path put(const std::string& bytes) {
    spit(folder_ / "x.safetensors", bytes);
    return folder_ / "x.safetensors";
  }
};

std::vector<float> read(const SafetensorsReader& reader, std::string_view name) {
  const SafetensorsEntry& entry = *reader.find(name);
  std::vector<float> out(static_cast<size_t>(
      std::accumulate(entry.shape.begin(), entry.shape.end(), int64_t{1}, std::multiplies<>())));
  reader.read_f32(entry, out);
  return out;
}

TEST_F(SafetensorsTest, ReadsWhatOtherWritersWrite) {
  // leading blanks, keys in any order, data not aligned, header order unlike data order
  const std::string data = raw<uint8_t>({1}) + raw<float>({2.5F, -3.5F}) + raw<float>({7});
  const fs::path path =
      put(file_of(" \n{\"b\":{\"shape\":[2],\"data_offsets\":[1,9],\"dtype\":\"F32\"},"
                  "\"__metadata__\":{\"k\":\"v\",\"\\u03bb\":\"\"},"
                  "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[9,13]},"
                  "\"a\":{\"dtype\":\"BOOL\",\"shape\":[1,1],\"data_offsets\":[0,1]},"
                  "\"none\":{\"dtype\":\"F64\",\"shape\":[3,0],\"data_offsets\":[9,9]}} ",
                  data));
  const SafetensorsReader reader(path);
  ASSERT_EQ(reader.entries().size(), 4u);
  EXPECT_EQ(reader.entries()[0].name, "a");
  EXPECT_EQ(reader.entries()[1].name, "b");
  EXPECT_EQ(reader.entries()[2].name, "none");
  EXPECT_EQ(reader.entries()[3].name, "scalar");
  EXPECT_EQ(reader.metadata().at("k"), "v");
  EXPECT_EQ(reader.metadata().at("\xce\xbb"), "");
  EXPECT_EQ(read(reader, "b"), (std::vector<float>{2.5F, -3.5F}));
  EXPECT_EQ(read(reader, "scalar"), (std::vector<float>{7}));
  EXPECT_TRUE(read(reader, "none").empty());
  EXPECT_EQ(reader.find("c"), nullptr);
  std::vector<std::byte> byte(1);
  reader.read_bytes(*reader.find("a"), byte);
  EXPECT_EQ(byte[0], std::byte{1});
  expect_error(ErrorKind::kInput, {"x.safetensors", "'a'", "BOOL"}, [&] { read(reader, "a"); });
  std::vector<float> wrong(3);
  expect_error(ErrorKind::kInternal, {"'b'"}, [&] { reader.read_f32(*reader.find("b"), wrong); });
  expect_error(ErrorKind::kInternal, {"'b'"}, [&] {
    reader.read_bytes(*reader.find("b"), std::as_writable_bytes(std::span(wrong)));
  });
}

TEST_F(SafetensorsTest, AnEmptySetOfTensorsIsLegal) {
  EXPECT_TRUE(SafetensorsReader(put(file_of("{}", ""))).entries().empty());
  write_safetensors(folder_ / "y.safetensors", {}, {});
  EXPECT_TRUE(SafetensorsReader(folder_ / "y.safetensors").entries().empty());
}

/// The value of a half, from its definition.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

double brain_value(uint16_t bits) {
  const int exponent = bits >> 7 & 255;
  const int fraction = bits & 127;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 255) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, -133);
  return sign * std::ldexp(128 + fraction, exponent - 134);
}

TEST_F(SafetensorsTest, EveryHalfAndBrainFloatConvertsExactly) {
  std::vector<uint16_t> all(65536);
  std::iota(all.begin(), all.end(), uint16_t{0});
  const fs::path path =
      put(file_of(R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]},)"
                  R"("b":{"dtype":"BF16","shape":[256,256],"data_offsets":[131072,262144]}})",
                  raw(all) + raw(all)));
  const SafetensorsReader reader(path);
  const auto check = [&](const std::vector<float>& got, double (*value)(uint16_t)) {
    for (size_t i = 0; i < got.size(); ++i) {
      const double expected = value(static_cast<uint16_t>(i));
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(got[i])) << i;
        continue;
      }
      ASSERT_EQ(static_cast<double>(got[i]), expected) << i;
      ASSERT_EQ(std::signbit(got[i]), (i & 0x8000) != 0) << i;
    }
  };
  check(read(reader, "h"), half_value);
  check(read(reader, "b"), brain_value);
}

TEST_F(SafetensorsTest, DoublesAreRoundedOnce) {
  const std::vector<double> values = {0.1, -1.0 / 3, 1e-300, 1e300, 16777217.0, -0.0};
  const fs::path path =
      put(file_of(R"({"d":{"dtype":"F64","shape":[6],"data_offsets":[0,48]}})", raw(values)));
  const auto got = read(SafetensorsReader(path), "d");
  EXPECT_EQ(got[0], 0.1F);
  EXPECT_EQ(got[1], -1.0F / 3);
  EXPECT_EQ(got[2], 0);
  EXPECT_TRUE(std::isinf(got[3]));
  EXPECT_EQ(got[4], 16777216.0F);
  EXPECT_TRUE(std::signbit(got[5]));
}

TEST_F(SafetensorsTest, LargeTensorsArriveWhole) {
  // several read pieces, not a multiple of one
  std::vector<double> wide(300'007);
  for (size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<double>(i);
  write_safetensors(folder_ / "w.safetensors", {{"wide", host_view(wide.data(), {300'007}), {}}},
                    {});
  const auto got = read(SafetensorsReader(folder_ / "w.safetensors"), "wide");
  for (size_t i = 0; i < wide.size(); ++i) ASSERT_EQ(got[i], static_cast<float>(i));
}

TEST_F(SafetensorsTest, WritesInTheReferenceOrder) {
  const std::vector<float> f = {1, 2, 3, 4};
  const std::vector<double> d = {5};
  const std::vector<int64_t> l = {-6};
  const std::vector<int32_t> i = {7};
  const std::vector<uint8_t> u = {8, 9, 10};
  const std::vector<bf16> b = {{0x3F80}};
  const uint16_t h = 0x3C00;
  write_safetensors(folder_ / "o.safetensors",
                    {{"u", host_view(u.data(), {3}), {}},
                     {"z", host_view(f.data(), {2, 2}), {4, 1, 1}},
                     {"a\"\n", host_view(f.data(), {4}), {}},
                     {"b", host_view(b.data(), {1}), {}},
                     {"h", make_view(static_cast<const void*>(&h), DType::kF16, Device{}, {1}), {}},
                     {"i", host_view(i.data(), {1}), {}},
                     {"l", host_view(l.data(), {1}), {}},
                     {"d", host_view(d.data(), {1}), {}}},
                    {{"format", "np"}, {"z", "last"}, {"a", "\"first\""}});
  const std::string bytes = slurp(folder_ / "o.safetensors");
  const size_t length =
      static_cast<unsigned char>(bytes[0]) + 256u * static_cast<unsigned char>(bytes[1]);
  EXPECT_EQ(length % 8, 0u);
  std::string header = bytes.substr(8, length);
  while (header.back() == ' ') header.pop_back();
  EXPECT_EQ(header,
            "{\"__metadata__\":{\"a\":\"\\\"first\\\"\",\"format\":\"pt\",\"z\":\"last\"},"
            "\"l\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
            "\"d\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[8,16]},"
            "\"a\\\"\\n\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[16,32]},"
            "\"z\":{\"dtype\":\"F32\",\"shape\":[4,1,1],\"data_offsets\":[32,48]},"
            "\"i\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[48,52]},"
            "\"b\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[52,54]},"
            "\"h\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[54,56]},"
            "\"u\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[56,59]}}");
  EXPECT_EQ(bytes.size(), 8 + length + 59);
  const SafetensorsReader reader(folder_ / "o.safetensors");
  EXPECT_EQ(read(reader, "z"), f);
  EXPECT_EQ(read(reader, "b"), std::vector<float>{1});
  EXPECT_EQ(read(reader, "h"), std::vector<float>{1});
}

TEST_F(SafetensorsTest, RandomTensorsRoundTripAndHashTheSame) {
  Random random(11, RandomUse::kTest);
  for (int file = 0; file < 40; ++file) {
    std::map<std::string, std::pair<Shape, std::vector<float>>> tensors;
    while (tensors.size() < 250) {
      std::string name;
      for (uint64_t i = 0; i <= random.below(12); ++i) {
        name += std::string_view("abcxyz._\"\\\x01\x7f ")[random.below(13)];
      }
      Shape shape;
      int64_t size = 1;
      for (uint64_t i = random.below(4); i > 0; --i) {
        shape.push_back(static_cast<int64_t>(random.below(5)));
        size *= shape.back();
      }
      std::vector<float> values(static_cast<size_t>(size));
      for (float& value : values) value = std::bit_cast<float>(random.bits());
      tensors[name] = {shape, values};
    }
    std::vector<SafetensorsItem> items;
    for (const auto& [name, tensor] : tensors) {
      items.push_back({name, host_view(tensor.second.data(), tensor.first), {}});
    }
    const fs::path path = folder_ / "r.safetensors";
    write_safetensors(path, items, {{"n", std::to_string(file)}});
    const std::string digest = sha256_file(path);
    std::reverse(items.begin(), items.end());
    write_safetensors(path, items, {{"n", std::to_string(file)}});
    EXPECT_EQ(sha256_file(path), digest);
    const SafetensorsReader reader(path);
    ASSERT_EQ(reader.entries().size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
      const auto got = read(reader, name);
      ASSERT_EQ(reader.find(name)->shape, tensor.first);
      // bits are compared, so that a NaN is one; memcmp takes no null pointer, which empty ones
      // have
      ASSERT_EQ(got.size(), tensor.second.size());
      if (!got.empty()) {
        ASSERT_EQ(std::memcmp(got.data(), tensor.second.data(), got.size() * 4), 0);
      }
    }
  }
}

TEST_F(SafetensorsTest, WriterRefusesWhatNoReaderTakes) {
  const std::vector<float> f = {1, 2, 3, 4};
  const auto item = [&](const std::string& name) {
    return SafetensorsItem{name, host_view(f.data(), {2, 2}), {}};
  };
  const auto refused = [&](std::vector<SafetensorsItem> items, const std::string& part) {
    expect_error(ErrorKind::kInternal, {part},
                 [&] { write_safetensors(folder_ / "w", items, {}); });
  };
  refused({item("a"), item("a")}, "twice");
  refused({item("__metadata__")}, "__metadata__");
  refused({item("\xff")}, "\\xff");
  SafetensorsItem odd = item("odd");
  odd.shape = {3};
  refused({odd}, "(3)");
  SafetensorsItem strided = item("strided");
  strided.values = strided.values.slice(1, 0, 1);
  refused({strided}, "contiguous");
  expect_error(ErrorKind::kInternal, {"metadata"}, [&] {
    write_safetensors(folder_ / "w", {}, {{"k", "\xff"}});
  });
  EXPECT_FALSE(fs::exists(folder_ / "w"));
}

TEST_F(SafetensorsTest, OnlyRegularFilesAreOpened) {
  expect_error(ErrorKind::kIo, {"absent", "open"},
               [&] { SafetensorsReader reader(folder_ / "absent"); });
  expect_error(ErrorKind::kInput, {"regular file"}, [&] { SafetensorsReader reader(folder_); });
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  expect_error(ErrorKind::kInput, {"pipe", "regular file"},
               [&] { SafetensorsReader reader(folder_ / "pipe"); });
  expect_error(ErrorKind::kInput, {"regular file"}, [] { SafetensorsReader reader("/dev/zero"); });
}

TEST_F(SafetensorsTest, AFileCutWhileOpenIsAnError) {
  const std::vector<float> f(100'000, 1.5F);
  const fs::path path = folder_ / "c.safetensors";
  std::vector<float> out(f.size());
  for (int64_t cut = 0; cut < 100; ++cut) {
    write_safetensors(path, {{"f", host_view(f.data(), {100'000}), {}}}, {});
    const SafetensorsReader reader(path);
    const auto size = fs::file_size(path);
    fs::resize_file(path, size * static_cast<uintmax_t>(cut) / 100);
    expect_error(ErrorKind::kInput, {"c.safetensors"},
                 [&] { reader.read_f32(*reader.find("f"), out); });
  }
  // a file replaced by name, as our writer does it, is another file: the open one stays whole
  write_safetensors(path, {{"f", host_view(f.data(), {100'000}), {}}}, {});
  const SafetensorsReader reader(path);
  write_safetensors(path, {}, {});
  reader.read_f32(*reader.find("f"), out);
  EXPECT_EQ(out, f);
}

TEST_F(SafetensorsTest, AFileWrittenWhileOpenIsAnError) {
  const std::vector<float> f(10, 1.5F);
  const fs::path path = folder_ / "c.safetensors";
  write_safetensors(path, {{"f", host_view(f.data(), {10}), {}}}, {});
  const SafetensorsReader reader(path);
  fs::last_write_time(path, fs::last_write_time(path) - std::chrono::hours(1));
  std::vector<float> out(f.size());
  expect_error(ErrorKind::kInput, {"c.safetensors", "changed"},
               [&] { reader.read_f32(*reader.find("f"), out); });
}

}  // namespace
}  // namespace gmamba
