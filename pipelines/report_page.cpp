// SPDX-License-Identifier: Apache-2.0
#include "pipelines/report_page.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "pipelines/svg_plot.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPointsDrawn = 500;   // of a curve
constexpr size_t kContigsShown = 200;  // rows of the table
constexpr double kMebibyte = 1048576;

// ---- reading what may be missing or of another type

const Json& member(const Json& object, std::string_view key) {
  static const Json nothing;
  if (!object.is_object()) return nothing;
  const auto found = object.find(std::string(key));
  return found == object.end() ? nothing : *found;
}

double number(const Json& object, std::string_view key) {
  const Json& value = member(object, key);
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::string shown(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return format_count(value.get<int64_t>());
  if (value.is_number()) return format_number(value.get<double>(), 6);
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string figure_text(double value, int digits) {
  return std::isfinite(value) ? format_number(value, digits) : std::string("-");
}

std::string count_text(double value) {
  return std::isfinite(value) && std::abs(value) < 9e18
             ? format_count(static_cast<int64_t>(std::llround(value)))
             : std::string("-");
}

bool is_split(const Json& line, std::string_view split) {
  const Json& value = member(line, "split");
  return value.is_string() && value.get<std::string>() == split;
}

std::vector<PlotPoint> curve(const std::vector<Json>& metrics, std::string_view split,
                             std::string_view key, double scale = 1) {
  std::vector<PlotPoint> points;
  for (const Json& line : metrics) {
    if (!is_split(line, split) || !line.contains(std::string(key))) continue;
    const double value = number(line, key) * scale;
    points.push_back({number(line, "tokens"), value, value, value});
  }
  return points;
}

bool any_drawn(const std::vector<PlotPoint>& points) {
  return std::any_of(points.begin(), points.end(),
                     [](const PlotPoint& point) { return std::isfinite(point.y); });
}

/// The newest line of a split, or null.
Json newest(const std::vector<Json>& metrics, std::string_view split) {
  for (auto line = metrics.rbegin(); line != metrics.rend(); ++line) {
    if (is_split(*line, split)) return *line;
  }
  return {};
}

/// The newest line about held-out bases: that of all of them where the run has ended with one.
Json newest_held_out(const std::vector<Json>& metrics) {
  const Json sample = newest(metrics, "valid");
  const Json all = newest(metrics, "valid_all");
  const bool older = number(all, "step") < number(sample, "step");
  return all.is_null() || older ? sample : all;
}

/// Of a run whose evaluations read a sample, and the last one all.
bool has_both(const std::vector<Json>& metrics) {
  const double sample = number(newest(metrics, "valid"), "bases");
  const double all = number(newest(metrics, "valid_all"), "bases");
  return std::isfinite(sample) && std::isfinite(all) && sample != all;
}

std::string bases_of(const std::vector<Json>& metrics, std::string_view split) {
  return concat(count_text(number(newest(metrics, split), "bases")), " bases");
}

/// Training as a line, with the spread of the lines of metrics.jsonl where a point averages some;
/// held-out as dots.
Plot both_splits(const std::vector<Json>& metrics, const std::string& title,
                 const std::string& unit, std::string_view key) {
  Plot plot{.title = title, .x_label = "tokens", .y_label = unit, .series = {}, .levels = {}};
  plot.focus = true;
  plot.series.push_back({.label = "training",
                         .points = thin_points(curve(metrics, "train", key), kPointsDrawn),
                         .colour = 0,
                         .markers = false,
                         .band = true});
  const bool both = has_both(metrics);
  plot.series.push_back(
      {.label = both ? concat("held out, a sample of ", bases_of(metrics, "valid")) : "held out",
       .points = thin_points(curve(metrics, "valid", key), kPointsDrawn),
       .colour = 1,
       .markers = true,
       .band = false});
  if (both) {
    plot.series.push_back(
        {.label = concat("all that is held out, ", bases_of(metrics, "valid_all")),
         .points = curve(metrics, "valid_all", key),
         .colour = 2,
         .markers = true,
         .band = false});
  }
  return plot;
}

std::string one_curve(const std::vector<Json>& metrics, const std::string& title,
                      const std::string& unit, std::string_view key, int colour, double scale = 1) {
  Plot plot{.title = title, .x_label = "tokens", .y_label = unit, .series = {}, .levels = {}};
  const std::vector<PlotPoint> points = curve(metrics, "train", key, scale);
  if (!any_drawn(points)) return {};
  plot.y_from_zero = true;
  plot.series.push_back({.label = "training",
                         .points = thin_points(points, kPointsDrawn),
                         .colour = colour,
                         .markers = false,
                         .band = true});
  return draw_plot(plot);
}

/// What of memory was in use, by kinds, those that the metrics have.
std::string memory_curves(const std::vector<Json>& metrics) {
  Plot plot{.title = "Memory", .x_label = "tokens", .y_label = "MiB", .series = {}, .levels = {}};
  plot.y_from_zero = true;
  int colour = 0;
  for (const auto& [key, label] :
       {std::pair{"device_memory_bytes", "Device memory of this run"},
        std::pair{"device_peak_memory_bytes", "Device memory, peak"},
        std::pair{"gpu_used_bytes", "GPU memory in use, as the driver says"},
        std::pair{"peak_memory_bytes", "Peak resident memory"}}) {
    const std::vector<PlotPoint> points = curve(metrics, "train", key, 1 / kMebibyte);
    ++colour;
    if (!any_drawn(points)) continue;
    plot.series.push_back({.label = label,
                           .points = thin_points(points, kPointsDrawn),
                           .colour = colour,
                           .markers = false,
                           .band = false});
  }
  return draw_plot(plot);
}

/// Tokens of the run by the time that they took at the speed of each line; 0 where no line has one.
double mean_speed(const std::vector<Json>& metrics) {
  double tokens = 0, seconds = 0, before = 0;
  for (const Json& line : metrics) {
    if (!is_split(line, "train")) continue;
    const double now = number(line, "tokens");
    const double rate = number(line, "tokens_per_second");
    const double more = now - before;
    if (std::isfinite(now)) before = now;
    if (!(rate > 0) || !(more > 0)) continue;
    tokens += more;
    seconds += more / rate;
  }
  return seconds > 0 ? tokens / seconds : 0;
}

// ---- baselines

struct Baseline {
  std::string name;
  double bits = 0;
};

/// markov_order_K_bits_per_base of the results.
std::vector<Baseline> baselines(const Json& results) {
  constexpr std::string_view kBefore = "markov_order_", kAfter = "_bits_per_base";
  std::vector<Baseline> found;
  if (!results.is_object()) return found;
  for (const auto& [key, value] : results.items()) {
    if (!value.is_number() || !key.starts_with(kBefore) || !key.ends_with(kAfter)) continue;
    const std::string order =
        key.substr(kBefore.size(), key.size() - kBefore.size() - kAfter.size());
    found.push_back({concat("order-", order, " Markov model"), value.get<double>()});
  }
  return found;
}

/// What the curves are of, as far as the lines say.
std::string curves_note(const std::vector<Json>& metrics) {
  double most_steps = 0;
  size_t lines = 0;
  for (const Json& line : metrics) {
    if (!is_split(line, "train")) continue;
    ++lines;
    if (const double steps = number(line, "steps"); steps > most_steps) most_steps = steps;
  }
  std::string note =
      "The axes of bits, loss and accuracy fit what comes after the first tenth of "
      "the run. ";
  if (most_steps > 1) {
    note += concat(
        "Training loss, bits and accuracy are means over the steps since the point "
        "before, up to ",
        count_text(most_steps),
        "; learning rate and gradient norm are those of the last of them. ");
  } else if (most_steps == 1) {
    note += "A training point is a step. ";
  }
  if (lines > kPointsDrawn) {
    note +=
        concat("Of ", count_text(static_cast<double>(lines)), " such points ", kPointsDrawn,
               " means of neighbours are drawn, shaded from the least to the largest of them. ");
  }
  return note;
}

std::string curves(const Json& record, const std::vector<Json>& metrics) {
  if (metrics.empty()) return {};
  std::string html = concat("<p>", curves_note(metrics), "</p>\n");
  if (any_drawn(curve(metrics, "train", "bits_per_base"))) {
    Plot bits = both_splits(metrics, "Bits per base", "bits per base", "bits_per_base");
    for (const Baseline& baseline : baselines(member(record, "results"))) {
      bits.levels.push_back({baseline.name, baseline.bits});
    }
    html += draw_plot(bits);
  }
  html += draw_plot(both_splits(metrics, "Loss", "nats per prediction", "loss"));
  html += draw_plot(both_splits(metrics, "Accuracy", "share predicted right", "accuracy"));
  html += "<div class=\"pair\">\n";
  html += one_curve(metrics, "Learning rate", "learning rate", "learning_rate", 2);
  html += one_curve(metrics, "Gradient norm, before clipping", "norm", "gradient_norm", 3);
  html += one_curve(metrics, "Speed of training", "tokens per second", "tokens_per_second", 0);
  html += memory_curves(metrics);
  html += one_curve(metrics, "Waiting for input", "share of the time", "input_wait", 4);
  html += one_curve(metrics, "GPU idle", "share of the time", "gpu_idle", 5);
  html += one_curve(metrics, "Context", "tokens", "context", 1);
  return html + "</div>\n";
}

// ---- tables

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

std::vector<Json> read_metrics(const fs::path& path) {
  std::vector<Json> lines;
  if (!path_exists(path)) return lines;
  for (const std::string& line : split(read_file(path, int64_t{1} << 33), '\n')) {
    if (line.empty()) continue;
    try {
      Json json = parse_json(line, "metrics.jsonl");
      if (json.is_object() && member(json, "step").is_number_integer()) {
        lines.push_back(std::move(json));
      }
    } catch (const Error&) {
      continue;
    }
  }
  return lines;
}

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
  body += curves(record, metrics);
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
