// SPDX-License-Identifier: Apache-2.0
#include "pipelines/svg_plot.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr double kWidth = 760, kHeight = 300;
constexpr double kLeft = 70, kRight = 18, kTop = 10, kBottom = 46;

std::string fixed(double value, int decimals) {
  std::array<char, 64> text{};
  const double bounded = std::clamp(value, -1e30, 1e30);
  const auto [end, code] = std::to_chars(text.data(), text.data() + text.size(), bounded,
                                         std::chars_format::fixed, decimals);
  return code == std::errc() ? std::string(text.data(), end) : std::string("0");
}

/// A coordinate of the drawing.
std::string at(double value) { return fixed(value, 1); }

/// What is drawn of one axis, and where.
struct Axis {
  double low = 0;
  double high = 1;
  double from = 0;  // pixel of low
  double to = 1;    // pixel of high
  bool logarithmic = false;

  double value(double v) const { return logarithmic ? std::log2(v) : v; }
  double pixel(double v) const {
    return from + (value(v) - value(low)) / (value(high) - value(low)) * (to - from);
  }
};

bool drawable(const PlotPoint& point, PlotScale scale) {
  return std::isfinite(point.x) && std::isfinite(point.y) &&
         (scale == PlotScale::kLinear || point.x > 0);
}

bool has_band(const PlotSeries& series, const PlotPoint& point) {
  return series.band && std::isfinite(point.low) && std::isfinite(point.high);
}

