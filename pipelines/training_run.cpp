// SPDX-License-Identifier: Apache-2.0
#include "pipelines/training_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/model_folder.h"
#include "pipelines/report_page.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFingerprint = "fingerprint";
constexpr const char* kStepsOfLine = "steps_of_line";
constexpr const char* kMetrics = "metrics.jsonl";

/// The first key at which two records differ, or "".
std::string first_difference(const Json& was, const Json& now) {
  for (const auto& [key, value] : was.items()) {
    if (!now.contains(key) || now[key] != value) return key;
  }
  for (const auto& [key, value] : now.items()) {
    if (!was.contains(key)) return key;
  }
  return {};
}

/// The numbers of a line of metrics.jsonl, as SPLIT/KEY at its step; those of an object within it
/// as SPLIT/KEY too.
void add_scalars(EventFile& events, const Json& line) {
  std::vector<Scalar> scalars;
  const std::string split = line.at("split").get<std::string>();
  const auto add = [&](const Json& object) {
    for (const auto& [key, value] : object.items()) {
      if (key == "step" || key == "time" || !value.is_number()) continue;
      scalars.push_back({concat(split, "/", key), value.get<double>()});
    }
  };
  add(line);
  if (line.contains("metrics")) add(line["metrics"]);
  events.add(line.at("time").get<double>(), line.at("step").get<int64_t>(), scalars);
}

/// Calls use(text, json) for each whole line of a file of metrics, if there is one.
template <class Use>
void for_each_line(const fs::path& path, Use&& use) {
  if (!fs::exists(path)) return;
  for (const std::string& text : split(read_file(path, int64_t{1} << 33), '\n')) {
    if (text.empty()) continue;
    try {
      use(text, parse_json(text, kMetrics));
    } catch (const std::exception&) {
      continue;  // the last line of a run that was killed while writing it
    }
  }
}

/// The step at which run.json says that the run finished; nullopt where it says no such thing.
std::optional<int64_t> finished_step(const fs::path& record) {
  if (!path_exists(record)) return {};
  const std::string text = read_file(record, int64_t{1} << 28);
  try {
    const Json json = parse_json(text, printable(record.string()));
    const Json& results = json.at("results");
    if (!results.at("finished").get<bool>()) return {};
    return results.at("steps").get<int64_t>();
  } catch (const std::exception&) {
    return {};  // one that says nothing: the run's end is done again and writes it anew
  }
}

}  // namespace

void TrainingOptions::validate() const {
  const auto at_least = [](int64_t value, int64_t low, const char* flag) {
    require(value >= low, ErrorKind::kUsage, flag, ": expected at least ", low, ", found ", value);
  };
  at_least(batch_tokens, 1, "--batch-tokens");
  at_least(steps, 0, "--steps");
  at_least(save_every, 0, "--save-every");
  at_least(eval_every, 0, "--eval-every");
  at_least(log_every, 1, "--log-every");
  at_least(keep, 2, "--keep");
  require(warmup >= 0, ErrorKind::kUsage, "--warmup: expected at least 0, found ", warmup);
  optimizer(1).validate();
}

OptimizerOptions TrainingOptions::optimizer(int64_t total_steps) const {
  OptimizerOptions o;
  o.learning_rate = learning_rate;
  o.beta1 = beta1;
  o.beta2 = beta2;
  o.weight_decay = weight_decay;
  o.clip = clip;
  o.schedule = schedule;
  o.warmup_steps =
      warmup < 1 ? std::llround(warmup * static_cast<double>(total_steps)) : std::llround(warmup);
  o.total_steps = total_steps;
  o.decay_fraction = decay_fraction;
  o.floor_fraction = lr_floor;
  return o;
}

int64_t TrainingOptions::save_interval(int64_t total_steps) const {
  return save_every > 0 ? save_every : std::clamp<int64_t>(total_steps / 20, 1, 500);
}

int64_t TrainingOptions::eval_interval(int64_t total_steps) const {
  return eval_every > 0 ? eval_every : std::max<int64_t>(1, (total_steps + 4) / 5);
}

