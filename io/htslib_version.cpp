// SPDX-License-Identifier: Apache-2.0
#include "io/htslib_version.h"

#include <htslib/hts.h>

namespace gmamba {

std::string htslib_version() { return hts_version(); }

}  // namespace gmamba
