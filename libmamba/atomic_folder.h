// SPDX-License-Identifier: Apache-2.0
/// A folder that appears whole or not at all: written under a temporary name beside its place, then
/// renamed. A folder already there is exchanged in one step, so that at no instant it is missing.
#pragma once

#include <filesystem>

namespace gmamba {

class AtomicFolder {
 public:
  /// Creates the temporary folder PATH.tmp.PID; the parent must exist.
  explicit AtomicFolder(const std::filesystem::path& path);
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  /// Without commit the temporary folder is removed.
  ~AtomicFolder();

  /// Where to write; the files in it must be flushed to disk by whoever writes them.
  const std::filesystem::path& temporary() const { return temporary_; }
  const std::filesystem::path& path() const { return path_; }
  /// Flushes the folder, puts it in its place, flushes the parent, removes what stood there and
  /// what killed processes left of earlier tries.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  bool done_ = false;
};

/// The absolute path with symbolic links resolved and no separator at its end; throws kUsage for
/// an empty path and the root.
std::filesystem::path resolve_folder(const std::filesystem::path& path);

/// Removes a folder so that no reader ever sees a part of it under its name.
void remove_folder_atomically(const std::filesystem::path& path);

/// True for names that AtomicFolder and AtomicFile use while writing.
bool is_temporary(const std::filesystem::path& path);

}  // namespace gmamba
