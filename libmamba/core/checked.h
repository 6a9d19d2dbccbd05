// SPDX-License-Identifier: Apache-2.0
/// Size arithmetic that refuses to overflow. Every size that comes from a file or an option passes
/// through here before anything is allocated.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace gmamba {

/// a + b for non-negative sizes; throws ErrorKind::kInput naming `what` when it does not fit int64.
int64_t checked_add(int64_t a, int64_t b, std::string_view what);

/// a * b for non-negative sizes; throws ErrorKind::kInput naming `what` when it does not fit int64.
int64_t checked_mul(int64_t a, int64_t b, std::string_view what);

/// Product of all extents (1 for none), checked as above.
int64_t checked_product(std::initializer_list<int64_t> extents, std::string_view what);
template <class Range>
int64_t checked_product(const Range& extents, std::string_view what) {
  int64_t product = 1;
  for (const auto extent : extents) {
    product = checked_mul(product, static_cast<int64_t>(extent), what);
  }
  return product;
}

}  // namespace gmamba
