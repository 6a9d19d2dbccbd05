// SPDX-License-Identifier: Apache-2.0
#include "io/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <optional>

#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are written as they lie");

using namespace std::string_view_literals;
constexpr std::string_view kMagic = "\x93NUMPY"sv;
constexpr size_t kHeaderBytes = 128;  // magic, version, length and text
constexpr size_t kLongestHeader = 65536;

struct TypeName {
  std::string_view descr;
  DType dtype;
};
constexpr std::array<TypeName, 6> kTypes = {{{"<f2", DType::kF16},
                                             {"<f4", DType::kF32},
                                             {"<f8", DType::kF64},
                                             {"<i4", DType::kI32},
                                             {"<i8", DType::kI64},
                                             {"|u1", DType::kU8}}};

std::string header(DType dtype, int64_t rows, int64_t columns) {
  const auto type = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const TypeName& t) { return t.dtype == dtype; });
  std::string text(kMagic);
  text += "\x01\x00\x76\x00"sv;  // version 1.0; 118 bytes of text
  text += concat("{'descr': '", type->descr, "', 'fortran_order': False, 'shape': (", rows, ", ",
                 columns, "), }");
  text.resize(kHeaderBytes - 1, ' ');
  return text + "\n";
}

/// Python's literal of a header, such as {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3),
/// }, with its keys in any order.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::string name) : rest_(text), name_(std::move(name)) {}

  void parse() {
    expect('{');
    while (!take('}')) {
      const std::string key(quoted());
      expect(':');
      if (key == "descr" && !descr) {
        descr = type();
      } else if (key == "fortran_order" && !fortran) {
        fortran = truth();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        refuse(concat("the key '", printable(key), "' is unknown or given twice"));
      }
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    skip_blanks();
    if (!rest_.empty()) refuse("text follows its '}'");
    if (!descr || !fortran || !shape) refuse("'descr', 'fortran_order' or 'shape' is missing");
  }

  std::optional<std::string> descr;
  std::optional<bool> fortran;
  std::optional<Shape> shape;

 private:
  [[noreturn]] void refuse(std::string_view why) const {
    fail(ErrorKind::kInput, name_, ": damaged NumPy header: ", why);
  }
  void skip_blanks() {
    const size_t blanks = rest_.find_first_not_of(" \t\n\r");
    rest_.remove_prefix(std::min(blanks, rest_.size()));
  }
  bool take(char c) {
    skip_blanks();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char c) {
    if (!take(c))
      refuse(concat("expected '", c, "' before '", printable(rest_.substr(0, 20)), "'"));
  }
  std::string_view quoted() {
    const char quote = take('"') ? '"' : '\'';
    if (quote == '\'') expect('\'');
    const size_t end = rest_.find(quote);
    if (end == std::string_view::npos) refuse("a quote is not closed");
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return word;
  }
  std::string type() {
    skip_blanks();
    require(!rest_.starts_with('['), ErrorKind::kUnsupported, name_,
            ": structured arrays are not read; save its columns one by one");
    return std::string(quoted());
  }
  bool truth() {
    skip_blanks();
    const bool yes = rest_.starts_with("True");
    if (!yes && !rest_.starts_with("False")) refuse("'fortran_order' is neither True nor False");
    rest_.remove_prefix(yes ? 4 : 5);
    return yes;
  }
  Shape tuple() {
    Shape extents;
    expect('(');
    while (!take(')')) {
      skip_blanks();
      int64_t extent = -1;
      const auto [end, code] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), extent);
      if (code != std::errc() || extent < 0) refuse("'shape' holds no sizes");
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      extents.push_back(extent);
      require(extents.size() <= kMaxRank, ErrorKind::kUnsupported, name_, ": more than ", kMaxRank,
              " dimensions");
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    return extents;
  }

  std::string_view rest_;
  std::string name_;
};

DType dtype_of(std::string_view descr, const std::string& name) {
  const auto type = std::find_if(kTypes.begin(), kTypes.end(),
                                 [&](const TypeName& t) { return t.descr == descr; });
  if (type != kTypes.end()) return type->dtype;
  require(descr.find('O') == std::string_view::npos, ErrorKind::kUnsupported, name,
          ": it holds Python objects (pickle), which are never read");
  require(!descr.starts_with('>'), ErrorKind::kUnsupported, name, ": big-endian type '",
          printable(descr), "'; save it with array.astype('<f4')");
  fail(ErrorKind::kUnsupported, name, ": type '", printable(descr),
       "'; read are <f2, <f4, <f8, <i4, <i8 and |u1");
}

