// SPDX-License-Identifier: Apache-2.0
/// Malformed safetensors files, each with the kind of error and what its message must name. Every
/// rejection of the format's rules has its cases; most vary one field of a good file.
#include <algorithm>
#include <ctime>
#include <functional>

#include "libmamba/safetensors.h"
#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

using test::expect_error;
using test::spit;

std::string with_length(uint64_t length, std::string_view rest) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(length >> (8 * i) & 0xFF);
  return out + std::string(rest);
}

std::string file_of(std::string_view header, size_t data_bytes) {
  return with_length(header.size(), std::string(header) + std::string(data_bytes, '\1'));
}

/// A good file of two tensors over 24 bytes; the cases replace one piece of it.
struct Good {
  std::string a_name = "\"a\"";
  std::string a_dtype = "\"F32\"";
  std::string a_shape = "[2,2]";
  std::string a_offsets = "[0,16]";
  std::string b_offsets = "[16,24]";
  std::string b_name = "\"b\"";
  std::string more_fields;
  std::string metadata = "\"__metadata__\":{\"format\":\"pt\"},";
  std::string before, after;
  size_t data_bytes = 24;

  std::string header() const {
    return before + "{" + metadata + a_name + ":{\"dtype\":" + a_dtype + ",\"shape\":" + a_shape +
           ",\"data_offsets\":" + a_offsets + more_fields + "}," + b_name +
           ":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":" + b_offsets + "}}" + after;
  }
  std::string bytes() const { return file_of(header(), data_bytes); }
};

struct Case {
  std::string label;
  std::string bytes;
  std::vector<std::string> parts;
  ErrorKind kind = ErrorKind::kInput;
};

using Change = std::function<void(Good&)>;

Case changed(const std::string& label, const Change& change, std::vector<std::string> parts,
             ErrorKind kind = ErrorKind::kInput) {
  Good good;
  change(good);
  return {label, good.bytes(), std::move(parts), kind};
}

