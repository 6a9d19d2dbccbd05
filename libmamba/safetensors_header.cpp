// SPDX-License-Identifier: Apache-2.0
/// The header of a safetensors file: JSON of a fixed form, checked while it is read and never made
/// into a tree, so that a hundred megabytes of hostile header cost one pass.
#include <algorithm>
#include <array>
#include <limits>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/json.h"
#include "libmamba/core/text.h"
#include "libmamba/safetensors.h"

namespace gmamba {
namespace {

constexpr size_t kMostTensors = 1'000'000;
constexpr size_t kLongestName = 4096;
constexpr size_t kHighestRank = 16;

struct DTypeBytes {
  std::string_view name;
  int64_t bytes;
};
constexpr std::array<DTypeBytes, 18> kReadable = {{{"F64", 8},
                                                   {"F32", 4},
                                                   {"F16", 2},
                                                   {"BF16", 2},
                                                   {"I64", 8},
                                                   {"I32", 4},
                                                   {"I16", 2},
                                                   {"I8", 1},
                                                   {"U64", 8},
                                                   {"U32", 4},
                                                   {"U16", 2},
                                                   {"U8", 1},
                                                   {"BOOL", 1},
                                                   {"F8_E5M2", 1},
                                                   {"F8_E4M3", 1},
                                                   {"F8_E8M0", 1},
                                                   {"F8_E4M3FNUZ", 1},
                                                   {"F8_E5M2FNUZ", 1}}};
/// Types of the format that this reader leaves alone.
constexpr std::array<std::string_view, 4> kUnread = {"C64", "F4", "F6_E2M3", "F6_E3M2"};

std::string place_of(std::string_view file, std::string_view tensor) {
  return concat(file, ": tensor '", printable(tensor), "'");
}

int64_t bytes_of(const SafetensorsEntry& entry, std::string_view file) {
  for (const DTypeBytes& known : kReadable) {
    if (known.name == entry.dtype) return known.bytes;
  }
  const std::string place = place_of(file, entry.name);
  const bool unread = std::find(kUnread.begin(), kUnread.end(), entry.dtype) != kUnread.end();
  require(!unread, ErrorKind::kUnsupported, place, ": tensors of type ", entry.dtype,
          " are not read");
  fail(ErrorKind::kInput, place, ": no tensor type is called '",
       printable(std::string_view(entry.dtype)), "'");
}

/// Walks the header. Where it stands is a small state; every event either fits it or is refused.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(std::string_view name, std::vector<SafetensorsEntry>& entries,
               std::map<std::string, std::string>& metadata)
      : name_(name), entries_(entries), metadata_(metadata) {}

