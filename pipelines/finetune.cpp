// SPDX-License-Identifier: Apache-2.0
#include "pipelines/finetune.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "libmamba/baseline_kmer.h"
#include "libmamba/core/file.h"
#include "libmamba/core/random.h"
#include "libmamba/core/text.h"
#include "libmamba/memory_plan.h"
#include "libmamba/model_folder.h"
#include "pipelines/finetune_feed.h"
#include "pipelines/finetune_plan.h"
#include "pipelines/labelled.h"
#include "pipelines/metrics.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

/// Training windows that the k-mer baseline sees, per class, when the source has no end.
constexpr int64_t kBaselineWindows = 2000;

/// FinetunePlan::segment in a checkpoint.
constexpr const char* kSegment = "segment";

/// That of the run that these options go on with; 0 where there is none.
int64_t recorded_segment(const FinetuneOptions& options) {
  if (!options.training.resume || options.common.out.empty()) return 0;
  const std::optional<Json> state = newest_trainer_state(options.common.out);
  return state ? state->value(kSegment, int64_t{0}) : 0;
}

class Finetuning {
 public:
  Finetuning(const FinetuneOptions& options, Job& job)
      : options_(options),
        job_(job),
        ctx_(open_context(options.common, job)),
        base_(load_model(options.model, Device{}, job.log)),
        tokenizer_(base_->vocabulary()),
        seed_(static_cast<uint64_t>(options.common.seed)) {
    job.record.set_model(options.model, model_digest(options.model));
    open_data();
    const double default_epochs = options.classes.empty() ? 10 : 1;
    const double epochs = options.epochs > 0 ? options.epochs : default_epochs;
    const auto draws = epochs * static_cast<double>(source_->epoch_size());
    steps_ = options.training.steps > 0
                 ? options.training.steps
                 : std::max<int64_t>(1, std::llround(draws / static_cast<double>(options.batch)));
    config_ = base_->config();
    config_.task = options.task;
    config_.labels = head_labels();
    config_.pool = options.pool;
    plan_ = plan_finetuning(options, config_, {source_->lengths(), lengths_of(valid_)},
                            machine_of(arithmetic_of(options.common)), recorded_segment(options));
  }

  bool plan_only() {
    if (!options_.common.plan) return false;
    job_.report =
        concat(plan_.memory.text(), "steps ", steps_, " of ", options_.batch, " sequences\n");
    return true;
  }

  void run() {
    TrainingRun run(options_.common.out, options_.training.resume, options_.common.force,
                    fingerprint(), job_.log);
    std::optional<Checkpoint> checkpoint = run.checkpoint(ctx_->device());
    if (run.finished()) return;
    if (checkpoint) {
      const Json& state = checkpoint->trainer_state;
      next_draw_ = state.at("next_draw").get<uint64_t>();
      tokens_ = state.at("tokens").get<int64_t>();
      steps_of_line_ = StepsOfLine::load(state);
      if (!state.at("best_loss").is_null()) best_loss_ = state.at("best_loss").get<double>();
    }
    const OptimizerOptions optimizer = options_.training.optimizer(steps_);
    const Trained trained = options_.freeze ? Trained::kHeadOnly : Trained::kAll;
    Trainer trainer = checkpoint ? Trainer(*ctx_, std::move(*checkpoint), optimizer, trained)
                                 : Trainer(*ctx_, first_model(), optimizer, trained);
    base_.reset();
    trainer.limit_scratch(plan_.scratch_bytes);
    idle_share_.emplace(ctx_->device());
    feed_.emplace(*ctx_, *source_, tokenizer_, options_, plan_.segment, next_draw_);
    log_line(job_.log, LogLevel::kInfo,
             concat("training on ", format_count(source_->epoch_size()), " sequences a pass, ",
                    steps_, " steps of ", options_.batch, "; validating on ",
                    format_count(static_cast<int64_t>(valid_.size()))));
    job_.record.set_result("planned_steps", steps_);
    job_.record.set_result("planned_memory_bytes", plan_.memory.total_bytes());
    job_.record.set_result("finished", false);
    job_.progress.start("fine-tuning", "sequences", (steps_ - trainer.step()) * options_.batch);
    while (trainer.step() < steps_) {
      const StepReport report = step(trainer);
      after_step(run, trainer, report);
      if (stop_requested()) {
        save(run, trainer);
        run.report(job_.record);
        job_.progress.finish();
        check_stop();
      }
    }
    job_.progress.finish();
    finish(run, trainer);
  }

