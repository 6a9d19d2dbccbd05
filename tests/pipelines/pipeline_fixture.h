// SPDX-License-Identifier: Apache-2.0
/// A folder with a tiny random model and small generated sequences, and the naive answers: each
/// record alone, in one piece, pooled in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "io/npy.h"
#include "io/tokenizer.h"
#include "libmamba/core/json.h"
#include "libmamba/model_folder.h"
#include "pipelines/job.h"
#include "tests/libmamba/folder_fixture.h"

namespace gmamba::test {

struct NamedSequence {
  std::string id;
  std::string bases;
};

/// Letters A, C, G, T in unequal shares with rare N, from a linear congruential generator.
inline std::string random_bases(int64_t length, uint64_t seed) {
  uint64_t state = seed * 2862933555777941757ULL + 3037000493ULL;
  std::string bases;
  for (int64_t i = 0; i < length; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    bases += "AAACCGTTTTGGACGN"[(state >> 40) % (state >> 60 == 0 ? 16 : 15)];
  }
  return bases;
}

inline ModelConfig small_config() {
  ModelConfig config = tiny_config();
  config.d_model = 12;
  return config;
}

class PipelineTest : public FolderTest {
 protected:
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  /// Writes RUN-less model folder `name` and keeps the model.
  Model make_model(const std::string& name, const ModelConfig& config = small_config()) {
    Model model = tiny_model(7, config);
    save_model(model, path(name));
    return model;
  }

  std::string write_fasta(const std::string& name, const std::vector<NamedSequence>& records,
                          size_t width = 50) {
    std::ofstream out(path(name));
    for (const NamedSequence& record : records) {
      out << ">" << record.id << " described\n";
      for (size_t i = 0; i < record.bases.size(); i += width) {
        out << record.bases.substr(i, width) << "\n";
      }
    }
    return path(name);
  }

  /// Records of many lengths in no order: shorter and longer than the segments tested.
  static std::vector<NamedSequence> mixed_records() {
    std::vector<NamedSequence> records;
    uint64_t seed = 1;
    for (const int64_t length : {40, 1, 333, 2, 64, 65, 63, 7, 200, 1000, 5, 64, 90}) {
      records.push_back({"r" + std::to_string(seed), random_bases(length, seed)});
      ++seed;
    }
    return records;
  }

  /// Hidden states (L, D) of a record alone.
  static std::vector<float> naive_hidden(const Model& model, const std::string& bases,
                                         int layer = -1) {
    Context ctx;
    const auto length = static_cast<int64_t>(bases.size());
    std::vector<uint8_t> tokens(bases.size());
    Tokenizer(model.vocabulary()).encode(bases, tokens);
    std::vector<float> hidden(bases.size() * static_cast<size_t>(model.config().d_model));
    SequenceState state(model.config(), 1, Device{});
    model.forward(ctx, host_view(std::as_const(tokens).data(), {1, length}), state,
                  host_view(hidden.data(), {1, length, model.config().d_model}), layer);
    return hidden;
  }

  /// One vector of rows [begin, end) of hidden states.
  static std::vector<double> naive_pool(const std::vector<float>& hidden, int64_t d_model,
                                        int64_t begin, int64_t end, PoolMode mode) {
    std::vector<double> pooled(static_cast<size_t>(d_model), 0.0);
    for (int64_t d = 0; d < d_model; ++d) {
      double value = mode == PoolMode::kMax ? -1e30 : 0;
      for (int64_t t = begin; t < end; ++t) {
        const double h = hidden[static_cast<size_t>(t * d_model + d)];
        if (mode == PoolMode::kMax) value = std::max(value, h);
        if (mode == PoolMode::kLast) value = h;
        if (mode == PoolMode::kMean) value += h / static_cast<double>(end - begin);
      }
      pooled[static_cast<size_t>(d)] = end > begin ? value : 0;
    }
    return pooled;
  }

  static std::vector<float> floats_of(const NpyArray& array) {
    const auto values = array.values.host<const float>();
    return {values.begin(), values.end()};
  }
};

/// Largest difference relative to the norm of a row.
inline double row_error(std::span<const float> found, std::span<const double> expected) {
  double norm = 0, worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    norm += expected[i] * expected[i];
    worst = std::max(worst, std::abs(expected[i] - found[i]));
  }
  return worst / std::max(std::sqrt(norm), 1e-3);
}

/// Lines of a table, split at tabs.
inline std::vector<std::vector<std::string>> read_rows(const std::string& text) {
  std::vector<std::vector<std::string>> rows(1, std::vector<std::string>(1));
  for (const char c : text) {
    if (c == '\n') {
      rows.emplace_back(1);
    } else if (c == '\t') {
      rows.back().emplace_back();
    } else {
      rows.back().back() += c;
    }
  }
  rows.pop_back();
  return rows;
}

}  // namespace gmamba::test
