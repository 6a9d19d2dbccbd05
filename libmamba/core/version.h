// SPDX-License-Identifier: Apache-2.0
/// Which gmamba this is, for --version, run records and file headers.
#pragma once

#include <string_view>

namespace gmamba {

/// "0.1.0"
std::string_view version();

}  // namespace gmamba
