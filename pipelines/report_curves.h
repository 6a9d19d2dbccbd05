// SPDX-License-Identifier: Apache-2.0
/// The curves of RUN/report.html.
#pragma once

#include <string>
#include <vector>

#include "libmamba/core/json.h"

namespace gmamba {

/// A note on what the curves are of, then each that the metrics have, as HTML; nothing without
/// metrics. `record` is what run.json holds, `metrics` the lines of metrics.jsonl.
std::string report_curves(const Json& record, const std::vector<Json>& metrics);

}  // namespace gmamba
