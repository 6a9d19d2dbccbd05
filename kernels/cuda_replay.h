// SPDX-License-Identifier: Apache-2.0
/// The CUDA body of replay.h.
#pragma once

#include "kernels/replay.h"

namespace gmamba::cuda {

void replay(Context& ctx, PassKey key, const std::function<void()>& pass);
void allow_replay(Context& ctx, bool allowed);
ReplayCounts replay_counts(Context& ctx);

}  // namespace gmamba::cuda
