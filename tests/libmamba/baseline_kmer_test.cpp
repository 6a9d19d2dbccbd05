// SPDX-License-Identifier: Apache-2.0
#include "libmamba/baseline_kmer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "libmamba/core/error.h"
#include "libmamba/core/random.h"

namespace gmamba {
namespace {

std::string complement(const std::string& text) {
  std::string out(text.rbegin(), text.rend());
  for (char& letter : out) {
    letter = letter == 'A' ? 'T' : letter == 'C' ? 'G' : letter == 'G' ? 'C' : 'A';
  }
  return out;
}

std::string random_text(Random& random, size_t length, double gc) {
  std::string text(length, 'A');
  for (char& letter : text) {
    letter = random.uniform() < gc ? "CG"[random.below(2)] : "AT"[random.below(2)];
  }
  return text;
}

struct Labelled {
  std::string text;
  int label;
};

std::vector<Labelled> two_classes(uint64_t seed, int count, size_t length, double low,
                                  double high) {
  Random random(seed, RandomUse::kTest);
  std::vector<Labelled> rows;
  for (int i = 0; i < count; ++i) {
    rows.push_back({random_text(random, length, i % 2 == 0 ? low : high), i % 2});
  }
  return rows;
}

KmerBaseline fitted(const std::vector<Labelled>& rows, KmerOptions options, int threads = 1) {
  const Context ctx({}, {.threads = threads});
  KmerBaseline baseline(options, 2);
  for (const Labelled& row : rows) baseline.add_training(encode_bases(row.text), row.label);
  baseline.fit(ctx);
  return baseline;
}

/// The same model from its definition, by plain gradient descent over dense strings of features.
double naive_probability(const std::vector<Labelled>& train, const std::string& text, size_t k,
                         double l2) {
  std::map<std::string, size_t> index;
  const auto feature_row = [&](const std::string& sequence, bool grow) {
    std::vector<double> row(index.size());
    const double all = static_cast<double>(sequence.size() - k + 1);
    for (size_t i = 0; i + k <= sequence.size(); ++i) {
      const std::string word = sequence.substr(i, k);
      if (grow) index.emplace(word, index.size());
      row.resize(index.size());
      if (index.contains(word)) row[index.at(word)] += 1 / all;
    }
    for (double& value : row) value = std::sqrt(value);
    return row;
  };
  std::vector<std::vector<double>> x;
  for (const Labelled& row : train) x.push_back(feature_row(row.text, true));
  const double n = static_cast<double>(train.size());
  std::vector<double> mean(index.size());
  std::vector<double> spread(index.size());
  for (size_t j = 0; j < index.size(); ++j) {
    double sum = 0, squares = 0;
    for (auto& row : x) {
      row.resize(index.size());
      sum += row[j];
      squares += row[j] * row[j];
    }
    mean[j] = sum / n;
    spread[j] = std::sqrt(squares / n - mean[j] * mean[j]);
    for (auto& row : x) row[j] = (row[j] - mean[j]) / spread[j];
  }
  // two classes with a softmax are one weight vector of half the difference, penalised twice
  std::vector<double> w(index.size());
  double bias = 0;
  for (int step = 0; step < 4000; ++step) {
    std::vector<double> dw(index.size());
    double dbias = 0;
    for (size_t i = 0; i < train.size(); ++i) {
      double score = bias;
      for (size_t j = 0; j < w.size(); ++j) score += w[j] * x[i][j];
      const double error = 1 / (1 + std::exp(-2 * score)) - train[i].label;
      for (size_t j = 0; j < w.size(); ++j) dw[j] += 2 * error * x[i][j] / n;
      dbias += 2 * error / n;
    }
    for (size_t j = 0; j < w.size(); ++j) w[j] -= 0.02 * (dw[j] + 2 * l2 * w[j]);
    bias -= 0.02 * dbias;
  }
  const std::vector<double> row = feature_row(text, false);
  double score = bias;
  for (size_t j = 0; j < w.size(); ++j) score += w[j] * (row[j] - mean[j]) / spread[j];
  return 1 / (1 + std::exp(-2 * score));
}

TEST(KmerBaseline, EqualsTheDefinition) {
  const std::vector<Labelled> train = two_classes(1, 30, 60, 0.4, 0.55);
  const KmerBaseline baseline = fitted(train, {.k = 2, .canonical = false, .l2 = 0.1});
  for (const Labelled& row : two_classes(2, 6, 60, 0.4, 0.55)) {
    const double expected = naive_probability(train, row.text, 2, 0.1);
    EXPECT_NEAR(baseline.predict(encode_bases(row.text))[1], expected, 1e-4);
  }
}

TEST(KmerBaseline, SeparatesWhatCompositionTellsApart) {
  const KmerBaseline baseline = fitted(two_classes(3, 400, 200, 0.42, 0.58), {.k = 4});
  int right = 0;
  for (const Labelled& row : two_classes(4, 400, 200, 0.42, 0.58)) {
    const std::vector<double> p = baseline.predict(encode_bases(row.text));
    EXPECT_NEAR(p[0] + p[1], 1, 1e-12);
    right += (p[1] > p[0]) == (row.label == 1);
  }
  EXPECT_GT(right, 380);
}

TEST(KmerBaseline, LearnsNothingFromNothing) {
  const KmerBaseline baseline = fitted(two_classes(5, 400, 100, 0.5, 0.5), {.k = 4});
  int right = 0;
  for (const Labelled& row : two_classes(6, 400, 100, 0.5, 0.5)) {
    const std::vector<double> p = baseline.predict(encode_bases(row.text));
    right += (p[1] > p[0]) == (row.label == 1);
    EXPECT_LT(std::abs(p[0] - 0.5), 0.35);  // the penalty is chosen to hold it back
  }
  EXPECT_NEAR(right, 200, 40);
}

TEST(KmerBaseline, CanonicalIgnoresTheStrandAndPlainSeesIt) {
  Random random(7, RandomUse::kTest);
  std::vector<Labelled> rows;  // class 1 is class 0 read backwards: purine-rich against pyrimidine
  for (int i = 0; i < 200; ++i) {
    std::string text(100, 'A');
    for (char& letter : text) {
      letter = random.uniform() < 0.7 ? "AG"[random.below(2)] : "CT"[random.below(2)];
    }
    rows.push_back({i % 2 == 0 ? text : complement(text), i % 2});
  }
  const KmerBaseline canonical = fitted(rows, {.k = 3, .canonical = true});
  const KmerBaseline plain = fitted(rows, {.k = 3, .canonical = false});
  int right = 0;
  for (const Labelled& row : rows) {
    const double forward = canonical.predict(encode_bases(row.text))[0];
    EXPECT_NEAR(forward, canonical.predict(encode_bases(complement(row.text)))[0], 1e-9);
    right += (plain.predict(encode_bases(row.text))[1] > 0.5) == (row.label == 1);
  }
  EXPECT_GT(right, 195);
}

TEST(KmerBaseline, ThreadsDoNotChangeTheBits) {
  const std::vector<Labelled> train = two_classes(8, 200, 80, 0.4, 0.5);
  const std::vector<uint8_t> codes = encode_bases(train[0].text);
  const std::vector<double> one = fitted(train, {.k = 5}, 1).predict(codes);
  EXPECT_EQ(one, fitted(train, {.k = 5}, 2).predict(codes));
  EXPECT_EQ(one, fitted(train, {.k = 5}, 7).predict(codes));
}

TEST(KmerBaseline, LongSequencesArePredictedInPieces) {
  const std::vector<Labelled> train = two_classes(9, 200, 100, 0.45, 0.55);
  const KmerBaseline baseline = fitted(train, {.k = 3});
  const std::vector<double> a = baseline.predict(encode_bases(train[0].text));
  const std::vector<double> b = baseline.predict(encode_bases(train[1].text));
  const std::vector<double> both = baseline.predict(encode_bases(train[0].text + train[1].text));
  const double log_odds = 0.5 * (std::log(a[1] / a[0]) + std::log(b[1] / b[0]));
  EXPECT_NEAR(std::log(both[1] / both[0]), log_odds, 1e-9);
}

TEST(KmerBaseline, AnswersForSequencesWithoutKmers) {
  const KmerBaseline baseline = fitted(two_classes(10, 40, 50, 0.3, 0.7), {.k = 4});
  for (const char* text : {"", "A", "ACG", "NNNNNNNNNN"}) {
    const std::vector<double> p = baseline.predict(encode_bases(text));
    EXPECT_NEAR(p[0], 0.5, 1e-12) << text;  // half of the training set
    EXPECT_NEAR(p[1], 0.5, 1e-12) << text;
  }
}

TEST(KmerBaseline, RefusesBadUse) {
  EXPECT_THROW(KmerBaseline({.k = 0}, 2), Error);
  EXPECT_THROW(KmerBaseline({.k = 9}, 2), Error);
  EXPECT_THROW(KmerBaseline({}, 1), Error);
  EXPECT_THROW(KmerBaseline({.l2 = -1}, 2), Error);
  KmerBaseline baseline({}, 2);
  const Context ctx;
  EXPECT_THROW(baseline.fit(ctx), Error);
  EXPECT_THROW(baseline.predict({}), Error);
  EXPECT_THROW(baseline.add_training({}, 2), Error);
}

}  // namespace
}  // namespace gmamba