TrainingRun::TrainingRun(fs::path folder, bool resume, bool force, Json fingerprint, Log* log)
    : folder_(std::move(folder)),
      fingerprint_(std::move(fingerprint)),
      log_(log),
      resume_(resume && fs::exists(folder_)) {
  if (resume && !resume_) {
    log_line(log, LogLevel::kInfo,
             concat(printable(folder_.string()), " is not there yet; starting a new run"));
  }
  require(!resume_ || fs::is_directory(folder_), ErrorKind::kUsage, "--out ",
          printable(folder_.string()), ": exists and is no folder; name the folder of a run");
  if (!resume_) claim_run_folder(folder_.string(), force);
  std::error_code code;
  fs::create_directories(folder_, code);
  require(!code, ErrorKind::kIo, printable(folder_.string()), ": cannot create: ", code.message());
  lock_.emplace(folder_);
}

std::optional<Checkpoint> TrainingRun::checkpoint(Device device) {
  std::optional<Checkpoint> found;
  if (resume_) found = load_newest_checkpoint(folder_, device, log_);
  if (found) {
    require(found->trainer_state.contains(kFingerprint), ErrorKind::kInput,
            printable(found->folder.string()), ": trainer_state.json lacks '", kFingerprint, "'");
    const Json& was = found->trainer_state[kFingerprint];
    const std::string key = first_difference(was, fingerprint_);
    require(key.empty(), ErrorKind::kUsage, "--resume: '", key,
            "' differs from that of the run in ", printable(folder_.string()), " (was ",
            was.value(key, Json()).dump(), ", now ", fingerprint_.value(key, Json()).dump(),
            "); give the run's own options and data");
  }
  const fs::path record = folder_ / "run.json";
  const std::optional<int64_t> end = resume_ ? finished_step(record) : std::nullopt;
  // without any checkpoint it is one whose checkpoints were cleared away when it was finished
  const bool at_end = end && (!found || found->step == *end);
  finished_ = at_end && path_exists(folder_ / "model");
  if (finished_) {
    write_report(folder_);  // the same bytes, unless it was killed between run.json and its page
    log_line(log_, LogLevel::kInfo,
             concat(printable(folder_.string()), ": the run is finished (step ", *end,
                    "); nothing to do, and its logs and model stay as they are"));
    return found;
  }
  if (end && !at_end) fs::remove(record);  // of steps that are gone and may not be made again
  if (found) log_line(log_, LogLevel::kInfo, concat("going on from step ", found->step));
  const int64_t last = found ? found->step : 0;
  keep_metrics([&](const Json& line) { return line.at("step").get<int64_t>() <= last; });
  events_.emplace(folder_ / "tensorboard", unix_time());
  if (resume_) events_->restart(unix_time(), last + 1);
  return found;
}

void TrainingRun::drop_metrics(const std::vector<std::string>& splits, int64_t step) {
  const auto goes = [&](const Json& line) {
    return line.at("step").get<int64_t>() == step &&
           std::find(splits.begin(), splits.end(), line.at("split").get<std::string>()) !=
               splits.end();
  };
  bool any = false;
  std::vector<Json> stay;
  for_each_line(folder_ / kMetrics, [&](const std::string&, const Json& line) {
    if (line.at("step").get<int64_t>() != step) return;
    if (goes(line)) {
      any = true;
    } else {
      stay.push_back(line);
    }
  });
  if (!any) return;
  // readers of events drop whole steps, so that what stays of this one is written again; this comes
  // before the lines go, so that a process killed in between leaves it to be done once more
  events_->restart(unix_time(), step);
  for (const Json& line : stay) add_scalars(*events_, line);
  keep_metrics([&](const Json& line) { return !goes(line); });
}

void TrainingRun::keep_metrics(const std::function<bool(const Json&)>& keep) {
  if (metrics_.is_open()) metrics_.close();
  const fs::path path = folder_ / kMetrics;
  std::string kept;
  for_each_line(path, [&](const std::string& text, const Json& line) {
    if (keep(line)) kept += text + "\n";
  });
  write_file(path, kept);
  metrics_.open(path, std::ios::app);
  require(metrics_.good(), ErrorKind::kIo, printable(path.string()), ": cannot open for writing");
}

