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

/// The lines of metrics.jsonl that are whole; none when there is no such file. The last line of a
/// run that was killed while writing it is left out.
std::vector<Json> read_metrics(const std::filesystem::path& path);

/// The page: `record` is what run.json holds, `metrics` the lines of metrics.jsonl.
std::string report_page(std::string_view name, const Json& record,
                        const std::vector<Json>& metrics);

/// Writes RUN/report.html whole, from what lies in the run folder.
void write_report(const std::filesystem::path& run);

/// A page of its own: `body` between the head with the style and the end.
std::string html_page(std::string_view title, std::string_view body);
/// Rows of cells, the first being the header; a first column of names, then numbers. Cells are
/// escaped.
std::string html_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace gmamba