struct Extent {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

/// Axes around everything that is drawn; false when there is nothing.
bool find_axes(const Plot& plot, Axis& x, Axis& y) {
  Extent xs, ys;
  for (const PlotSeries& series : plot.series) {
    for (const PlotPoint& point : series.points) {
      if (drawable(point, plot.x_scale)) xs.include(point.x);
    }
  }
  if (xs.low > xs.high) return false;
  const double focus = plot.focus ? xs.low + 0.1 * (xs.high - xs.low) : xs.low;
  const auto within = [&](const PlotPoint& point) {
    return drawable(point, plot.x_scale) && point.x >= focus;
  };
  const bool all = std::none_of(plot.series.begin(), plot.series.end(), [&](const PlotSeries& s) {
    return std::any_of(s.points.begin(), s.points.end(),
                       [&](const PlotPoint& point) { return within(point) && point.fit; });
  });
  for (const PlotSeries& series : plot.series) {
    for (const PlotPoint& point : series.points) {
      if (!within(point) || !(all || point.fit)) continue;
      ys.include(point.y);
      if (has_band(series, point)) {
        ys.include(point.low);
        ys.include(point.high);
      }
    }
  }
  for (const PlotLevel& level : plot.levels) {
    if (std::isfinite(level.y)) ys.include(level.y);
  }
  if (plot.y_from_zero) ys.include(0);
  const bool log = plot.x_scale == PlotScale::kLog2;
  if (xs.low == xs.high) {
    const double around = xs.low == 0 ? 1 : std::abs(xs.low) / 2;
    xs = {xs.low - around, xs.high + around};
  }
  const double span = ys.high - ys.low;
  const double room = span > 0 ? 0.06 * span : std::max(1e-12, std::abs(ys.high) * 0.05 + 1e-9);
  const double below = plot.y_from_zero && ys.low >= 0 ? 0 : room;
  x = {xs.low, xs.high, kLeft, kWidth - kRight, log};
  y = {ys.low - below, ys.high + room, kHeight - kBottom, kTop, false};
  return true;
}

std::vector<double> x_ticks(const Axis& x) {
  if (!x.logarithmic) return round_ticks(x.low, x.high, 7);
  std::vector<double> ticks;
  const int first = static_cast<int>(std::ceil(std::log2(x.low) - 1e-9));
  const int last = static_cast<int>(std::floor(std::log2(x.high) + 1e-9));
  const int stride = std::max(1, (last - first + 11) / 12);
  for (int k = first; k <= last; k += stride) ticks.push_back(std::exp2(k));
  return ticks;
}

std::string draw_axes(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg;
  const std::vector<double> ys = round_ticks(y.low, y.high, 6);
  const double y_step = ys.size() > 1 ? ys[1] - ys[0] : 0;
  for (const double tick : ys) {
    const std::string py = at(y.pixel(tick));
    svg += concat("<line class=\"grid\" x1=\"", at(kLeft), "\" x2=\"", at(kWidth - kRight),
                  "\" y1=\"", py, "\" y2=\"", py, "\"/>");
    svg +=
        concat("<text class=\"tick\" text-anchor=\"end\" dominant-baseline=\"middle\" x=\"",
               at(kLeft - 8), "\" y=\"", py, "\">",
               tick_text(tick, y_step, std::max(std::abs(y.low), std::abs(y.high))), "</text>\n");
  }
  const std::vector<double> xs = x_ticks(x);
  const double x_step = xs.size() > 1 ? xs[1] - xs[0] : 0;
  for (const double tick : xs) {
    const std::string px = at(x.pixel(tick));
    svg += concat("<line class=\"axis\" x1=\"", px, "\" x2=\"", px, "\" y1=\"",
                  at(kHeight - kBottom), "\" y2=\"", at(kHeight - kBottom + 5), "\"/>");
    const std::string text = x.logarithmic ? tick_text(tick, tick >= 1024 ? 1024 : 1, tick)
                                           : tick_text(tick, x_step, std::abs(x.high));
    svg += concat("<text class=\"tick\" text-anchor=\"middle\" x=\"", px, "\" y=\"",
                  at(kHeight - kBottom + 18), "\">", text, "</text>\n");
  }
  svg += concat("<line class=\"axis\" x1=\"", at(kLeft), "\" x2=\"", at(kWidth - kRight),
                "\" y1=\"", at(kHeight - kBottom), "\" y2=\"", at(kHeight - kBottom), "\"/>\n");
  const double middle = (kTop + kHeight - kBottom) / 2;
  svg +=
      concat("<text class=\"label\" text-anchor=\"middle\" x=\"", at((kLeft + kWidth - kRight) / 2),
             "\" y=\"", at(kHeight - 8), "\">", html_escape(plot.x_label), "</text>\n");
  svg +=
      concat("<text class=\"label\" text-anchor=\"middle\" transform=\"rotate(-90 14 ", at(middle),
             ")\" x=\"14\" y=\"", at(middle), "\">", html_escape(plot.y_label), "</text>\n");
  return svg;
}

std::string draw_band(const PlotSeries& series, const Axis& x, const Axis& y, PlotScale scale) {
  std::string forth, back;
  for (const PlotPoint& point : series.points) {
    if (!drawable(point, scale) || !has_band(series, point)) continue;
    forth += concat(at(x.pixel(point.x)), ",", at(y.pixel(point.high)), " ");
    back.insert(0, concat(at(x.pixel(point.x)), ",", at(y.pixel(point.low)), " "));
  }
  if (forth.empty()) return {};
  return concat("<polygon class=\"band f", series.colour, "\" points=\"", forth, back, "\"/>\n");
}

std::string draw_series(const PlotSeries& series, const Axis& x, const Axis& y, PlotScale scale) {
  std::string svg = series.band ? draw_band(series, x, y, scale) : "";
  std::string path, dots;
  bool pen_down = false;
  for (const PlotPoint& point : series.points) {
    if (!drawable(point, scale)) {
      pen_down = false;
      continue;
    }
    const std::string px = at(x.pixel(point.x));
    const std::string py = at(y.pixel(point.y));
    path += concat(pen_down ? "L" : "M", px, " ", py, " ");
    pen_down = true;
    if (series.markers || series.points.size() == 1) {
      dots += concat("<circle class=\"f", series.colour, "\" r=\"3.2\" cx=\"", px, "\" cy=\"", py,
                     "\"><title>", html_escape(series.label), ": ", format_number(point.y, 6),
                     " at ", format_count(std::llround(std::clamp(point.x, -9e18, 9e18))),
                     "</title></circle>\n");
    }
  }
  svg += concat("<path class=\"line s", series.colour, "\" d=\"", path, "\"/>\n");
  return svg + dots;
}

std::string draw_level(const PlotLevel& level, size_t index, const Axis& y) {
  if (!std::isfinite(level.y)) return {};
  const std::string py = at(y.pixel(level.y));
  return concat("<line class=\"level", index % 2 == 0 ? "" : " odd", "\" x1=\"", at(kLeft),
                "\" x2=\"", at(kWidth - kRight), "\" y1=\"", py, "\" y2=\"", py, "\"><title>",
                html_escape(level.label), ": ", format_number(level.y, 6), "</title></line>\n");
}

std::string draw_legend(const Plot& plot) {
  std::string html = "<div class=\"legend\">";
  for (const PlotSeries& series : plot.series) {
    if (series.points.empty()) continue;
    html += concat("<span><i class=\"b", series.colour, "\"></i>", html_escape(series.label),
                   "</span>");
  }
  for (size_t i = 0; i < plot.levels.size(); ++i) {
    html += concat("<span><i class=\"dashes", i % 2 == 0 ? "" : " odd", "\"></i>",
                   html_escape(plot.levels[i].label), " ", format_number(plot.levels[i].y, 5),
                   "</span>");
  }
  return html + "</div>\n";
}

}  // namespace

