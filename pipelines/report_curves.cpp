// SPDX-License-Identifier: Apache-2.0
#include "pipelines/report_curves.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"
#include "pipelines/run_figures.h"
#include "pipelines/svg_plot.h"

namespace gmamba {
namespace {

constexpr size_t kPointsDrawn = 500;  // of a curve
constexpr double kMebibyte = 1048576;

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

}  // namespace

std::string report_curves(const Json& record, const std::vector<Json>& metrics) {
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

}  // namespace gmamba
