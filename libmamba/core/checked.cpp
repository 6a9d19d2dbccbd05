// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/checked.h"

#include "libmamba/core/error.h"

namespace gmamba {

int64_t checked_add(int64_t a, int64_t b, std::string_view what) {
  int64_t sum = 0;
  require(a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, &sum), ErrorKind::kInput, what,
          ": the size ", a, " + ", b, " is negative or does not fit 63 bits");
  return sum;
}

int64_t checked_mul(int64_t a, int64_t b, std::string_view what) {
  int64_t product = 0;
  require(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product), ErrorKind::kInput, what,
          ": the size ", a, " * ", b, " is negative or does not fit 63 bits");
  return product;
}

int64_t checked_product(std::initializer_list<int64_t> extents, std::string_view what) {
  int64_t product = 1;
  for (const int64_t extent : extents) {
    product = checked_mul(product, extent, what);
  }
  return product;
}

}  // namespace gmamba
