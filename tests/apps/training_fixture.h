// SPDX-License-Identifier: Apache-2.0
/// Small training runs for tests of the command: genomes, words, and what a run folder holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "libmamba/core/file.h"
#include "libmamba/core/json.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "libmamba/run_checkpoint.h"
#include "tests/apps/command_runner.h"
#include "tests/pipelines/event_reader.h"

namespace gmamba::test {

namespace fs = std::filesystem;

inline std::string random_bases(int64_t count, uint64_t seed, double at_bias) {
  Random random(seed, RandomUse::kTest);
  std::string bases;
  for (int64_t i = 0; i < count; ++i) {
    bases += random.uniform() < at_bias ? "AT"[random.below(2)] : "CG"[random.below(2)];
  }
  return bases;
}

inline void write_genome(const fs::path& path, uint64_t seed, double at_bias = 0.5) {
  std::ofstream out(path);
  for (int contig = 0; contig < 3; ++contig) {
    out << ">c" << contig << "\n";
    const std::string bases = random_bases(6000, seed + static_cast<uint64_t>(contig), at_bias);
    for (size_t i = 0; i < bases.size(); i += 60) out << bases.substr(i, 60) << "\n";
  }
}

/// A small run that takes some seconds, saving at every step.
inline std::string pretrain_words(const std::string& run, int64_t steps) {
  return concat("pretrain --fasta genome.fa --out ", run, " --steps ", steps,
                " --context 64 --batch-tokens 256 --d-model 16 --layers 2 --valid-fraction 0.2 "
                "--save-every 1 --log-every 1 --eval-every 7 --rc-augment --progress none -q "
                "--threads 2");
}

inline std::string weights(const fs::path& run) {
  return sha256_bytes(read_file(run / "model" / "model.safetensors", 1 << 26));
}

/// metrics.jsonl without times, speeds and memory.
inline std::string losses(const fs::path& run) {
  std::string out;
  for (const std::string& line : split(read_file(run / "metrics.jsonl", 1 << 26), '\n')) {
    if (line.empty()) continue;
    const Json json = parse_json(line, "metrics.jsonl");
    for (const char* key : {"split", "step", "tokens", "steps", "loss", "bits_per_base", "accuracy",
                            "gradient_norm", "learning_rate", "skipped", "bases"}) {
      if (json.contains(key)) out += concat(key, " ", json[key].dump(), " ");
    }
    out += "\n";
  }
  return out;
}

/// The same words with a line of metrics.jsonl every `steps` steps.
inline std::string logging_every(std::string words, int steps) {
  const std::string each = "--log-every 1 ";
  const size_t at = words.find(each);
  return words.replace(at, each.size(), concat("--log-every ", steps, " "));
}

inline std::string step_name(int64_t step) {
  std::string name = std::to_string(step);
  name.insert(0, 8 - name.size(), '0');
  return "step-" + name;
}

/// Leaves a run as it was when it was killed after that step.
inline void drop_checkpoints_after(const fs::path& run, int64_t last) {
  for (const int64_t step : list_checkpoints(run)) {
    if (step > last) remove_tree(run / "checkpoints" / step_name(step));
  }
}

/// Values of `key` in the training lines of metrics.jsonl.
inline std::vector<Json> training_values(const fs::path& run, const std::string& key) {
  std::vector<Json> values;
  for (const std::string& line : split(slurp(run / "metrics.jsonl"), '\n')) {
    if (line.empty()) continue;
    const Json json = parse_json(line, "metrics.jsonl");
    if (json.at("split") == "train") values.push_back(json.at(key));
  }
  return values;
}

/// The bytes of each file below a folder, by its path there.
inline std::map<std::string, std::string> all_files(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      files[entry.path().lexically_relative(folder).string()] = slurp(entry.path());
    }
  }
  return files;
}

/// Files of TensorBoard in a run folder.
inline int64_t event_files(const fs::path& run) {
  int64_t count = 0;
  for (const auto& entry : fs::directory_iterator(run / "tensorboard")) {
    count += entry.path().filename().string().starts_with("events.out.tfevents.") ? 1 : 0;
  }
  return count;
}

/// The numbers of metrics.jsonl as points, each once where its lines are.
inline Points logged_points(const fs::path& run) {
  Points points;
  for (const std::string& line : split(slurp(run / "metrics.jsonl"), '\n')) {
    if (line.empty()) continue;
    const Json json = parse_json(line, "metrics.jsonl");
    for (const Json& object : {json, json.value("metrics", Json::object())}) {
      for (const auto& [key, value] : object.items()) {
        if (key == "step" || key == "time" || !value.is_number()) continue;
        const std::string tag = concat(json.at("split").get<std::string>(), "/", key);
        points[{tag, json.at("step").get<int64_t>()}].push_back(
            static_cast<float>(value.get<double>()));
      }
    }
  }
  return points;
}

/// The lines of metrics.jsonl of a split.
inline std::vector<Json> lines_of(const fs::path& run, const std::string& split_name) {
  std::vector<Json> found;
  for (const std::string& line : split(slurp(run / "metrics.jsonl"), '\n')) {
    if (line.empty()) continue;
    Json json = parse_json(line, "metrics.jsonl");
    if (json.at("split") == split_name) found.push_back(std::move(json));
  }
  return found;
}

}  // namespace gmamba::test
