// SPDX-License-Identifier: Apache-2.0
/// The GPU's kernels of the selective scan, run by a CPU as they are written, against the fp64
/// oracle: their arithmetic is checked where there is no GPU, and where one has no use for them
/// (what older GPUs and odd alignments take). Times, races and instructions are not.
#include "tests/emulation/warps.h"
// above all else that includes kernels
#include <gtest/gtest.h>

#include <optional>

#include "kernels/selective_scan_backward.cuh"
#include "kernels/selective_scan_backward_mma.cuh"
#include "kernels/selective_scan_forward.cuh"
#include "kernels/selective_scan_forward_joint.cuh"
#include "kernels/selective_scan_summary_mma.cuh"
#include "tests/kernels/selective_scan_cuda_fixture.h"

namespace gmamba::cuda::scan {

// the shared memory of a block, by the names that kernels have for it
constexpr size_t kSharedBytes = 227 * 1024;
alignas(128) uint32_t block_words[kSharedBytes / 4];
alignas(128) float block_shared[kSharedBytes / 4];
alignas(128) unsigned char summary_shared[kSharedBytes];
alignas(128) unsigned char forward_shared[kSharedBytes];
alignas(128) unsigned char forward_tiles[kSharedBytes];

namespace {

using test::Inputs;
using test::ScanCase;

/// Values as T, which they are.
template <class T>
std::vector<T> narrowed(const std::vector<float>& values) {
  std::vector<T> out;
  for (const float value : values) out.push_back(narrow<T>(value));
  return out;
}
template <class T>
std::vector<float> widened(const std::vector<T>& values) {
  std::vector<float> out;
  for (const T value : values) out.push_back(widen(value));
  return out;
}
template <class T>
constexpr DType kType = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;

/// An array (B, L, width) of a problem, and views of it.
template <class T>
struct Activations {
  Activations() = default;
  Activations(const Inputs& in, int64_t columns, const std::vector<float>& given)
      : batch(static_cast<int64_t>(in.batch)),
        length(static_cast<int64_t>(in.length)),
        width(columns),
        values(narrowed<T>(given)) {}
  Activations(const Inputs& in, int64_t columns)
      : Activations(in, columns,
                    std::vector<float>(in.batch * in.length * static_cast<size_t>(columns),
                                       std::numeric_limits<float>::quiet_NaN())) {}

  Rows<const T> given() const { return {values.data(), length * width, width}; }
  Rows<T> wanted() { return {values.data(), length * width, width}; }
  TileMap tiles(int64_t tile_rows, int64_t tile_width) {
    constexpr auto kElement = static_cast<int64_t>(sizeof(T));
    return {reinterpret_cast<char*>(values.data()),
            kElement,
            batch,
            length,
            width,
            length * width,
            width,
            tile_rows,
            tile_width};
  }

  int64_t batch = 0, length = 0, width = 0;
  std::vector<T> values;
};

/// A problem as the kernels get it, and what the oracle makes of it.
template <class T>
struct Problem {
  Problem(const ScanCase& scan, bool delta_ready)
      : in(test::rounded_inputs(test::scan_inputs(scan), kType<T>)), ready(delta_ready) {
    if (ready) in = test::with_ready_steps(in);
    raw = ready ? test::before_softplus(in) : in;
    wide = ready ? test::before_softplus(test::as_oracle(in)) : test::as_oracle(in);
    E = static_cast<int64_t>(in.d_inner);
    N = static_cast<int64_t>(in.d_state);
    u = Activations<T>(in, E, in.u);
    delta = Activations<T>(in, E, in.delta);
    if (!in.z.empty()) z = Activations<T>(in, E, in.z);
    B = Activations<T>(in, N, in.B);
    C = Activations<T>(in, N, in.C);
    dy = Activations<T>(in, E, in.dy);
  }
  const float* D() const { return in.D.empty() ? nullptr : in.D.data(); }
  const float* bias() const { return ready || in.bias.empty() ? nullptr : in.bias.data(); }
  Rows<const float> states(const std::vector<float>& values) const {
    return {values.data(), E * N, N};
  }

