// SPDX-License-Identifier: Apache-2.0
#include "libmamba/memory_plan.h"

#include <algorithm>

#include "kernels/selective_scan.h"
#include "libmamba/core/checked.h"
#include "libmamba/core/parallel.h"
#include "libmamba/core/text.h"
#include "libmamba/parameters.h"
#include "libmamba/state.h"

namespace gmamba {
namespace {

constexpr int64_t kFloat = 4;

/// Bytes of a block's rows; `act` is the size of an activation.
struct Widths {
  int64_t act, d, e, x_dbl, scan_states;
  Widths(const ModelConfig& c, const Arithmetic& arithmetic)
      : act(size_of(arithmetic.activations)),
        d(c.d_model),
        e(c.d_inner()),
        x_dbl(c.dt_rank + 2 * c.d_state),
        scan_states(c.d_inner() * c.d_state) {}
};

int64_t rows_bytes(int64_t rows, int64_t bytes_per_row, const char* what) {
  return checked_mul(rows, bytes_per_row, what);
}

/// Rows of Model::run's scratch beyond what it saves: residual (fp32), branch, u, hidden; xz;
/// x_dbl; conv, delta, y.
int64_t forward_scratch(const ModelConfig& config, int64_t rows, const Arithmetic& arithmetic) {
  const Widths w(config, arithmetic);
  return rows_bytes(rows, kFloat * w.d + w.act * (3 * w.d + 2 * w.e + w.x_dbl + 3 * w.e),
                    "activations");
}

/// Kept per layer: u, rstd (fp32), x_dbl, scan states (fp32); on a CPU xz, on a GPU conv, which
/// takes longer to compute again for its bytes.
int64_t saved_bytes(const ModelConfig& config, int64_t batch, int64_t segment,
                    const Arithmetic& arithmetic) {
  const Widths w(config, arithmetic);
  const int64_t rows = checked_mul(batch, segment, "activations");
  const int64_t own = arithmetic.device.is_cpu() ? 2 * w.e : w.e;
  const int64_t streams = rows_bytes(rows, kFloat + w.act * (w.d + own + w.x_dbl), "activations");
  const int64_t states = rows_bytes(batch * scan_saved_states(segment, arithmetic.device),
                                    kFloat * w.scan_states, "activations");
  return checked_mul(config.n_layers, streams + states, "activations") +
         rows_bytes(rows, kFloat, "activations");
}

/// Scratch of Model::backward: dresidual (fp32), hidden, dhidden; dxz; dx_dbl; ddelta, y, dy (later
/// du), dconv; what is computed again: on a CPU conv and delta, on a GPU delta and xz unless all
/// layers keep theirs; with narrow activations a copy of dresidual.
int64_t backward_scratch(const ModelConfig& config, int64_t rows, const Arithmetic& arithmetic,
                         int64_t extras) {
  const Widths w(config, arithmetic);
  const int64_t copies = arithmetic.activations == DType::kF32 ? 2 : 3;
  int64_t again = 2 * w.e;
  if (!arithmetic.device.is_cpu()) {
    again = (extras < config.n_layers ? w.e : 0) + (extras < 2 * config.n_layers ? 2 * w.e : 0);
  }
  return rows_bytes(rows,
                    kFloat * w.d + w.act * (copies * w.d + 2 * w.e + w.x_dbl + 4 * w.e + again),
                    "activations");
}

/// The larger of the passes' scratch; logits and their gradient are gone before the backward pass.
int64_t in_flight(const ModelConfig& config, int64_t rows, const Arithmetic& arithmetic,
                  int64_t extras) {
  return std::max(forward_scratch(config, rows, arithmetic),
                  backward_scratch(config, rows, arithmetic, extras));
}

/// What extras hold: delta of the first layers, then xz of the first.
int64_t held_by_extras(const ModelConfig& config, int64_t rows, const Arithmetic& arithmetic,
                       int64_t extras) {
  const Widths w(config, arithmetic);
  const int64_t deltas = std::min(extras, config.n_layers);
  return rows_bytes(rows, w.act * w.e * (deltas + 2 * (extras - deltas)), "activations");
}

/// Decay rates of all layers.
int64_t rates_bytes(const ModelConfig& config) {
  return checked_product({config.n_layers, config.d_inner(), config.d_state, kFloat}, "rates");
}
/// The states, or their gradients, that a pass leaves.
int64_t states_left(const ModelConfig& config, int64_t batch) {
  const int64_t all = SequenceState::bytes(config, batch);
  return SequenceState::small(config, batch) ? all : all / config.n_layers;
}

/// What kernels take from the arena: on a GPU the scan's partial sums of dB and dC over groups of
/// 64 channels (fp32), partial sums of parameters' gradients, rounded matrices; and what passes
/// take beside rows.
int64_t kernel_scratch(const ModelConfig& config, int64_t batch, int64_t rows,
                       const Arithmetic& arithmetic) {
  const int64_t states = states_left(config, batch);
  const int64_t rates = 2 * rates_bytes(config);  // and their gradients
  if (arithmetic.device.is_cpu()) {
    return checked_add(
        states + rates,
        scan_backward_scratch_cpu(batch, rows / batch, config.d_inner(), config.d_state),
        "activations");
  }
  // the library's workspace, and partial sums of which there are as many as fill the machine
  constexpr int64_t kPartials = int64_t{96} << 20;
  constexpr int64_t kOfScan = int64_t{16} << 20;  // states at its chunks' borders
  const int64_t groups = (config.d_inner() + 63) / 64;
  const int64_t columns = 2 * std::max<int64_t>(16, config.d_state);
  const int64_t matrices =
      arithmetic.activations == DType::kF32
          ? 0
          : ParameterLayout(config).buffer_size() * size_of(arithmetic.activations);
  // one or the other at a time
  const int64_t sums =
      std::max(rows_bytes(rows, groups * columns * kFloat, "activations") + kOfScan, kPartials);
  return checked_add(sums, checked_add(matrices + rates, 2 * states, "activations"), "activations");
}

}  // namespace

int64_t MemoryPlan::total_bytes() const {
  int64_t total = 0;
  for (const Item& item : items) total = checked_add(total, item.bytes, "memory plan");
  return total;
}

std::string MemoryPlan::text() const {
  std::string out;
  for (const Item& item : items) {
    std::string bytes = format_bytes(item.bytes);
    bytes.insert(0, bytes.size() < 12 ? 12 - bytes.size() : 0, ' ');
    out += concat(bytes, "  ", item.what, "\n");
  }
  std::string total = format_bytes(total_bytes());
  total.insert(0, total.size() < 12 ? 12 - total.size() : 0, ' ');
  return concat(out, total, "  in all\n");
}

MemoryPlan plan_forward(const ModelConfig& config, int64_t batch, int64_t segment,
                        const Arithmetic& arithmetic) {
  const int64_t rows = checked_mul(batch, segment, "activations");
  MemoryPlan plan;
  plan.items.push_back({"parameters", ParameterLayout(config).buffer_size() * kFloat});
  plan.items.push_back({"sequence state", SequenceState::bytes(config, batch)});
  plan.items.push_back({"activations", forward_scratch(config, rows, arithmetic)});
  plan.items.push_back({"rates and states left", rates_bytes(config) + states_left(config, batch)});
  plan.items.push_back({"logits", rows_bytes(rows, kFloat * config.vocab_size, "logits")});
  return plan;
}

int64_t training_scratch(const ModelConfig& config, int64_t batch, int64_t segment,
                         const Arithmetic& arithmetic) {
  const int64_t rows = checked_mul(batch, segment, "activations");
  return checked_add(saved_bytes(config, batch, segment, arithmetic),
                     checked_add(in_flight(config, rows, arithmetic, 0),
                                 kernel_scratch(config, batch, rows, arithmetic), "activations"),
                     "activations");
}

int64_t extras_bytes(const ModelConfig& config, int64_t batch, int64_t segment,
                     const Arithmetic& arithmetic, int64_t extras) {
  if (arithmetic.device.is_cpu()) return 0;
  const int64_t rows = checked_mul(batch, segment, "activations");
  return held_by_extras(config, rows, arithmetic, extras) +
         in_flight(config, rows, arithmetic, extras) - in_flight(config, rows, arithmetic, 0);
}

int64_t extras_in(int64_t room, const ModelConfig& config, int64_t batch, int64_t segment,
                  const Arithmetic& arithmetic) {
  if (arithmetic.device.is_cpu()) return 0;
  int64_t extras = 2 * config.n_layers;
  while (extras > 0 && extras_bytes(config, batch, segment, arithmetic, extras) > room) --extras;
  return extras;
}

FirstSweep first_sweep(const ModelConfig& config, int64_t batch, int64_t context, int64_t segment,
                       const Arithmetic& arithmetic) {
  constexpr int64_t kTokens = int64_t{1} << 19;  // beyond, tokens get hardly cheaper
  FirstSweep sweep{.length = std::min(context, segment)};
  if (arithmetic.device.is_cpu() || context <= segment || batch == 0) return sweep;
  const int64_t later = training_scratch(config, batch, segment, arithmetic);
  // marks begin every segment, where the last inputs of the convolution lie in it
  if (segment % kScanSavedEveryGpu == 0 && segment >= config.d_conv - 1) {
    const int64_t rows = checked_mul(batch, segment, "activations");
    const int64_t hidden = rows * config.d_model * size_of(arithmetic.activations);  // not wanted
    const int64_t one = forward_scratch(config, rows, arithmetic) - hidden;
    const int64_t wanted =
        std::min(kTokens / (batch * segment), (later - (int64_t{96} << 20)) / one);
    sweep.length = segment * std::clamp<int64_t>(wanted, 1, pieces(context, segment) - 1);
  }
  const int64_t every = scan_mark_spacing(batch, segment, config.d_inner());
  if (every > 0) {
    // the last segment is read once
    const int64_t marks = (pieces(context, segment) - 1) * (segment / every);
    const int64_t bytes = checked_product(
        {config.n_layers, batch, marks, config.d_inner(), config.d_state, kFloat}, "scan states");
    if (bytes <= later / 6) sweep.mark_every = every, sweep.mark_bytes = bytes;
  }
  return sweep;
}

namespace {

/// What a step holds whatever it is trained on.
void add_trained(MemoryPlan& plan, const ModelConfig& config) {
  const int64_t parameters = ParameterLayout(config).buffer_size() * kFloat;
  plan.items.push_back({"parameters", parameters});
  plan.items.push_back({"gradients", parameters});
  plan.items.push_back({"optimiser moments", 2 * parameters});
}

/// Activations of a step whose gradient goes through the blocks.
void add_activations(MemoryPlan& plan, const ModelConfig& config, int64_t batch, int64_t context,
                     int64_t segment, const Arithmetic& arithmetic, int64_t extras) {
  const int64_t computed = std::min(context, segment);
  const int64_t rows = checked_mul(batch, computed, "activations");
  const int64_t borders = context > segment ? (context + computed - 1) / computed : 0;
  plan.items.push_back({"states at segment borders",
                        checked_mul(borders + 3, SequenceState::bytes(config, batch), "states")});
  const FirstSweep sweep = first_sweep(config, batch, context, segment, arithmetic);
  if (sweep.mark_bytes > 0) {
    plan.items.push_back({"states of the scan within segments", sweep.mark_bytes});
  }
  plan.items.push_back({"activations kept", saved_bytes(config, batch, computed, arithmetic)});
  if (extras > 0) {
    const int64_t deltas = std::min(extras, config.n_layers);
    plan.items.push_back({concat("more kept: delta of ", deltas, ", projections of ",
                                 extras - deltas, " of ", config.n_layers, " layers"),
                          held_by_extras(config, rows, arithmetic, extras)});
  }
  plan.items.push_back({"activations in flight", in_flight(config, rows, arithmetic, extras)});
  plan.items.push_back({"kernels' own", kernel_scratch(config, batch, rows, arithmetic)});
}

}  // namespace

MemoryPlan plan_training(const ModelConfig& config, int64_t batch, int64_t context, int64_t segment,
                         const Arithmetic& arithmetic, int64_t extras) {
  const int64_t here = arithmetic.device.is_cpu() ? context : std::min(context, segment);
  MemoryPlan plan;
  add_trained(plan, config);
  add_activations(plan, config, batch, context, segment, arithmetic, extras);
  plan.items.push_back({"tokens, targets, weights",
                        checked_mul(checked_mul(batch, here, "tokens"), kTokenBytes, "tokens")});
  return plan;
}

MemoryPlan plan_sequence_training(const ModelConfig& config, int64_t batch, int64_t length,
                                  int64_t segment, const Arithmetic& arithmetic, int64_t extras,
                                  bool backbone) {
  MemoryPlan plan;
  add_trained(plan, config);
  if (backbone) {
    add_activations(plan, config, batch, length, segment, arithmetic, extras);
  } else {
    const int64_t rows = checked_mul(batch, std::min(length, segment), "activations");
    plan.items.push_back({"sequence state", SequenceState::bytes(config, batch)});
    plan.items.push_back({"activations", forward_scratch(config, rows, arithmetic)});
    plan.items.push_back(
        {"rates and states left", rates_bytes(config) + states_left(config, batch)});
    if (!arithmetic.device.is_cpu()) {
      plan.items.push_back({"kernels' own", kernel_scratch(config, batch, rows, arithmetic)});
    }
  }
  plan.items.push_back({"pooling", pooling_bytes(config, batch)});
  plan.items.push_back({"tokens", sequence_input_bytes(batch, length, segment, arithmetic.device)});
  return plan;
}

int64_t pooling_bytes(const ModelConfig& config, int64_t batch) {
  return batch * config.d_model *
         (size_of(DType::kF64) + size_of(DType::kI64) + size_of(DType::kF32));
}

int64_t sequence_input_bytes(int64_t batch, int64_t length, int64_t segment, Device device) {
  constexpr int64_t kOfRow = 2 * 8 + 4;  // its length in all and in the segment, its class
  const int64_t here = device.is_cpu() ? length : std::min(length, segment);
  return checked_mul(batch, here + kOfRow, "tokens");
}

int64_t scratch_within(int64_t most, const ModelConfig& config, int64_t input_bytes) {
  return most - 4 * kFloat * ParameterLayout(config).buffer_size() - input_bytes;
}

int64_t scratch_within(int64_t most, const ModelConfig& config, int64_t batch, int64_t segment) {
  return scratch_within(most, config, kTokenBytes * batch * segment);
}

int64_t step_memory(int64_t max_memory, int64_t bytes) {
  constexpr int64_t kLeftFree = int64_t{2} << 30;
  return max_memory > 0 ? std::min(max_memory, bytes) : std::max<int64_t>(0, bytes - kLeftFree);
}

int64_t step_memory(int64_t max_memory, Device device) {
  if (device.is_cpu()) return 0;
  return step_memory(max_memory, backend_for(device.kind).free_bytes(device.index));
}

int64_t extras_within(int64_t most, const ModelConfig& config, int64_t batch, int64_t context,
                      int64_t segment, const Arithmetic& arithmetic) {
  if (arithmetic.device.is_cpu()) return 0;
  const int64_t least = plan_training(config, batch, context, segment, arithmetic).total_bytes();
  return extras_in(most - least, config, batch, std::min(context, segment), arithmetic);
}

}  // namespace gmamba
