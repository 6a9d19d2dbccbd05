// SPDX-License-Identifier: Apache-2.0
/// Files are read with pread and never mapped: a file cut by another process while it is open is
/// then an error message and not a signal.
#include "libmamba/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <set>
#include <unordered_map>
#include <utility>

#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/json.h"
#include "libmamba/core/text.h"

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPrefixBytes = 8;
constexpr int64_t kLongestHeader = 100'000'000;
constexpr size_t kPieceBytes = size_t{1} << 20;

float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// Exact: every half is a float.
float from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F;
  const uint32_t fraction = bits & 0x3FF;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | (wide << 23) | (fraction << 13));
}

template <class From, class Convert>
void convert(const char* bytes, std::span<float> to, Convert&& one) {
  for (size_t i = 0; i < to.size(); ++i) {
    From value;
    std::memcpy(&value, bytes + i * sizeof(From), sizeof(From));
    to[i] = one(value);
  }
}

size_t float_bytes(std::string_view dtype) {
  if (dtype == "F64") return 8;
  if (dtype == "F32") return 4;
  return dtype == "F16" || dtype == "BF16" ? 2 : 0;
}

void convert_to_f32(std::string_view dtype, const char* bytes, std::span<float> to) {
  if (dtype == "F64") {
    convert<double>(bytes, to, [](double value) { return static_cast<float>(value); });
  } else if (dtype == "F16") {
    convert<uint16_t>(bytes, to, from_f16);
  } else {
    convert<uint16_t>(bytes, to, from_bf16);
  }
}

}  // namespace

struct SafetensorsReader::Impl {
  explicit Impl(const fs::path& path) : shown(printable(std::string_view(path.native()))) {
    // a pipe would block here; it is refused as not a file below
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) fail_errno("open");
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (descriptor >= 0) ::close(descriptor);
  }

  [[noreturn]] void fail_errno(std::string_view action) const {
    const int code = errno;
    fail(ErrorKind::kIo, shown, ": cannot ", action, ": ", std::strerror(code));
  }

  struct stat status() const {
    struct stat now {};
    if (::fstat(descriptor, &now) != 0) fail_errno("examine");
    return now;
  }

  void read_at(int64_t offset, char* to, size_t size) const {
    size_t done = 0;
    while (done < size) {
      const ssize_t got =
          ::pread(descriptor, to + done, size - done, offset + static_cast<int64_t>(done));
      if (got < 0) {
        if (errno == EINTR) continue;
        fail_errno("read");
      }
      require(got > 0, ErrorKind::kInput, shown, ": ends at byte ",
              offset + static_cast<int64_t>(done), "; it was cut while being read");
      done += static_cast<size_t>(got);
    }
  }

  /// What was read belongs together only if nobody wrote meanwhile.
  void check_unchanged() const {
    const struct stat now = status();
    require(now.st_size == opened.st_size && now.st_mtim.tv_sec == opened.st_mtim.tv_sec &&
                now.st_mtim.tv_nsec == opened.st_mtim.tv_nsec,
            ErrorKind::kInput, shown, ": changed while being read");
  }

  std::string shown;
  int descriptor = -1;
  struct stat opened {};
  int64_t data_begin = 0;
  std::vector<SafetensorsEntry> entries;
  std::unordered_map<std::string_view, size_t> index;
  std::map<std::string, std::string> metadata;
};

SafetensorsReader::SafetensorsReader(const fs::path& path) : impl_(std::make_unique<Impl>(path)) {
  Impl& file = *impl_;
  file.opened = file.status();
  require(S_ISREG(file.opened.st_mode), ErrorKind::kInput, file.shown, ": not a regular file");
  const int64_t size = file.opened.st_size;
  require(size >= kPrefixBytes, ErrorKind::kInput, file.shown, ": ", size,
          " bytes are too few for a safetensors file");
  std::array<unsigned char, kPrefixBytes> prefix{};
  file.read_at(0, reinterpret_cast<char*>(prefix.data()), prefix.size());
  uint64_t length = 0;
  for (size_t i = prefix.size(); i-- > 0;) length = (length << 8) | prefix[i];
  require(length <= uint64_t{kLongestHeader}, ErrorKind::kInput, file.shown, ": a header of ",
          length, " bytes; at most ", kLongestHeader,
          " are read, so this is probably no safetensors file");
  file.data_begin = kPrefixBytes + static_cast<int64_t>(length);
  require(file.data_begin <= size, ErrorKind::kInput, file.shown, ": its header should take ",
          length, " bytes but the file has ", size, "; it is cut short");
  std::string header(static_cast<size_t>(length), '\0');
  file.read_at(kPrefixBytes, header.data(), header.size());
  file.entries =
      parse_safetensors_header(header, size - file.data_begin, file.shown, file.metadata);
  for (size_t i = 0; i < file.entries.size(); ++i) file.index.emplace(file.entries[i].name, i);
  file.check_unchanged();
}

SafetensorsReader::~SafetensorsReader() = default;

const std::vector<SafetensorsEntry>& SafetensorsReader::entries() const { return impl_->entries; }

const std::map<std::string, std::string>& SafetensorsReader::metadata() const {
  return impl_->metadata;
}

const SafetensorsEntry* SafetensorsReader::find(std::string_view name) const {
  const auto found = impl_->index.find(name);
  return found == impl_->index.end() ? nullptr : &impl_->entries[found->second];
}

void SafetensorsReader::read_bytes(const SafetensorsEntry& entry, std::span<std::byte> to) const {
  require(entry.end - entry.begin == static_cast<int64_t>(to.size()), ErrorKind::kInternal,
          impl_->shown, ": tensor '", printable(std::string_view(entry.name)), "' has ",
          entry.end - entry.begin, " bytes, room was made for ", to.size());
  impl_->read_at(impl_->data_begin + entry.begin, reinterpret_cast<char*>(to.data()), to.size());
  impl_->check_unchanged();
}

