// SPDX-License-Identifier: Apache-2.0
/// Pages that need no network and no other file: the head with the style, and tables.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gmamba {

/// A page of its own: `body` between the head with the style and the end.
std::string html_page(std::string_view title, std::string_view body);
/// Rows of cells, the first being the header; a first column of names, then numbers. Cells are
/// escaped.
std::string html_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace gmamba