 private:
  void open_data() {
    const bool classify = options_.task == TaskKind::kClassification;
    if (!options_.classes.empty()) {
      ClassWindows windows = open_class_windows(options_.classes, options_.context,
                                                options_.windows_per_class, options_.valid_fraction,
                                                tokenizer_, seed_, job_.log, options_.invalid);
      classes_ = std::move(windows.names);
      source_ = std::move(windows.train);
      valid_ = std::move(windows.valid);
      log_line(job_.log, LogLevel::kInfo,
               concat("classes: ", classes_.size(), "; ", format_count(windows.train_bases),
                      " bases to train on, ", format_count(windows.valid_bases),
                      " held out (no base is in both)"));
      return;
    }
    LabelledText train =
        options_.train.empty()
            ? read_labelled_records(options_.inputs, options_.labels, job_.log, options_.invalid)
            : read_labelled_table(options_.train, options_.invalid, job_.log);
    const std::string& name = options_.train.empty() ? options_.labels : options_.train;
    job_.record.add_input(name);
    if (classify) {
      classes_ = class_names(train.labels);
      require(classes_.size() >= 2, ErrorKind::kInput, printable(name),
              ": one class only; a classifier needs at least two");
      require(classes_.size() <= 4096, ErrorKind::kInput, printable(name), ": ", classes_.size(),
              " distinct labels; for numbers give --task regression");
    }
    std::vector<Example> examples = make_examples(train, classes_, options_.task, tokenizer_, name);
    if (!options_.valid.empty()) {
      valid_ = make_examples(read_labelled_table(options_.valid, options_.invalid, job_.log),
                             classes_, options_.task, tokenizer_, options_.valid);
    } else {
      hold_out(examples);
    }
    source_ = list_source(std::move(examples), seed_);
  }

  /// Moves a share of the examples, chosen by seed, to validation; equal sequences stay together.
  void hold_out(std::vector<Example>& examples) {
    std::vector<Example> kept;
    for (Example& example : examples) {
      uint64_t hash = 1469598103934665603U;  // FNV-1a of the sequence
      for (const uint8_t id : example.ids) hash = (hash ^ id) * 1099511628211U;
      Random random(seed_ ^ hash, RandomUse::kSample);
      (random.uniform() < options_.valid_fraction ? valid_ : kept).push_back(std::move(example));
    }
    examples = std::move(kept);
  }

  std::vector<std::string> head_labels() const {
    const bool classify = options_.task == TaskKind::kClassification;
    return classify ? classes_ : std::vector<std::string>{"value"};  // a regression has one target
  }

  Model first_model() {
    Model model = with_task(*base_, options_.task, head_labels(), options_.pool, seed_);
    ModelConfig config = model.config();
    config.both_strands = options_.strands == Strands::kBoth;
    Model placed(config, ctx_->device());
    placed.set_vocabulary(model.vocabulary());
    ctx_->upload(model.parameters().flat(), placed.parameters().flat());
    return placed;
  }

  Json fingerprint() const {
    FinetuneOptions options = options_;
    OptionList list;
    options.visit(list);
    Json print = list.to_json();
    for (const char* key :
         {"model",   "train",      "valid",        "labels",    "inputs",   "class",
          "resume",  "save-every", "eval-every",   "log-every", "keep",     "out",
          "threads", "device",     "max-memory",   "plan",      "progress", "quiet",
          "verbose", "force",      "no-provenance"}) {
      print.erase(key);
    }
    // as for runs from before there was a choice
    if (options.invalid == InvalidLetters::kError) print.erase("invalid");
    print["segment"] = plan_.segment;
    print["classes"] = classes_;
    print["model"] = model_digest(options_.model);
    print["epoch"] = source_->epoch_size();
    print["first"] = sha256_bytes(tokenizer_.decode(source_->draw(0).ids));
    return print;
  }

  StepReport step(Trainer& trainer) {
    const double seconds_before = feed_->step_seconds();
    const StepReport report = feed_->step(trainer);
    next_draw_ = feed_->next_draw();
    tokens_ += feed_->step_tokens();
    job_.record.add_bases(feed_->step_tokens());
    job_.progress.add(options_.batch, feed_->step_seconds() - seconds_before);
    return report;
  }