std::string html_escape(std::string_view text) {
  std::string safe;
  // in parts: printable() cuts what is longer than a name
  for (size_t i = 0; i < text.size();) {
    size_t end = std::min(text.size(), i + 28);
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U &&
           end > i + 24) {
      --end;  // not within a character
    }
    safe += printable(text.substr(i, end - i));
    i = end;
  }
  std::string out;
  for (const char c : safe) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::vector<double> round_ticks(double low, double high, int wanted) {
  std::vector<double> ticks;
  if (!(high > low) || wanted < 1 || !std::isfinite(high - low)) return ticks;
  const double raw = (high - low) / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double share = raw / power;
  const double step = power * (share <= 1.5 ? 1 : share <= 3.5 ? 2 : share <= 7.5 ? 5 : 10);
  const double first = std::ceil(low / step - 1e-9);
  for (int k = 0; k <= 4 * wanted; ++k) {
    const double tick = (first + k) * step;
    if (tick > high + 1e-9 * step) break;
    ticks.push_back(tick == 0 ? 0 : tick);  // no minus zero
  }
  return ticks;
}

std::string tick_text(double value, double step, double largest) {
  if (value == 0) return "0";
  if (largest < 1e-3) return format_number(value, 3);
  struct Unit {
    double size;
    const char* name;
  };
  Unit unit{1, ""};
  for (const Unit& larger : {Unit{1e3, "k"}, Unit{1e6, "M"}, Unit{1e9, "G"}, Unit{1e12, "T"}}) {
    if (largest >= 2 * larger.size && (largest >= 1e4)) unit = larger;
  }
  const double shown_step = step > 0 ? step / unit.size : std::abs(value) / unit.size / 100;
  const int decimals =
      static_cast<int>(std::clamp(std::ceil(-std::log10(shown_step) - 1e-9), 0.0, 9.0));
  return fixed(value / unit.size, decimals) + unit.name;
}

