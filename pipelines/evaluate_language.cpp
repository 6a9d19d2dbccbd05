// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "libmamba/base_codes.h"
#include "libmamba/baseline_markov.h"
#include "libmamba/core/text.h"
#include "pipelines/evaluate.h"
#include "pipelines/inference_plan.h"
#include "pipelines/language_loss.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

constexpr double kNatsPerBit = 0.69314718055994530942;
constexpr size_t kRecordsShown = 50;      // of the table for people
constexpr size_t kRecordsListed = 10000;  // of the JSON

/// Scores the same bases as the model with Markov models of several orders.
class MarkovListener final : public TokenListener {
 public:
  MarkovListener(const Vocabulary& vocabulary, const MarkovBaseline& markov,
                 std::vector<int64_t> orders)
      : vocabulary_(vocabulary), markov_(markov), orders_(std::move(orders)) {}

  void listen(int64_t record, bool first, std::span<const uint8_t> tokens) override {
    scores_.resize(std::max(scores_.size(), static_cast<size_t>(record) + 1),
                   std::vector<BitsScore>(orders_.size()));
    if (first) contexts_.assign(orders_.size(), {});
    if (tokens.empty()) return;
    codes_.resize(tokens.size());
    tokens_to_bases(vocabulary_, tokens, codes_);
    // the first base of a record is given, not predicted
    const std::span<const uint8_t> given = std::span(codes_).first(first ? 1 : 0);
    const std::span<const uint8_t> predicted = std::span(codes_).subspan(given.size());
    for (size_t k = 0; k < orders_.size(); ++k) {
      markov_.advance(given, contexts_[k]);
      scores_[static_cast<size_t>(record)][k] +=
          markov_.score(predicted, contexts_[k], static_cast<int>(orders_[k]));
    }
  }

  const std::vector<BitsScore>& scores(int64_t record) const {
    return scores_.at(static_cast<size_t>(record));
  }

 private:
  const Vocabulary& vocabulary_;
  const MarkovBaseline& markov_;
  std::vector<int64_t> orders_;
  std::vector<MarkovContext> contexts_;
  std::vector<std::vector<BitsScore>> scores_;  // [record][order]
  std::vector<uint8_t> codes_;
};

MarkovBaseline train_markov(const EvaluateOptions& options, const Tokenizer& tokenizer, Job& job) {
  const int64_t order =
      *std::max_element(options.baseline_orders.begin(), options.baseline_orders.end());
  MarkovBaseline markov({.order = static_cast<int>(order)});
  InputOptions input;
  input.inputs = options.baseline_train;
  input.invalid = options.input.invalid;
  TokenSource source(input, tokenizer, 1, job.log);
  for (const std::string& path : options.baseline_train) job.record.add_input(path);
  job.progress.start("training Markov models", "bases", -1);
  TokenPart part;
  MarkovContext context;
  std::vector<uint8_t> codes;
  while (source.next(part)) {
    if (part.first) context = {};
    codes.resize(part.tokens.size());
    tokens_to_bases(tokenizer.vocabulary(), part.tokens, codes);
    markov.add(codes, context);
    if (const double fraction = source.fraction(); fraction >= 0) {
      job.progress.set_fraction(fraction);
    }
    job.progress.add(static_cast<int64_t>(codes.size()));
  }
  markov.finish();
  job.progress.finish();
  return markov;
}

/// One record, or all of them together.
struct Line {
  std::string id;
  int64_t length = 0;
  LossTotals model;
  std::vector<BitsScore> markov;

  void add(const Line& other) {
    length += other.length;
    model += other.model;
    markov.resize(other.markov.size());
    for (size_t k = 0; k < markov.size(); ++k) markov[k] += other.markov[k];
  }
};

Json to_json(const Line& line, const std::vector<int64_t>& orders) {
  const double loss = line.model.mean();
  const auto finite = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  Json json = Json::object();
  json["id"] = line.id;
  json["length"] = line.length;
  json["predicted_bases"] = line.model.count;
  if (line.model.count == 0) return json;
  json["loss"] = finite(loss);
  json["perplexity"] = finite(std::exp(loss));
  json["bits_per_base"] = finite(loss / kNatsPerBit);
  json["accuracy"] = line.model.correct / line.model.weight;
  for (size_t k = 0; k < line.markov.size(); ++k) {
    json[concat("markov_", orders[k], "_bits_per_base")] = line.markov[k].bits_per_base();
  }
  return json;
}

class TextTable {
 public:
  explicit TextTable(const std::vector<int64_t>& orders, bool markov) {
    cells_ = {"record", "predicted", "loss", "perplexity", "bits/base", "accuracy"};
    for (size_t k = 0; markov && k < orders.size(); ++k) {
      cells_.push_back(concat("markov-", orders[k]));
    }
    end_row();
  }

