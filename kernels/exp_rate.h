// SPDX-License-Identifier: Apache-2.0
/// How many single-precision exponentials a device does per second when nothing else is in the
/// way: data in registers or the first-level cache. The floor of a selective scan, which takes one
/// per state update.
#pragma once

#include "libmamba/core/context.h"

namespace gmamba {

/// Exponentials per second on all threads of the context, the best of several tries; takes some
/// tenths of a second.
double measure_exp_rate(Context& ctx);

namespace cuda {
double measure_exp_rate(Context& ctx);
}

}  // namespace gmamba