  void after_step(TrainingRun& run, const Trainer& trainer, const StepReport& report) {
    job_.progress.set_note(step_note(report));
    steps_of_line_.add(report);
    if (report.skipped) {
      log_line(job_.log, LogLevel::kWarning,
               concat("step ", report.step, ": the gradient was not finite; update skipped"));
    }
    const bool last = report.step == steps_;
    if (report.step % options_.training.log_every == 0 || last) {
      const double seconds = feed_->step_seconds();
      const double rate = speed_.next(static_cast<double>(job_.record.bases()), seconds);
      Json line =
          step_metrics(report, std::exchange(steps_of_line_, {}), tokens_, rate, ctx_->device());
      line.erase("bits_per_base");  // a loss over labels, not bases
      line["input_wait"] = wait_share_.next(feed_->waited_seconds(), seconds);
      idle_share_->add_to(line);
      run.metrics(line);
    }
    if (report.step % options_.training.eval_interval(steps_) == 0 || last) {
      if (!valid_.empty()) evaluate(run, trainer, report.step);
      run.report(job_.record);
    }
    // weights that give no finite gradient must not push good ones out of the checkpoints kept
    const bool due = report.step % options_.training.save_interval(steps_) == 0;
    if ((due && !report.skipped) || last) save(run, trainer);
  }

  /// Predictions on the held-out examples; the best model so far becomes RUN/model.
  void evaluate(TrainingRun& run, const Trainer& trainer, int64_t step) {
    const std::vector<float> predicted = predict_valid(trainer.model());
    Json line = {{"step", step}, {"split", "valid"}, {"time", unix_time()}, {"tokens", tokens_}};
    double loss = 0;
    std::string said;
    if (options_.task == TaskKind::kClassification) {
      const auto n = classes_.size();
      for (size_t i = 0; i < valid_.size(); ++i) {
        const float p = predicted[i * n + static_cast<size_t>(valid_[i].label)];
        loss -=
            std::log(std::max(1e-30, static_cast<double>(p))) / static_cast<double>(valid_.size());
      }
      const ClassMetrics metrics = class_metrics_of(predicted);
      line["metrics"] = to_json(metrics, classes_);
      said = concat("accuracy ", format_number(metrics.accuracy, 4), ", MCC ",
                    format_number(metrics.mcc, 4));
    } else {
      std::vector<float> truth;
      for (const Example& example : valid_) truth.push_back(example.value);
      const RegressionMetrics metrics = regression_metrics(truth, predicted);
      loss = metrics.mean_squared_error;
      line["metrics"] = to_json(metrics);
      said = concat("Pearson r ", format_number(metrics.pearson, 4), ", R2 ",
                    format_number(metrics.r_squared, 4));
    }
    line["loss"] = loss;
    run.metrics(line);
    log_line(job_.log, LogLevel::kInfo,
             concat("step ", step, ": held-out loss ", format_number(loss, 4), ", ", said));
    if (!best_loss_ || loss < *best_loss_) {
      best_loss_ = loss;
      run.publish(trainer);
    }
  }

  std::vector<float> predict_valid(const Model& model) {
    std::vector<Ids> sequences;
    for (const Example& example : valid_) sequences.push_back(example.ids);
    return predict(*ctx_, model, tokenizer_, sequences, plan_.segment);
  }

  ClassMetrics class_metrics_of(const std::vector<float>& probabilities) const {
    const auto n = static_cast<int64_t>(classes_.size());
    std::vector<int32_t> truth;
    for (const Example& example : valid_) truth.push_back(example.label);
    return class_metrics(truth, argmax_rows(probabilities, n), n);
  }

  void save(TrainingRun& run, const Trainer& trainer) {
    Json state = {{"next_draw", next_draw_},
                  {"tokens", tokens_},
                  {"best_loss", best_loss_ ? Json(*best_loss_) : Json()},
                  {kSegment, plan_.segment}};
    steps_of_line_.save(state);
    run.save(trainer, std::move(state), options_.training.keep);
    if (valid_.empty()) run.publish(trainer);
  }

  /// k-mer logistic regression on the same training sequences, on the same held-out ones.
  ClassMetrics baseline() {
    KmerBaseline model({.k = static_cast<int>(options_.kmer)}, static_cast<int>(classes_.size()));
    const auto codes = [&](const Example& example) {
      std::vector<uint8_t> out(example.ids.size());
      tokens_to_bases(tokenizer_.vocabulary(), example.ids, out);
      return out;
    };
    const int64_t most = options_.classes.empty()
                             ? source_->epoch_size()
                             : std::min(source_->epoch_size(),
                                        kBaselineWindows * static_cast<int64_t>(classes_.size()));
    for (int64_t i = 0; i < most; ++i) {
      check_stop();
      const Example example = source_->draw(static_cast<uint64_t>(i));
      model.add_training(codes(example), example.label);
    }
    model.fit(*ctx_);
    std::vector<float> probabilities;
    for (const Example& example : valid_) {
      for (const double p : model.predict(codes(example))) {
        probabilities.push_back(static_cast<float>(p));
      }
    }
    return class_metrics_of(probabilities);
  }

