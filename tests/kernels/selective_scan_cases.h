// SPDX-License-Identifier: Apache-2.0
/// Shapes and data of the selective scan's tests, and a runner that takes plain arrays through the
/// kernels in as many segments as asked. One table feeds parity, gradients and invariances.
#pragma once

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/selective_scan.h"
#include "libmamba/core/random.h"
#include "tests/kernels/row_arrays.h"
#include "tests/reference/selective_scan.h"

namespace gmamba::test {

using Inputs = reference::ScanInputs<float>;
using OracleInputs = reference::ScanInputs<double>;

struct ScanCase {
  int64_t batch = 1, length = 1, d_inner = 1, d_state = 1;
  bool D = true, z = true, bias = true, state = true;
  bool strided = false;
  bool extreme = false;  // deltas up to +-100, rates down to -1e4

  std::string name() const {
    const auto flag = [](bool on, const char* text) { return std::string(on ? text : ""); };
    return "B" + std::to_string(batch) + "_L" + std::to_string(length) + "_E" +
           std::to_string(d_inner) + "_N" + std::to_string(d_state) + flag(D, "_D") +
           flag(z, "_z") + flag(bias, "_bias") + flag(state, "_state") + flag(strided, "_strided") +
           flag(extreme, "_extreme");
  }
};
inline void PrintTo(const ScanCase& scan, std::ostream* out) { *out << scan.name(); }

inline std::vector<ScanCase> scan_cases() {
  std::vector<ScanCase> cases;
  for (int64_t length = 0; length <= 130; ++length) cases.push_back({1, length, 5, 3});
  for (int64_t d_state = 1; d_state <= 64; ++d_state) cases.push_back({1, 67, 9, d_state});
  for (int64_t d_inner : {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100}) {
    cases.push_back({2, 65, d_inner, 16});
  }
  for (int64_t d_state : {8, 16, 32}) cases.push_back({3, 129, 48, d_state});
  for (int arguments = 0; arguments < 16; ++arguments) {
    cases.push_back({2, 70, 12, 4, (arguments & 1) != 0, (arguments & 2) != 0, (arguments & 4) != 0,
                     (arguments & 8) != 0});
  }
  cases.push_back({3, 100, 20, 16, true, true, true, true, true});
  cases.push_back({2, 66, 33, 5, true, true, true, true, true});
  cases.push_back({2, 1, 16, 16, true, true, true, true, true});
  cases.push_back({0, 10, 8, 4});
  cases.push_back({2, 0, 8, 4});
  cases.push_back({2, 300, 24, 16, true, true, true, true, false, true});
  cases.push_back({1, 3000, 7, 4});   // chunked: one unit, many positions
  cases.push_back({2, 2177, 18, 8});  // chunked, the last chunk short
  return cases;
}

/// Data of a case: a pure function of it.
inline Inputs scan_inputs(const ScanCase& scan) {
  Random random(20240917, RandomUse::kTest,
                static_cast<uint64_t>(scan.length * 1000 + scan.d_inner * 64 + scan.d_state));
  const auto fill = [&](int64_t count, auto&& value) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = static_cast<float>(value());
    return out;
  };
  const auto normal = [&] { return random.normal(); };
  const int64_t rows = scan.batch * scan.length;
  Inputs in;
  in.batch = static_cast<size_t>(scan.batch);
  in.length = static_cast<size_t>(scan.length);
  in.d_inner = static_cast<size_t>(scan.d_inner);
  in.d_state = static_cast<size_t>(scan.d_state);
  in.u = fill(rows * scan.d_inner, normal);
  in.delta = fill(rows * scan.d_inner, [&] {
    return scan.extreme ? random.uniform(-100, 100) : random.normal() * 1.5 - 2.5;
  });
  in.A = fill(scan.d_inner * scan.d_state, [&] {
    return -std::exp(scan.extreme ? random.uniform(-7, 9.2) : random.uniform(-1.5, 2.8));
  });
  in.B = fill(rows * scan.d_state, normal);
  in.C = fill(rows * scan.d_state, normal);
  if (scan.D) in.D = fill(scan.d_inner, normal);
  if (scan.z) {
    in.z = fill(rows * scan.d_inner, [&] { return (scan.extreme ? 40 : 2) * random.normal(); });
  }
  if (scan.bias) in.bias = fill(scan.d_inner, normal);
  const int64_t states = scan.batch * scan.d_inner * scan.d_state;
  if (scan.state) in.state_in = fill(states, normal);
  in.dy = fill(rows * scan.d_inner, normal);
  if (scan.state) in.dstate_out = fill(states, normal);
  return in;
}

