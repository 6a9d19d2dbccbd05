// SPDX-License-Identifier: Apache-2.0
/// What the tests of operations share: seeded tensors, fp64 copies, the error budget and central
/// differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "libmamba/core/context.h"
#include "libmamba/core/random.h"

namespace gmamba::test {

/// A tensor of normal numbers times `scale`, a pure function of its arguments.
inline Tensor random_tensor(const Shape& shape, uint64_t seed, double scale = 1.0) {
  Tensor tensor(Device{}, DType::kF32, shape);
  Random random(seed, RandomUse::kTest);
  for (float& value : tensor.host<float>()) value = static_cast<float>(scale * random.normal());
  return tensor;
}

/// A tensor filled with something that no result should contain.
inline Tensor garbage_tensor(const Shape& shape) {
  Tensor tensor(Device{}, DType::kF32, shape);
  for (float& value : tensor.host<float>()) value = -12345.0F;
  return tensor;
}

/// A view of `shape` (rows, columns) whose rows are `gap` elements further apart than they are
/// wide. `owner` gets the memory, filled from `from` when that is given.
inline TensorView strided_copy(Tensor& owner, const Tensor& from, int64_t gap) {
  const int64_t rows = from.shape()[0];
  const int64_t columns = from.shape()[1];
  owner = garbage_tensor({rows, columns + gap});
  const TensorView view = owner.view().slice(1, gap / 2, gap / 2 + columns);
  const auto to = view.as<float, 2>();
  const auto source = from.view().as<const float, 2>();
  for (int64_t m = 0; m < rows; ++m) std::copy_n(source.at(m), columns, to.at(m));
  return view;
}

/// The elements of a view of rank 1 or 2 in order, as Real.
template <class Real>
std::vector<Real> values(const ConstTensorView& view) {
  std::vector<Real> out;
  const int64_t rows = view.rank == 2 ? view.dim(0) : 1;
  const int64_t columns = view.rank == 0 ? 0 : view.dim(-1);
  const auto* const data = reinterpret_cast<const float*>(view.data);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) {
      out.push_back(static_cast<Real>(data[(view.rank == 2 ? m * view.stride[0] : 0) + n]));
    }
  }
  return out;
}

/// Every element of `found` is within twice the largest error of the naive fp32 result, plus a
/// floor of a few roundings of the largest value.
inline void expect_within_budget(const std::vector<double>& found,
                                 const std::vector<double>& oracle, const std::vector<float>& naive,
                                 const std::string& what) {
  ASSERT_EQ(found.size(), oracle.size()) << what;
  ASSERT_EQ(naive.size(), oracle.size()) << what;
  double naive_error = 0;
  double largest = 0;
  for (size_t i = 0; i < oracle.size(); ++i) {
    naive_error = std::max(naive_error, std::fabs(static_cast<double>(naive[i]) - oracle[i]));
    largest = std::max(largest, std::fabs(oracle[i]));
  }
  const double budget = 2 * naive_error + 5e-7 * largest + 1e-12;
  for (size_t i = 0; i < oracle.size(); ++i) {
    ASSERT_LE(std::fabs(found[i] - oracle[i]), budget)
        << what << ": element " << i << " is " << found[i] << ", expected " << oracle[i];
  }
}

/// Whether two tensors hold the same bits.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.view().data, b.view().data, static_cast<size_t>(a.bytes())) == 0;
}

/// Checks `gradient`, the fp64 gradient of the scalar `loss` at `point`, against central
/// differences in every element.
inline void expect_gradient(const std::function<double(const std::vector<double>&)>& loss,
                            const std::vector<double>& point, const std::vector<double>& gradient,
                            const std::string& what) {
  ASSERT_EQ(point.size(), gradient.size()) << what;
  constexpr double kStep = 1e-5;
  double largest = 1e-3;
  for (const double value : gradient) largest = std::max(largest, std::fabs(value));
  std::vector<double> moved = point;
  for (size_t i = 0; i < point.size(); ++i) {
    moved[i] = point[i] + kStep;
    const double above = loss(moved);
    moved[i] = point[i] - kStep;
    const double below = loss(moved);
    moved[i] = point[i];
    ASSERT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-6 * largest)
        << what << ": element " << i;
  }
}

/// Sum of a[i] * b[i]: a scalar loss whose gradient with respect to `a` is `b`.
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Runs `body` and returns the kind and message of the Error that it throws.
template <class Body>
std::pair<ErrorKind, std::string> error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return {error.kind(), error.message()};
  }
  ADD_FAILURE() << "no error was thrown";
  return {ErrorKind::kInternal, ""};
}

}  // namespace gmamba::test