  Inputs in, raw;
  test::OracleInputs wide;
  bool ready;
  int64_t E = 0, N = 0;
  Activations<T> u, delta, z, B, C, dy;
};

class ScanEmulation : public testing::Test {
 protected:
  void SetUp() override {
    auto& regions = emulation::SharedMemory::regions();
    regions = {{reinterpret_cast<unsigned char*>(block_words), kSharedBytes},
               {reinterpret_cast<unsigned char*>(block_shared), kSharedBytes},
               {summary_shared, kSharedBytes},
               {forward_shared, kSharedBytes},
               {forward_tiles, kSharedBytes}};
    bytes_to_come() = 0;
  }
  void TearDown() override { EXPECT_EQ(bytes_to_come(), 0); }
};

/// `units` teams in blocks of two, of which the last may have nothing to do.
void launch_teams(int64_t units, const std::function<void()>& kernel) {
  emulation::launch((units + 1) / 2, 2 * kTeamWarps * 32, kernel);
}

// ---- outputs

struct Outputs {
  std::vector<float> y, state_out, saved;
};

/// `channels` of a lane of the kernel for the copy unit; none: the kernel of copies.
template <class T, int kStates, int kSplit, bool kReady>
Outputs outputs_of(Problem<T>& problem, std::optional<int> channels, bool aligned = true) {
  constexpr int64_t kEvery = 16;
  const auto batch = static_cast<int64_t>(problem.in.batch);
  const auto length = static_cast<int64_t>(problem.in.length);
  const int64_t per_row = (length + kEvery - 1) / kEvery;
  const auto states = static_cast<size_t>(batch * problem.E * problem.N);
  Activations<T> y(problem.in, problem.E);
  Outputs out;
  out.state_out.resize(states);
  out.saved.resize(states * static_cast<size_t>(per_row));
  ForwardArgs<T> p;
  p.u = problem.u.given();
  p.delta = problem.delta.given();
  p.z = problem.z.given();
  p.B = problem.B.given();
  p.C = problem.C.given();
  p.A = problem.in.A.data();
  p.A_stride = problem.N;
  p.D = problem.D();
  p.bias = problem.bias();
  p.ready = kReady;
  p.open = problem.z.values.empty() ? 1.0F : 0.0F;
  if (!problem.in.state_in.empty()) p.start = problem.states(problem.in.state_in);
  p.start_per_row = 1;
  p.y = y.wanted();
  p.state_out = {out.state_out.data(), problem.E * problem.N, problem.N};
  p.saved = {out.saved.data(), problem.E * problem.N, problem.N};
  p.saved_per_row = per_row;
  p.saved_every = kEvery;
  p.batch = batch;
  p.length = length;
  p.chunk_length = length;
  p.d_inner = static_cast<int>(problem.E);
  p.d_state = static_cast<int>(problem.N);
  p.vectors = {aligned, aligned, aligned, aligned};
  const auto groups = [&](int64_t width) { return batch * ((problem.E + width - 1) / width); };
  const auto maps_of = [&](int64_t rows, int64_t width, int64_t columns) {
    ForwardMaps maps;
    maps.u = problem.u.tiles(rows, width);
    maps.delta = problem.delta.tiles(rows, width);
    maps.z = problem.z.tiles(rows, width);
    maps.y = y.tiles(rows, width);
    maps.B = problem.B.tiles(rows, columns);
    maps.C = problem.C.tiles(rows, columns);
    return maps;
  };
  const auto run_warps = [&](int64_t width, auto&& kernel) {
    launch_teams((groups(width) + kForwardWarps - 1) / kForwardWarps, kernel);
  };
  const auto bulk = [&]<int kChannels>(std::integral_constant<int, kChannels>) {
    using S = WalkShape<T, kStates, kSplit, kChannels>;
    const ForwardMaps maps = maps_of(S::kRows, S::kWidth, S::kColumns);
    run_warps(S::kWidth,
              [&] { scan_forward_bulk_kernel<T, kStates, kSplit, kChannels, 2, kReady>(p, maps); });
  };
  if (!channels) {
    run_warps(64 / kSplit, [&] { scan_forward_kernel<T, kStates, kSplit, kReady>(p); });
  } else if (*channels == 2) {
    bulk(std::integral_constant<int, 2>{});
  } else if constexpr (kFewStates<T, kStates * kSplit>) {
    if (*channels == 4) {
      bulk(std::integral_constant<int, 4>{});
    } else {
      using S = ForwardJointShape<kStates>;
      const ForwardMaps maps = maps_of(S::kRows, S::kWidth, kStates);
      launch_teams(groups(S::kWidth), [&] { scan_forward_joint_kernel<kStates, kReady>(p, maps); });
    }
  }
  out.y = widened(y.values);
  return out;
}

template <class T, int kStates, int kSplit, bool kReady = false>
void expect_outputs(const ScanCase& scan) {
  SCOPED_TRACE(scan.name() + (kReady ? ", ready, " : ", ") + std::string(to_string(kType<T>)));
  Problem<T> problem(scan, kReady);
  const auto oracle = reference::scan_forward(problem.wide);
  auto naive = reference::scan_forward(problem.raw);
  test::round_to(kType<T>, naive.y);
  const Outputs elements = outputs_of<T, kStates, kSplit, kReady>(problem, {}, false);
  test::expect_close(elements.y, oracle.y, naive.y, "y", 4e-6);
  test::expect_close(elements.state_out, oracle.state_out, naive.state_out, "state_out", 4e-6);
  const auto expect_same = [&](const Outputs& found) {
    EXPECT_EQ(found.y, elements.y);
    EXPECT_EQ(found.state_out, elements.state_out);
    EXPECT_EQ(found.saved, elements.saved);
  };
  if (scan.d_inner % 8 != 0 || scan.d_state % 8 != 0) return;
  {
    SCOPED_TRACE("pieces of 16 bytes");
    expect_same(outputs_of<T, kStates, kSplit, kReady>(problem, {}));
  }
  for (const int channels : {1, 2, 4}) {
    if (channels != 2 && !kFewStates<T, kStates * kSplit>) continue;
    SCOPED_TRACE(std::to_string(channels) + " channels a lane, whole tiles");
    expect_same(outputs_of<T, kStates, kSplit, kReady>(problem, channels));
  }
}

TEST_F(ScanEmulation, OutputsMatchTheOracleHoweverTilesCome) {
  expect_outputs<bf16, 8, 1>({2, 37, 136, 8});
  expect_outputs<bf16, 8, 1, true>({1, 64, 72, 8});
  expect_outputs<bf16, 8, 1>({1, 19, 40, 8, false, false, false, false});
  expect_outputs<bf16, 16, 1>({2, 35, 72, 16});
  expect_outputs<bf16, 16, 1, true>({1, 33, 64, 16});
  expect_outputs<bf16, 16, 2>({1, 20, 40, 32});
  expect_outputs<bf16, 16, 4>({1, 20, 24, 64});
  expect_outputs<bf16, 16, 1>({1, 21, 35, 11});
  expect_outputs<float, 8, 1>({1, 37, 72, 8});
  expect_outputs<float, 16, 1>({2, 21, 72, 16});
  expect_outputs<float, 16, 4>({1, 20, 24, 64});
  expect_outputs<float, 16, 2>({1, 9, 5, 19, false, false, false, false});
}

// ---- gradients

struct Gradients {
  std::vector<float> y;
  reference::ScanGradients<float> d;
};

/// start(p, problem, blocks) runs a kernel that takes `width` channels a block and `columns`
/// states, padded.
template <class T, class Start>
Gradients gradients_of(Problem<T>& problem, int64_t width, int64_t columns, Start&& start) {
  constexpr int64_t kEvery = 16;
  const auto batch = static_cast<int64_t>(problem.in.batch);
  const auto length = static_cast<int64_t>(problem.in.length);
  const int64_t E = problem.E;
  const int64_t N = problem.N;
  const int64_t per_row = (length + kEvery - 1) / kEvery;
  std::vector<float> saved;
  const std::vector<double> states = reference::scan_forward(problem.wide).states;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < length; t += kEvery) {
      const auto from = states.begin() + (b * (length + 1) + t) * E * N;
      saved.insert(saved.end(), from, from + E * N);
    }
  }
  const int64_t groups = (E + width - 1) / width;
  Activations<T> du(problem.in, E), ddelta(problem.in, E), dz(problem.in, E), y(problem.in, E);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> dBC(static_cast<size_t>(groups * batch * length * 2 * columns), nan);
  std::vector<float> dA(static_cast<size_t>(batch * E * N), nan);
  std::vector<float> dD(static_cast<size_t>(batch * 2 * E), nan);
  Gradients out;
  out.d.state_in.assign(static_cast<size_t>(batch * E * N), nan);
  BackwardArgs<T> p;
  p.u = problem.u.given();
  p.delta = problem.delta.given();
  p.dy = problem.dy.given();
  p.z = problem.z.given();
  p.B = problem.B.given();
  p.C = problem.C.given();
  p.A = problem.in.A.data();
  p.A_stride = N;
  p.D = problem.D();
  p.bias = problem.bias();
  p.ready = problem.ready;
  p.saved = problem.states(saved);
  p.saved_per_row = per_row;
  if (!problem.in.dstate_out.empty()) p.dstate_end = problem.states(problem.in.dstate_out);
  p.du = du.wanted();
  p.ddelta = ddelta.wanted();
  if (!problem.in.z.empty()) p.dz = dz.wanted();
  p.y = y.wanted();
  p.dstate_in = {out.d.state_in.data(), E * N, N};
  p.dBC = dBC.data();
  p.dA = dA.data();
  p.dD = dD.data();
  p.batch = batch;
  p.length = length;
  p.chunk_length = length;
  p.d_inner = static_cast<int>(E);
  p.d_state = static_cast<int>(N);
  start(p, saved, batch * groups);
  // what the kernels behind this one do: sums over groups of channels, and over batch rows
  const auto sum = [](const std::vector<float>& from, size_t first, size_t count, size_t stride,
                      size_t parts) {
    std::vector<float> sums(count);
    for (size_t part = 0; part < parts; ++part) {
      for (size_t i = 0; i < count; ++i) sums[i] += from[part * stride + first + i];
    }
    return sums;
  };
  const auto rows = static_cast<size_t>(batch * length);
  const auto n = static_cast<size_t>(N);
  const auto e = static_cast<size_t>(E);
  const auto parts = static_cast<size_t>(batch);
  for (size_t row = 0; row < rows; ++row) {
    const auto c = static_cast<size_t>(columns);
    const std::vector<float> both =
        sum(dBC, row * 2 * c, 2 * c, rows * 2 * c, static_cast<size_t>(groups));
    out.d.B.insert(out.d.B.end(), both.begin(), both.begin() + N);
    out.d.C.insert(out.d.C.end(), both.begin() + columns, both.begin() + columns + N);
  }
  test::round_to(kType<T>, out.d.B);
  test::round_to(kType<T>, out.d.C);
  out.d.A = sum(dA, 0, e * n, e * n, parts);
  if (!problem.in.D.empty()) out.d.D = sum(dD, 0, e, 2 * e, parts);
  if (!problem.in.bias.empty()) out.d.bias = sum(dD, e, e, 2 * e, parts);
  out.d.u = widened(du.values);
  out.d.delta = widened(ddelta.values);
  if (!problem.in.z.empty()) out.d.z = widened(dz.values);
  out.y = widened(y.values);
  return out;
}