void TrainingRun::metrics(const Json& line) {
  metrics_ << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  metrics_.flush();
  require(metrics_.good(), ErrorKind::kIo, printable((folder_ / kMetrics).string()),
          ": cannot write; is the disk full?");
  add_scalars(*events_, line);
}

void TrainingRun::save(const Trainer& trainer, Json extra, int64_t keep,
                       const std::map<std::string, ConstTensorView>& carried) {
  extra[kFingerprint] = fingerprint_;
  trainer.save(folder_, extra, static_cast<int>(keep), carried);
}

void TrainingRun::publish(const Trainer& trainer) const {
  save_model(trainer.model(), folder_ / "model", {{"step", std::to_string(trainer.step())}});
}

void TrainingRun::report(const RunRecord& record) const {
  record.write(folder_ / "run.json");
  write_report(folder_);
}

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void StepsOfLine::add(const StepReport& report) {
  ++steps;
  skipped = skipped || report.skipped;
  if (std::isfinite(report.loss.loss) && std::isfinite(report.loss.weight)) loss += report.loss;
}

void StepsOfLine::save(Json& state) const {
  // finite, and so the same bits when they are read again
  state[kStepsOfLine] = {
      {"steps", steps},          {"loss", loss.loss},         {"weight", loss.weight},
      {"correct", loss.correct}, {"predictions", loss.count}, {"skipped", skipped}};
}

StepsOfLine StepsOfLine::load(const Json& state) {
  if (!state.contains(kStepsOfLine)) return {};
  const Json& from = state[kStepsOfLine];
  StepsOfLine some;
  some.steps = from.at("steps").get<int64_t>();
  some.loss = {from.at("loss").get<double>(), from.at("weight").get<double>(),
               from.at("correct").get<double>(), from.at("predictions").get<int64_t>()};
  some.skipped = from.at("skipped").get<bool>();
  return some;
}

Json step_metrics(const StepReport& report, const StepsOfLine& steps, int64_t tokens,
                  double tokens_per_second, Device device) {
  const Backend& backend = backend_for(device.kind);
  const auto finite = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  const LossTotals& loss = steps.loss;
  const double none = std::numeric_limits<double>::quiet_NaN();
  const double mean = loss.weight > 0 ? loss.mean() : none;
  Json line = {{"step", report.step},
               {"split", "train"},
               {"time", unix_time()},
               {"tokens", tokens},
               {"steps", steps.steps},
               {"loss", finite(mean)},
               {"bits_per_base", finite(mean * kBitsPerNat)},
               {"accuracy", loss.weight > 0 ? finite(loss.correct / loss.weight) : Json()},
               {"gradient_norm", finite(report.gradient_norm)},
               {"learning_rate", report.learning_rate},
               {"skipped", steps.skipped},
               {"tokens_per_second", tokens_per_second},
               {"peak_memory_bytes", process_usage().peak_memory_bytes},
               {"device_memory_bytes", backend.allocated_bytes(device.index)},
               {"device_peak_memory_bytes", backend.peak_allocated_bytes(device.index)}};
  if (!device.is_cpu()) {
    line["gpu_used_bytes"] = backend.total_bytes(device.index) - backend.free_bytes(device.index);
  }
  return line;
}

IdleShare::IdleShare(Device device) : device_(device) {
  backend_for(device_.kind).busy_share(device_.index, since_);
}

void IdleShare::add_to(Json& line) {
  const auto busy = backend_for(device_.kind).busy_share(device_.index, since_);
  if (busy) line["gpu_idle"] = 1 - *busy;
}

double RatioSince::next(double sum, double per) {
  const double more = sum - std::exchange(sum_, sum);
  const double more_per = per - std::exchange(per_, per);
  return more_per > 0 ? more / more_per : 0;
}

std::string step_note(const StepReport& report) {
  return concat("step ", report.step, "  loss ", format_number(report.loss.mean(), 4), "  lr ",
                format_number(report.learning_rate, 3));
}

}  // namespace gmamba
