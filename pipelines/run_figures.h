// SPDX-License-Identifier: Apache-2.0
/// What metrics.jsonl and run.json of a training run say, read where anything may be missing or of
/// another type: a figure that is not there is NaN, and shown as "-".
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

/// A value of an object, or null.
const Json& member(const Json& object, std::string_view key);
/// A number of an object, or NaN.
double number(const Json& object, std::string_view key);

/// Whether a line is of this split.
bool is_split(const Json& line, std::string_view split);
/// The newest line of a split, or null.
Json newest(const std::vector<Json>& metrics, std::string_view split);
/// The newest line about held-out bases: that of all of them where the run has ended with one.
Json newest_held_out(const std::vector<Json>& metrics);
/// Of a run whose evaluations read a sample, and the last one all.
bool has_both(const std::vector<Json>& metrics);
/// Tokens of the run by the time that they took at the speed of each line; 0 where no line has one.
double mean_speed(const std::vector<Json>& metrics);

struct Baseline {
  std::string name;
  double bits = 0;
};

/// markov_order_K_bits_per_base of the results.
std::vector<Baseline> baselines(const Json& results);

std::string figure_text(double value, int digits);
/// As a whole number.
std::string count_text(double value);

}  // namespace gmamba
