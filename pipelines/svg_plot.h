// SPDX-License-Identifier: Apache-2.0
/// Line plots as inline SVG: axes with round ticks, a legend, bands and level lines. Colours are
/// classes (`s0` to `s5`, `axis`, `grid`, `band`, `level`) of the page's style (plot_style()), so
/// that a plot follows the reader's light or dark scheme. Everything given as text is escaped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gmamba {

/// Text made safe as HTML content and attribute value; control bytes and invalid UTF-8 are shown
/// as \xNN.
std::string html_escape(std::string_view text);

struct PlotPoint {
  double x = 0;  ///< a count (tokens, bases): shown as a whole number
  double y = 0;  ///< not finite: the line is interrupted
  double low = 0;
  double high = 0;  ///< of the band, where the series has one
  bool fit = true;  ///< the y axis makes room for it, while there is any such point
};

struct PlotSeries {
  std::string label;
  std::vector<PlotPoint> points;  ///< by ascending x
  int colour = 0;                 ///< 0 to 5
  bool markers = false;           ///< a dot at each point, for few of them
  bool band = false;              ///< shade low to high
};

/// A dashed horizontal line to compare with.
struct PlotLevel {
  std::string label;
  double y = 0;
};

enum class PlotScale { kLinear, kLog2 };

struct Plot {
  std::string title;
  std::string x_label;
  std::string y_label;
  PlotScale x_scale = PlotScale::kLinear;
  bool y_from_zero = false;
  /// The y axis fits what comes after the first tenth of x; what lies outside is cut off.
  bool focus = false;
  std::vector<PlotSeries> series;
  std::vector<PlotLevel> levels;
};

/// Round values (1, 2 or 5 times a power of ten) within [low, high], about `wanted` of them.
std::vector<double> round_ticks(double low, double high, int wanted);
/// A value as an axis or table shows it beside others `step` apart: "0.25", "150k", "2.5M".
std::string tick_text(double value, double step, double largest);
/// At most `most` points: means of equal stretches of x, with the least and the largest y of each
/// as its band. Fewer points stay as they are.
std::vector<PlotPoint> thin_points(const std::vector<PlotPoint>& points, size_t most);

/// A <figure> with title, legend and <svg>; "" when no series has a point to draw.
std::string draw_plot(const Plot& plot);
/// The style sheet of figures.
std::string_view plot_style();

}  // namespace gmamba
