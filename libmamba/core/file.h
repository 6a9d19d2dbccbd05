// SPDX-License-Identifier: Apache-2.0
/// Files that appear whole or not at all, digests, and reading with the place named on failure.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gmamba {

/// The whole file; throws kIo (missing, unreadable) or kInput (longer than `limit_bytes`).
std::string read_file(const std::filesystem::path& path, int64_t limit_bytes);

/// Lower-case hex SHA-256.
std::string sha256_file(const std::filesystem::path& path);
std::string sha256_bytes(std::string_view bytes);

/// Writes through a temporary name in the same folder; `commit` flushes to disk (fsync), renames
/// and syncs the folder. Without commit the temporary file is removed. Every write is checked.
/// A link is followed; a device or pipe is written in place, as it can't be replaced.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(std::string_view bytes);
  void write(std::span<const std::byte> bytes);
  /// Overwrites bytes already written, for headers that hold a count (checked to lie inside).
  void overwrite(int64_t offset, std::string_view bytes);
  int64_t written() const { return written_; }
  void commit();
  const std::filesystem::path& path() const { return path_; }

 private:
  void flush();

  std::filesystem::path path_;
  std::filesystem::path target_;  // path_ with links followed
  std::filesystem::path temporary_;
  bool in_place_ = false;
  int descriptor_ = -1;
  std::string buffer_;
  int64_t written_ = 0;
};

/// AtomicFile in one call.
void write_file(const std::filesystem::path& path, std::string_view bytes);

/// fsync of a file or folder by path.
void sync_path(const std::filesystem::path& path);

/// True when something of this name is there; throws kIo when that cannot be told.
bool path_exists(const std::filesystem::path& path);

/// What a folder holds, sorted by name; throws kIo.
std::vector<std::filesystem::path> list_folder(const std::filesystem::path& path);

/// Creates a folder and those above it, each flushed to disk; present ones are left alone.
void create_folders(const std::filesystem::path& path);

/// Removes a folder tree, ignoring that it may be absent.
void remove_tree(const std::filesystem::path& path);

}  // namespace gmamba
