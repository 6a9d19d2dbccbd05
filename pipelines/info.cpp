// SPDX-License-Identifier: Apache-2.0
#include "pipelines/info.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "io/table.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/model_folder.h"
#include "libmamba/run_checkpoint.h"
#include "pipelines/inference_plan.h"
#include "pipelines/model_input.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLongestRecord = int64_t{64} << 20;

std::string word_of(TaskKind task) {
  switch (task) {
    case TaskKind::kNone:
      return "language model";
    case TaskKind::kClassification:
      return "classification";
    case TaskKind::kRegression:
      return "regression";
  }
  return "unknown";
}

std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// The last line of each split in metrics.jsonl. Only the end of the file is read: later lines
/// replace earlier ones.
Json last_metrics(const fs::path& path) {
  constexpr std::streamoff kTail = 1 << 20;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  require(file.good(), ErrorKind::kIo, printable(path.string()), ": cannot open");
  const auto size = static_cast<std::streamoff>(file.tellg());
  file.seekg(std::max<std::streamoff>(0, size - kTail));
  std::string line;
  if (size > kTail) std::getline(file, line);  // the rest of a line that began before
  Json last = Json::object();
  while (std::getline(file, line)) {
    if (file.eof()) break;  // no line end: a run is writing it, or was killed while it did
    const Json entry = parse_json(line, path.string());
    last[entry.value("split", std::string("train"))] = entry;
  }
  return last;
}

/// "key  value" lines of one level of an object.
std::string lines_of(const Json& json, const std::string& indent) {
  std::string out;
  for (const auto& [key, value] : json.items()) {
    if (value.is_object() || (value.is_array() && !value.empty() && value[0].is_object())) {
      continue;
    }
    std::string shown = printable(key);
    std::replace(shown.begin(), shown.end(), '_', ' ');
    shown.resize(std::max<size_t>(22, shown.size() + 1), ' ');
    std::string text = value.is_null() ? "unknown" : detail::value_text(value);
    if (value.is_number_integer()) text = format_count(value.get<int64_t>());
    out += concat(indent, shown, printable(text), "\n");
  }
  return out;
}

std::string model_text(const Json& model) {
  std::string out = concat("model ", printable(model["path"].get<std::string>()), "\n",
                           lines_of(model["architecture"], "  "), lines_of(model, "  "));
  out += "  files\n";
  for (const Json& file : model["files"]) {
    std::string bytes = format_bytes(file["bytes"].get<int64_t>());
    bytes.insert(0, bytes.size() < 12 ? 12 - bytes.size() : 0, ' ');
    out += concat("  ", bytes, "  ", file["sha256"].get<std::string>(), "  ",
                  printable(file["name"].get<std::string>()), "\n");
  }
  return out;
}

std::string run_text(const Json& run) {
  std::string out =
      concat("run ", printable(run["path"].get<std::string>()), "\n", lines_of(run, "  "));
  for (const auto& [split, entry] : run["last_metrics"].items()) {
    out += concat("  last line of '", printable(split), "'\n", lines_of(entry, "    "));
  }
  return out;
}

}  // namespace

Json describe_model(const std::string& folder, const Model& model) {
  const ModelConfig& config = model.config();
  Json architecture = Json::object();
  architecture["arch"] = config.arch;
  architecture["d_model"] = config.d_model;
  architecture["layers"] = config.n_layers;
  architecture["d_inner"] = config.d_inner();
  architecture["d_state"] = config.d_state;
  architecture["d_conv"] = config.d_conv;
  architecture["dt_rank"] = config.dt_rank;
  architecture["tied_embeddings"] = config.tie_embeddings;
  Json json = Json::object();
  json["path"] = folder;
  json["architecture"] = architecture;
  json["parameters"] = model.parameters().layout().count();
  json["vocabulary"] = model.vocabulary().tokens;
  json["embedding_rows"] = config.vocab_size;
  json["trained_context"] = config.trained_context > 0 ? Json(config.trained_context) : Json();
  json["task"] = word_of(config.task);
  if (config.task != TaskKind::kNone) {
    json["labels"] = config.labels;
    json["pool"] = detail::value_json(config.pool);
    json["both_strands"] = config.both_strands;
  }
  json["state_bytes"] = SequenceState::bytes(config, 1);
  Json files = Json::array();
  for (const fs::path& path : files_of(folder)) {
    files.push_back({{"name", path.filename().string()},
                     {"bytes", fs::file_size(path)},
                     {"sha256", sha256_file(path)}});
  }
  json["files"] = files;
  return json;
}

Json describe_run(const std::string& folder) {
  const fs::path root(folder);
  Json json = Json::object();
  json["path"] = folder;
  if (fs::exists(root / "run.json")) {
    const std::string name = (root / "run.json").string();
    const Json record = parse_json(read_file(name, kLongestRecord), name);
    for (const char* key : {"command", "gmamba", "started", "seconds", "seed", "bases"}) {
      if (record.contains(key)) json[key] = record[key];
    }
  }
  const std::vector<int64_t> checkpoints = list_checkpoints(root);
  json["checkpoints"] = checkpoints;
  if (fs::exists(root / "metrics.jsonl")) {
    json["last_metrics"] = last_metrics(root / "metrics.jsonl");
  } else {
    json["last_metrics"] = Json::object();
  }
  return json;
}

void info(const InfoOptions& options, Job& job) {
  require(fs::is_directory(options.path), ErrorKind::kInput, printable(options.path),
          fs::exists(options.path) ? ": is a file" : ": no such folder",
          "; name a model folder or the folder of a run");
  const std::string folder = model_folder_of(options.path);
  const bool has_model = fs::exists(fs::path(folder) / "config.json");
  const bool is_run = fs::exists(fs::path(options.path) / "run.json") ||
                      fs::is_directory(fs::path(options.path) / "checkpoints");
  require(has_model || is_run, ErrorKind::kInput, printable(options.path),
          ": neither a model (config.json) nor a run (run.json, checkpoints)");
  Json results = Json::object();
  std::string text;
  if (is_run) {
    results["run"] = describe_run(options.path);
    text += run_text(results["run"]);
  }
  if (has_model) {
    const auto ctx = open_context(options.common, job);
    const Model model = open_model(folder, *ctx, job);
    if (options.common.plan) {
      job.report = plan_report(*ctx, model, plan_inference(model.config(), options.common));
      return;
    }
    results["model"] = describe_model(folder, model);
    text += model_text(results["model"]);
  }
  if (options.common.out.empty()) {
    job.report = std::move(text);
    return;
  }
  TextWriter writer(options.common.out);
  writer.write(results.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  writer.commit();
}

}  // namespace gmamba
