// SPDX-License-Identifier: Apache-2.0
#include "pipelines/pretrain.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/memory_plan.h"
#include "libmamba/model_folder.h"
#include "pipelines/held_out.h"
#include "pipelines/pretrain_feed.h"
#include "pipelines/pretrain_plan.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

/// Held-out bases in the sample that each evaluation reads, the last among them; that one reads all
/// the others too.
constexpr int64_t kSampleBases = 1 << 20;
/// Splits of metrics.jsonl: the sample, and at the end all that is held out.
constexpr const char* kValid = "valid";
constexpr const char* kValidAll = "valid_all";
/// Contigs whose held-out loss is listed.
constexpr size_t kContigsListed = 200;
/// PretrainPlan::computed in a checkpoint.
constexpr const char* kComputed = "tokens_at_once";

ModelConfig new_config(const PretrainOptions& options, const Vocabulary& vocabulary) {
  ModelConfig config;
  config.vocab_size = (vocabulary.size() + 7) / 8 * 8;
  config.d_model = options.d_model;
  config.n_layers = options.layers;
  config.d_state = options.d_state;
  config.d_conv = options.d_conv;
  config.expand = options.expand;
  config.dt_rank = ModelConfig::auto_dt_rank(options.d_model);
  config.tie_embeddings = !options.untied;
  config.pad_token = vocabulary.pad;
  config.bos_token = vocabulary.bos;
  config.eos_token = vocabulary.eos;
  config.trained_context = options.context;
  config.validate();
  return config;
}

/// What must be the same when a run goes on: all options but those of the surroundings, and the
/// data.
Json fingerprint(const PretrainOptions& given, const PretrainPlan& plan, const Genome& genome) {
  PretrainOptions options = given;
  OptionList list;
  options.visit(list);
  Json print = list.to_json();
  for (const char* key : {"resume", "save-every", "eval-every", "log-every", "keep", "out",
                          "threads", "device", "max-memory", "plan", "progress", "quiet", "verbose",
                          "force", "no-provenance", "fasta", "init"}) {
    print.erase(key);
  }
  // what is off has no settings
  if (!given.carry) {
    for (const char* key : {"carry", "carry-reset"}) print.erase(key);
  }
  if (!given.context_warmup) {
    for (const char* key : {"context-warmup", "context-warmup-from", "context-warmup-share"}) {
      print.erase(key);
    }
  }
  // as for runs from before there was a choice
  if (given.invalid == InvalidLetters::kError) print.erase("invalid");
  print["segment"] = plan.last().segment;
  print["rows"] = plan.last().rows;
  if (plan.stages.size() > 1) {
    Json rows = Json::array();
    for (const PretrainStage& stage : plan.stages) rows.push_back(stage.rows);
    print["rows"] = rows;
  }
  Json files = Json::array();
  for (int32_t file = 0; file < genome.files(); ++file) {
    Json contigs = Json::array();
    for (const Contig& contig : genome.contigs(file)) {
      contigs.push_back(concat(printable(contig.name), ":", contig.length));
    }
    files.push_back(sha256_bytes(contigs.dump()));
  }
  print["genomes"] = files;
  return print;
}

/// PretrainPlan::computed of the run that these options go on with; 0 where there is none.
int64_t recorded_cut(const PretrainOptions& options) {
  if (!options.training.resume || options.common.out.empty()) return 0;
  const std::optional<Json> state = newest_trainer_state(options.common.out);
  return state ? state->value(kComputed, int64_t{0}) : 0;
}

/// One in so many intervals is in the sample: evenly spread, so that every genome has its part.
size_t sample_stride(const std::vector<Interval>& intervals) {
  int64_t total = 0;
  for (const Interval& interval : intervals) total += interval.length();
  return static_cast<size_t>(std::max<int64_t>(1, (total + kSampleBases - 1) / kSampleBases));
}

/// Of held-out bases: all of them together, and each contig's by (file, contig).
struct HeldOutLoss {
  LossTotals total;
  std::map<std::pair<int32_t, int32_t>, LossTotals> contigs;

  void add(const Interval& interval, const LossTotals& totals) {
    total += totals;
    contigs[{interval.file, interval.contig}] += totals;
  }
};

/// Each stretch is read once; the sums of the sample are those of an evaluation of it alone.
struct Evaluation {
  HeldOutLoss sample;
  HeldOutLoss all;  ///< empty where the sample alone was read
};

