// SPDX-License-Identifier: Apache-2.0
#include "pipelines/report_page.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "pipelines/html_page.h"
#include "pipelines/report_curves.h"
#include "pipelines/run_figures.h"
#include "pipelines/svg_plot.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kContigsShown = 200;  // rows of the table

/// As a cell of a table has it.
std::string shown(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return format_count(value.get<int64_t>());
  if (value.is_number()) return format_number(value.get<double>(), 6);
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string held_out_table(const Json& record, const std::vector<Json>& metrics) {
  const Json last = newest_held_out(metrics);
  const Json& results = member(record, "results");
  std::string html;
  if (std::isfinite(number(last, "bits_per_base"))) {
    const double bases = number(last, "bases");
    std::vector<std::vector<std::string>> rows = {
        {std::isfinite(bases) ? concat("on ", count_text(bases), " held-out bases")
                              : std::string("on the held-out bases"),
         "bits per base"}};
    rows.push_back({concat("this model, step ", count_text(number(last, "step"))),
                    figure_text(number(last, "bits_per_base"), 5)});
    for (const Baseline& baseline : baselines(results)) {
      rows.push_back(
          {concat(baseline.name, " of the training bases"), figure_text(baseline.bits, 5)});
    }
    html += "<h2>Beside baselines</h2>\n" + html_table(rows);
    if (rows.size() == 2) html += "<p>Baselines are computed when the run ends.</p>\n";
  }
  std::vector<std::vector<std::string>> judged = {
      {"held-out sequences", "accuracy", "MCC", "macro F1", "sequences"}};
  for (const auto& [key, name] : {std::pair{"held_out", "this model, best on what is held out"},
                                  std::pair{"kmer_baseline", "k-mer logistic regression"}}) {
    const Json& found = member(results, key);
    if (!found.is_object()) continue;
    judged.push_back(
        {name, figure_text(number(found, "accuracy"), 4), figure_text(number(found, "mcc"), 4),
         figure_text(number(found, "macro_f1"), 4), count_text(number(found, "count"))});
  }
  if (judged.size() > 1) html += "<h2>Beside baselines</h2>\n" + html_table(judged);
  return html;
}

std::string contig_table(const std::vector<Json>& metrics) {
  const Json last = newest_held_out(metrics);
  const Json& contigs = member(last, "contigs");
  if (!contigs.is_array() || contigs.empty()) return {};
  std::vector<std::vector<std::string>> rows = {
      {"contig", "file", "predicted bases", "bits per base", "loss", "accuracy"}};
  for (const Json& contig : contigs) {
    if (rows.size() > kContigsShown) break;
    rows.push_back(
        {shown(member(contig, "contig")), shown(member(contig, "file")),
         count_text(number(contig, "bases")), figure_text(number(contig, "bits_per_base"), 5),
         figure_text(number(contig, "loss"), 5), figure_text(number(contig, "accuracy"), 4)});
  }
  std::string html = concat("<h2>Held out, by contig (step ", count_text(number(last, "step")),
                            ")</h2>\n", html_table(rows));
  const double left =
      number(last, "contigs_left_out") + static_cast<double>(contigs.size() + 1 - rows.size());
  if (left > 0)
    html += concat("<p>", count_text(left), " contigs with fewer bases not shown.</p>\n");
  return html;
}

/// A word as a shell takes it.
std::string quoted(const std::string& word) {
  const bool plain =
      !word.empty() &&
      word.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%") ==
          std::string::npos;
  if (plain) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string command_text(const Json& record) {
  std::string text;
  const Json& words = member(record, "command_line");
  if (!words.is_array()) return text;
  for (const Json& word : words) {
    if (!text.empty()) text += " ";
    text += quoted(shown(word));
  }
  return text;
}

std::string origin(const Json& record) {
  const Json& device = member(record, "device");
  std::vector<std::vector<std::string>> rows = {{"", ""}};
  const auto row = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) rows.push_back({name, value});
  };
  row("gmamba", shown(member(record, "gmamba")));
  row("device",
      shown(member(device, "hardware")).empty()
          ? shown(member(device, "name"))
          : concat(shown(member(device, "name")), ", ", shown(member(device, "hardware"))));
  row("threads", shown(member(device, "threads")));
  row("precision", shown(member(device, "precision")));
  row("seed", shown(member(record, "seed")));
  row("started (UTC)", shown(member(record, "started")));
  if (const double seconds = number(record, "seconds"); std::isfinite(seconds)) {
    row("time of the last process", format_duration(seconds));
  }
  if (const double bytes = number(record, "peak_memory_bytes"); std::isfinite(bytes)) {
    row("peak resident memory", format_bytes(std::llround(std::clamp(bytes, 0.0, 9e18))));
  }
  row("model at the start", shown(member(member(record, "model"), "path")));
  const Json& inputs = member(record, "inputs");
  for (size_t i = 0; inputs.is_array() && i < inputs.size() && i < kContigsShown; ++i) {
    const double bytes = number(inputs[i], "bytes");
    row("input", concat(shown(member(inputs[i], "path")),
                        std::isfinite(bytes) ? concat(" (", count_text(bytes), " bytes)") : ""));
  }
  std::string html = "<h2>Where it comes from</h2>\n";
  if (const std::string command = command_text(record); !command.empty()) {
    html += concat("<pre>", html_escape(command), "</pre>\n");
  }
  html += html_table(rows);
  const Json& options = member(record, "options");
  if (options.is_object() && !options.empty()) {
    std::vector<std::vector<std::string>> all = {{"option", "value"}};
    for (const auto& [key, value] : options.items()) {
      const bool text = value.is_string();
      if (value.is_null() || (text ? value.get<std::string>().empty() : value.empty())) continue;
      all.push_back(
          {concat("--", key), text ? value.get<std::string>()
                                   : value.dump(-1, ' ', false, Json::error_handler_t::replace)});
    }
    html += concat("<details><summary>All options that have a value, as resolved</summary>\n",
                   html_table(all), "</details>\n");
  }
  return html;
}

