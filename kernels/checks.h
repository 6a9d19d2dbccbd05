// SPDX-License-Identifier: Apache-2.0
/// Checks at the door of an operation: every argument lives on the context's device, holds the
/// element type of the contract, has the shape that the others ask for and contiguous rows.
#pragma once

#include <initializer_list>

#include "libmamba/core/context.h"

namespace gmamba {

class Door {
 public:
  /// `operation` names the public function in messages.
  Door(const Context& ctx, const char* operation) : ctx_(ctx), operation_(operation) {}

  /// Throws unless `view` is an argument of `rank` axes of `dtype` on this device; its extents are
  /// free and everything else is checked against them.
  void first(const char* name, const ConstTensorView& view, DType dtype, int rank) const;
  /// As `first`, and throws kShape, naming both shapes, when the shape differs.
  void expect(const char* name, const ConstTensorView& view, DType dtype,
              std::initializer_list<int64_t> shape) const;
  /// As `expect`, but the argument may be left out.
  void optional(const char* name, const ConstTensorView& view, DType dtype,
                std::initializer_list<int64_t> shape) const;
  /// The activation type that `view` brings: kF32, or kBF16 on a GPU. Other types are refused by
  /// the checks that use it.
  DType activation(const ConstTensorView& view) const;
  /// As `first` for any rank, and throws kShape unless the elements are one block.
  void flat(const char* name, const ConstTensorView& view, DType dtype) const;

 private:
  void place_and_type(const char* name, const ConstTensorView& view, DType dtype) const;
  void layout(const char* name, const ConstTensorView& view) const;

  const Context& ctx_;
  const char* operation_;
};

}  // namespace gmamba
