// SPDX-License-Identifier: Apache-2.0
#include "libmamba/manifest.h"

#include <string>
#include <system_error>
#include <vector>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/json_fields.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kDigest = "manifest_sha256";
constexpr int64_t kFormat = 1;
constexpr int64_t kLongest = int64_t{16} << 20;

std::string shown(const fs::path& path) { return printable(std::string_view(path.native())); }

/// The one text of a manifest: its digest covers all that stands before it.
std::string text_of(Json manifest) {
  manifest.erase(kDigest);
  manifest[kDigest] = sha256_bytes(manifest.dump());
  return manifest.dump(1) + "\n";
}

int64_t bytes_of(const fs::path& file) {
  std::error_code code;
  const auto bytes = fs::file_size(file, code);
  require(!code, ErrorKind::kIo, shown(file), ": cannot examine: ", code.message());
  return static_cast<int64_t>(bytes);
}

bool plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

struct ListedFile {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;
};

/// Everything that can be said of a manifest without looking at the files.
std::vector<ListedFile> parse_manifest(std::string_view text, int64_t step, std::string_view name) {
  const std::string file(name);
  const Json json = parse_json(text, file, {.depth = 4});
  const JsonFields fields(json, file);
  require(text_of(json) == text, ErrorKind::kInput, file,
          ": its text is not what was written: damaged or edited");
  require(fields.required("format") == kFormat, ErrorKind::kUnsupported, file,
          ": a checkpoint of another version of gmamba");
  require(step < 0 || fields.required("step") == step, ErrorKind::kInput, file, ": it is of step ",
          fields.required("step"), ", the folder of step ", step);
  const Json* list = fields.find("files");
  require(list != nullptr && list->is_object() && !list->empty(), ErrorKind::kInput, file,
          ": lists no files");
  std::vector<ListedFile> out;
  for (const auto& [listed, about] : list->items()) {
    const JsonFields entry(about, file + ": files");
    require(plain_name(listed), ErrorKind::kInput, file, ": '", printable(std::string_view(listed)),
            "' is not a plain file name");
    out.push_back({listed, entry.required("bytes"), ""});
    entry.read("sha256", out.back().sha256);
  }
  return out;
}

std::vector<ListedFile> read_manifest(const fs::path& folder, int64_t step) {
  const fs::path path = folder / kManifest;
  std::error_code code;
  require(fs::is_regular_file(path, code), ErrorKind::kInput, shown(path), ": is missing");
  return parse_manifest(read_file(path, kLongest), step, shown(path));
}

void verify_file(const fs::path& folder, const ListedFile& listed) {
  const fs::path file = folder / listed.name;
  std::error_code code;
  require(fs::is_regular_file(file, code), ErrorKind::kInput, shown(file), ": is missing");
  const int64_t bytes = bytes_of(file);
  require(bytes == listed.bytes, ErrorKind::kInput, shown(file), ": expected ", listed.bytes,
          " bytes, found ", bytes);
  require(sha256_file(file) == listed.sha256, ErrorKind::kInput, shown(file),
          ": its content is not what was written (SHA-256 differs from manifest.json)");
}

}  // namespace

void write_manifest(const fs::path& folder, int64_t step) {
  Json manifest = Json::object();
  manifest["format"] = kFormat;
  manifest["step"] = step;
  for (const fs::path& file : list_folder(folder)) {
    if (file.filename() == kManifest) continue;
    Json& entry = manifest["files"][file.filename().string()];
    entry["bytes"] = bytes_of(file);
    entry["sha256"] = sha256_file(file);
  }
  write_file(folder / kManifest, text_of(std::move(manifest)));
}

void check_manifest_text(std::string_view text, int64_t step, std::string_view name) {
  parse_manifest(text, step, name);
}

void verify_manifest(const fs::path& folder, int64_t step) {
  for (const ListedFile& listed : read_manifest(folder, step)) verify_file(folder, listed);
}

void verify_manifest(const fs::path& folder, int64_t step, std::string_view file) {
  for (const ListedFile& listed : read_manifest(folder, step)) {
    if (listed.name == file) return verify_file(folder, listed);
  }
  fail(ErrorKind::kInput, shown(folder / kManifest), ": does not list ", printable(file));
}

}  // namespace gmamba
