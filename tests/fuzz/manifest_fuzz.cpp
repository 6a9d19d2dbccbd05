// SPDX-License-Identifier: Apache-2.0
/// manifest.json of a checkpoint: accepted or refused, never anything else.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "libmamba/core/error.h"
#include "libmamba/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    gmamba::check_manifest_text(text, -1, "input");
  } catch (const gmamba::Error& error) {
    const bool expected = error.kind() == gmamba::ErrorKind::kInput ||
                          error.kind() == gmamba::ErrorKind::kUnsupported;
    if (!expected || !error.message().starts_with("input")) std::abort();
  }
  return 0;
}