/// By the kernel on tensor cores, of copies or of the copy unit.
template <int kStates, bool kBulk, bool kGated, bool kReady>
Gradients gradients_by_products(Problem<bf16>& problem) {
  using S = MmaShape<kStates, kBulk>;
  const auto start = [&](const BackwardArgs<bf16>& p, std::vector<float>& saved, int64_t teams) {
    if constexpr (kBulk) {
      const int64_t E = problem.E;
      const int64_t N = problem.N;
      BackwardMaps maps;
      maps.u = problem.u.tiles(S::kTile, S::kWidth);
      maps.delta = problem.delta.tiles(S::kTile, S::kWidth);
      maps.dy = problem.dy.tiles(S::kTile, S::kWidth);
      maps.z = problem.z.tiles(S::kTile, S::kWidth);
      maps.B = problem.B.tiles(S::kTile, N);
      maps.C = problem.C.tiles(S::kTile, N);
      maps.saved = {reinterpret_cast<char*>(saved.data()),
                    4,
                    p.batch * p.saved_per_row,
                    E,
                    N,
                    E * N,
                    N,
                    S::kWidth,
                    N};
      launch_teams(teams, [&] { scan_backward_bulk_kernel<kGated, kReady, 2>(p, maps); });
    } else {
      launch_teams(teams, [&] { scan_backward_mma_kernel<kStates, kGated, kReady, 2>(p); });
    }
  };
  return gradients_of<bf16>(problem, S::kBlockWidth, kStates, start);
}
/// By the other kernel; kFast: of whole vectors, states as many as kLanes hold.
template <class T, int kLanes, bool kFast>
Gradients gradients_by_sums(Problem<T>& problem) {
  using S = BackwardShape<kLanes, 2, 16>;
  const auto start = [&](const BackwardArgs<T>& p, std::vector<float>&, int64_t teams) {
    launch_teams(teams, [&] { scan_backward_kernel<T, kLanes, 2, 16, kFast, 2>(p); });
  };
  return gradients_of<T>(problem, S::kBlockWidth, S::kColumns, start);
}

