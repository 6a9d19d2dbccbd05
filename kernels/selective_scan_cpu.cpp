// SPDX-License-Identifier: Apache-2.0
/// How the CPU bodies of the selective scan are cut into units of work.
#include "kernels/selective_scan_cpu.h"

#include <span>
#include <utility>
#include <vector>

#include "kernels/view_slices.h"
#include "libmamba/core/parallel.h"

namespace gmamba::cpu {
namespace {

/// Calls body(stretch, b, block, begin, width) for all units of `stretches` stretches.
template <class Body>
void for_units(const Context& ctx, const ScanPlan& plan, int64_t stretches, int64_t batch,
               int64_t d_inner, Body&& body) {
  const int64_t units = batch * plan.blocks;
  parallel_for(ctx, stretches * units, [&](int64_t i) {
    const int64_t block = i % plan.blocks;
    const int64_t begin = block * plan.block;
    body(i / units, i % units / plan.blocks, block, begin, std::min(plan.block, d_inner - begin));
  });
}

void run_forward(const Context& ctx, const ScanPlan& plan, std::span<const ScanForwardJob> jobs) {
  const auto& shape = jobs[0].u.extent;
  for_units(ctx, plan, static_cast<int64_t>(jobs.size()), shape[0], shape[2],
            [&](int64_t stretch, int64_t b, int64_t, int64_t begin, int64_t width) {
              scan_forward_unit(jobs[static_cast<size_t>(stretch)], b, begin, width);
            });
}

/// Sum of delta and end state of stretches, each from a zero state.
struct Summaries {
  Summaries(Context& ctx, int64_t batch, int64_t count, int64_t d_inner, int64_t d_state)
      : delta_sum(ctx.arena().f32({batch, count, d_inner}).as<float, 3>()),
        state(ctx.arena().f32({batch, count, d_inner, d_state}).as<float, 4>()) {}
  View<float, 3> delta_sum;  // (B, count, E)
  View<float, 4> state;      // (B, count, E, N)
};

void combine(const Context& ctx, const View<const float, 2>& A,
             const View<const float, 2>& delta_sum, const View<const float, 3>& local,
             const View<const float, 3>& before, const View<float, 3>& after) {
  const int64_t blocks = pieces(after.extent[1], kScanBlock);
  parallel_for(ctx, after.extent[0] * blocks, [&](int64_t i) {
    const int64_t b = i / blocks;
    const int64_t begin = i % blocks * kScanBlock;
    const int64_t end = std::min(after.extent[1], begin + kScanBlock);
    for (int64_t e = begin; e < end; ++e) {
      scan_combine_channel(A.at(e), *delta_sum.at(b, e), local.at(b, e), before.at(b, e),
                           after.at(b, e), A.extent[1]);
    }
  });
}

/// Joins the summaries of all stretches into one, in the order begin, begin + step, ...
void join(const Context& ctx, const View<const float, 2>& A, const Summaries& summaries,
          int64_t begin, int64_t step, const View<float, 2>& delta_sum,
          const View<float, 3>& state) {
  const int64_t count = summaries.state.extent[1];
  for (int64_t b = 0; b < state.extent[0]; ++b) {
    for (int64_t e = 0; e < state.extent[1]; ++e) {
      *delta_sum.at(b, e) = 0;
      std::fill_n(state.at(b, e), state.extent[2], 0.0F);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = begin + i * step;
    const auto sum = as_const(at_axis<1>(summaries.delta_sum, c));
    combine(ctx, A, sum, as_const(at_axis<1>(summaries.state, c)), as_const(state), state);
    for (int64_t b = 0; b < sum.extent[0]; ++b) {
      for (int64_t e = 0; e < sum.extent[1]; ++e) *delta_sum.at(b, e) += *sum.at(b, e);
    }
  }
}

ScanForwardJob forward_job(const SelectiveScanForward& args) {
  ScanForwardJob job;
  job.u = args.u.as<const float, 3>();
  job.delta = args.delta.as<const float, 3>();
  job.A = args.A.as<const float, 2>();
  job.B = args.B.as<const float, 3>();
  job.C = args.C.as<const float, 3>();
  job.D = args.D.as<const float, 1>();
  job.z = args.z.as<const float, 3>();
  job.bias = args.delta_bias.as<const float, 1>();
  job.state_in = args.state_in.as<const float, 3>();
  job.y = args.y.as<float, 3>();
  job.state_out = args.state_out.as<float, 3>();
  job.saved = args.saved_states.as<float, 4>();
  return job;
}

/// Positions [begin, end) of a job; begin is at the border of a tile.
ScanForwardJob slice(ScanForwardJob job, int64_t begin, int64_t end) {
  const auto cut = [&](auto& view) { view = slice_axis<1>(view, begin, end); };
  cut(job.u), cut(job.delta), cut(job.B), cut(job.C), cut(job.z), cut(job.y);
  job.saved = slice_axis<1>(job.saved, begin / kScanTile, pieces(end, kScanTile));
  return job;
}

ScanForwardJob chunk(const ScanForwardJob& whole, const ScanPlan& plan, int64_t c) {
  const int64_t begin = c * plan.chunk_length;
  return slice(whole, begin, std::min(whole.u.extent[1], begin + plan.chunk_length));
}

ScanBackwardJob backward_job(const SelectiveScanBackward& args) {
  ScanBackwardJob job;
  job.dy = args.dy.as<const float, 3>();
  job.u = args.u.as<const float, 3>();
  job.delta = args.delta.as<const float, 3>();
  job.A = args.A.as<const float, 2>();
  job.B = args.B.as<const float, 3>();
  job.C = args.C.as<const float, 3>();
  job.D = args.D.as<const float, 1>();
  job.z = args.z.as<const float, 3>();
  job.bias = args.delta_bias.as<const float, 1>();
  job.saved = args.saved_states.as<const float, 4>();
  job.dstate_out = args.dstate_out.as<const float, 3>();
  job.dstate_in = args.dstate_in.as<float, 3>();
  job.du = args.du.as<float, 3>();
  job.ddelta = args.ddelta.as<float, 3>();
  job.dz = args.dz.as<float, 3>();
  job.y = args.y.as<float, 3>();
  return job;
}

/// Batch rows [begin, end) of the arrays of a job that come from outside.
ScanBackwardJob rows(ScanBackwardJob job, int64_t begin, int64_t end) {
  const auto cut = [&](auto& view) { view = slice_axis<0>(view, begin, end); };
  cut(job.dy), cut(job.u), cut(job.delta), cut(job.B), cut(job.C), cut(job.z), cut(job.saved);
  cut(job.dstate_out), cut(job.dstate_in);
  cut(job.du), cut(job.ddelta), cut(job.dz), cut(job.y);
  return job;
}

/// Positions [begin, end) of a job; begin is at the border of a tile.
ScanBackwardJob slice(ScanBackwardJob job, int64_t begin, int64_t end) {
  const auto cut = [&](auto& view) { view = slice_axis<1>(view, begin, end); };
  cut(job.dy), cut(job.u), cut(job.delta), cut(job.B), cut(job.C), cut(job.z);
  cut(job.du), cut(job.ddelta), cut(job.dz), cut(job.y), cut(job.dB), cut(job.dC);
  job.saved = slice_axis<1>(job.saved, begin / kScanTile, pieces(end, kScanTile));
  return job;
}

/// Summarises the first chunks of a job.
void summarise_chunks(const Context& ctx, const ScanPlan& plan, const ScanForwardJob& whole,
                      const Summaries& summaries) {
  std::vector<ScanForwardJob> jobs;
  for (int64_t c = 0; c < summaries.state.extent[1]; ++c) {
    ScanForwardJob job = chunk(whole, plan, c);
    job.state_in = {};
    job.y = {};
    job.saved = {};
    job.state_out = at_axis<1>(summaries.state, c);
    job.delta_sum = at_axis<1>(summaries.delta_sum, c);
    jobs.push_back(job);
  }
  run_forward(ctx, plan, jobs);
}

/// How the backward pass walks: groups of batch rows one after the other, each in stretches from
/// the last to the first, so that the partial sums of dB and dC stay small.
struct BackwardPlan {
  BackwardPlan(int64_t batch, int64_t length, int64_t d_inner, int64_t d_state) {
    constexpr int64_t kMostUnits = 256;
    constexpr int64_t kPartialFloats = int64_t{1} << 21;
    group = std::clamp<int64_t>(kMostUnits / std::max<int64_t>(1, pieces(d_inner, kScanBlock)), 1,
                                std::max<int64_t>(1, batch));
    const int64_t blocks = plan_scan(group, 1, d_inner).blocks;
    const int64_t floats_per_tile = 2 * group * std::max<int64_t>(1, blocks) * d_state * kScanTile;
    const int64_t tiles = std::max<int64_t>(1, kPartialFloats / floats_per_tile);
    stretch = std::min(tiles, std::max<int64_t>(1, pieces(length, kScanTile))) * kScanTile;
    units = plan_scan(group, stretch, d_inner);
  }
  int64_t group;    // batch rows
  int64_t stretch;  // positions, a multiple of kScanTile
  ScanPlan units;   // of a stretch of a group
};

/// Partial sums of a group of batch rows. Those of parameters add up over groups and stretches and
/// have one slot for every chunk and row, so that each has one writer at a time.
struct Partials {
  Partials(Context& ctx, const BackwardPlan& plan, int64_t d_inner, int64_t d_state) {
    Arena& arena = ctx.arena();
    const Shape tokens = {plan.group, plan.stretch, plan.units.blocks, d_state};
    const int64_t chunks = plan.units.chunks;
    dB = arena.f32(tokens).as<float, 4>();
    dC = arena.f32(tokens).as<float, 4>();
    dA = arena.zeros(DType::kF64, {plan.group, chunks, d_inner, d_state}).as<double, 4>();
    dD = arena.zeros(DType::kF64, {plan.group, chunks, d_inner}).as<double, 3>();
    dbias = arena.zeros(DType::kF64, {plan.group, chunks, d_inner}).as<double, 3>();
    for (auto& dstate : dstates) {
      dstate = arena.f32({plan.group, d_inner, d_state}).as<float, 3>();
    }
  }
  View<float, 4> dB, dC;      // (group, stretch, blocks, N)
  View<double, 4> dA;         // (group, chunks, E, N)
  View<double, 3> dD, dbias;  // (group, chunks, E)
  View<float, 3> dstates[2];  // (group, E, N) at borders of stretches, by turns
};

/// to[b, l, n] = sum over blocks of partial[b, l, block, n].
void add_blocks(const Context& ctx, const View<float, 4>& partial, const View<float, 3>& to) {
  const int64_t tiles = pieces(to.extent[1], kScanTile);
  parallel_for(ctx, to.extent[0] * tiles, [&](int64_t i) {
    const int64_t b = i / tiles;
    const int64_t begin = i % tiles * kScanTile;
    const int64_t end = std::min(to.extent[1], begin + kScanTile);
    for (int64_t t = begin; t < end; ++t) {
      float sums[kScanMaxState] = {};
      for (int64_t block = 0; block < partial.extent[2]; ++block) {
        const float* const row = partial.at(b, t, block);
        for (int64_t n = 0; n < to.extent[2]; ++n) sums[n] += row[n];
      }
      std::copy_n(sums, to.extent[2], to.at(b, t));
    }
  });
}

/// to (+)= sum over rows and chunks of partial.
void add_slots(const View<double, 3>& partial, const View<float, 1>& to, GradMode mode) {
  if (to.empty()) return;
  for (int64_t e = 0; e < to.extent[0]; ++e) {
    double sum = mode == GradMode::kAccumulate ? static_cast<double>(*to.at(e)) : 0.0;
    for (int64_t b = 0; b < partial.extent[0]; ++b) {
      for (int64_t c = 0; c < partial.extent[1]; ++c) sum += *partial.at(b, c, e);
    }
    *to.at(e) = static_cast<float>(sum);
  }
}

/// The jobs of a stretch, one per chunk, with their slots of the partial sums.
std::vector<ScanBackwardJob> chunk_jobs(const ScanBackwardJob& stretch, const ScanPlan& plan,
                                        const Partials& partials) {
  std::vector<ScanBackwardJob> jobs;
  const int64_t length = stretch.u.extent[1];
  for (int64_t begin = 0; begin < length; begin += plan.chunk_length) {
    const auto c = static_cast<int64_t>(jobs.size());
    ScanBackwardJob job = slice(stretch, begin, std::min(length, begin + plan.chunk_length));
    job.dA = at_axis<1>(partials.dA, c);
    job.dD = at_axis<1>(partials.dD, c);
    job.dbias = at_axis<1>(partials.dbias, c);
    jobs.push_back(job);
  }
  return jobs;
}

void summarise_backward(const Context& ctx, const ScanPlan& plan,
                        std::span<const ScanBackwardJob> jobs) {
  if (jobs.empty()) return;
  const auto& shape = jobs[0].dy.extent;
  for_units(ctx, plan, static_cast<int64_t>(jobs.size()), shape[0], shape[2],
            [&](int64_t c, int64_t b, int64_t, int64_t begin, int64_t width) {
              scan_backward_summary_unit(jobs[static_cast<size_t>(c)], b, begin, width);
            });
}

/// Gives each chunk of a stretch the gradient of its outgoing state: summaries of all chunks but
/// the first, combined from the last on.
void link_chunks(const Context& ctx, const ScanPlan& plan, const Summaries& summaries,
                 std::vector<ScanBackwardJob>& jobs) {
  std::vector<ScanBackwardJob> later(jobs.begin() + 1, jobs.end());
  for (size_t i = 0; i < later.size(); ++i) {
    later[i].dstate_out = {};
    later[i].dstate_in = at_axis<1>(summaries.state, static_cast<int64_t>(i) + 1);
    later[i].delta_sum = at_axis<1>(summaries.delta_sum, static_cast<int64_t>(i) + 1);
  }
  summarise_backward(ctx, plan, later);
  for (size_t c = jobs.size() - 1; c > 0; --c) {
    const View<float, 3> before = later[c - 1].dstate_in;
    if (!jobs[c].dstate_out.empty()) {
      combine(ctx, jobs[c].A, as_const(later[c - 1].delta_sum), as_const(before),
              jobs[c].dstate_out, before);
    }
    jobs[c].dstate_in = {};
    jobs[c - 1].dstate_out = as_const(before);
  }
}

/// One group of batch rows.
void backward_group(Context& ctx, const BackwardPlan& plan, const ScanBackwardJob& group,
                    const SelectiveScanBackward& args, int64_t b0, const Partials& partials) {
  const Arena::Scope scope(ctx.arena());
  const auto& shape = group.u.extent;
  const Summaries summaries(ctx, shape[0], plan.units.chunks, shape[2], group.A.extent[1]);
  View<const float, 3> dstate = group.dstate_out;
  for (int64_t i = pieces(shape[1], plan.stretch); i-- > 0;) {
    const int64_t begin = i * plan.stretch;
    const int64_t end = std::min(shape[1], begin + plan.stretch);
    ScanBackwardJob stretch = slice(group, begin, end);
    stretch.dB = slice_axis<1>(slice_axis<0>(partials.dB, 0, shape[0]), 0, end - begin);
    stretch.dC = slice_axis<1>(slice_axis<0>(partials.dC, 0, shape[0]), 0, end - begin);
    stretch.dstate_out = dstate;
    if (i > 0) stretch.dstate_in = slice_axis<0>(partials.dstates[i % 2], 0, shape[0]);
    dstate = as_const(stretch.dstate_in);
    std::vector<ScanBackwardJob> jobs = chunk_jobs(stretch, plan.units, partials);
    if (jobs.size() > 1) link_chunks(ctx, plan.units, summaries, jobs);
    for_units(ctx, plan.units, static_cast<int64_t>(jobs.size()), shape[0], shape[2],
              [&](int64_t c, int64_t b, int64_t block, int64_t e, int64_t width) {
                scan_backward_unit(jobs[static_cast<size_t>(c)], b, block, e, width);
              });
    const auto part = [&](const TensorView& view) {
      return slice_axis<1>(slice_axis<0>(view.as<float, 3>(), b0, b0 + shape[0]), begin, end);
    };
    add_blocks(ctx, stretch.dB, part(args.dB));
    add_blocks(ctx, stretch.dC, part(args.dC));
  }
}

/// Without positions the state, and its gradient, pass through.
void pass_dstate(const ScanBackwardJob& job) {
  if (job.dstate_in.empty()) return;
  for (int64_t b = 0; b < job.dstate_in.extent[0]; ++b) {
    for (int64_t e = 0; e < job.dstate_in.extent[1]; ++e) {
      const int64_t d_state = job.dstate_in.extent[2];
      if (job.dstate_out.empty()) {
        std::fill_n(job.dstate_in.at(b, e), d_state, 0.0F);
      } else {
        std::copy_n(job.dstate_out.at(b, e), d_state, job.dstate_in.at(b, e));
      }
    }
  }
}

}  // namespace

ScanPlan plan_scan(int64_t batch, int64_t length, int64_t d_inner) {
  // A chunked scan computes its exponentials twice: only where units would leave cores idle.
  constexpr int64_t kEnoughUnits = 16;
  constexpr int64_t kFewUnits = 8;
  constexpr int64_t kShortestChunk = 1024;
  ScanPlan plan;
  if (batch * pieces(d_inner, plan.block) < kEnoughUnits) plan.block = kScanBlock / 2;
  plan.blocks = pieces(d_inner, plan.block);
  plan.chunk_length = length;
  const int64_t units = batch * plan.blocks;
  if (units == 0 || units >= kFewUnits || length < 2 * kShortestChunk) return plan;
  const int64_t chunks = std::min(pieces(kEnoughUnits, units), length / kShortestChunk);
  plan.chunk_length = pieces(pieces(length, chunks), kScanTile) * kScanTile;
  plan.chunks = pieces(length, plan.chunk_length);
  return plan;
}

namespace {

void forward_whole(Context& ctx, const ScanForwardJob& whole) {
  const auto& shape = whole.u.extent;
  const ScanPlan plan = plan_scan(shape[0], shape[1], shape[2]);
  if (plan.chunks == 1) {
    run_forward(ctx, plan, {&whole, 1});
    return;
  }
  const Arena::Scope scope(ctx.arena());
  const Summaries ends(ctx, shape[0], plan.chunks - 1, shape[2], whole.A.extent[1]);
  summarise_chunks(ctx, plan, whole, ends);
  std::vector<ScanForwardJob> jobs;
  View<const float, 3> start = whole.state_in;
  for (int64_t c = 0; c < plan.chunks; ++c) {
    ScanForwardJob job = chunk(whole, plan, c);
    job.state_in = start;
    if (c + 1 < plan.chunks) {
      job.state_out = {};
      const View<float, 3> end = at_axis<1>(ends.state, c);
      if (!start.empty()) {
        combine(ctx, whole.A, as_const(at_axis<1>(ends.delta_sum, c)), as_const(end), start, end);
      }
      start = as_const(end);
    }
    jobs.push_back(job);
  }
  run_forward(ctx, plan, jobs);
}

/// `from` (B, E, N), or zeros where it is empty.
void set_states(const Context& ctx, const View<const float, 3>& from, const View<float, 3>& to) {
  const auto& [batch, channels, states] = to.extent;
  parallel_for(ctx, batch * channels, [&, channels = channels, states = states](int64_t i) {
    float* const row = to.at(i / channels, i % channels);
    if (from.empty()) {
      std::fill_n(row, states, 0.0F);
    } else {
      std::copy_n(from.at(i / channels, i % channels), states, row);
    }
  });
}

/// From mark to mark, each stretch from the state that is known or else from where the one before
/// it ended.
void forward_by_marks(Context& ctx, const SelectiveScanForward& args) {
  const ScanForwardJob whole = forward_job(args);
  const auto known = args.known.as<const float, 4>();
  const auto marks = args.marks.as<float, 4>();
  const int64_t length = whole.u.extent[1];
  const int64_t last = pieces(length, args.mark_every) - 1;
  View<const float, 3> start = whole.state_in;
  for (int64_t i = 0; i <= last; ++i) {
    const int64_t begin = i * args.mark_every;
    ScanForwardJob job = slice(whole, begin, std::min(length, begin + args.mark_every));
    job.state_in = known.empty() ? start : at_axis<1>(known, i);
    if (i < last) job.state_out = {};
    if (!marks.empty()) {
      if (i == 0 || !known.empty()) set_states(ctx, job.state_in, at_axis<1>(marks, i));
      if (i < last && known.empty()) {
        job.state_out = at_axis<1>(marks, i + 1);
        start = as_const(job.state_out);
      }
    }
    forward_whole(ctx, job);
  }
}

}  // namespace

void selective_scan_forward(Context& ctx, const SelectiveScanForward& args) {
  if (args.marks.empty() && args.known.empty()) {
    forward_whole(ctx, forward_job(args));
  } else {
    forward_by_marks(ctx, args);
  }
}

void selective_scan_summarise(Context& ctx, const SelectiveScanForward& piece, TensorView delta_sum,
                              TensorView state) {
  ScanForwardJob whole = forward_job(piece);
  const auto& shape = whole.u.extent;
  const ScanPlan plan = plan_scan(shape[0], shape[1], shape[2]);
  const Arena::Scope scope(ctx.arena());
  const Summaries summaries(ctx, shape[0], plan.chunks, shape[2], whole.A.extent[1]);
  summarise_chunks(ctx, plan, whole, summaries);
  join(ctx, whole.A, summaries, 0, 1, delta_sum.as<float, 2>(), state.as<float, 3>());
}

void selective_scan_backward(Context& ctx, const SelectiveScanBackward& args) {
  const ScanBackwardJob whole = backward_job(args);
  const auto& shape = whole.u.extent;
  const int64_t d_state = whole.A.extent[1];
  if (shape[1] == 0) pass_dstate(whole);
  const BackwardPlan plan(shape[0], shape[1], shape[2], d_state);
  const Arena::Scope scope(ctx.arena());
  const Partials partials(ctx, plan, shape[2], d_state);
  for (int64_t b0 = 0; b0 < shape[0]; b0 += plan.group) {
    const int64_t b1 = std::min(shape[0], b0 + plan.group);
    backward_group(ctx, plan, rows(whole, b0, b1), args, b0, partials);
  }
  const auto dA = args.dA.as<float, 2>();
  for (int64_t e = 0; e < shape[2]; ++e) {
    add_slots(at_axis<2>(partials.dA, e), at_axis<0>(dA, e), args.mode);
  }
  add_slots(partials.dD, args.dD.as<float, 1>(), args.mode);
  add_slots(partials.dbias, args.ddelta_bias.as<float, 1>(), args.mode);
}

void selective_scan_summarise_backward(Context& ctx, const SelectiveScanBackward& piece,
                                       TensorView delta_sum, TensorView dstate) {
  const ScanBackwardJob whole = backward_job(piece);
  const auto& shape = whole.dy.extent;
  const ScanPlan plan = plan_scan(shape[0], shape[1], shape[2]);
  const Arena::Scope scope(ctx.arena());
  const Summaries summaries(ctx, shape[0], plan.chunks, shape[2], whole.A.extent[1]);
  std::vector<ScanBackwardJob> jobs;
  for (int64_t c = 0; c < plan.chunks; ++c) {
    const int64_t begin = c * plan.chunk_length;
    ScanBackwardJob job = slice(whole, begin, std::min(shape[1], begin + plan.chunk_length));
    job.dstate_out = {};
    job.dstate_in = at_axis<1>(summaries.state, c);
    job.delta_sum = at_axis<1>(summaries.delta_sum, c);
    jobs.push_back(job);
  }
  summarise_backward(ctx, plan, jobs);
  join(ctx, whole.A, summaries, plan.chunks - 1, -1, delta_sum.as<float, 2>(),
       dstate.as<float, 3>());
}

void selective_scan_combine(Context& ctx, ConstTensorView A, ConstTensorView delta_sum,
                            ConstTensorView local, ConstTensorView before, TensorView after) {
  combine(ctx, A.as<const float, 2>(), delta_sum.as<const float, 2>(), local.as<const float, 3>(),
          before.as<const float, 3>(), after.as<float, 3>());
}

}  // namespace gmamba::cpu

namespace gmamba {

int64_t scan_backward_scratch_cpu(int64_t batch, int64_t length, int64_t d_inner, int64_t d_state) {
  const cpu::BackwardPlan plan(batch, length, d_inner, d_state);
  const int64_t tokens = plan.group * plan.stretch * plan.units.blocks * d_state;
  const int64_t channels = plan.group * d_inner;
  return 2 * tokens * size_of(DType::kF32) +
         plan.units.chunks * channels * (d_state + 2) * size_of(DType::kF64) +
         2 * channels * d_state * size_of(DType::kF32);
}

}  // namespace gmamba
