// SPDX-License-Identifier: Apache-2.0
/// One exception type for the whole project: what kind of failure, what was expected and found,
/// and the frames ("while reading chr1 of x.fa") added on the way up. Libraries throw it; only
/// apps/ catches it and turns its kind into an exit code.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gmamba {

enum class ErrorKind {
  kUsage,        ///< the caller's options make no sense together
  kInput,        ///< the data is bad: malformed, truncated, inconsistent
  kIo,           ///< the operating system refused: missing file, full disk, permission
  kShape,        ///< tensors do not fit each other
  kUnsupported,  ///< valid, but not done by this build or version
  kDevice,       ///< the accelerator failed or is absent
  kInternal,     ///< a promise of our own is broken
};

/// The word used in messages: "usage", "input", ...
std::string_view to_string(ErrorKind kind);

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message);

  ErrorKind kind() const noexcept { return kind_; }
  /// One line: what was expected, what was found, and the remedy if there is one.
  const std::string& message() const noexcept { return message_; }
  /// Context, innermost first: "while reading record 3 of x.fa".
  const std::vector<std::string>& frames() const noexcept { return frames_; }
  /// Adds a frame and returns itself, for `throw error.add_frame(...)`.
  Error& add_frame(std::string frame);
  /// The message only.
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorKind kind_;
  std::string message_;
  std::vector<std::string> frames_;
};

/// Joins the parts with operator<<; used for messages, so that text is built only on failure.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws an Error of `kind` whose message is the parts joined.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  throw Error(kind, concat(parts...));
}

/// Throws unless `condition` holds. The parts are joined only on failure.
template <class... Parts>
void require(bool condition, ErrorKind kind, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    fail(kind, parts...);
  }
}

/// Runs `body`; an Error that leaves it gets the frame that `describe()` returns.
template <class Body, class Describe>
auto with_frame(Body&& body, Describe&& describe) -> decltype(body()) {
  try {
    return body();
  } catch (Error& error) {
    error.add_frame(describe());
    throw;
  }
}

}  // namespace gmamba