template <class T>
void expect_matches(const Problem<T>& problem, const Gradients& found) {
  const auto oracle = reference::scan_backward(problem.wide);
  auto naive = reference::scan_backward(problem.raw);
  if (sizeof(T) == 2) test::allow_for_bf16_sums(problem.in, problem.ready, naive);
  const auto narrow = test::gradient_fields<float>();
  const auto exact = test::gradient_fields<double>();
  for (size_t i = 0; i < narrow.size(); ++i) {
    if (narrow[i].activation) test::round_to(kType<T>, naive.*narrow[i].field);
    test::expect_close(found.d.*narrow[i].field, oracle.*exact[i].field, naive.*narrow[i].field,
                       narrow[i].name, 4e-6);
  }
  auto y = reference::scan_forward(problem.raw).y;
  test::round_to(kType<T>, y);
  test::expect_close(found.y, reference::scan_forward(problem.wide).y, y, "y", 4e-6);
}

template <int kStates, bool kGated, bool kReady>
void expect_gradients(const ScanCase& scan) {
  SCOPED_TRACE(scan.name() + (kReady ? ", ready" : ""));
  Problem<bf16> problem(scan, kReady);
  const Gradients found = gradients_by_products<kStates, false, kGated, kReady>(problem);
  expect_matches(problem, found);
  if constexpr (kStates == 8) {
    const Gradients whole = gradients_by_products<8, true, kGated, kReady>(problem);
    EXPECT_EQ(whole.y, found.y);
    for (const auto& field : test::gradient_fields<float>()) {
      EXPECT_EQ(whole.d.*field.field, found.d.*field.field) << field.name << ", whole tiles";
    }
  }
}
template <class T, int kLanes, bool kFast>
void expect_gradients_by_sums(const ScanCase& scan) {
  SCOPED_TRACE(scan.name() + ", " + std::string(to_string(kType<T>)));
  Problem<T> problem(scan, false);
  expect_matches(problem, gradients_by_sums<T, kLanes, kFast>(problem));
}

