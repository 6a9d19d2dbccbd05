// SPDX-License-Identifier: Apache-2.0
#include "libmamba/baseline_kmer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "libmamba/core/error.h"
#include "libmamba/core/parallel.h"
#include "libmamba/lbfgs.h"

namespace gmamba {
namespace {

constexpr int kMaxK = 8;
/// Gradients are summed in this many parts whatever the threads, so that the bits stay the same.
constexpr int64_t kParts = 16;

uint32_t reverse_complement_word(uint32_t word, int k) {
  uint32_t reversed = 0;
  for (int i = 0; i < k; ++i) {
    reversed = (reversed << 2) | (3 - ((word >> (2 * i)) & 3));
  }
  return reversed;
}

/// Scores to log-probabilities, in place.
void log_softmax(std::span<double> scores) {
  const double highest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - highest);
  const double shift = highest + std::log(sum);
  for (double& score : scores) score -= shift;
}

}  // namespace

KmerBaseline::KmerBaseline(KmerOptions options, int classes)
    : options_(options), classes_(static_cast<size_t>(std::max(classes, 0))) {
  require(options.k >= 1 && options.k <= kMaxK, ErrorKind::kUsage,
          "k-mer baseline: k = ", options.k, " is outside 1 to ", kMaxK);
  require(classes >= 2, ErrorKind::kUsage, "k-mer baseline: needs two classes, found ", classes);
  require(options.l2 >= 0 && std::isfinite(options.l2) && options.max_iterations >= 1,
          ErrorKind::kUsage, "k-mer baseline: penalty ", options.l2, " and ",
          options.max_iterations, " iterations are not usable");
  const uint32_t words = uint32_t{1} << (2 * options.k);
  feature_of_kmer_.resize(words);
  for (uint32_t word = 0; word < words; ++word) {
    const uint32_t twin = options.canonical ? reverse_complement_word(word, options.k) : word;
    feature_of_kmer_[word] =
        twin < word ? feature_of_kmer_[twin] : static_cast<uint32_t>(features_++);
  }
}

void KmerBaseline::count(std::span<const uint8_t> codes, std::vector<Entry>& entries) const {
  std::vector<uint32_t> found;
  found.reserve(codes.size());
  const auto mask = static_cast<uint32_t>(feature_of_kmer_.size() - 1);
  uint32_t word = 0;
  int known = 0;
  for (const uint8_t code : codes) {
    known = code < kNoBase ? known + 1 : 0;
    word = ((word << 2) | (code & 3u)) & mask;
    if (known >= options_.k) found.push_back(feature_of_kmer_[word]);
  }
  std::sort(found.begin(), found.end());
  const double all = static_cast<double>(found.size());
  for (size_t i = 0; i < found.size();) {
    size_t end = i;
    while (end < found.size() && found[end] == found[i]) ++end;
    entries.push_back(
        {found[i], static_cast<float>(std::sqrt(static_cast<double>(end - i) / all))});
    i = end;
  }
}

void KmerBaseline::add_training(std::span<const uint8_t> codes, int label) {
  require(label >= 0 && static_cast<size_t>(label) < classes_, ErrorKind::kInternal,
          "k-mer baseline: label ", label, " of ", classes_, " classes");
  require(weights_.empty(), ErrorKind::kInternal, "k-mer baseline: sequence added after fit()");
  count(codes, entries_);
  row_begin_.push_back(entries_.size());
  labels_.push_back(label);
  training_bases_ += static_cast<int64_t>(codes.size());
}

/// Weights are (features + 1, classes) row-major; the last row is the bias, which no entry names.
void KmerBaseline::scores(std::span<const Entry> entries, std::span<const double> weights,
                          std::span<double> scores) const {
  std::copy_n(weights.data() + features_ * classes_, classes_, scores.data());
  for (const Entry& entry : entries) {
    const double* row = weights.data() + entry.feature * classes_;
    for (size_t c = 0; c < classes_; ++c) scores[c] += static_cast<double>(entry.value) * row[c];
  }
}

