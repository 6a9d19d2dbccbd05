// SPDX-License-Identifier: Apache-2.0
#include "pipelines/html_page.h"

#include <algorithm>

#include "libmamba/core/error.h"
#include "pipelines/svg_plot.h"

namespace gmamba {
namespace {

constexpr std::string_view kPageStyle =
    R"(body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:920px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:24px;margin:0 0 2px;overflow-wrap:anywhere}h2{font-size:17px;margin:1.8em 0 .5em}
.sub,p{color:var(--faint);margin:.2em 0 1.2em}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin-bottom:1.6em}
.tiles div{background:var(--card);border-radius:8px;padding:8px 16px}
.tiles b{display:block;font-size:19px;font-variant-numeric:tabular-nums}
.tiles span{font-size:13px;color:var(--faint)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(390px,1fr));gap:0 1.2em}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:50%}
th,td{text-align:right;padding:3px 14px 3px 0;border-bottom:1px solid var(--soft)}
th{font-weight:600;color:var(--faint)}
th:first-child,td:first-child,.text td,.text th{text-align:left}
td{overflow-wrap:anywhere}
pre{background:var(--card);border-radius:8px;padding:12px 16px;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;margin:1em 0}
)";

}  // namespace

std::string html_page(std::string_view title, std::string_view body) {
  return concat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<meta "
      "name=\"color-scheme\" content=\"light dark\">\n<title>",
      html_escape(title), "</title>\n<style>\n", plot_style(), kPageStyle,
      "</style>\n</head>\n<body>\n<main>\n", body, "</main>\n</body>\n</html>\n");
}

std::string html_table(const std::vector<std::vector<std::string>>& rows) {
  if (rows.empty()) return {};
  const bool text = rows.front().size() == 2 && rows.front().back() != "bits per base";
  std::string html =
      text ? "<div class=\"wide\"><table class=\"text\">\n" : "<div class=\"wide\"><table>\n";
  for (size_t r = 0; r < rows.size(); ++r) {
    const char* const tag = r == 0 ? "th" : "td";
    if (r == 0 && std::all_of(rows[0].begin(), rows[0].end(),
                              [](const std::string& cell) { return cell.empty(); })) {
      continue;
    }
    html += "<tr>";
    for (const std::string& cell : rows[r]) {
      html += concat("<", tag, ">", html_escape(cell), "</", tag, ">");
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

}  // namespace gmamba
