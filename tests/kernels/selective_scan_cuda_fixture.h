// SPDX-License-Identifier: Apache-2.0
/// What the scan's tests on a GPU share: problems held against the fp64 oracle, arrays on the
/// device, comparisons of runs. The tests skip themselves where there is no GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/relative_error.h"
#include "tests/kernels/selective_scan_cuda_runner.h"

namespace gmamba::test {

using reference::ScanGradients;

inline constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

template <class Real>
struct Field {
  const char* name;
  std::vector<Real> ScanGradients<Real>::*field;
  bool activation;  // of the activation type
};
template <class Real>
std::vector<Field<Real>> gradient_fields() {
  using G = ScanGradients<Real>;
  return {{"du", &G::u, true}, {"ddelta", &G::delta, true}, {"dA", &G::A, false},
          {"dB", &G::B, true}, {"dC", &G::C, true},         {"dD", &G::D, false},
          {"dz", &G::z, true}, {"dbias", &G::bias, false},  {"dstate_in", &G::state_in, false}};
}

/// The sums of the columns of rows that were rounded to an activation type.
inline std::vector<float> column_sums(std::vector<float> rows, size_t width, DType dtype) {
  round_to(dtype, rows);
  std::vector<float> sums(width, 0.0F);
  for (size_t i = 0; i < rows.size(); ++i) sums[i % width] += rows[i];
  return sums;
}

/// Steps as delta_projection.h would make them of raw ones, which bf16 holds exactly.
inline Inputs with_ready_steps(Inputs in) {
  for (size_t i = 0; i < in.delta.size(); ++i) {
    const double bias = in.bias.empty() ? 0.0 : in.bias[i % in.d_inner];
    in.delta[i] = static_cast<float>(reference::softplus(in.delta[i] + bias));
  }
  round_to(DType::kBF16, in.delta);
  return in;
}
/// Raw steps that come to the ready ones of `in` without a bias: what the oracle reads.
template <class Real>
reference::ScanInputs<Real> before_softplus(reference::ScanInputs<Real> in) {
  for (Real& step : in.delta) step = step + std::log(-std::expm1(-step));
  std::fill(in.bias.begin(), in.bias.end(), Real{0});
  return in;
}

/// Rounds naive gradients of `in` where the kernels for bf16 do, before the result itself.
inline void allow_for_bf16_sums(const Inputs& in, bool ready, ScanGradients<float>& naive) {
  // sums over states are of that precision, and the bias sums up what they give
  if (!in.bias.empty()) naive.bias = column_sums(naive.delta, in.d_inner, DType::kBF16);
  for (size_t i = 0; ready && i < naive.delta.size(); ++i) {
    // of steps that bf16 holds exactly those sums are what is rounded first
    const float slope = -std::expm1(-in.delta[i]);
    if (slope > 0.0F) naive.delta[i] = rounded_to_bf16(naive.delta[i] / slope) * slope;
  }
}

class SelectiveScanCuda : public testing::Test {
 protected:
  void SetUp() override {
    Backend& backend = backend_for(DeviceKind::kCuda);
    if (backend.device_count() == 0) GTEST_SKIP() << backend.why_none();
    ctx_ = std::make_unique<Context>(Device{DeviceKind::kCuda, 0});
  }
  Context& ctx() { return *ctx_; }

  void expect_matches_oracle(const ScanCase& scan, DType dtype) {
    expect_matches_oracle(scan_inputs(scan), dtype, scan.strided ? 13 : 0);
  }
  void expect_matches_oracle(const Inputs& given, DType dtype, int64_t gap) {
    expect_matches_oracle(rounded_inputs(given, dtype), dtype, gap, false);
  }
  /// The same of a problem whose steps come ready, bf16.
  void expect_ready_matches_oracle(const ScanCase& scan) {
    expect_ready_matches_oracle(scan_inputs(scan), scan.strided ? 13 : 0);
  }
  void expect_ready_matches_oracle(const Inputs& given, int64_t gap) {
    expect_matches_oracle(with_ready_steps(rounded_inputs(given, DType::kBF16)), DType::kBF16, gap,
                          true);
  }
  void expect_matches_oracle(const Inputs& in, DType dtype, int64_t gap, bool ready) {
    const Inputs raw = ready ? before_softplus(in) : in;
    const OracleInputs wide = ready ? before_softplus(as_oracle(in)) : as_oracle(in);
    const auto oracle = reference::scan_forward(wide);
    auto naive = reference::scan_forward(raw);
    const auto doracle = reference::scan_backward(wide);
    auto dnaive = reference::scan_backward(raw);
    CudaScanRunner runner(ctx(), in, dtype, gap);
    runner.ready = ready;
    const ScanRun found = runner.run();
    round_to(dtype, naive.y);
    expect_close(found.y, oracle.y, naive.y, "y", kFloor);
    expect_close(found.y_again, oracle.y, naive.y, "y recomputed", kFloor);
    expect_close(found.state_out, oracle.state_out, naive.state_out, "state_out", kFloor);
    const auto narrow = gradient_fields<float>();
    const auto exact = gradient_fields<double>();
    if (dtype == DType::kBF16) allow_for_bf16_sums(in, ready, dnaive);
    for (size_t i = 0; i < narrow.size(); ++i) {
      if (narrow[i].activation) round_to(dtype, dnaive.*narrow[i].field);
      expect_close(found.d.*narrow[i].field, doracle.*exact[i].field, dnaive.*narrow[i].field,
                   narrow[i].name, kFloor);
    }
  }

  /// The exponential unit's relative error is 2^-22; a state of memory m gathers m of them.
  static constexpr double kFloor = 4e-6;

  /// (1, length, width) on the device in which `values`, (1, L, width), repeat; or nothing in it.
  TensorView rows(DType dtype, int64_t length, int64_t width, std::vector<float> values) {
    const TensorView view = owners_.emplace_back(ctx().make(dtype, {1, length, width})).view();
    if (values.empty()) return view;
    round_to(dtype, values);
    const Tensor source = DeviceRows::host_copy(values, dtype);
    const int64_t period = source.size() / width;
    const ConstTensorView all = source.view().reshape({1, period, width});
    for (int64_t i = 0; i < length; i += period) {
      const int64_t count = std::min(period, length - i);
      ctx().upload(all.slice(1, 0, count), view.slice(1, i, i + count));
    }
    return view;
  }
  TensorView fixed(const Shape& shape, const std::vector<float>& values) {
    const TensorView view = owners_.emplace_back(ctx().make(DType::kF32, shape)).view();
    if (!values.empty()) ctx().upload(owned(shape, values), view);
    return view;
  }
  std::vector<float> download(ConstTensorView view) {
    Tensor host({}, view.dtype, view.shape());
    ctx().download(view, host);
    if (view.dtype == DType::kF32) return flat(host);
    std::vector<float> values;
    for (int64_t i = 0; i < host.size(); ++i) values.push_back(DeviceRows::element(host, i));
    return values;
  }

 private:
  std::unique_ptr<Context> ctx_;
  std::vector<Tensor> owners_;
};

inline void expect_same(const ScanRun& a, const ScanRun& b, double tolerance) {
  EXPECT_LE(relative_error(a.y, b.y), tolerance) << "y";
  EXPECT_LE(relative_error(a.y_again, b.y_again), tolerance) << "y recomputed";
  EXPECT_LE(relative_error(a.state_out, b.state_out), tolerance) << "state_out";
  for (const auto& field : gradient_fields<float>()) {
    EXPECT_LE(relative_error(a.d.*field.field, b.d.*field.field), tolerance) << field.name;
  }
}

}  // namespace gmamba::test
