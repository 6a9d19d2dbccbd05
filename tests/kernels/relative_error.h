// SPDX-License-Identifier: Apache-2.0
/// Errors as the norm of a difference over the norm of the oracle.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace gmamba::test {

template <class A, class B>
double relative_error(const std::vector<A>& found, const std::vector<B>& oracle) {
  if (found.size() != oracle.size()) return std::numeric_limits<double>::infinity();
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < oracle.size(); ++i) {
    const double want = static_cast<double>(oracle[i]);
    const double error = static_cast<double>(found[i]) - want;
    difference += error * error;
    norm += want * want;
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

/// The error of `found` is at most twice that of the naive result of the same precision, plus a
/// floor.
template <class A, class B, class C>
void expect_close(const std::vector<A>& found, const std::vector<B>& oracle,
                  const std::vector<C>& naive, const std::string& what, double floor = 2e-6) {
  const double budget = 2 * relative_error(naive, oracle) + floor;
  EXPECT_LE(relative_error(found, oracle), budget) << what;  // false for NaN as well
}

}  // namespace gmamba::test