/// Weights of centred features as weights of the features themselves: the mean goes into the bias.
/// Entries stay sparse, and the optimiser sees the better conditioned problem.
std::vector<double> KmerBaseline::uncentred(std::span<const double> weights) const {
  std::vector<double> plain(weights.begin(), weights.end());
  double* bias = plain.data() + features_ * classes_;
  for (size_t j = 0; j < features_; ++j) {
    for (size_t c = 0; c < classes_; ++c) bias[c] -= mean_[j] * weights[j * classes_ + c];
  }
  return plain;
}

/// Mean cross-entropy of `rows`; sets its gradient, in parts that depend on the row count only.
double KmerBaseline::loss(const Context& ctx, std::span<const size_t> rows,
                          std::span<const double> weights, std::span<double> gradient) const {
  const auto count = static_cast<int64_t>(rows.size());
  const double scale = 1 / static_cast<double>(rows.size());
  const std::vector<double> plain = uncentred(weights);
  std::vector<std::vector<double>> parts(gradient.empty() ? 0 : kParts);
  std::array<double, kParts> losses{};
  parallel_for(ctx, kParts, [&](int64_t part) {
    const auto p = static_cast<size_t>(part);
    if (!gradient.empty()) parts[p].assign(gradient.size(), 0.0);
    std::vector<double> score(classes_);
    for (int64_t i = count * part / kParts; i < count * (part + 1) / kParts; ++i) {
      const size_t row = rows[static_cast<size_t>(i)];
      const auto label = static_cast<size_t>(labels_[row]);
      scores(row_entries(row), plain, score);
      log_softmax(score);
      losses[p] -= score[label];
      if (gradient.empty()) continue;
      for (size_t c = 0; c < classes_; ++c) score[c] = std::exp(score[c]) - (c == label ? 1 : 0);
      double* bias = parts[p].data() + features_ * classes_;
      for (size_t c = 0; c < classes_; ++c) bias[c] += score[c];
      for (const Entry& entry : row_entries(row)) {
        double* at = parts[p].data() + entry.feature * classes_;
        for (size_t c = 0; c < classes_; ++c) at[c] += static_cast<double>(entry.value) * score[c];
      }
    }
  });
  std::fill(gradient.begin(), gradient.end(), 0.0);
  double sum = 0;
  for (const double part : losses) sum += part;
  for (const std::vector<double>& part : parts) {
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += scale * part[i];
  }
  for (size_t i = 0; i < features_ * classes_ && !gradient.empty(); ++i) {
    gradient[i] -= mean_[i / classes_] * gradient[features_ * classes_ + i % classes_];
  }
  return scale * sum;
}

int KmerBaseline::fit_rows(const Context& ctx, std::span<const size_t> rows, double l2,
                           double tolerance, std::vector<double>& weights) const {
  const size_t penalised = features_ * classes_;
  const auto objective = [&](std::span<const double> x, std::span<double> gradient) {
    double value = loss(ctx, rows, x, gradient);
    for (size_t i = 0; i < penalised; ++i) {
      value += 0.5 * l2 * x[i] * x[i];
      gradient[i] += l2 * x[i];
    }
    return value;
  };
  return minimise(objective, weights,
                  {.max_iterations = options_.max_iterations, .tolerance = tolerance});
}

/// Every fifth sequence of each class judges the penalties; from strong to weak, each fit starts
/// from the one before.
double KmerBaseline::choose_l2(const Context& ctx) const {
  std::vector<size_t> fitted;
  std::vector<size_t> judged;
  std::vector<int64_t> seen(classes_);
  for (size_t row = 0; row < labels_.size(); ++row) {
    (seen[static_cast<size_t>(labels_[row])]++ % 5 == 4 ? judged : fitted).push_back(row);
  }
  constexpr std::array<double, 7> kGrid = {10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5};
  constexpr double kRoughly = 1e-2;  // the order of the penalties shows long before the minimum
  if (judged.empty()) return kGrid[3];
  std::vector<double> weights((features_ + 1) * classes_);
  double best_loss = std::numeric_limits<double>::infinity();
  double best = kGrid[0];
  for (const double l2 : kGrid) {
    fit_rows(ctx, fitted, l2, kRoughly, weights);
    const double judged_loss = loss(ctx, judged, weights, {});
    if (judged_loss > best_loss) break;
    best_loss = judged_loss;
    best = l2;
  }
  return best;
}