inline OracleInputs as_oracle(const Inputs& in) {
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {in.batch,       in.length,     in.d_inner,        in.d_state,  wide(in.u),
          wide(in.delta), wide(in.A),    wide(in.B),        wide(in.C),  wide(in.D),
          wide(in.z),     wide(in.bias), wide(in.state_in), wide(in.dy), wide(in.dstate_out)};
}

/// Everything that the kernels return for a problem.
struct ScanRun {
  std::vector<float> y, state_out, y_again;
  std::vector<float> saved;  // (B, scan_saved_states(L), E, N), of a run in one segment
  reference::ScanGradients<float> d;
};

/// A forward pass that writes marks, and one between the marks of the first.
struct MarkedRuns {
  ScanRun writing, between;  // y, state_out; of the second also saved
  std::vector<float> marks;  // (B, count, E, N)
};

/// The states that an oracle has before positions 0, every, 2 every ...
inline std::vector<double> states_at_marks(const OracleInputs& in,
                                           const reference::ScanOutputs<double>& oracle,
                                           int64_t every) {
  std::vector<double> states;
  const size_t width = in.d_inner * in.d_state;
  for (size_t b = 0; b < in.batch; ++b) {
    for (size_t l = 0; l < in.length; l += static_cast<size_t>(every)) {
      const auto* const state = oracle.states.data() + (b * (in.length + 1) + l) * width;
      states.insert(states.end(), state, state + width);
    }
  }
  return states;
}

/// Takes a problem through the kernels. Arrays over positions have `gap` elements between rows.
class ScanRunner {
 public:
  ScanRunner(Context& ctx, const Inputs& in, int64_t gap)
      : ctx_(ctx),
        in_(in),
        batch_(static_cast<int64_t>(in.batch)),
        length_(static_cast<int64_t>(in.length)),
        d_inner_(static_cast<int64_t>(in.d_inner)),
        d_state_(static_cast<int64_t>(in.d_state)),
        gap_(gap),
        gated_(!in.z.empty()) {}

  GradMode mode = GradMode::kAccumulate;
  int repeats = 1;  // of each backward call

  /// Forward and backward, cut at `borders` (ascending, within the length); the state goes from
  /// segment to segment and its gradient back.
  ScanRun run(std::vector<int64_t> borders = {}) {
    borders.insert(borders.begin(), 0);
    borders.push_back(length_);
    prepare();
    const auto segments = static_cast<int64_t>(borders.size()) - 1;
    std::vector<Tensor> states;  // incoming state of each segment, and the last
    std::vector<Tensor> saved;
    states.push_back(owned({batch_, d_inner_, d_state_}, in_.state_in));
    for (int64_t i = 0; i < segments; ++i) {
      const int64_t begin = borders[static_cast<size_t>(i)];
      const int64_t end = borders[static_cast<size_t>(i) + 1];
      saved.push_back(
          ctx_.make(DType::kF32, {batch_, scan_saved_states(end - begin), d_inner_, d_state_}));
      states.push_back(ctx_.make(DType::kF32, {batch_, d_inner_, d_state_}));
      forward(begin, end, states[static_cast<size_t>(i)], states.back(), saved.back());
    }
    Tensor dstate = owned({batch_, d_inner_, d_state_}, in_.dstate_out);
    for (int64_t i = segments; i-- > 0;) {
      Tensor before = ctx_.make(DType::kF32, {batch_, d_inner_, d_state_});
      backward(borders[static_cast<size_t>(i)], borders[static_cast<size_t>(i) + 1],
               saved[static_cast<size_t>(i)], dstate, before);
      dstate = std::move(before);
    }
    ScanRun out = results();
    out.state_out = flat(states.back());
    out.d.state_in = flat(dstate);
    if (segments == 1) out.saved = flat(saved[0]);
    return out;
  }

  /// Forward with marks every `every` positions, which lie in the midst of a larger array; those of
  /// a second call that finds the states alone, where asked.
  MarkedRuns run_marked(int64_t every, bool states_alone = false) {
    MarkedRuns out;
    const int64_t count = (length_ + every - 1) / every;
    Tensor room = ctx_.make(DType::kF32, {batch_, count + 2, d_inner_, d_state_});
    const TensorView marks = room.view().slice(1, 1, 1 + count);
    const Tensor state_in = owned({batch_, d_inner_, d_state_}, in_.state_in);
    Tensor state_out = ctx_.make(DType::kF32, {batch_, d_inner_, d_state_});
    Tensor saved = ctx_.make(DType::kF32, {batch_, scan_saved_states(length_), d_inner_, d_state_});
    prepare();
    SelectiveScanForward args = forward_args(0, length_);
    args.state_in = state_in;
    args.state_out = state_out;
    args.marks = marks;
    args.mark_every = every;
    selective_scan_forward(ctx_, args);
    out.writing = results();
    out.writing.state_out = flat(state_out);
    if (states_alone) {
      args.y = {};
      ctx_.fill_zero(room);
      ctx_.fill_zero(state_out);
      selective_scan_forward(ctx_, args);
      out.writing.state_out = flat(state_out);
    }
    for (int64_t b = 0; b < batch_; ++b) {
      const auto row = marks.slice(0, b, b + 1).flat<const float>();
      out.marks.insert(out.marks.end(), row.begin(), row.end());
    }
    prepare();
    args = forward_args(0, length_);
    args.state_out = state_out;
    args.known = marks;
    args.mark_every = every;
    args.saved_states = saved;
    selective_scan_forward(ctx_, args);
    out.between = results();
    out.between.state_out = flat(state_out);
    out.between.saved = flat(saved);
    return out;
  }