class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path)
      : name(printable(path.string())), stream_(path, std::ios::binary) {
    require(stream_.is_open() && !std::filesystem::is_directory(path), ErrorKind::kIo, name,
            ": cannot open");
    stream_.seekg(0, std::ios::end);
    size = stream_.tellg();
    stream_.seekg(0);
    require(stream_.good() && size >= 0, ErrorKind::kIo, name, ": cannot read");
  }
  void read(char* to, int64_t bytes) {
    stream_.read(to, static_cast<std::streamsize>(bytes));
    require(stream_.gcount() == static_cast<std::streamsize>(bytes), ErrorKind::kInput, name,
            ": truncated, or it became shorter while it was read");
  }
  std::string read(int64_t bytes) {
    std::string text(static_cast<size_t>(bytes), '\0');
    read(text.data(), bytes);
    return text;
  }

  std::string name;
  int64_t size = 0;

 private:
  std::ifstream stream_;
};

}  // namespace

uint16_t f16_from_f32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint32_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {  // NaN stays one, with its upper bits
    return static_cast<uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x1FFU));
  }
  if (magnitude >= 0x477FF000U) return static_cast<uint16_t>(sign | 0x7C00U);
  if (magnitude < 0x38800000U) {
    // below the smallest normal number: adding 0.5 leaves multiples of 2^-24, rounded to even
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000U));
  }
  const uint32_t odd = (magnitude >> 13) & 1U;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + odd) >> 13));
}

float f32_from_f16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16;
  const uint32_t magnitude = bits & 0x7FFFU;
  if (magnitude >= 0x7C00U) {
    return std::bit_cast<float>(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13));
  }
  if (magnitude < 0x400U) {
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
}

NpyWriter::NpyWriter(const std::filesystem::path& path, int64_t columns, DType dtype)
    : file_(path), columns_(columns), dtype_(dtype) {
  require(columns >= 0 && (dtype == DType::kF32 || dtype == DType::kF16), ErrorKind::kInternal,
          "NpyWriter: ", columns, " columns of ", to_string(dtype));
  file_.write(header(dtype_, 0, columns_));
}

void NpyWriter::add_row(std::span<const float> row) {
  require(static_cast<int64_t>(row.size()) == columns_, ErrorKind::kInternal, "NpyWriter: row of ",
          row.size(), " values in an array of ", columns_, " columns");
  if (dtype_ == DType::kF32) {
    file_.write(std::as_bytes(row));
  } else {
    halves_.resize(row.size());
    for (size_t i = 0; i < row.size(); ++i) {
      halves_[i] = f16_from_f32(row[i]);
      if (std::isfinite(row[i]) && (halves_[i] & 0x7FFFU) == 0x7C00U) {
        fail(ErrorKind::kInput, printable(file_.path().string()), ": row ", rows_, " holds ",
             row[i], ", which f16 cannot hold; write f32");
      }
    }
    file_.write(std::as_bytes(std::span<const uint16_t>(halves_)));
  }
  ++rows_;
}

void NpyWriter::commit() {
  file_.overwrite(0, header(dtype_, rows_, columns_));
  file_.commit();
}

NpyArray read_npy(const std::filesystem::path& path) {
  InputFile file(path);
  const int64_t fixed = static_cast<int64_t>(kMagic.size()) + 2;
  require(file.size >= fixed + 2, ErrorKind::kInput, file.name, ": too short for a NumPy file");
  const std::string start = file.read(fixed);
  require(start.starts_with(kMagic), ErrorKind::kInput, file.name,
          ": no NumPy file (it does not begin with \\x93NUMPY)");
  const int version = static_cast<unsigned char>(start[6]);
  require(version >= 1 && version <= 3 && start[7] == 0, ErrorKind::kUnsupported, file.name,
          ": NumPy format ", version, ".", int{static_cast<unsigned char>(start[7])},
          "; read are 1.0, 2.0 and 3.0");
  const int64_t length_bytes = version == 1 ? 2 : 4;
  size_t length = 0;
  const std::string packed = file.read(length_bytes);
  for (size_t i = packed.size(); i > 0; --i) {
    length = length << 8 | static_cast<unsigned char>(packed[i - 1]);
  }
  require(length <= kLongestHeader, ErrorKind::kInput, file.name, ": a header of ", length,
          " bytes; at most ", kLongestHeader, " are read");
  const int64_t data_at = fixed + length_bytes + static_cast<int64_t>(length);
  require(data_at <= file.size, ErrorKind::kInput, file.name, ": truncated within its header");
  const std::string text = file.read(static_cast<int64_t>(length));
  HeaderParser parser(text, file.name);
  parser.parse();
  const DType dtype = dtype_of(*parser.descr, file.name);
  require(!*parser.fortran || parser.shape->size() <= 1, ErrorKind::kUnsupported, file.name,
          ": column-major (fortran_order); save it with np.ascontiguousarray");
  const std::string what = file.name + ": shape";
  const int64_t bytes = checked_mul(checked_product(*parser.shape, what), size_of(dtype), what);
  require(bytes == file.size - data_at, ErrorKind::kInput, file.name, ": ", file.size - data_at,
          " bytes of data, but its shape ", to_string(*parser.shape), " of ", *parser.descr,
          " needs ", bytes);
  NpyArray array;
  array.values = Tensor(Device{}, dtype, *parser.shape);
  if (bytes > 0) file.read(reinterpret_cast<char*>(array.values.view().data), bytes);
  return array;
}

}  // namespace gmamba