/// Divides each feature by its spread over the training set, keeps the means; returns the factors.
std::vector<double> KmerBaseline::standardise() {
  std::vector<double> sum(features_);
  std::vector<double> squares(features_);
  for (const Entry& entry : entries_) {
    const auto value = static_cast<double>(entry.value);
    sum[entry.feature] += value;
    squares[entry.feature] += value * value;
  }
  const auto n = static_cast<double>(labels_.size());
  std::vector<double> factor(features_);
  mean_.resize(features_);
  for (size_t j = 0; j < features_; ++j) {
    const double variance = squares[j] / n - (sum[j] / n) * (sum[j] / n);
    // a feature that never varies tells nothing; its value rounds to any small variance
    factor[j] = variance > 1e-12 ? 1 / std::sqrt(variance) : 0;
    mean_[j] = sum[j] / n * factor[j];
  }
  for (Entry& entry : entries_) {
    entry.value = static_cast<float>(static_cast<double>(entry.value) * factor[entry.feature]);
  }
  return factor;
}

void KmerBaseline::fit(const Context& ctx) {
  require(!labels_.empty(), ErrorKind::kInput, "k-mer baseline: no training sequences");
  require(weights_.empty(), ErrorKind::kInternal, "k-mer baseline: fit() called twice");
  const std::vector<double> factor = standardise();
  chosen_l2_ = options_.l2 > 0 ? options_.l2 : choose_l2(ctx);
  std::vector<size_t> rows(labels_.size());
  for (size_t row = 0; row < rows.size(); ++row) rows[row] = row;
  constexpr double kFully = 1e-4;
  weights_.assign((features_ + 1) * classes_, 0.0);
  iterations_ = fit_rows(ctx, rows, chosen_l2_, kFully, weights_);
  weights_ = uncentred(weights_);
  for (size_t j = 0; j < features_; ++j) {
    for (size_t c = 0; c < classes_; ++c) weights_[j * classes_ + c] *= factor[j];
  }
  prior_.assign(classes_, 0.0);
  for (const int label : labels_) {
    prior_[static_cast<size_t>(label)] += 1 / static_cast<double>(labels_.size());
  }
  piece_bp_ = std::max<int64_t>(training_bases_ / training_size(), 1);
  entries_ = {};
}

std::vector<double> KmerBaseline::predict(std::span<const uint8_t> codes) const {
  require(!weights_.empty(), ErrorKind::kInternal, "k-mer baseline: predict() before fit()");
  const auto length = static_cast<int64_t>(codes.size());
  const int64_t pieces = std::max<int64_t>((length + piece_bp_ / 2) / piece_bp_, 1);
  std::vector<double> sum(classes_);
  std::vector<double> score(classes_);
  std::vector<Entry> entries;
  int64_t told = 0;  // pieces that hold a k-mer
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const auto begin = static_cast<size_t>(length * piece / pieces);
    const auto end = static_cast<size_t>(length * (piece + 1) / pieces);
    entries.clear();
    count(codes.subspan(begin, end - begin), entries);
    if (entries.empty()) continue;
    ++told;
    scores(entries, weights_, score);
    log_softmax(score);
    for (size_t c = 0; c < classes_; ++c) sum[c] += score[c];
  }
  if (told == 0) return prior_;
  for (double& value : sum) value /= static_cast<double>(told);
  log_softmax(sum);
  for (double& value : sum) value = std::exp(value);
  return sum;
}

}  // namespace gmamba
