// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/version.h"

namespace gmamba {

std::string_view version() { return GMAMBA_VERSION; }

}  // namespace gmamba