  bool null() override { wrong("null"); }
  bool boolean(bool) override { wrong("true or false"); }
  bool number_integer(number_integer_t) override { wrong("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    wrong("a fraction or huge number");
  }
  bool binary(binary_t&) override { wrong("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ != At::kShape && at_ != At::kOffsets) wrong("a number");
    if (value > uint64_t{std::numeric_limits<int64_t>::max()}) {
      refuse("the number ", value, " does not fit 63 bits");
    }
    const auto number = static_cast<int64_t>(value);
    if (at_ == At::kShape) {
      entry_.shape.push_back(number);
      if (entry_.shape.size() > kHighestRank) {
        refuse("more than the ", kHighestRank, " dimensions that are read");
      }
    } else {
      if (offsets_ == 2) refuse("more than two data_offsets");
      (offsets_++ == 0 ? entry_.begin : entry_.end) = number;
    }
    return true;
  }

  bool string(string_t& value) override {
    if (at_ == At::kMetadataValue) {
      metadata_.emplace(key_, value);
      at_ = At::kMetadata;
    } else if (at_ == At::kDType) {
      entry_.dtype = value;
      at_ = At::kTensor;
    } else {
      wrong("a string");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (at_ == At::kStart) {
      at_ = At::kTop;
    } else if (at_ == At::kTopValue) {
      at_ = key_ == "__metadata__" ? At::kMetadata : At::kTensor;
      entry_ = {};
      entry_.name = key_;
      seen_ = 0;
      offsets_ = 0;
    } else {
      wrong("an object");
    }
    return true;
  }

  bool key(string_t& key) override {
    switch (at_) {
      case At::kTop:
        top_key(key);
        break;
      case At::kMetadata:
        if (metadata_.contains(key)) {
          fail(ErrorKind::kInput, name_, ": the __metadata__ key '",
               printable(std::string_view(key)), "' stands twice");
        }
        key_ = std::move(key);
        at_ = At::kMetadataValue;
        break;
      default:
        field_key(key);
        break;
    }
    return true;
  }

  bool end_object() override {
    if (at_ == At::kTensor) {
      if (seen_ != 7) refuse("expected dtype, shape and data_offsets; one is missing");
      entries_.push_back(std::move(entry_));
      require(entries_.size() <= kMostTensors, ErrorKind::kInput, name_, ": more than the ",
              kMostTensors, " tensors that are read");
      at_ = At::kTop;
    } else if (at_ == At::kMetadata) {
      at_ = At::kTop;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (at_ == At::kShapeStart) {
      at_ = At::kShape;
    } else if (at_ == At::kOffsetsStart) {
      at_ = At::kOffsets;
    } else {
      wrong("a list");
    }
    return true;
  }

  bool end_array() override {
    if (at_ == At::kOffsets && offsets_ != 2) {
      refuse("expected two data_offsets, found ", offsets_);
    }
    at_ = At::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    fail(ErrorKind::kInput, name_, ": the header is not valid JSON at its byte ", position);
  }

 private:
  enum class At {
    kStart,
    kTop,
    kTopValue,
    kMetadata,
    kMetadataValue,
    kTensor,
    kDType,
    kShapeStart,
    kShape,
    kOffsetsStart,
    kOffsets
  };

  void top_key(std::string& key) {
    require(key.size() <= kLongestName, ErrorKind::kInput, name_, ": a tensor name of ", key.size(),
            " bytes; at most ", kLongestName, " are read");
    if (!names_.insert(key).second) {
      fail(ErrorKind::kInput, name_, ": the tensor '", printable(std::string_view(key)),
           "' stands twice");
    }
    key_ = std::move(key);
    at_ = At::kTopValue;
  }

  void field_key(const std::string& key) {
    int bit = 0;
    if (key == "dtype") {
      bit = 1;
      at_ = At::kDType;
    } else if (key == "shape") {
      bit = 2;
      at_ = At::kShapeStart;
    } else if (key == "data_offsets") {
      bit = 4;
      at_ = At::kOffsetsStart;
    } else {
      refuse("unknown field '", printable(std::string_view(key)), "'");
    }
    if ((seen_ & bit) != 0) refuse("the field ", key, " stands twice");
    seen_ |= bit;
  }

  /// Messages are built on failure only: a header may have a million tensors.
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(ErrorKind::kInput, place_of(name_, key_), ": ", parts...);
  }

  [[noreturn]] void wrong(std::string_view found) const {
    switch (at_) {
      case At::kStart:
        fail(ErrorKind::kInput, name_, ": expected a JSON object as header, found ", found);
      case At::kMetadataValue:
        fail(ErrorKind::kInput, name_, ": expected a string for the __metadata__ key '",
             printable(std::string_view(key_)), "', found ", found);
      case At::kTopValue:
        refuse("expected an object, found ", found);
      case At::kDType:
        refuse("expected a string for dtype, found ", found);
      default:
        refuse("expected lists of whole numbers for shape and data_offsets, found ", found);
    }
  }

  std::string_view name_;
  std::vector<SafetensorsEntry>& entries_;
  std::map<std::string, std::string>& metadata_;
  At at_ = At::kStart;
  std::string key_;  ///< tensor, or key of the metadata
  std::unordered_set<std::string> names_;
  SafetensorsEntry entry_;
  int seen_ = 0;  ///< fields of the tensor: 1 dtype, 2 shape, 4 data_offsets
  int offsets_ = 0;
};

/// Bytes of the shape in the type; the message of an overflow needs the file and the name.
int64_t size_in_bytes(const SafetensorsEntry& entry, std::string_view file) {
  const int64_t width = bytes_of(entry, file);
  int64_t bytes = width;
  try {
    bytes = checked_mul(checked_product(entry.shape, "shape"), width, "shape");
  } catch (const Error& error) {
    fail(error.kind(), place_of(file, entry.name), ": ", error.message());
  }
  return bytes;
}

void check_size(const SafetensorsEntry& entry, std::string_view file) {
  const int64_t bytes = size_in_bytes(entry, file);
  if (entry.end < entry.begin) {
    fail(ErrorKind::kInput, place_of(file, entry.name), ": its data ends at ", entry.end,
         " before it begins at ", entry.begin);
  }
  if (entry.end - entry.begin != bytes) {
    fail(ErrorKind::kInput, place_of(file, entry.name), ": ", entry.dtype, " ",
         to_string(entry.shape), " takes ", bytes, " bytes, its data_offsets span ",
         entry.end - entry.begin);
  }
}

/// The tensors cover the data without holes and overlaps.
void check_cover(const std::vector<SafetensorsEntry>& entries, int64_t data_bytes,
                 std::string_view file) {
  int64_t reached = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != reached) {
      fail(ErrorKind::kInput, place_of(file, entry.name), ": begins at byte ", entry.begin,
           " of the data where ", reached, " was expected: a hole or an overlap");
    }
    reached = entry.end;
  }
  require(reached == data_bytes, ErrorKind::kInput, file, ": the tensors take ", reached,
          " bytes of data, the file has ", data_bytes,
          reached > data_bytes ? "; it is cut short" : "; bytes that belong to no tensor");
}

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors_header(
    std::string_view header, int64_t data_bytes, std::string_view name,
    std::map<std::string, std::string>& metadata) {
  // the parser behind takes a zero byte for the end of the text and skips a byte order mark
  require(header.find('\0') == std::string_view::npos && !header.starts_with("\xef\xbb\xbf"),
          ErrorKind::kInput, name, ": the header is not valid JSON at its byte ",
          header.starts_with("\xef") ? 0 : header.find('\0'));
  std::vector<SafetensorsEntry> entries;
  metadata.clear();
  HeaderReader reader(name, entries, metadata);
  require(Json::sax_parse(header, &reader), ErrorKind::kInput, name,
          ": the header is not valid JSON");
  for (const SafetensorsEntry& entry : entries) check_size(entry, name);
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_cover(entries, data_bytes, name);
  return entries;
}

}  // namespace gmamba
