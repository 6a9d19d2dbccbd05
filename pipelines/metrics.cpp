// SPDX-License-Identifier: Apache-2.0
#include "pipelines/metrics.h"

#include <algorithm>
#include <cmath>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {

ClassMetrics class_metrics(std::span<const int32_t> truth, std::span<const int32_t> predicted,
                           int64_t classes) {
  require(truth.size() == predicted.size(), ErrorKind::kInternal, "class_metrics: ", truth.size(),
          " true and ", predicted.size(), " predicted classes");
  const auto n = static_cast<size_t>(classes);
  ClassMetrics m;
  m.count = static_cast<int64_t>(truth.size());
  m.confusion.assign(n, std::vector<int64_t>(n, 0));
  for (size_t i = 0; i < truth.size(); ++i) {
    require(truth[i] >= 0 && truth[i] < classes && predicted[i] >= 0 && predicted[i] < classes,
            ErrorKind::kInternal, "class_metrics: a class outside 0..", classes - 1);
    ++m.confusion[static_cast<size_t>(truth[i])][static_cast<size_t>(predicted[i])];
  }
  if (m.count == 0) return m;
  double correct = 0;
  double sum_squares_true = 0;
  double sum_squares_predicted = 0;
  double products = 0;
  double f1_sum = 0;
  int64_t f1_classes = 0;
  for (size_t c = 0; c < n; ++c) {
    double in_truth = 0;
    double in_predicted = 0;
    for (size_t k = 0; k < n; ++k) {
      in_truth += static_cast<double>(m.confusion[c][k]);
      in_predicted += static_cast<double>(m.confusion[k][c]);
    }
    const auto hits = static_cast<double>(m.confusion[c][c]);
    correct += hits;
    sum_squares_true += in_truth * in_truth;
    sum_squares_predicted += in_predicted * in_predicted;
    products += in_truth * in_predicted;
    if (in_truth + in_predicted > 0) {
      f1_sum += 2 * hits / (in_truth + in_predicted);
      ++f1_classes;
    }
  }
  const auto total = static_cast<double>(m.count);
  m.accuracy = correct / total;
  m.macro_f1 = f1_classes > 0 ? f1_sum / static_cast<double>(f1_classes) : 0;
  const double spread =
      std::sqrt((total * total - sum_squares_predicted) * (total * total - sum_squares_true));
  m.mcc = spread > 0 ? (correct * total - products) / spread : 0;
  return m;
}

RegressionMetrics regression_metrics(std::span<const float> truth,
                                     std::span<const float> predicted) {
  require(truth.size() == predicted.size(), ErrorKind::kInternal,
          "regression_metrics: ", truth.size(), " true and ", predicted.size(),
          " predicted values");
  RegressionMetrics m;
  m.count = static_cast<int64_t>(truth.size());
  if (m.count == 0) return m;
  const auto n = static_cast<double>(m.count);
  double mean_t = 0;
  double mean_p = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    mean_t += truth[i] / n;
    mean_p += predicted[i] / n;
  }
  double tt = 0;
  double pp = 0;
  double tp = 0;
  double squared = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double t = truth[i] - mean_t;
    const double p = predicted[i] - mean_p;
    tt += t * t;
    pp += p * p;
    tp += t * p;
    squared += std::pow(static_cast<double>(truth[i]) - predicted[i], 2);
  }
  m.mean_squared_error = squared / n;
  m.pearson = tt > 0 && pp > 0 ? tp / std::sqrt(tt * pp) : 0;
  m.r_squared = tt > 0 ? 1 - squared / tt : 0;
  return m;
}

std::vector<int32_t> argmax_rows(std::span<const float> values, int64_t classes) {
  std::vector<int32_t> best;
  const auto n = static_cast<size_t>(classes);
  for (size_t row = 0; row + n <= values.size(); row += n) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(row);
    best.push_back(static_cast<int32_t>(
        std::max_element(begin, begin + static_cast<std::ptrdiff_t>(n)) - begin));
  }
  return best;
}

Json to_json(const ClassMetrics& metrics, const std::vector<std::string>& labels) {
  return {{"count", metrics.count}, {"accuracy", metrics.accuracy},
          {"mcc", metrics.mcc},     {"macro_f1", metrics.macro_f1},
          {"labels", labels},       {"confusion", metrics.confusion}};
}

Json to_json(const RegressionMetrics& metrics) {
  return {{"count", metrics.count},
          {"mean_squared_error", metrics.mean_squared_error},
          {"pearson", metrics.pearson},
          {"r_squared", metrics.r_squared}};
}

std::string confusion_text(const ClassMetrics& metrics, const std::vector<std::string>& labels) {
  size_t width = 8;
  for (const std::string& label : labels)
    width = std::max(width, std::min<size_t>(24, label.size()));
  const auto cell = [&](const std::string& text) {
    const std::string shown = printable(text).substr(0, width);
    return std::string(width - shown.size() + 2, ' ') + shown;
  };
  std::string out = cell("true \\ as");
  for (const std::string& label : labels) out += cell(label);
  out += "\n";
  for (size_t t = 0; t < metrics.confusion.size(); ++t) {
    out += cell(labels[t]);
    for (const int64_t count : metrics.confusion[t]) out += cell(std::to_string(count));
    out += "\n";
  }
  return out;
}

}  // namespace gmamba
