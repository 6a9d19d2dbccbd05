// SPDX-License-Identifier: Apache-2.0
#include "pipelines/pretrain_feed.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "io/streams.h"
#include "libmamba/core/text.h"

namespace gmamba {
namespace {

/// Host memory for batches made ahead; one is always made.
constexpr int64_t kAheadBytes = int64_t{256} << 20;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int batches_ahead(const PretrainStage& stage) {
  const int64_t bytes = std::max<int64_t>(1, stage.rows * stage.context * kTokenBytes);
  const int64_t wanted = std::clamp<int64_t>(stage.micro_batches, 4, 64);
  return static_cast<int>(std::clamp<int64_t>(kAheadBytes / bytes, 1, wanted));
}

/// Threads that read windows beside a GPU, which leaves the CPU idle; a CPU that computes has none
/// to spare.
int reading_threads(const Context& ctx) {
  return ctx.device().is_cpu() ? 1 : std::clamp(ctx.threads() / 2, 1, 8);
}

std::string name_of(const char* part, size_t batch) { return concat(part, ".", batch); }

Json to_json(const std::vector<StreamPlace>& places) {
  Json passes = Json::array(), offsets = Json::array(), fresh = Json::array();
  for (const StreamPlace& place : places) {
    passes.push_back(place.pass);
    offsets.push_back(place.offset);
    fresh.push_back(place.fresh);
  }
  return {{"pass", passes}, {"offset", offsets}, {"fresh", fresh}};
}

std::vector<StreamPlace> places_from(const Json& json) {
  std::vector<StreamPlace> places;
  for (size_t i = 0; i < json.at("pass").size(); ++i) {
    places.push_back({json.at("pass").at(i).get<int64_t>(), json.at("offset").at(i).get<int64_t>(),
                      json.at("fresh").at(i).get<bool>()});
  }
  return places;
}

}  // namespace

PretrainFeed::PretrainFeed(Context& ctx, const ModelConfig& config, const Genome& genome,
                           const Tokenizer& tokenizer, const Split& split,
                           const PretrainOptions& options, const PretrainPlan& plan, int64_t step,
                           const Checkpoint* checkpoint)
    : ctx_(ctx),
      config_(config),
      genome_(genome),
      tokenizer_(tokenizer),
      split_(split),
      options_(options),
      plan_(plan),
      stage_(plan.stage_of(step)),
      step_(step) {
  bool within_stage = false;
  if (checkpoint != nullptr) {
    const Json& state = checkpoint->trainer_state;
    next_draw_ = state.at("next_draw").get<uint64_t>();
    tokens_ = state.at("tokens").get<int64_t>();
    skipped_windows_ = state.at("skipped_windows").get<int64_t>();
    // streams begin anew with each stage
    within_stage = options.carry && step > 0 && plan.stage_of(step - 1) == stage_;
    if (within_stage) places_ = places_from(state.at("streams"));
  }
  enter_stage();
  if (within_stage) restore_states(*checkpoint);
}

PretrainFeed::~PretrainFeed() = default;

/// Starts reading for the stage, from places_ and next_draw_.
void PretrainFeed::enter_stage() {
  ahead_.reset();
  batches_.clear();
  loader_.reset();
  states_.clear();
  if (options_.carry) {
    for (int64_t i = 0; i < stage().micro_batches; ++i) {
      states_.emplace_back(config_, stage().rows, ctx_.device());
    }
  }
  loader_ = std::make_unique<BatchLoader>(make_batches(), batches_ahead(stage()));
}

std::unique_ptr<BatchMaker> PretrainFeed::make_batches() {
  const LoaderOptions loading{.batch = stage().rows,
                              .context = stage().context,
                              .repeat_weight = static_cast<float>(options_.repeat_weight),
                              .threads = reading_threads(ctx_),
                              .first_draw = next_draw_};
  const auto seed = static_cast<uint64_t>(options_.common.seed);
  if (!options_.carry) {
    sampler_.emplace(split_.train, stage().context + 1, options_.rc_augment, seed);
    return window_batches(genome_, *sampler_, tokenizer_, loading);
  }
  StreamPlan streams(split_.train, stage().step_rows(), options_.rc_augment, seed,
                     static_cast<uint64_t>(stage_));
  return stream_batches(genome_, std::move(streams), tokenizer_, loading,
                        {.reset_bases = options_.carry_reset, .places = places_});
}

void PretrainFeed::restore_states(const Checkpoint& checkpoint) {
  for (size_t i = 0; i < states_.size(); ++i) {
    for (const auto& [part, view] :
         {std::pair{"conv", states_[i].all_conv()}, std::pair{"ssm", states_[i].all_ssm()}}) {
      const auto found = checkpoint.carried.find(name_of(part, i));
      require(found != checkpoint.carried.end() && found->second.shape() == view.shape(),
              ErrorKind::kInput, printable(checkpoint.folder.string()), ": the carried state ",
              name_of(part, i), " of shape ", to_string(view.shape()), " is not there");
      ctx_.upload(found->second, view);
    }
  }
}

StepReport PretrainFeed::step(Trainer& trainer) {
  const auto start = Clock::now();
  if (const size_t now = plan_.stage_of(step_); now != stage_) {
    stage_ = now;
    places_.clear();
    ctx_.arena().release_all();  // sizes change
    enter_stage();
  }
  trainer.limit_scratch(plan_.scratch_bytes(stage(), config_));
  wait_for_batches();
  add_batches(trainer);
  note_batches();
  std::vector<Batch> computed = std::exchange(batches_, {});
  ++step_;
  const bool stage_goes_on = step_ < plan_.steps && plan_.stage_of(step_) == stage_;
  if (stage_goes_on) take_ready_batches(trainer);
  const StepReport report = trainer.end_step();
  // a state that is not finite would spoil every step after this one
  if (report.skipped) forget();
  step_seconds_ += seconds_since(start);
  return report;
}

/// All batches of the step: their weights are needed before the first is computed.
void PretrainFeed::wait_for_batches() {
  const auto start = Clock::now();
  while (static_cast<int64_t>(batches_.size()) < stage().micro_batches) {
    batches_.push_back(loader_->next());
  }
  waited_seconds_ += seconds_since(start);
}

/// While the device is at work: what there is for the next step, the first of it on its way.
void PretrainFeed::take_ready_batches(Trainer& trainer) {
  while (static_cast<int64_t>(batches_.size()) < stage().micro_batches && loader_->ready()) {
    batches_.push_back(loader_->next());
  }
  if (batches_.empty()) return;
  const Batch& first = batches_.front();
  ahead_ = trainer.stage(first.tokens, first.targets, first.weights, first.batch, first.length,
                         stage().segment);
}

void PretrainFeed::add_batches(Trainer& trainer) {
  double weight = 0;
  for (const Batch& batch : batches_) weight += batch.weight_sum;
  const double scale = weight > 0 ? 1 / weight : 0;
  trainer.begin_step();
  for (size_t i = 0; i < batches_.size(); ++i) {
    const Batch& batch = batches_[i];
    const StagedBatch staged = i == 0 && ahead_
                                   ? std::move(*ahead_)
                                   : trainer.stage(batch.tokens, batch.targets, batch.weights,
                                                   batch.batch, batch.length, stage().segment);
    ahead_.reset();
    SequenceState* const state = options_.carry ? &states_[i] : nullptr;
    for (int64_t row = 0; state != nullptr && row < batch.batch;) {
      // neighbours that begin anew are cleared together
      int64_t end = row;
      while (end < batch.batch && batch.fresh[static_cast<size_t>(end)] != 0) ++end;
      state->reset_rows(ctx_, row, end);
      row = end + 1;
    }
    trainer.add_language_batch(staged, stage().segment, scale, state);
  }
}

void PretrainFeed::note_batches() {
  if (options_.carry) places_.clear();
  for (const Batch& batch : batches_) {
    tokens_ += batch.batch * batch.length;
    skipped_windows_ += batch.skipped;
    places_.insert(places_.end(), batch.places.begin(), batch.places.end());
  }
  next_draw_ = batches_.back().next_draw;
}

void PretrainFeed::forget() {
  for (SequenceState& state : states_) state.reset();
}

Json PretrainFeed::state() const {
  Json state = {
      {"next_draw", next_draw_}, {"tokens", tokens_}, {"skipped_windows", skipped_windows_}};
  if (options_.carry) state["streams"] = to_json(places_);
  return state;
}

std::map<std::string, ConstTensorView> PretrainFeed::carried() const {
  std::map<std::string, ConstTensorView> tensors;
  for (size_t i = 0; i < states_.size(); ++i) {
    tensors.emplace(name_of("conv", i), states_[i].all_conv());
    tensors.emplace(name_of("ssm", i), states_[i].all_ssm());
  }
  return tensors;
}

}  // namespace gmamba
