// SPDX-License-Identifier: Apache-2.0
#include "pipelines/run_figures.h"

#include <cmath>
#include <limits>

#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"

namespace gmamba {

namespace fs = std::filesystem;

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

bool is_split(const Json& line, std::string_view split) {
  const Json& value = member(line, "split");
  return value.is_string() && value.get<std::string>() == split;
}

Json newest(const std::vector<Json>& metrics, std::string_view split) {
  for (auto line = metrics.rbegin(); line != metrics.rend(); ++line) {
    if (is_split(*line, split)) return *line;
  }
  return {};
}

Json newest_held_out(const std::vector<Json>& metrics) {
  const Json sample = newest(metrics, "valid");
  const Json all = newest(metrics, "valid_all");
  const bool older = number(all, "step") < number(sample, "step");
  return all.is_null() || older ? sample : all;
}

bool has_both(const std::vector<Json>& metrics) {
  const double sample = number(newest(metrics, "valid"), "bases");
  const double all = number(newest(metrics, "valid_all"), "bases");
  return std::isfinite(sample) && std::isfinite(all) && sample != all;
}

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

std::string figure_text(double value, int digits) {
  return std::isfinite(value) ? format_number(value, digits) : std::string("-");
}

std::string count_text(double value) {
  return std::isfinite(value) && std::abs(value) < 9e18
             ? format_count(static_cast<int64_t>(std::llround(value)))
             : std::string("-");
}

}  // namespace gmamba