void tile(std::string& html, std::string_view name, const std::string& value) {
  if (value.empty() || value == "-") return;
  html +=
      concat("<div><b>", html_escape(value), "</b><span>", html_escape(name), "</span></div>\n");
}

std::string summary(const Json& record, const std::vector<Json>& metrics) {
  const Json train = newest(metrics, "train");
  const Json valid = newest_held_out(metrics);
  const Json& results = member(record, "results");
  const double planned = number(results, "planned_steps");
  std::string html = "<div class=\"tiles\">\n";
  std::string steps = count_text(number(train, "step"));
  if (std::isfinite(planned)) steps += concat(" of ", count_text(planned));
  tile(html, "steps", steps);
  tile(html, "tokens", count_text(number(train, "tokens")));
  const bool both = has_both(metrics);
  tile(html, both ? "bits per base, all that is held out" : "held-out bits per base",
       figure_text(number(valid, "bits_per_base"), 5));
  if (both) {
    tile(html, "bits per base, the sample of each evaluation",
         figure_text(number(newest(metrics, "valid"), "bits_per_base"), 5));
  }
  tile(html, "held-out loss", figure_text(number(valid, "loss"), 4));
  tile(html, "held-out accuracy", figure_text(number(valid, "accuracy"), 4));
  const double rate = mean_speed(metrics);
  tile(html, "tokens per second, mean of all steps", rate > 0 ? format_short(rate) : "");
  const double skipped = number(results, "skipped_steps");
  if (skipped > 0) tile(html, "updates skipped (gradient not finite)", count_text(skipped));
  return html + "</div>\n";
}

}  // namespace

std::string report_page(std::string_view name, const Json& record,
                        const std::vector<Json>& metrics) {
  const Json& finished = member(member(record, "results"), "finished");
  const bool running = finished.is_boolean() && !finished.get<bool>();
  const std::string what = shown(member(record, "command"));
  std::string body =
      concat("<h1>", html_escape(name), "</h1>\n<div class=\"sub\">gmamba ", html_escape(what),
             running ? ", not finished" : ", finished", "</div>\n");
  body += summary(record, metrics);
  if (metrics.empty()) body += "<p>No measurement was written yet.</p>\n";
  body += report_curves(record, metrics);
  body += held_out_table(record, metrics);
  body += contig_table(metrics);
  body += origin(record);
  return html_page(concat(name, " - gmamba"), body);
}

void write_report(const fs::path& run) {
  Json record = Json::object();
  const fs::path path = run / "run.json";
  if (path_exists(path)) {
    record = parse_json(read_file(path, int64_t{1} << 28), printable(path.string()));
  }
  fs::path name = run.filename();
  if (name.empty()) name = run.parent_path().filename();
  write_file(run / "report.html",
             report_page(name.string(), record, read_metrics(run / "metrics.jsonl")));
}

}  // namespace gmamba