Evaluation evaluate(Context& ctx, const Model& model, const Genome& genome,
                    const Tokenizer& tokenizer, const std::vector<Interval>& intervals,
                    int64_t segment, bool all) {
  Evaluation loss;
  const size_t stride = sample_stride(intervals);
  for (size_t i = 0; i < intervals.size(); i += all ? 1 : stride) {
    const LossTotals totals = stream_loss(ctx, model, genome, tokenizer, intervals[i], segment);
    if (i % stride == 0) loss.sample.add(intervals[i], totals);
    if (all) loss.all.add(intervals[i], totals);
  }
  return loss;
}

/// The contigs with the most predicted bases, in the order of the files.
Json contigs_json(const Genome& genome, const HeldOutLoss& loss) {
  using Entry = std::pair<std::pair<int32_t, int32_t>, LossTotals>;
  std::vector<Entry> entries(loss.contigs.begin(), loss.contigs.end());
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.second.count > b.second.count; });
  if (entries.size() > kContigsListed) entries.resize(kContigsListed);
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.first < b.first; });
  Json list = Json::array();
  for (const auto& [place, totals] : entries) {
    const auto& [file, contig] = place;
    list.push_back({{"contig", genome.contigs(file).at(static_cast<size_t>(contig)).name},
                    {"file", std::filesystem::path(genome.path(file)).filename().string()},
                    {"bases", totals.count},
                    {"loss", totals.mean()},
                    {"bits_per_base", totals.mean() * kBitsPerNat},
                    {"accuracy", totals.correct / std::max(totals.weight, 1e-30)}});
  }
  return list;
}

class Pretraining {
 public:
  Pretraining(const PretrainOptions& options, Job& job)
      : options_(options), job_(job), ctx_(open_context(options.common, job)) {
    genome_.emplace(options.fasta, GenomeOptions{.log = job.log, .invalid = options.invalid});
    for (const std::string& path : options.fasta) job.record.add_input(path);
    if (!options.init.empty()) init_.emplace(load_model(options.init, Device{}, job.log));
    tokenizer_.emplace(init_ ? init_->vocabulary() : Vocabulary::characters());
    SplitOptions split;
    if (!options.regions.empty()) split.regions = genome_->parse_regions(options.regions);
    if (!options.valid_regions.empty()) {
      split.valid_regions = genome_->parse_regions(options.valid_regions);
    }
    split.valid_contigs = options.valid_contigs;
    split.valid_fraction =
        options.valid_regions.empty() && options.valid_contigs.empty() ? options.valid_fraction : 0;
    split.seed = static_cast<uint64_t>(options.common.seed);
    split_ = make_split(*genome_, split);
    const MakeConfig config_of = [&](const PretrainOptions& asked) {
      return init_ ? init_->config() : new_config(asked, tokenizer_->vocabulary());
    };
    config_ = config_of(options);
    plan_ = plan_pretraining(options, config_of, machine_of(arithmetic_of(options.common)),
                             recorded_cut(options));
  }

  bool plan_only() {
    if (!options_.common.plan) return false;
    job_.report = concat(plan_.text(), "; training on ", format_count(split_.train_bases),
                         " bases, held out ", format_count(split_.valid_bases), "\n");
    return true;
  }

