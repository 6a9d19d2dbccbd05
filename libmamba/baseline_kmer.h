// SPDX-License-Identifier: Apache-2.0
/// What a classifier must beat: multinomial logistic regression on k-mer frequencies, with an L2
/// penalty chosen on held-out training sequences. Deterministic for any number of threads.
///
/// Features: square roots of relative k-mer frequencies (so that the length of a sequence does not
/// matter and common k-mers do not drown the rest), centred and divided by their spread in the
/// training set. Fitted by L-BFGS on the full batch. Sequences much longer than those of the
/// training set are predicted in pieces of their length, whose log-probabilities are averaged.
/// Source: Nocedal and Wright 2006, Numerical Optimization, chapters 3 and 7.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "libmamba/base_codes.h"
#include "libmamba/core/context.h"

namespace gmamba {

struct KmerOptions {
  int k = 6;              ///< 1 to 8
  bool canonical = true;  ///< a k-mer and its reverse complement are one feature
  double l2 = 0;          ///< penalty; 0: the best of a grid on one fifth of the training set
  int max_iterations = 200;
};

class KmerBaseline {
 public:
  /// `classes` >= 2. Throws kUsage when an option is out of range.
  KmerBaseline(KmerOptions options, int classes);

  /// Base codes (base_codes.h) of one sequence and its class.
  void add_training(std::span<const uint8_t> codes, int label);
  int64_t training_size() const { return static_cast<int64_t>(labels_.size()); }
  /// Throws kInput when no sequence was added. The training set is released.
  void fit(const Context& ctx);
  /// Probability of each class; those of the training set for a sequence without k-mers.
  std::vector<double> predict(std::span<const uint8_t> codes) const;

  double l2() const { return chosen_l2_; }
  int iterations() const { return iterations_; }

 private:
  struct Entry {
    uint32_t feature;
    float value;
  };

  void count(std::span<const uint8_t> codes, std::vector<Entry>& entries) const;
  std::span<const Entry> row_entries(size_t row) const {
    return std::span(entries_).subspan(row_begin_[row], row_begin_[row + 1] - row_begin_[row]);
  }
  void scores(std::span<const Entry> entries, std::span<const double> weights,
              std::span<double> scores) const;
  std::vector<double> uncentred(std::span<const double> weights) const;
  double loss(const Context& ctx, std::span<const size_t> rows, std::span<const double> weights,
              std::span<double> gradient) const;
  int fit_rows(const Context& ctx, std::span<const size_t> rows, double l2, double tolerance,
               std::vector<double>& weights) const;
  double choose_l2(const Context& ctx) const;
  std::vector<double> standardise();

  KmerOptions options_;
  size_t classes_;
  std::vector<uint32_t> feature_of_kmer_;  // canonical k-mers numbered without gaps
  size_t features_ = 0;
  // training set, compressed rows
  std::vector<Entry> entries_;
  std::vector<size_t> row_begin_{0};
  std::vector<int> labels_;
  std::vector<double> mean_;  // of each feature over its spread
  int64_t training_bases_ = 0;
  // the fitted model: (features + 1, classes), already divided by the spread; last the biases
  std::vector<double> weights_;
  std::vector<double> prior_;  // part of the training set in each class
  int64_t piece_bp_ = 0;
  double chosen_l2_ = 0;
  int iterations_ = 0;
};

}  // namespace gmamba
