// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/error.h"

namespace gmamba {

std::string_view to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return "usage";
    case ErrorKind::kInput:
      return "input";
    case ErrorKind::kIo:
      return "io";
    case ErrorKind::kShape:
      return "shape";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kDevice:
      return "device";
    case ErrorKind::kInternal:
      return "internal";
  }
  return "internal";
}

Error::Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

Error& Error::add_frame(std::string frame) {
  frames_.push_back(std::move(frame));
  return *this;
}

}  // namespace gmamba