std::vector<PlotPoint> thin_points(const std::vector<PlotPoint>& points, size_t most) {
  std::vector<PlotPoint> thin;
  if (points.size() <= most || most == 0) {
    thin = points;
    for (PlotPoint& point : thin) point.low = point.high = point.y;
    return thin;
  }
  for (size_t part = 0; part < most; ++part) {
    const size_t begin = part * points.size() / most;
    const size_t end = (part + 1) * points.size() / most;
    PlotPoint mean;
    Extent extent;
    double count = 0;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(points[i].y)) continue;
      mean.x += points[i].x;
      mean.y += points[i].y;
      extent.include(points[i].y);
      ++count;
    }
    if (count == 0) {
      thin.push_back(points[begin]);  // a gap stays a gap
      continue;
    }
    thin.push_back({mean.x / count, mean.y / count, extent.low, extent.high});
  }
  return thin;
}

std::string draw_plot(const Plot& plot) {
  Axis x, y;
  if (!find_axes(plot, x, y)) return {};
  std::string html = concat("<figure>\n<figcaption>", html_escape(plot.title), "</figcaption>\n",
                            draw_legend(plot), "<svg viewBox=\"0 0 ", fixed(kWidth, 0), " ",
                            fixed(kHeight, 0), "\" role=\"img\" aria-label=\"",
                            html_escape(plot.title), "\">\n", draw_axes(plot, x, y));
  // an inner frame cuts off what lies outside the axes; dots at its border stay whole
  const std::string frame =
      concat(at(kLeft - 5), " ", at(kTop - 5), " ", at(kWidth - kRight - kLeft + 10), " ",
             at(kHeight - kBottom - kTop + 10));
  html += concat("<svg x=\"", at(kLeft - 5), "\" y=\"", at(kTop - 5), "\" width=\"",
                 at(kWidth - kRight - kLeft + 10), "\" height=\"",
                 at(kHeight - kBottom - kTop + 10), "\" viewBox=\"", frame, "\">\n");
  for (size_t i = 0; i < plot.levels.size(); ++i) html += draw_level(plot.levels[i], i, y);
  for (const PlotSeries& series : plot.series) html += draw_series(series, x, y, plot.x_scale);
  html += "</svg>\n";
  return html + "</svg>\n</figure>\n";
}

std::string_view plot_style() {
  return R"(:root{--c0:#0b6bcb;--c1:#c4520a;--c2:#1a7f4b;--c3:#8440c0;--c4:#b3261e;--c5:#5f6670;
--line:#c9ced6;--soft:#e9ecf0;--text:#1d2126;--faint:#5b636d;--page:#fff;--card:#f7f8fa}
@media(prefers-color-scheme:dark){:root{--c0:#6cb2ff;--c1:#ff9d5c;--c2:#5fd198;--c3:#c79bff;
--c4:#ff8a80;--c5:#a9b2bd;--line:#4a525c;--soft:#2b3138;--text:#e7eaee;--faint:#a3acb7;
--page:#15181c;--card:#1d2126}}
figure{margin:0 0 1.6em;padding:14px 16px 8px;background:var(--card);border-radius:8px}
figcaption{font-weight:600;margin-bottom:4px}
figure>svg{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}
.legend{font-size:13px;color:var(--faint);display:flex;flex-wrap:wrap;gap:2px 18px}
.legend i{display:inline-block;width:16px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}
.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}
.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}
.f3{fill:var(--c3)}.f4{fill:var(--c4)}.f5{fill:var(--c5)}
.b0{background:var(--c0)}.b1{background:var(--c1)}.b2{background:var(--c2)}
.b3{background:var(--c3)}.b4{background:var(--c4)}.b5{background:var(--c5)}
.band{opacity:.18;stroke:none}
.grid{stroke:var(--soft)}.axis{stroke:var(--line)}
.level{stroke:var(--faint);stroke-width:1.4;stroke-dasharray:6 4}.level.odd{stroke-dasharray:2 3}
.legend .dashes{height:0;border-top:2px dashed var(--faint)}.legend .odd{border-top-style:dotted}
.tick{fill:var(--faint);font-variant-numeric:tabular-nums}.label{fill:var(--text)}
)";
}

}  // namespace gmamba