  void add(const Line& line) {
    const double loss = line.model.mean();
    cells_ = {printable(line.id).substr(0, kNameWidth), format_count(line.model.count)};
    if (line.model.count > 0) {
      cells_.insert(cells_.end(), {format_number(loss, 5), format_number(std::exp(loss), 5),
                                   format_number(loss / kNatsPerBit, 5),
                                   format_number(line.model.correct / line.model.weight, 4)});
      for (const BitsScore& score : line.markov) {
        cells_.push_back(format_number(score.bits_per_base(), 5));
      }
    }
    end_row();
  }
  const std::string& text() const { return text_; }

 private:
  void end_row() {
    for (size_t i = 0; i < cells_.size(); ++i) {
      const size_t width = i == 0 ? kNameWidth : 12;
      const std::string gap(width > cells_[i].size() ? width - cells_[i].size() : 0, ' ');
      text_ += i == 0 ? cells_[i] + gap : "  " + gap + cells_[i];
    }
    text_ += "\n";
  }

  static constexpr size_t kNameWidth = 28;
  std::vector<std::string> cells_;
  std::string text_;
};

Json results_json(const std::vector<Line>& lines, const Line& total,
                  const std::vector<int64_t>& orders) {
  Json results = Json::object();
  results["total"] = to_json(total, orders);
  Json records = Json::array();
  for (size_t i = 0; i < lines.size() && i < kRecordsListed; ++i) {
    records.push_back(to_json(lines[i], orders));
  }
  results["records"] = records;
  results["records_left_out"] = lines.size() - records.size();
  return results;
}

std::string results_text(const std::vector<Line>& lines, const Line& total,
                         const std::vector<int64_t>& orders) {
  TextTable table(orders, !total.markov.empty());
  for (size_t i = 0; lines.size() > 1 && i < lines.size() && i < kRecordsShown; ++i) {
    table.add(lines[i]);
  }
  if (lines.size() > kRecordsShown) {
    Line more;
    for (size_t i = kRecordsShown; i < lines.size(); ++i) more.add(lines[i]);
    more.id = concat("(", lines.size() - kRecordsShown, " more)");
    table.add(more);
  }
  table.add(total);
  std::string out =
      concat(table.text(),
             "loss in nats, of A, C, G and T given all before them; the softmax is over the whole "
             "vocabulary\n");
  out += concat("model: ", format_number(total.model.mean() / kNatsPerBit, 5), " bits per base");
  for (size_t k = 0; k < total.markov.size(); ++k) {
    out += concat("; order-", orders[k],
                  " Markov model: ", format_number(total.markov[k].bits_per_base(), 5));
  }
  return concat(out, "; on the same ", format_count(total.model.count), " bases\n");
}

}  // namespace

void detail::evaluate_language(const EvaluateOptions& options, Context& ctx, const Model& model,
                               Job& job) {
  std::vector<MemoryPlan::Item> extra;
  const bool with_markov = !options.baseline_train.empty();
  if (with_markov) {
    const int64_t order =
        *std::max_element(options.baseline_orders.begin(), options.baseline_orders.end());
    extra.push_back({"Markov models", MarkovBaseline::peak_bytes(static_cast<int>(order))});
  }
  const InferencePlan plan = plan_inference(model.config(), options.common, extra);
  if (options.common.plan) {
    job.report = plan_report(ctx, model, plan);
    return;
  }
  const Tokenizer tokenizer(model.vocabulary());
  TokenSource source(options.input, tokenizer, ctx.threads(), job.log);
  for (const std::string& input : options.input.inputs) job.record.add_input(input);
  std::optional<MarkovBaseline> markov;
  std::optional<MarkovListener> listener;
  if (with_markov) {
    markov.emplace(train_markov(options, tokenizer, job));
    listener.emplace(model.vocabulary(), *markov, options.baseline_orders);
  }

  const LossOptions loss{.segment = plan.segment, .context = options.context};
  RecordFeed feed(source, LanguageLossReader::feed_limits(loss));
  LanguageLossReader reader(ctx, model, loss, listener ? &*listener : nullptr, &job.progress);
  job.progress.start("evaluating", "bases", source.total_bases());
  std::vector<Line> lines;
  Line total;
  for (const RecordLoss& record : reader.run(feed, source)) {
    Line line{record.record.id, record.record.length, record.model, {}};
    if (listener) {
      line.markov = listener->scores(record.record.index);
      require(line.markov.front().bases == line.model.count, ErrorKind::kInternal,
              "the model predicted ", line.model.count, " bases of '", printable(line.id),
              "', the Markov models ", line.markov.front().bases);
    }
    total.add(line);
    lines.push_back(std::move(line));
  }
  job.progress.finish();
  total.id = "total";
  require(total.model.count > 0, ErrorKind::kInput,
          "the inputs hold no base to predict: A, C, G or T after another base of its record");
  report_letters(source, job);
  job.record.add_bases(total.length);
  job.record.add_records(feed.records());
  job.record.set_result("segment", plan.segment);
  finish_evaluation(options, results_json(lines, total, options.baseline_orders),
                    results_text(lines, total, options.baseline_orders), job);
}

}  // namespace gmamba
