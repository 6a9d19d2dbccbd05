// SPDX-License-Identifier: Apache-2.0
#include "pipelines/plain_model.h"

#include <cmath>

#include "libmamba/core/text.h"

namespace gmamba {
namespace {

using Rows = std::vector<double>;

size_t at(int64_t row, int64_t width, int64_t column) {
  return static_cast<size_t>(row * width + column);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

/// y (M, W) = x (M, K) weight (W, K)^T
Rows product(const Rows& x, std::span<const double> weight, int64_t rows, int64_t inner,
             int64_t width) {
  Rows y(static_cast<size_t>(rows * width));
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t w = 0; w < width; ++w) {
      double sum = 0;
      for (int64_t k = 0; k < inner; ++k) sum += x[at(m, inner, k)] * weight[at(w, inner, k)];
      y[at(m, width, w)] = sum;
    }
  }
  return y;
}

Rows normed(const Rows& x, std::span<const double> weight, int64_t rows, double epsilon) {
  const auto width = static_cast<int64_t>(weight.size());
  Rows y(x.size());
  for (int64_t m = 0; m < rows; ++m) {
    double squares = 0;
    for (int64_t d = 0; d < width; ++d) squares += x[at(m, width, d)] * x[at(m, width, d)];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + epsilon);
    for (int64_t d = 0; d < width; ++d) {
      y[at(m, width, d)] = x[at(m, width, d)] * scale * weight[static_cast<size_t>(d)];
    }
  }
  return y;
}

}  // namespace

PlainModel::PlainModel(const ModelConfig& config, const ParameterBuffer& values)
    : config_(config), layout_(values.shared_layout()) {
  require(!config.use_bias && config.use_conv_bias, ErrorKind::kInternal,
          "plain model: projections have no bias, the convolution has one");
  const auto flat = values.flat().flat<const float>();
  values_.assign(flat.begin(), flat.end());
}

std::span<const double> PlainModel::parameter(const std::string& name) const {
  const int index = layout_->find(name);
  require(index >= 0, ErrorKind::kInternal, "plain model: no parameter ", name);
  const ParameterInfo& info = layout_->all()[static_cast<size_t>(index)];
  return std::span(values_).subspan(static_cast<size_t>(info.offset),
                                    static_cast<size_t>(info.size));
}

void PlainModel::add_block(int64_t layer, int64_t length, Rows& residual) const {
  const int64_t D = config_.d_model;
  const int64_t E = config_.d_inner();
  const int64_t N = config_.d_state;
  const int64_t K = config_.d_conv;
  const int64_t R = config_.dt_rank;
  const std::string prefix = concat("backbone.layers.", layer, ".");
  const auto weight = [&](const char* name) { return parameter(prefix + name); };

  const Rows u = normed(residual, weight("norm.weight"), length, config_.norm_epsilon);
  const Rows xz = product(u, weight("mixer.in_proj.weight"), length, D, 2 * E);
  const auto conv = weight("mixer.conv1d.weight");
  const auto conv_bias = weight("mixer.conv1d.bias");
  Rows x(static_cast<size_t>(length * E));
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t e = 0; e < E; ++e) {
      double sum = conv_bias[static_cast<size_t>(e)];
      for (int64_t k = 0; k < K; ++k) {
        const int64_t from = t - (K - 1) + k;
        if (from >= 0) sum += conv[at(e, K, k)] * xz[at(from, 2 * E, e)];
      }
      x[at(t, E, e)] = sum * sigmoid(sum);
    }
  }
  const Rows x_dbl = product(x, weight("mixer.x_proj.weight"), length, E, R + 2 * N);
  const auto dt_proj = weight("mixer.dt_proj.weight");
  const auto dt_bias = weight("mixer.dt_proj.bias");
  const auto A_log = weight("mixer.A_log");
  const auto skip = weight("mixer.D");
  Rows y(static_cast<size_t>(length * E));
  for (int64_t e = 0; e < E; ++e) {
    Rows h(static_cast<size_t>(N));
    for (int64_t t = 0; t < length; ++t) {
      double delta = dt_bias[static_cast<size_t>(e)];
      for (int64_t r = 0; r < R; ++r) delta += dt_proj[at(e, R, r)] * x_dbl[at(t, R + 2 * N, r)];
      delta = softplus(delta);
      double out = skip[static_cast<size_t>(e)] * x[at(t, E, e)];
      for (int64_t n = 0; n < N; ++n) {
        double& state = h[static_cast<size_t>(n)];
        state = std::exp(-std::exp(A_log[at(e, N, n)]) * delta) * state +
                delta * x_dbl[at(t, R + 2 * N, R + n)] * x[at(t, E, e)];
        out += x_dbl[at(t, R + 2 * N, R + N + n)] * state;
      }
      const double gate = xz[at(t, 2 * E, E + e)];
      y[at(t, E, e)] = out * gate * sigmoid(gate);
    }
  }
  const Rows branch = product(y, weight("mixer.out_proj.weight"), length, E, D);
  for (size_t i = 0; i < residual.size(); ++i) residual[i] += branch[i];
}

std::vector<double> PlainModel::hidden(std::span<const uint8_t> tokens) const {
  const auto length = static_cast<int64_t>(tokens.size());
  const auto table = parameter("backbone.embeddings.weight");
  Rows residual;
  for (const uint8_t token : tokens) {
    const auto row =
        table.subspan(at(token, config_.d_model, 0), static_cast<size_t>(config_.d_model));
    residual.insert(residual.end(), row.begin(), row.end());
  }
  for (int64_t layer = 0; layer < config_.n_layers; ++layer) add_block(layer, length, residual);
  return normed(residual, parameter("backbone.norm_f.weight"), length, config_.norm_epsilon);
}

double PlainModel::loss(std::span<const uint8_t> tokens) const {
  const auto length = static_cast<int64_t>(tokens.size());
  const int64_t V = config_.vocab_size;
  const auto head =
      parameter(config_.tie_embeddings ? "backbone.embeddings.weight" : "lm_head.weight");
  const Rows logits = product(hidden(tokens), head, length, config_.d_model, V);
  double total = 0;
  for (int64_t t = 0; t + 1 < length; ++t) {
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(logits[at(t, V, v)]);
    total += std::log(sum) - logits[at(t, V, tokens[static_cast<size_t>(t + 1)])];
  }
  return total;
}

}  // namespace gmamba