  void finish(TrainingRun& run, const Trainer& trainer) {
    if (valid_.empty()) run.publish(trainer);
    RunRecord& record = job_.record;
    record.set_result("waited_for_data_seconds", feed_->waited_seconds());
    record.set_result("input_wait",
                      feed_->waited_seconds() / std::max(feed_->step_seconds(), 1e-30));
    record.set_result("peak_device_memory_bytes",
                      ctx_->backend().peak_allocated_bytes(ctx_->device().index));
    feed_.reset();  // the baseline draws from the same source
    record.set_result("steps", trainer.step());
    record.set_result("tokens", tokens_);
    record.set_result("skipped_steps", trainer.skipped_steps());
    if (best_loss_) {
      const Model best = load_model(run.folder() / "model", ctx_->device(), nullptr);
      record.set_result("best_held_out_loss", *best_loss_);
      if (options_.task == TaskKind::kClassification) {
        const ClassMetrics model = class_metrics_of(predict_valid(best));
        record.set_result("held_out", to_json(model, classes_));
        log_line(job_.log, LogLevel::kInfo, "held-out predictions of the best model:");
        for (const std::string& line : split(confusion_text(model, classes_), '\n')) {
          if (!line.empty()) log_line(job_.log, LogLevel::kInfo, line);
        }
        std::string beside;
        if (options_.kmer > 0) {
          const ClassMetrics kmer = baseline();
          record.set_result("kmer_baseline", to_json(kmer, classes_));
          beside =
              concat("; ", options_.kmer, "-mer logistic regression ",
                     format_number(kmer.accuracy, 4), " (MCC ", format_number(kmer.mcc, 4), ")");
        }
        log_line(job_.log, LogLevel::kInfo,
                 concat("held-out accuracy: model ", format_number(model.accuracy, 4), " (MCC ",
                        format_number(model.mcc, 4), ")", beside, "; ", model.count, " sequences"));
      }
    }
    record.add_output((run.folder() / "model").string());
    record.set_result("finished", true);
    run.report(record);
  }

  const FinetuneOptions& options_;
  Job& job_;
  std::unique_ptr<Context> ctx_;
  std::optional<Model> base_;  // until the trainer has it
  Tokenizer tokenizer_;
  uint64_t seed_;
  std::vector<std::string> classes_;
  std::unique_ptr<ExampleSource> source_;
  std::vector<Example> valid_;
  int64_t steps_ = 0;
  ModelConfig config_;  // with its head
  FinetunePlan plan_;
  std::optional<FinetuneFeed> feed_;
  StepsOfLine steps_of_line_;
  RatioSince speed_;
  RatioSince wait_share_;
  std::optional<IdleShare> idle_share_;
  uint64_t next_draw_ = 0;
  int64_t tokens_ = 0;
  std::optional<double> best_loss_;
};

}  // namespace

void FinetuneOptions::validate() const {
  training.validate();
  common.validate();
  const auto at_least = [](int64_t value, int64_t low, const char* flag) {
    require(value >= low, ErrorKind::kUsage, flag, ": expected at least ", low, ", found ", value);
  };
  require(common.plan || (!common.out.empty() && common.out != "-"), ErrorKind::kUsage,
          "--out: name the run folder to make");
  const int sources =
      (train.empty() ? 0 : 1) + (labels.empty() ? 0 : 1) + (classes.empty() ? 0 : 1);
  require(sources == 1, ErrorKind::kUsage,
          "give one of --train TABLE, --labels TABLE with FASTA inputs, or --class NAME=FASTA");
  require(labels.empty() == inputs.empty(), ErrorKind::kUsage,
          "--labels and FASTA inputs go together");
  require(classes.empty() || task == TaskKind::kClassification, ErrorKind::kUsage,
          "--class makes a classifier; --task regression needs numbers in a table");
  require(epochs >= 0, ErrorKind::kUsage, "--epochs: expected at least 0, found ", epochs);
  require(training.steps == 0 || epochs == 0, ErrorKind::kUsage,
          "give --steps or --epochs, not both");
  require(valid_fraction >= 0 && valid_fraction < 1, ErrorKind::kUsage,
          "--valid-fraction: expected 0 to below 1, found ", valid_fraction);
  at_least(context, 1, "--context");
  at_least(windows_per_class, 1, "--windows-per-class");
  at_least(batch, 1, "--batch");
  require(kmer >= 0 && kmer <= 8, ErrorKind::kUsage, "--kmer: expected 0 to 8, found ", kmer);
}

void finetune(const FinetuneOptions& options, Job& job) {
  options.validate();
  Finetuning work(options, job);
  if (work.plan_only()) return;
  work.run();
}

}  // namespace gmamba