void SafetensorsReader::read_f32(const SafetensorsEntry& entry, std::span<float> to) const {
  const size_t width = float_bytes(entry.dtype);
  const std::string place =
      concat(impl_->shown, ": tensor '", printable(std::string_view(entry.name)), "'");
  require(width > 0, ErrorKind::kInput, place, ": expected F64, F32, F16 or BF16, found ",
          entry.dtype);
  const auto bytes = static_cast<size_t>(entry.end - entry.begin);
  require(bytes == to.size() * width, ErrorKind::kInternal, place, " has ", bytes / width,
          " elements, room was made for ", to.size());
  if (entry.dtype == "F32") return read_bytes(entry, std::as_writable_bytes(to));
  std::string piece(std::min(bytes, kPieceBytes), '\0');
  for (size_t done = 0; done < bytes; done += piece.size()) {
    piece.resize(std::min(piece.size(), bytes - done));
    impl_->read_at(impl_->data_begin + entry.begin + static_cast<int64_t>(done), piece.data(),
                   piece.size());
    convert_to_f32(entry.dtype, piece.data(), to.subspan(done / width, piece.size() / width));
  }
  impl_->check_unchanged();
}

namespace {

/// Name in the file, and place in the order that the reference writer gives.
std::pair<std::string_view, int> file_dtype(DType dtype) {
  switch (dtype) {
    case DType::kI64:
      return {"I64", 0};
    case DType::kF64:
      return {"F64", 1};
    case DType::kF32:
      return {"F32", 2};
    case DType::kI32:
      return {"I32", 3};
    case DType::kBF16:
      return {"BF16", 4};
    case DType::kF16:
      return {"F16", 5};
    case DType::kU8:
      return {"U8", 6};
  }
  fail(ErrorKind::kInternal, "safetensors: a type that has no name in the file");
}

int64_t bytes_of(const SafetensorsItem& item) {
  return item.values.size() * size_of(item.values.dtype);
}

void check_items(const std::vector<SafetensorsItem>& items) {
  std::set<std::string_view> names;
  for (const SafetensorsItem& item : items) {
    require(item.name != "__metadata__" && is_utf8(item.name), ErrorKind::kInternal,
            "safetensors: '", printable(std::string_view(item.name)), "' cannot name a tensor");
    require(names.insert(item.name).second, ErrorKind::kInternal, "safetensors: the tensor '",
            printable(std::string_view(item.name)), "' is given twice");
    require(item.values.device.is_cpu() && item.values.contiguous(), ErrorKind::kInternal,
            "safetensors: tensor '", printable(std::string_view(item.name)),
            "' is not contiguous on the CPU");
    require(item.shape.empty() || checked_product(item.shape, "shape") == item.values.size(),
            ErrorKind::kInternal, "safetensors: tensor '", printable(std::string_view(item.name)),
            "' has ", item.values.size(), " elements, not the shape ", to_string(item.shape));
  }
}

std::string quoted(const std::string& text) { return Json(text).dump(); }

/// Compact JSON, padded with spaces so that the data begins at a multiple of 8.
std::string header_of(const std::vector<SafetensorsItem>& items,
                      const std::map<std::string, std::string>& metadata) {
  std::string out = "{\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    require(is_utf8(key) && is_utf8(value), ErrorKind::kInternal,
            "safetensors: metadata that is not UTF-8 under '", printable(std::string_view(key)),
            "'");
    if (out.back() != '{') out += ',';
    out += quoted(key) + ':' + quoted(value);
  }
  out += '}';
  int64_t begin = 0;
  for (const SafetensorsItem& item : items) {
    const Shape shape = item.shape.empty() ? item.values.shape() : item.shape;
    out += concat(',', quoted(item.name), ":{\"dtype\":\"", file_dtype(item.values.dtype).first,
                  "\",\"shape\":", Json(shape).dump(), ",\"data_offsets\":[", begin, ',',
                  begin + bytes_of(item), "]}");
    begin = checked_add(begin, bytes_of(item), "safetensors");
  }
  out += '}';
  out.resize((out.size() + 7) / 8 * 8, ' ');
  return out;
}

}  // namespace

void write_safetensors(const fs::path& path, std::vector<SafetensorsItem> items,
                       std::map<std::string, std::string> metadata) {
  check_items(items);
  metadata["format"] = "pt";  // transformers refuses files that do not say so
  std::sort(items.begin(), items.end(), [](const auto& a, const auto& b) {
    return std::pair(file_dtype(a.values.dtype).second, std::string_view(a.name)) <
           std::pair(file_dtype(b.values.dtype).second, std::string_view(b.name));
  });
  const std::string header = header_of(items, metadata);
  require(header.size() <= size_t{kLongestHeader}, ErrorKind::kInternal,
          "safetensors: a header of ", header.size(), " bytes");
  std::string prefix(kPrefixBytes, '\0');
  const auto length = static_cast<uint64_t>(header.size());
  std::memcpy(prefix.data(), &length, sizeof(length));
  AtomicFile file(path);
  file.write(prefix);
  file.write(header);
  for (const SafetensorsItem& item : items) {
    const std::span<const std::byte> bytes(item.values.data, static_cast<size_t>(bytes_of(item)));
    for (size_t done = 0; done < bytes.size(); done += kPieceBytes) {
      file.write(bytes.subspan(done, std::min(kPieceBytes, bytes.size() - done)));
    }
  }
  file.commit();
}

}  // namespace gmamba