  void run() {
    TrainingRun run(options_.common.out, options_.training.resume, options_.common.force,
                    fingerprint(options_, plan_, *genome_), job_.log);
    std::optional<Checkpoint> checkpoint = run.checkpoint(ctx_->device());
    if (run.finished()) return;
    idle_share_.emplace(ctx_->device());
    feed_.emplace(*ctx_, config_, *genome_, *tokenizer_, split_, options_, plan_,
                  checkpoint ? checkpoint->step : 0, checkpoint ? &*checkpoint : nullptr);
    if (checkpoint) steps_of_line_ = StepsOfLine::load(checkpoint->trainer_state);
    const OptimizerOptions optimizer = options_.training.optimizer(plan_.steps);
    Trainer trainer = checkpoint ? Trainer(*ctx_, std::move(*checkpoint), optimizer)
                                 : Trainer(*ctx_, first_model(), optimizer);
    init_.reset();  // a copy of the model in the host's memory
    say_plan(trainer);
    job_.record.set_result("planned_steps", plan_.steps);
    job_.record.set_result("planned_memory_bytes", plan_.memory.total_bytes());
    job_.record.set_result("finished", false);
    job_.progress.start("pretraining", "tokens", plan_.tokens_left(trainer.step()));
    while (trainer.step() < plan_.steps) {
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
  Model first_model() {
    Model model(config_, ctx_->device());
    if (init_) {
      ctx_->upload(init_->parameters().flat(), model.parameters().flat());
    } else {
      ParameterBuffer values(model.parameters().shared_layout(), Device{});
      initialize(values, config_, static_cast<uint64_t>(options_.common.seed));
      ctx_->upload(values.flat(), model.parameters().flat());
    }
    model.set_vocabulary(tokenizer_->vocabulary());
    return model;
  }

  void say_plan(const Trainer& trainer) {
    const auto info = [&](const std::string& line) { log_line(job_.log, LogLevel::kInfo, line); };
    info(concat("model: ", config_.n_layers, " layers of width ", config_.d_model, ", ",
                format_count(trainer.model().parameters().layout().count()), " parameters"));
    info(concat("data: ", format_count(split_.train_bases), " bases to train on, ",
                format_count(split_.valid_bases), " held out (no base is in both)"));
    const PretrainStage& last = plan_.last();
    info(concat("steps: ", plan_.steps, " of ", format_count(last.step_tokens()),
                " tokens (context ", last.context,
                plan_.stages.size() > 1
                    ? concat(" after ", plan_.stages.size() - 1, " shorter ones from ",
                             plan_.stages.front().context)
                    : "",
                options_.carry ? ", states carried on" : "", ")"));
  }

  StepReport step(Trainer& trainer) {
    const int64_t before = feed_->tokens();
    const double seconds_before = feed_->step_seconds();
    const StepReport report = feed_->step(trainer);
    job_.record.add_bases(feed_->tokens() - before);
    job_.progress.add(feed_->tokens() - before, feed_->step_seconds() - seconds_before);
    return report;
  }

  void after_step(TrainingRun& run, const Trainer& trainer, const StepReport& report) {
    job_.progress.set_note(step_note(report));
    steps_of_line_.add(report);
    if (report.skipped) {
      log_line(job_.log, LogLevel::kWarning,
               concat("step ", report.step, ": the gradient was not finite; update skipped"));
    }
    const bool last = report.step == plan_.steps;
    if (report.step % options_.training.log_every == 0 || last) {
      const double seconds = feed_->step_seconds();
      const double rate = speed_.next(static_cast<double>(job_.record.bases()), seconds);
      Json line = step_metrics(report, std::exchange(steps_of_line_, {}), feed_->tokens(), rate,
                               ctx_->device());
      line["context"] = feed_->context();
      line["input_wait"] = wait_share_.next(feed_->waited_seconds(), seconds);
      idle_share_->add_to(line);
      run.metrics(line);
    }
    if (report.step % options_.training.eval_interval(plan_.steps) == 0 && !last) {
      if (!split_.valid.empty()) {
        write_evaluation(run, report.step, kValid, evaluate_held_out(trainer, false).sample);
      }
      run.report(job_.record);
    }
    // weights that give no finite gradient must not push good ones out of the checkpoints kept
    const bool due = report.step % options_.training.save_interval(plan_.steps) == 0;
    if ((due && !report.skipped) || last) save(run, trainer);
  }

  Evaluation evaluate_held_out(const Trainer& trainer, bool all) {
    return evaluate(*ctx_, trainer.model(), *genome_, *tokenizer_, split_.valid,
                    plan_.last().segment, all);
  }

  void write_evaluation(TrainingRun& run, int64_t step, const std::string& split,
                        const HeldOutLoss& loss) {
    const LossTotals& totals = loss.total;
    const double bits = totals.mean() * kBitsPerNat;
    run.metrics({{"step", step},
                 {"split", split},
                 {"time", unix_time()},
                 {"tokens", feed_->tokens()},
                 {"loss", totals.mean()},
                 {"bits_per_base", bits},
                 {"perplexity", std::exp(totals.mean())},
                 {"accuracy", totals.correct / std::max(totals.weight, 1e-30)},
                 {"bases", totals.count},
                 {"contigs", contigs_json(*genome_, loss)},
                 {"contigs_left_out",
                  loss.contigs.size() - std::min(loss.contigs.size(), kContigsListed)}});
    if (split != kValid) return;  // finish() says it beside the baselines
    log_line(job_.log, LogLevel::kInfo,
             concat("step ", step, ": held-out bits per base ", format_number(bits, 5), " (",
                    sample_stride(split_.valid) > 1 ? "a sample, " : "", format_count(totals.count),
                    " bases)"));
  }

  void save(TrainingRun& run, const Trainer& trainer) {
    Json state = feed_->state();
    state[kComputed] = plan_.computed;
    steps_of_line_.save(state);
    run.save(trainer, std::move(state), options_.training.keep, feed_->carried());
    run.publish(trainer);
  }

  void finish(TrainingRun& run, const Trainer& trainer) {
    // a run killed between its last checkpoint and the model folder still ends with both
    run.publish(trainer);
    RunRecord& record = job_.record;
    record.set_result("steps", trainer.step());
    record.set_result("tokens", feed_->tokens());
    record.set_result("skipped_windows", feed_->skipped_windows());
    record.set_result("skipped_steps", trainer.skipped_steps());
    record.set_result("waited_for_data_seconds", feed_->waited_seconds());
    record.set_result("input_wait",
                      feed_->waited_seconds() / std::max(feed_->step_seconds(), 1e-30));
    record.set_result("peak_device_memory_bytes",
                      ctx_->backend().peak_allocated_bytes(ctx_->device().index));
    if (!split_.valid.empty()) {
      // those of a process that was killed before the run was finished
      run.drop_metrics({kValid, kValidAll}, trainer.step());
      const Evaluation loss = evaluate_held_out(trainer, true);
      const LossTotals& totals = loss.all.total;
      const double bits = totals.mean() * kBitsPerNat;
      write_evaluation(run, trainer.step(), kValid, loss.sample);
      write_evaluation(run, trainer.step(), kValidAll, loss.all);
      record.set_result("held_out_bits_per_base", bits);
      record.set_result("held_out_bases", totals.count);
      const std::vector<int> orders = {3, 11};
      const std::vector<double> markov =
          markov_bits_per_base(*genome_, *tokenizer_, split_.train, split_.valid, orders);
      std::string beside;
      for (size_t i = 0; i < orders.size(); ++i) {
        record.set_result(concat("markov_order_", orders[i], "_bits_per_base"), markov[i]);
        beside += concat(", order-", orders[i], " Markov ", format_number(markov[i], 5));
      }
      log_line(job_.log, LogLevel::kInfo,
               concat("held-out bits per base: model ", format_number(bits, 5), beside, " (",
                      format_count(totals.count), " bases)"));
    }
    record.add_output((run.folder() / "model").string());
    record.set_result("finished", true);
    run.report(record);
  }

  const PretrainOptions& options_;
  Job& job_;
  std::unique_ptr<Context> ctx_;
  std::optional<Genome> genome_;
  std::optional<Model> init_;
  std::optional<Tokenizer> tokenizer_;
  Split split_;
  PretrainPlan plan_;
  ModelConfig config_;
  std::optional<PretrainFeed> feed_;
  StepsOfLine steps_of_line_;
  RatioSince speed_;
  RatioSince wait_share_;
  std::optional<IdleShare> idle_share_;
};

}  // namespace

void PretrainOptions::validate() const {
  training.validate();
  common.validate();
  require(common.plan || (!common.out.empty() && common.out != "-"), ErrorKind::kUsage,
          "--out: name the run folder to make");
  require(context >= 1, ErrorKind::kUsage, "--context: expected at least 1, found ", context);
  require(carry_reset >= 0, ErrorKind::kUsage, "--carry-reset: expected at least 0, found ",
          carry_reset);
  require(!context_warmup || (context_warmup_from >= 1 && context_warmup_from < context),
          ErrorKind::kUsage, "--context-warmup-from: expected at least 1 and less than --context (",
          context, "), found ", context_warmup_from);
  require(!context_warmup_share ||
              (context_warmup && *context_warmup_share >= 0 && *context_warmup_share < 1),
          ErrorKind::kUsage,
          "--context-warmup-share: expected 0 to below 1 beside "
          "--context-warmup, found ",
          context_warmup_share.value_or(0));
  require((training.steps > 0) != (tokens > 0), ErrorKind::kUsage,
          "give either --steps or --tokens (how long to train)");
  require(valid_fraction >= 0 && valid_fraction < 1, ErrorKind::kUsage,
          "--valid-fraction: expected 0 to below 1, found ", valid_fraction);
  require(repeat_weight >= 0 && repeat_weight <= 1, ErrorKind::kUsage,
          "--repeat-weight: expected 0 to 1, found ", repeat_weight);
}

void pretrain(const PretrainOptions& options, Job& job) {
  options.validate();
  Pretraining work(options, job);
  if (work.plan_only()) return;
  work.run();
}

}  // namespace gmamba
