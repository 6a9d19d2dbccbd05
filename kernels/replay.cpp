// SPDX-License-Identifier: Apache-2.0
#include "kernels/replay.h"

#include <utility>

#include "kernels/cuda_replay.h"

namespace gmamba {

void add_to(PassKey& key, ConstTensorView view) {
  key.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(view.data)));
  key.push_back(static_cast<int64_t>(view.dtype) * (kMaxRank + 1) + view.rank);
  for (size_t i = 0; i < static_cast<size_t>(view.rank); ++i) {
    key.push_back(view.extent[i]);
    key.push_back(view.stride[i]);
  }
}

void replay(Context& ctx, PassKey key, const std::function<void()>& pass) {
  if (ctx.device().is_cpu()) return pass();
  cuda::replay(ctx, std::move(key), pass);
}

void allow_replay(Context& ctx, bool allowed) {
  if (!ctx.device().is_cpu()) cuda::allow_replay(ctx, allowed);
}

ReplayCounts replay_counts(Context& ctx) {
  return ctx.device().is_cpu() ? ReplayCounts{} : cuda::replay_counts(ctx);
}

}  // namespace gmamba
