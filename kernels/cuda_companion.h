// SPDX-License-Identifier: Apache-2.0
/// What CUDA bodies keep with a context from call to call; each makes its own at first use.
#pragma once

#include <memory>

#include "libmamba/core/context.h"

namespace gmamba::cuda {

struct Companion {
  std::shared_ptr<void> products;    // cublaslt_cuda.cpp
  std::shared_ptr<void> recordings;  // replay_cuda.cpp
};

inline Companion& companion_of(Context& ctx) {
  std::shared_ptr<void>& slot = ctx.companion();
  if (slot == nullptr) slot = std::make_shared<Companion>();
  return *static_cast<Companion*>(slot.get());
}

}  // namespace gmamba::cuda