TEST_F(ScanEmulation, GradientsByProductsMatchTheOracleHoweverTilesCome) {
  expect_gradients<8, true, false>({2, 70, 160, 8});
  expect_gradients<8, true, true>({1, 61, 40, 8});
  expect_gradients<8, false, false>({1, 33, 8, 8, true, false});
  expect_gradients<8, true, false>({1, 5, 136, 8, true, true, false, false});
  expect_gradients<16, true, false>({2, 70, 72, 16});
  expect_gradients<16, true, true>({1, 40, 64, 16});
  expect_gradients<16, false, false>({1, 17, 24, 16, false, false});
  expect_gradients<32, true, false>({1, 40, 40, 32});
  expect_gradients<64, true, false>({1, 40, 24, 64});
}

TEST_F(ScanEmulation, GradientsBySumsMatchTheOracle) {
  expect_gradients_by_sums<float, 2, true>({2, 37, 72, 8});
  expect_gradients_by_sums<float, 4, true>({2, 70, 72, 16});
  expect_gradients_by_sums<float, 8, true>({1, 40, 40, 32});
  expect_gradients_by_sums<float, 16, true>({1, 40, 24, 64});
  expect_gradients_by_sums<float, 4, false>({2, 33, 35, 11, false, true, true, false});
  expect_gradients_by_sums<float, 16, false>({1, 20, 9, 40, true, false});
  expect_gradients_by_sums<bf16, 4, false>({2, 33, 35, 11});
}

