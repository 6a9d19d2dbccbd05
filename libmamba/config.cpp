// SPDX-License-Identifier: Apache-2.0
#include "libmamba/config.h"

#include <cmath>
#include <limits>
#include <set>
#include <string_view>

#include "libmamba/core/checked.h"
#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

constexpr int64_t kLargestSize = int64_t{1} << 24;
constexpr int64_t kMostLayers = int64_t{1} << 14;
constexpr int64_t kMostLabels = int64_t{1} << 16;
constexpr int64_t kMostParameters = int64_t{1} << 44;

void check_size(std::string_view field, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high, ErrorKind::kInput, "config: ", field, " must lie in ", low,
          " to ", high, ", found ", value);
}

void check_number(std::string_view field, double value, bool positive) {
  require(std::isfinite(value) && (positive ? value > 0 : value >= 0), ErrorKind::kInput,
          "config: ", field, " must be a ", positive ? "positive" : "non-negative",
          " number, found ", value);
}

void check_labels(const ModelConfig& config) {
  const auto count = static_cast<int64_t>(config.labels.size());
  switch (config.task) {
    case TaskKind::kNone:
      require(count == 0, ErrorKind::kInput, "config: ", count, " labels without a task");
      break;
    case TaskKind::kClassification:
      check_size("the number of labels of a classifier", count, 2, kMostLabels);
      break;
    case TaskKind::kRegression:
      check_size("the number of targets of a regression", count, 1, kMostLabels);
      break;
  }
  std::set<std::string_view> seen;
  for (const std::string& label : config.labels) {
    require(!label.empty() && is_utf8(label), ErrorKind::kInput, "config: the label '",
            printable(label), "' is empty or not UTF-8 text");
    require(seen.insert(label).second, ErrorKind::kInput, "config: the label '", printable(label),
            "' stands twice");
  }
}

/// Sizes are at most 2^24, so that products of two cannot overflow.
void check_count(const ModelConfig& c) {
  const int64_t e = c.d_inner();
  const int64_t per_channel = 3 * c.d_model + 2 * c.dt_rank + 3 * c.d_state + c.d_conv + 4;
  const int64_t layer = checked_add(checked_mul(e, per_channel, "config"), 2 * c.d_model, "config");
  const int64_t rows = 2 * c.vocab_size + static_cast<int64_t>(c.labels.size()) + 1;
  const int64_t total =
      checked_add(checked_mul(layer, c.n_layers, "config"), checked_mul(rows, c.d_model, "config"),
                  "config: the number of parameters");
  require(total <= kMostParameters, ErrorKind::kInput, "config: about ", total,
          " parameters; at most ", kMostParameters, " can be addressed");
}

}  // namespace

void ModelConfig::validate() const {
  require(arch == "mamba", ErrorKind::kInput, "config: the architecture must be mamba, found '",
          printable(arch), "'");
  check_size("vocab_size", vocab_size, 1, 256);
  check_size("d_model", d_model, 1, kLargestSize);
  check_size("n_layers", n_layers, 1, kMostLayers);
  check_size("d_state", d_state, 1, 64);
  check_size("d_conv", d_conv, 1, 4);
  check_size("expand", expand, 1, kLargestSize);
  check_size("d_inner (expand times d_model)", d_inner(), 1, kLargestSize);
  check_size("dt_rank", dt_rank, 1, kLargestSize);
  check_number("norm_epsilon", norm_epsilon, true);
  check_number("dt_min", dt_min, true);
  check_number("dt_max", dt_max, true);
  require(dt_min <= dt_max, ErrorKind::kInput, "config: dt_min ", dt_min, " is above dt_max ",
          dt_max);
  check_number("dt_init_floor", dt_init_floor, false);
  check_number("dt_scale", dt_scale, true);
  check_size("pad_token", pad_token, -1, vocab_size - 1);
  check_size("bos_token", bos_token, -1, vocab_size - 1);
  check_size("eos_token", eos_token, -1, vocab_size - 1);
  check_labels(*this);
  check_size("trained_context", trained_context, 0, std::numeric_limits<int64_t>::max());
  check_count(*this);
}

}  // namespace gmamba
