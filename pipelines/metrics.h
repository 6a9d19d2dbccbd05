// SPDX-License-Identifier: Apache-2.0
/// What is said of predictions against the truth.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "libmamba/core/json.h"

namespace gmamba {

struct ClassMetrics {
  int64_t count = 0;
  double accuracy = 0;
  double mcc = 0;  ///< Matthews correlation, multi-class form (Gorodkin 2004); 0 where undefined
  double macro_f1 = 0;  ///< mean over classes that occur in truth or prediction
  std::vector<std::vector<int64_t>> confusion;  ///< [true][predicted]
};

/// Classes are in [0, classes); throws kInternal otherwise or when sizes differ.
ClassMetrics class_metrics(std::span<const int32_t> truth, std::span<const int32_t> predicted,
                           int64_t classes);

struct RegressionMetrics {
  int64_t count = 0;
  double mean_squared_error = 0;
  double pearson = 0;  ///< 0 where a side is constant
  double r_squared = 0;
};
RegressionMetrics regression_metrics(std::span<const float> truth,
                                     std::span<const float> predicted);

/// Index of the largest of each row of (rows, classes); the first of equals.
std::vector<int32_t> argmax_rows(std::span<const float> values, int64_t classes);

Json to_json(const ClassMetrics& metrics, const std::vector<std::string>& labels);
Json to_json(const RegressionMetrics& metrics);

/// The confusion matrix as an aligned table, true classes as rows.
std::string confusion_text(const ClassMetrics& metrics, const std::vector<std::string>& labels);

}  // namespace gmamba