// ---- summaries

struct SummaryCase {
  int64_t length, channels, states, chunk, longer;
  double slowest, fastest;  // steps of delta, log-uniform between channels
  bool together = false;
  int64_t nan_at = -1;  // position at which channel 5 has one
};

/// Summaries of all chunks against sums in double: the difference of all states as a part of their
/// norm; of one as a part of its channel's largest it may be ten times as much as is usual. NaN
/// must be where it is put, and nowhere else.
template <int kStates, bool kGradient, bool kReady, bool kPaired>
double summary_error(const SummaryCase& test) {
  Random random(1 + static_cast<uint64_t>(test.length), RandomUse::kTest);
  const int64_t E = test.channels;
  const int64_t N = test.states;
  const auto fill = [&](int64_t count, double scale) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      value = test::rounded_to_bf16(static_cast<float>(scale * random.normal()));
    }
    return values;
  };
  std::vector<float> x = fill(test.length * E, 1);
  std::vector<float> steps = fill(test.length * E, 0.5);
  const std::vector<float> z = fill(test.length * E, 1);
  const std::vector<float> w = fill(test.length * N, 1);
  std::vector<float> A, bias;
  for (int64_t e = 0; e < E; ++e) {
    const double mean = std::exp(random.uniform(std::log(test.slowest), std::log(test.fastest)));
    bias.push_back(static_cast<float>(mean + std::log(-std::expm1(-mean))));
    for (int64_t n = 0; n < N; ++n) {
      A.push_back(static_cast<float>(-(static_cast<double>(n) + random.uniform(0.8, 1.2))));
    }
  }
  std::vector<double> delta;
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto e = i % static_cast<size_t>(E);
    const double step = reference::softplus(static_cast<double>(steps[i]) + bias[e]);
    if (kReady) steps[i] = test::rounded_to_bf16(static_cast<float>(step));
    delta.push_back(kReady ? static_cast<double>(steps[i]) : step);
  }
  if (test.nan_at >= 0) {
    x[static_cast<size_t>(test.nan_at * E + 5)] = std::numeric_limits<float>::quiet_NaN();
  }
  std::vector<int64_t> borders = {0};
  while (borders.back() < test.length) {
    const bool longer = static_cast<int64_t>(borders.size()) <= test.longer;
    borders.push_back(std::min(test.length, borders.back() + test.chunk + (longer ? 16 : 0)));
  }
  const auto chunks = static_cast<int64_t>(borders.size()) - 1;
  Inputs shape;
  shape.batch = 1;
  shape.length = static_cast<size_t>(test.length);
  const Activations<bf16> x_rows(shape, E, x), delta_rows(shape, E, steps), z_rows(shape, E, z),
      w_rows(shape, N, w);
  std::vector<float> states(static_cast<size_t>(chunks * E * N), -1.0F);
  std::vector<float> sums(static_cast<size_t>(chunks * E));
  SummaryArgs<bf16> p;
  p.x = x_rows.given();
  p.delta = delta_rows.given();
  if (kGradient) p.z = z_rows.given();
  p.w = w_rows.given();
  p.A = A.data();
  p.A_stride = N;
  p.bias = kReady ? nullptr : bias.data();
  p.ready = kReady;
  p.state = {states.data(), E * N, N};
  p.delta_sum = sums.data();
  p.all_chunks = true;
  p.batch = 1;
  p.length = test.length;
  p.chunks = chunks;
  p.chunk_length = test.chunk;
  p.longer = test.longer;
  p.stretches = static_cast<int>(chunks);
  p.d_inner = static_cast<int>(E);
  p.d_state = static_cast<int>(N);
  p.together = test.together;
  constexpr int64_t kWindow = 16 * 2 * (kGradient ? 1 : -1);
  p.next_x = p.next_delta = p.next_z = kWindow * E;
  p.next_w = kWindow * N;
  p.vectors = {true, true, N % 8 == 0, true};
  const int64_t warps = chunks * ((E + 15) / 16);
  p.teams = static_cast<uint32_t>((warps + kSummaryMmaWarps - 1) / kSummaryMmaWarps);
  // where warps don't meet, one block whose warps take turns
  const int of_block = test.together || p.teams < 4 ? 1 : 2;
  const int64_t blocks = test.together ? p.teams : 1;
  emulation::launch(blocks, of_block * kSummaryMmaWarps * 32, [&] {
    scan_summary_mma_kernel<kStates, kGradient, kGradient, kReady, kPaired, 4>(p);
  });
  std::vector<float> some;
  std::vector<double> wanted;
  constexpr double kWorst = 2e-4;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = borders[static_cast<size_t>(chunk)];
    const int64_t end = borders[static_cast<size_t>(chunk) + 1];
    for (int64_t e = 0; e < E; ++e) {
      std::vector<double> exact(static_cast<size_t>(N));
      double behind = 0;
      for (int64_t i = 0; i < end - begin; ++i) {
        const int64_t t = kGradient ? begin + i : end - 1 - i;
        const auto at = static_cast<size_t>(t * E + e);
        if (kGradient) behind += delta[at];
        const double gate = z[at] * reference::sigmoid(static_cast<double>(z[at]));
        const double value = x[at] * (kGradient ? gate : delta[at]);
        for (int64_t n = 0; n < N; ++n) {
          exact[static_cast<size_t>(n)] +=
              std::exp(static_cast<double>(A[static_cast<size_t>(e * N + n)]) * behind) * value *
              w[static_cast<size_t>(t * N + n)];
        }
        if (!kGradient) behind += delta[at];
      }
      double largest = 0;
      for (const double value : exact) largest = std::max(largest, std::abs(value));
      const bool has_nan = e == 5 && test.nan_at >= begin && test.nan_at < end;
      for (int64_t n = 0; n < N; ++n) {
        const float found = states[static_cast<size_t>((chunk * E + e) * N + n)];
        EXPECT_EQ(std::isnan(found), has_nan) << "chunk " << chunk << ", channel " << e;
        if (has_nan) continue;
        some.push_back(found);
        wanted.push_back(exact[static_cast<size_t>(n)]);
        EXPECT_LE(std::abs(found - wanted.back()), kWorst * largest)
            << "chunk " << chunk << ", channel " << e;
      }
    }
  }
  return test::relative_error(some, wanted);
}

