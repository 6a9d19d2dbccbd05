// SPDX-License-Identifier: Apache-2.0
/// Which htslib reads the files: part of every run's provenance.
#pragma once

#include <string>

namespace gmamba {

/// Of the library in use at run time, e.g. "1.16".
std::string htslib_version();

}  // namespace gmamba