void add_frame_cases(std::vector<Case>& cases) {
  cases.push_back({"empty file", "", {"0 bytes"}});
  for (size_t n = 1; n < 8; ++n) {
    cases.push_back({concat(n, " bytes"), std::string(n, '\0'), {"too few"}});
  }
  cases.push_back({"no header", with_length(0, ""), {"not valid JSON"}});
  cases.push_back({"header beyond the file", with_length(60, "{}"), {"60", "cut short"}});
  cases.push_back({"header one beyond", with_length(3, "{}"), {"cut short"}});
  cases.push_back({"longest header, short file", with_length(100'000'000, "{}"), {"cut short"}});
  cases.push_back({"over the limit", with_length(100'000'001, "{}"), {"100000001", "at most"}});
  cases.push_back({"FF bytes on top", with_length(0xFFFFFF0000000002, "{}"), {"at most"}});
  cases.push_back({"all ones", with_length(UINT64_MAX, "{}"), {"at most"}});
  cases.push_back({"negative", with_length(uint64_t{1} << 63, "{}"), {"at most"}});
  cases.push_back({"8 + n overflows", with_length(UINT64_MAX - 4, "{}"), {"at most"}});
  cases.push_back({"a gzip", std::string("\x1f\x8b\x08\0\0\0\0\0\0\3abc", 13), {"header"}});
  cases.push_back({"a zip", std::string("PK\3\4\x14\0\0\0\x08\0abcdef", 16), {"header"}});
  cases.push_back({"a pickle", std::string("\x80\2}q\0X\1\0\0\0aq\1K\1s.", 18), {"at most"}});
  cases.push_back({"a GGUF", std::string("GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16), {"at most"}});
  cases.push_back({"text", "{\"a\": 1, \"b\": 2}", {"at most"}});
}

void add_json_cases(std::vector<Case>& cases) {
  const auto add = [&](const std::string& label, std::string_view header, const std::string& part) {
    cases.push_back({label, file_of(header, 0), {part}});
  };
  add("FF as header", "\xff", "not valid JSON");
  add("open brace", "{", "not valid JSON");
  add("a list", "[]", "expected a JSON object");
  add("a string", "\"a\"", "expected a JSON object");
  add("a number", "3", "expected a JSON object");
  add("a float", "3.5", "expected a JSON object");
  add("a negative number", "-3", "expected a JSON object");
  add("null", "null", "expected a JSON object");
  add("true", "true", "expected a JSON object");
  add("blanks only", "   ", "not valid JSON");
  add("byte order mark", "\xef\xbb\xbf{}", "not valid JSON");
  add("trailing object", "{}{}", "not valid JSON");
  add("trailing letter", "{}x", "not valid JSON");
  add("trailing zero", std::string_view("{}\0", 3), "byte 2");
  add("zero inside", std::string_view("{\0}", 3), "byte 1");
  add("trailing comma", "{\"__metadata__\":{},}", "not valid JSON");
  add("comment", "{/*c*/}", "not valid JSON");
  add("single quotes", "{'a':1}", "not valid JSON");
  add("bare key", "{a:1}", "not valid JSON");
  add("bare NaN", "{\"a\":NaN}", "not valid JSON");
  add("unclosed string", "{\"a", "not valid JSON");
  add("control character in a name", "{\"a\nb\":{}}", "not valid JSON");
  add("UTF-16", std::string_view("{\0}\0", 4), "byte 1");
  add("lone surrogate", "{\"\\ud800\":{}}", "not valid JSON");
  add("bad escape", "{\"\\x41\":{}}", "not valid JSON");
  add("invalid UTF-8 in a name", "{\"\xc0\x80\":{}}", "not valid JSON");
  add("surrogate in UTF-8", "{\"\xed\xa0\x80\":{}}", "not valid JSON");
  add("latin 1", "{\"caf\xe9\":{}}", "not valid JSON");
  add("deep lists", std::string(100'000, '['), "expected a JSON object");
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  add("deep objects", deep, "unknown field 'a'");
  add("deep shape", "{\"a\":{\"shape\":" + std::string(100'000, '['), "'a'");
  add("huge number", "{\"a\":1" + std::string(100'000, '0') + "}", "not valid JSON");
}

void add_field_cases(std::vector<Case>& cases) {
  for (const char* dtype :
       {"\"\"", "\"f32\"", "\"F31\"", "\"float32\"", "\"F32 \"", "\"I128\"", "\"\\u001b[31m\""}) {
    cases.push_back(changed(concat("dtype ", dtype), [&](Good& g) { g.a_dtype = dtype; },
                            {"'a'", "tensor type"}));
  }
  for (const char* dtype : {"C64", "F4", "F6_E2M3", "F6_E3M2"}) {
    cases.push_back(changed(
        concat("dtype ", dtype), [&](Good& g) { g.a_dtype = concat('"', dtype, '"'); },
        {"'a'", dtype}, ErrorKind::kUnsupported));
  }
  for (const char* value : {"3", "-3", "1.5", "null", "true", "[]", "{}"}) {
    cases.push_back(
        changed(concat("dtype is ", value), [&](Good& g) { g.a_dtype = value; }, {"'a'", "dtype"}));
  }
  for (const char* value : {"3", "-3", "1.5", "null", "true", "\"[2,2]\"", "{}"}) {
    cases.push_back(
        changed(concat("shape is ", value), [&](Good& g) { g.a_shape = value; }, {"'a'", "shape"}));
    cases.push_back(changed(concat("data_offsets is ", value),
                            [&](Good& g) { g.a_offsets = value; }, {"'a'", "data_offsets"}));
  }
  for (const char* value : {"-1", "-0", "1.0", "1e1", "null", "\"2\"", "[2]", "{}", "true",
                            "18446744073709551616", "9223372036854775808"}) {
    cases.push_back(changed(concat("shape entry ", value),
                            [&](Good& g) { g.a_shape = concat("[2,", value, "]"); }, {"'a'"}));
    cases.push_back(changed(concat("offset ", value),
                            [&](Good& g) { g.a_offsets = concat("[0,", value, "]"); }, {"'a'"}));
  }
  for (const char* offsets : {"[]", "[0]", "[0,16,16]"}) {
    cases.push_back(changed(concat("offsets ", offsets), [&](Good& g) { g.a_offsets = offsets; },
                            {"'a'", "data_offsets"}));
  }
  cases.push_back(changed("rank 17",
                          [](Good& g) { g.a_shape = "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]"; },
                          {"'a'", "16"}));
  cases.push_back(
      changed("unknown field", [](Good& g) { g.more_fields = ",\"x\":1"; }, {"'a'", "'x'"}));
  for (const char* twice : {"\"dtype\":\"F32\"", "\"shape\":[4]", "\"data_offsets\":[0,16]"}) {
    cases.push_back(changed(concat("twice ", twice),
                            [&](Good& g) { g.more_fields = concat(",", twice); },
                            {"'a'", "twice"}));
  }
  for (const char* tensor :
       {"{}", "{\"dtype\":\"F32\"}", "{\"dtype\":\"F32\",\"shape\":[0]}",
        "{\"shape\":[0],\"data_offsets\":[0,0]}", "{\"dtype\":\"F32\",\"data_offsets\":[0,4]}"}) {
    cases.push_back({concat("fields ", tensor),
                     file_of(concat("{\"t\":", tensor, "}"), 0),
                     {"'t'", "missing"}});
  }
  for (const char* value : {"3", "-3", "1.5", "null", "true", "\"x\"", "[]"}) {
    cases.push_back({concat("tensor is ", value),
                     file_of(concat("{\"t\":", value, "}"), 0),
                     {"'t'", "expected an object"}});
  }
}

void add_name_and_metadata_cases(std::vector<Case>& cases) {
  cases.push_back(
      changed("duplicate tensor", [](Good& g) { g.b_name = "\"a\""; }, {"'a'", "twice"}));
  cases.push_back(
      changed("duplicate by escape", [](Good& g) { g.b_name = "\"\\u0061\""; }, {"'a'", "twice"}));
  cases.push_back(changed("name of 4097 bytes",
                          [](Good& g) { g.a_name = concat('"', std::string(4097, 'x'), '"'); },
                          {"4097", "4096"}));
  cases.push_back(changed("terminal codes in a name",
                          [](Good& g) {
                            g.a_name = "\"\\u001b[2J\\u0007\"";
                            g.a_shape = "[3]";
                          },
                          {"\\x1b[2J\\x07"}));
  cases.push_back(changed("duplicate metadata",
                          [](Good& g) { g.metadata += "\"__metadata__\":{},"; },
                          {"__metadata__", "twice"}));
  cases.push_back(
      changed("duplicate metadata key",
              [](Good& g) { g.metadata = "\"__metadata__\":{\"k\":\"v\",\"k\":\"v\"},"; },
              {"'k'", "twice"}));
  for (const char* value : {"3", "null", "[]", "\"x\"", "true"}) {
    cases.push_back(changed(concat("metadata is ", value),
                            [&](Good& g) { g.metadata = concat("\"__metadata__\":", value, ","); },
                            {"__metadata__", "expected an object"}));
  }
  for (const char* value : {"3", "-3", "1.5", "null", "[]", "{}", "true"}) {
    cases.push_back(
        changed(concat("metadata value ", value),
                [&](Good& g) { g.metadata = concat("\"__metadata__\":{\"k\":", value, "},"); },
                {"'k'", "expected a string"}));
  }
}

void add_size_cases(std::vector<Case>& cases) {
  const auto offsets = [&](const std::string& label, const std::string& a, const std::string& b,
                           const std::string& part) {
    cases.push_back(changed(label,
                            [&](Good& g) {
                              g.a_offsets = a;
                              g.b_offsets = b;
                            },
                            {part}));
  };
  offsets("offsets short of the shape", "[0,12]", "[12,20]", "takes 16 bytes");
  offsets("offsets past the shape", "[0,20]", "[20,28]", "takes 16 bytes");
  offsets("end before begin", "[16,0]", "[16,24]", "before it begins");
  offsets("hole at the start", "[4,20]", "[20,28]", "a hole or an overlap");
  offsets("hole between", "[0,16]", "[20,28]", "a hole or an overlap");
  offsets("overlap", "[0,16]", "[8,16]", "a hole or an overlap");
  offsets("second inside the first", "[0,16]", "[4,12]", "a hole or an overlap");
  offsets("same begin", "[0,16]", "[0,8]", "a hole or an overlap");
  offsets("offsets near the top", "[9223372036854775791,9223372036854775807]", "[0,8]", "hole");
  for (const char* shape :
       {"[2,9223372036854775807]", "[4294967296,4294967296]", "[2,18446744073709551614]",
        "[9223372036854775807,9223372036854775807,0]", "[4611686018427387904]",
        "[3037000500,3037000500]", "[65536,65536,65536,65536]"}) {
    cases.push_back(changed(concat("shape ", shape), [&](Good& g) { g.a_shape = shape; }, {"'a'"}));
  }
  for (const char* shape : {"[]", "[3]", "[5]", "[2,3]", "[0]", "[2,2,0]", "[4,4]", "[1]"}) {
    cases.push_back(changed(concat("shape ", shape, " for 16 bytes"),
                            [&](Good& g) { g.a_shape = shape; }, {"'a'", "takes"}));
  }
  for (const char* dtype : {"F64", "F16", "BF16", "I64", "U8", "BOOL", "I16", "F8_E4M3"}) {
    cases.push_back(changed(concat(dtype, " for 16 bytes"),
                            [&](Good& g) { g.a_dtype = concat('"', dtype, '"'); },
                            {"'a'", dtype, "takes"}));
  }
  cases.push_back(changed("data two bytes short", [](Good& g) { g.data_bytes = 22; },
                          {"24", "22", "cut short"}));
  cases.push_back(changed("no data", [](Good& g) { g.data_bytes = 0; }, {"cut short"}));
  cases.push_back(
      changed("one byte more", [](Good& g) { g.data_bytes = 25; }, {"25", "belong to no tensor"}));
  cases.push_back(changed("another file behind", [](Good& g) { g.data_bytes = 4096; },
                          {"belong to no tensor"}));
  cases.push_back({"data without tensors", file_of("{}", 8), {"belong to no tensor"}});
  std::string ten = "{";
  for (int i = 0; i < 10; ++i) {
    ten += concat(i == 0 ? "" : ",", "\"t", i,
                  "\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}");
  }
  cases.push_back({"ten tensors on one range", file_of(ten + "}", 16), {"overlap"}});
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  add_frame_cases(cases);
  add_json_cases(cases);
  add_field_cases(cases);
  add_name_and_metadata_cases(cases);
  add_size_cases(cases);
  return cases;
}

class SafetensorsMalformedTest : public test::FolderTest {
 protected:
  void expect_refused(const Case& c) {
    const auto path = folder_ / "bad.safetensors";
    spit(path, c.bytes);
    std::vector<std::string> parts = c.parts;
    parts.push_back(path.string());
    expect_error(
        c.kind, parts, [&] { SafetensorsReader reader(path); }, c.label);
  }
};

TEST_F(SafetensorsMalformedTest, TheGoodOneIsAccepted) {
  Good good;
  const auto path = folder_ / "good.safetensors";
  for (const auto& [before, after] : {std::pair{"", ""}, {" \n\t\r", ""}, {"", "  \n"}}) {
    good.before = before;
    good.after = after;
    spit(path, good.bytes());
    EXPECT_EQ(SafetensorsReader(path).entries().size(), 2u);
  }
}

TEST_F(SafetensorsMalformedTest, EachIsRefusedWithItsReason) {
  const std::vector<Case> cases = all_cases();
  EXPECT_GE(cases.size(), 180u);
  for (const Case& c : cases) expect_refused(c);
  RecordProperty("cases", static_cast<int>(cases.size()));
}

TEST_F(SafetensorsMalformedTest, EveryTruncationIsRefused) {
  const std::string bytes = Good().bytes();
  for (size_t size = 0; size < bytes.size(); ++size) {
    expect_refused({concat("cut at ", size), bytes.substr(0, size), {}});
    if (size <= 8) continue;
    // the same cut with a length that fits: now it is the JSON or the sizes that cannot be right
    const std::string rest = bytes.substr(8, size - 8);
    const uint64_t header = std::min<uint64_t>(rest.size(), bytes.size() - 8 - 24);
    expect_refused({concat("cut and patched at ", size), with_length(header, rest), {}});
  }
}

TEST_F(SafetensorsMalformedTest, NoMutationOfAHeaderByteIsMisread) {
  // whatever is still accepted must keep every promise of the format
  const std::string good = Good().bytes();
  const size_t header_end = good.size() - 24;
  int accepted = 0;
  for (size_t at = 0; at < header_end; ++at) {
    for (const char byte : {'\0', ' ', '"', '0', '9', '}', ']', ',', '-', '\\', '\xff', 'e'}) {
      std::string bytes = good;
      if (bytes[at] == byte) continue;
      bytes[at] = byte;
      const auto path = folder_ / "m.safetensors";
      spit(path, bytes);
      try {
        const SafetensorsReader reader(path);
        ++accepted;
        int64_t reached = 0;
        for (const SafetensorsEntry& entry : reader.entries()) {
          EXPECT_EQ(entry.begin, reached);
          reached = entry.end;
          std::vector<std::byte> data(static_cast<size_t>(entry.end - entry.begin));
          reader.read_bytes(entry, data);
        }
        EXPECT_EQ(reached, 24);
      } catch (const Error& error) {
        const bool expected =
            error.kind() == ErrorKind::kInput || error.kind() == ErrorKind::kUnsupported;
        EXPECT_TRUE(expected) << error.message();
        EXPECT_NE(error.message().find("m.safetensors"), std::string::npos) << error.message();
      }
    }
  }
  EXPECT_GT(accepted, 0);  // names and metadata may be anything
}

TEST_F(SafetensorsMalformedTest, ManyTensorsCostLinearTime) {
  std::string header = "{";
  for (int i = 0; i <= 1'000'000; ++i) {
    header += i == 0 ? "\"" : ",\"";
    header += std::to_string(i);
    header += "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
  }
  const std::clock_t start = std::clock();
  expect_refused({"a million and one", file_of(header + "}", 0), {"1000000"}});
  header.resize(header.find(",\"300000\""));
  const auto path = folder_ / "many.safetensors";
  spit(path, file_of(header + "}", 0));
  EXPECT_EQ(SafetensorsReader(path).entries().size(), 300'000u);
  // searching the names one by one would take hours
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 60);
}

}  // namespace
}  // namespace gmamba
