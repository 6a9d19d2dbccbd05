// SPDX-License-Identifier: Apache-2.0
/// RUN/report.html: one self-contained page about a training run, made from RUN/metrics.jsonl and
/// RUN/run.json alone, so that it is the same for a run that was resumed, and readable without a
/// network. What is missing in the files is missing on the page; nothing in them is trusted as
/// HTML.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "libmamba/core/json.h"

namespace gmamba {

/// The page: `record` is what run.json holds, `metrics` the lines of metrics.jsonl.
std::string report_page(std::string_view name, const Json& record,
                        const std::vector<Json>& metrics);

/// Writes RUN/report.html whole, from what lies in the run folder.
void write_report(const std::filesystem::path& run);

}  // namespace gmamba