 private:
  RowArray given(int64_t width, const std::vector<float>& values) {
    return RowArray(batch_, length_, width, gap_, values);
  }
  RowArray wanted(int64_t width) { return RowArray(batch_, length_, width, gap_); }

  void prepare() {
    u_ = given(d_inner_, in_.u);
    delta_ = given(d_inner_, in_.delta);
    B_ = given(d_state_, in_.B);
    C_ = given(d_state_, in_.C);
    dy_ = given(d_inner_, in_.dy);
    if (gated_) z_ = given(d_inner_, in_.z);
    if (gated_) dz_ = wanted(d_inner_);
    y_ = wanted(d_inner_);
    y_again_ = wanted(d_inner_);
    du_ = wanted(d_inner_);
    ddelta_ = wanted(d_inner_);
    dB_ = wanted(d_state_);
    dC_ = wanted(d_state_);
    A_ = owned({d_inner_, d_state_}, in_.A);
    D_ = owned({d_inner_}, in_.D);
    bias_ = owned({d_inner_}, in_.bias);
    dA_ = ctx_.make(DType::kF32, {d_inner_, d_state_});
    if (!in_.D.empty()) dD_ = ctx_.make(DType::kF32, {d_inner_});
    if (!in_.bias.empty()) dbias_ = ctx_.make(DType::kF32, {d_inner_});
  }

  void forward(int64_t begin, int64_t end, const Tensor& state_in, Tensor& state_out,
               Tensor& saved) {
    SelectiveScanForward args = forward_args(begin, end);
    args.state_in = state_in;
    args.state_out = state_out;
    args.saved_states = saved;
    selective_scan_forward(ctx_, args);
  }

  SelectiveScanForward forward_args(int64_t begin, int64_t end) {
    SelectiveScanForward args;
    args.u = u_.part(begin, end);
    args.delta = delta_.part(begin, end);
    args.A = A_;
    args.B = B_.part(begin, end);
    args.C = C_.part(begin, end);
    args.D = D_;
    args.z = z_.part(begin, end);
    args.delta_bias = bias_;
    args.y = y_.part(begin, end);
    return args;
  }

  void backward(int64_t begin, int64_t end, const Tensor& saved, const Tensor& dstate_out,
                Tensor& dstate_in) {
    SelectiveScanBackward args;
    args.dy = dy_.part(begin, end);
    args.dstate_out = dstate_out;
    args.u = u_.part(begin, end);
    args.delta = delta_.part(begin, end);
    args.A = A_;
    args.B = B_.part(begin, end);
    args.C = C_.part(begin, end);
    args.D = D_;
    args.z = z_.part(begin, end);
    args.delta_bias = bias_;
    args.saved_states = saved;
    args.du = du_.part(begin, end);
    args.ddelta = ddelta_.part(begin, end);
    args.dB = dB_.part(begin, end);
    args.dC = dC_.part(begin, end);
    args.dz = dz_.part(begin, end);
    args.y = y_again_.part(begin, end);
    args.dstate_in = dstate_in;
    args.dA = dA_;
    args.dD = dD_;
    args.ddelta_bias = dbias_;
    args.mode = mode;
    for (int i = 0; i < repeats; ++i) selective_scan_backward(ctx_, args);
  }

  ScanRun results() {
    ScanRun out;
    out.y = y_.values();
    out.y_again = y_again_.values();
    out.d.u = du_.values();
    out.d.delta = ddelta_.values();
    out.d.A = flat(dA_);
    out.d.B = dB_.values();
    out.d.C = dC_.values();
    out.d.D = flat(dD_);
    out.d.z = dz_.values();
    out.d.bias = flat(dbias_);
    return out;
  }

  Context& ctx_;
  const Inputs& in_;
  int64_t batch_, length_, d_inner_, d_state_, gap_;
  bool gated_;
  RowArray u_, delta_, B_, C_, z_, dy_, y_, y_again_, du_, ddelta_, dz_, dB_, dC_;
  Tensor A_, D_, bias_, dA_, dD_, dbias_;
};

}  // namespace gmamba::test
