// SPDX-License-Identifier: Apache-2.0
#include "pipelines/inference_plan.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "libmamba/core/text.h"
#include "pipelines/memory_limit.h"

namespace gmamba {
namespace {

constexpr int64_t kInputBytes = int64_t{8} << 20;  // parts read ahead, decompression

MemoryPlan memory_for(const ModelConfig& config, const Arithmetic& arithmetic, int64_t segment,
                      const std::vector<MemoryPlan::Item>& extra) {
  MemoryPlan plan = plan_forward(config, 1, segment, arithmetic);
  const MemoryPlan::Item states{"states of a batch of records", kBatchStateBytes};
  const MemoryPlan::Item input{"input read ahead", kInputBytes};
  plan.items.insert(plan.items.end(), {states, input});
  plan.items.insert(plan.items.end(), extra.begin(), extra.end());
  return plan;
}

/// Seconds for one segment; the second of two, so that memory is there.
double seconds_of_segment(Context& ctx, const Model& model, int64_t segment) {
  const Arena::Scope scope(ctx.arena());
  std::vector<uint8_t> tokens(static_cast<size_t>(segment));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<uint8_t>(model.vocabulary().bases[(i * 2654435761U >> 7) % 4]);
  }
  const TensorView on_device = ctx.arena().tensor(DType::kU8, {1, segment});
  const TensorView hidden = ctx.arena().f32({1, segment, model.config().d_model});
  ctx.upload(host_view(std::as_const(tokens).data(), {1, segment}), on_device);
  SequenceState state(model.config(), 1, ctx.device());
  double seconds = 0;
  for (int round = 0; round < 2; ++round) {
    const auto start = std::chrono::steady_clock::now();
    model.forward(ctx, on_device, state, hidden);
    ctx.synchronize();
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return seconds;
}

}  // namespace

InferencePlan plan_inference(const ModelConfig& config, const CommonOptions& options,
                             const std::vector<MemoryPlan::Item>& extra) {
  const Arithmetic arithmetic = arithmetic_of(options);
  InferencePlan plan;
  plan.segment = options.segment > 0 ? options.segment : default_segment(arithmetic.device);
  plan.memory = memory_for(config, arithmetic, plan.segment, extra);
  const MemoryLimit limit = memory_limit(options);
  if (limit.allows(plan.memory)) return plan;
  const auto [segment, bytes] = largest_that_fits(
      plan.segment / 2, kSmallestSegment, limit,
      [&](int64_t value) { return memory_for(config, arithmetic, value, extra); });
  if (segment == 0) refuse_plan(plan.memory, limit, {});
  if (options.segment > 0) {
    refuse_plan(plan.memory, limit, {{concat("--segment ", segment), bytes}});
  }
  plan.segment = segment;
  plan.memory = memory_for(config, arithmetic, segment, extra);
  return plan;
}

std::string plan_report(Context& ctx, const Model& model, const InferencePlan& plan) {
  const double seconds = seconds_of_segment(ctx, model, plan.segment);
  const double rate = static_cast<double>(plan.segment) / std::max(seconds, 1e-9);
  return concat(plan.memory.text(), "segment of ", format_count(plan.segment),
                " tokens: ", format_duration(seconds), " on ",
                ctx.backend().device_name(ctx.device().index), " with ", ctx.threads(),
                ctx.threads() == 1 ? " thread" : " threads", ", measured now\n", format_short(rate),
                " bases/s; a million bases in ", format_duration(1e6 / rate), "\n");
}

}  // namespace gmamba