// what is forgotten and what polynomials are off by, see selective_scan_summary_mma.cuh
constexpr double kSummaryLimit = 1e-5;

TEST_F(ScanEmulation, SummariesMatchSumsInDouble) {
  EXPECT_LE((summary_error<16, false, false, true>({3000, 64, 16, 1504, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, false, false, false>({3000, 64, 16, 1504, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, false, false, true>({3000, 64, 8, 1504, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  // the last window is cut short, chunks differ by a tile, channels and states end within a block
  EXPECT_LE((summary_error<16, false, false, true>({2987, 72, 16, 1488, 1, 1e-4, 1e-2})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, false, false, true>({2987, 72, 8, 1488, 1, 1e-4, 1e-3, true})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, false, true, true>({4000, 64, 16, 2000, 0, 1e-4, 1e-3})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, false, false, true>({3000, 64, 12, 1504, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, false, false, true>({3000, 64, 4, 1504, 0, 1e-3, 1e-2})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, false, false, false>({496, 64, 16, 496, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, false, false, true>({1024, 64, 16, 1024, 0, 10, 50})),
            kSummaryLimit);
}

TEST_F(ScanEmulation, SummariesOfGradientsMatchSumsInDouble) {
  EXPECT_LE((summary_error<16, true, false, true>({3000, 64, 16, 1536, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, true, false, true>({3001, 64, 8, 1536, 0, 1e-3, 1e-1, true})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, true, true, true>({2999, 48, 8, 1536, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, true, true, true>({3007, 40, 16, 1536, 0, 1e-4, 1e-2, true})),
            kSummaryLimit);
  EXPECT_LE((summary_error<16, true, false, true>({3000, 56, 12, 1536, 0, 1e-3, 1e-2})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, true, false, false>({490, 64, 8, 490, 0, 1e-3, 1e-1})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, true, false, true>({1024, 64, 8, 1024, 0, 1e-6, 1e-5})),
            kSummaryLimit);
}

// chunks of an odd and of an even number of windows, some of which are left early, and the last of
// which are cut short: several to a warp, one behind the other, on the same tiles
TEST_F(ScanEmulation, SummariesMadeInTurnsMatchSumsInDouble) {
  for (const int64_t chunk : {496, 512}) {
    EXPECT_LE((summary_error<16, false, false, false>({4 * chunk, 64, 16, chunk, 0, 1e-3, 1e-2})),
              kSummaryLimit);
    EXPECT_LE((summary_error<16, false, false, true>({5 * chunk, 512, 16, chunk, 2, 1e-3, 1e-1})),
              kSummaryLimit);
    EXPECT_LE((summary_error<8, false, true, true>({4 * chunk - 3, 128, 8, chunk, 1, 1e-2, 1e-1})),
              kSummaryLimit);
    EXPECT_LE((summary_error<8, true, false, false>({6 * chunk, 64, 8, chunk, 0, 1e-3, 1e-1})),
              kSummaryLimit);
    EXPECT_LE((summary_error<16, true, true, true>({5 * chunk - 3, 96, 16, chunk, 1, 1e-3, 1e-1})),
              kSummaryLimit);
  }
}

TEST_F(ScanEmulation, SummariesOfChunksThatEndWithinAWindowMatchSumsInDouble) {
  EXPECT_LE((summary_error<16, false, false, false>({1960, 64, 16, 490, 0, 1e-3, 1e-2})),
            kSummaryLimit);
  EXPECT_LE((summary_error<8, false, true, true>({1660, 64, 8, 830, 0, 1e-3, 1e-1})),
            kSummaryLimit);
}

TEST_F(ScanEmulation, SummariesHideNoNan) {
  EXPECT_LE(
      (summary_error<16, false, false, true>({2000, 64, 16, 2000, 0, 1e-4, 1e-3, false, 100})),
      kSummaryLimit);
  EXPECT_LE(
      (summary_error<16, true, false, true>({2000, 64, 16, 2000, 0, 1e-4, 1e-3, false, 1500})),
      kSummaryLimit);
  EXPECT_LE((summary_error<8, true, true, true>({2000, 64, 8, 2000, 0, 1e-4, 1e-3, false, 1500})),
            kSummaryLimit);
}

}  // namespace
}  // namespace gmamba::cuda::scan
