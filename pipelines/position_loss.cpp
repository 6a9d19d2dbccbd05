// SPDX-License-Identifier: Apache-2.0
#include "pipelines/position_loss.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "io/table.h"
#include "kernels/cross_entropy.h"
#include "libmamba/core/text.h"
#include "pipelines/html_page.h"
#include "pipelines/inference_plan.h"
#include "pipelines/language_loss.h"
#include "pipelines/progress.h"
#include "pipelines/stop.h"
#include "pipelines/svg_plot.h"

namespace gmamba {
namespace {

constexpr double kNatsPerBit = 0.69314718055994530942;
/// A chart's scale is made for points whose interval reaches at most this far, in bits per base.
constexpr double kNarrowBits = 0.02;

/// Half the width of the central 95% of Student's t, in deviations.
double student_95(int64_t freedom) {
  constexpr std::array<double, 10> kExact = {12.7062, 4.3027, 3.1824, 2.7764, 2.5706,
                                             2.4469,  2.3646, 2.3060, 2.2622, 2.2281};
  if (freedom <= static_cast<int64_t>(kExact.size())) {
    return kExact.at(static_cast<size_t>(freedom - 1));
  }
  // expansion about the normal quantile (Abramowitz and Stegun 26.7.5), here within 0.001
  constexpr double z = 1.959963984540054;
  const auto n = static_cast<double>(freedom);
  constexpr double z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;
  return z + (z3 + z) / (4 * n) + (5 * z5 + 16 * z3 + 3 * z) / (96 * n * n) +
         (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * n * n * n);
}

size_t bin_of(int64_t seen) {
  return static_cast<size_t>(std::bit_width(static_cast<uint64_t>(seen))) - 1;
}

std::string cell(double value) { return std::isfinite(value) ? format_number(value, 6) : "NA"; }

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(); }

Json to_json(const Interval95& interval) {
  return {{"mean", finite(interval.mean)},
          {"low", finite(interval.low)},
          {"high", finite(interval.high)}};
}

std::vector<std::vector<std::string>> rows_of(const std::vector<PositionBin>& bins, bool limited) {
  std::vector<std::vector<std::string>> rows = {{"context_from", "context_to", "bases", "blocks",
                                                 "loss", "loss_low", "loss_high", "bits_per_base"}};
  if (limited) {
    rows[0].insert(rows[0].end(),
                   {"limited_loss", "difference", "difference_low", "difference_high"});
  }
  for (const PositionBin& bin : bins) {
    const Interval95 loss = bin.loss.interval();
    rows.push_back({std::to_string(bin.from), std::to_string(bin.to),
                    std::to_string(std::llround(bin.loss.bases())),
                    std::to_string(bin.loss.blocks()), cell(loss.mean), cell(loss.low),
                    cell(loss.high), cell(loss.mean / kNatsPerBit)});
    if (!limited) continue;
    const Interval95 difference = bin.difference.interval();
    rows.back().insert(rows.back().end(), {cell(bin.limited.interval().mean), cell(difference.mean),
                                           cell(difference.low), cell(difference.high)});
  }
  return rows;
}

PlotPoint point_of(const PositionBin& bin, const Interval95& interval) {
  const double middle = std::sqrt(static_cast<double>(bin.from) * static_cast<double>(bin.to));
  return {middle, interval.mean / kNatsPerBit, interval.low / kNatsPerBit,
          interval.high / kNatsPerBit, bin.loss.bases() >= kBlockBases};
}

/// How far the interval of a point reaches; infinite where there is none.
double reach(const PlotPoint& point) {
  const double half = (point.high - point.low) / 2;
  return std::isfinite(half) ? half : std::numeric_limits<double>::infinity();
}

/// The first bins rest on few bases and differ by ten times what is to be seen: the axis is made
/// for the points of a block's bases or more with narrow intervals (or, of a small input, up to
/// twice the narrowest). What is left out is said in the note that comes back, "" for nothing.
std::string fit_narrow(Plot& plot) {
  size_t wide = 0, points = 0;
  double limit = kNarrowBits;
  for (PlotSeries& series : plot.series) {
    double narrowest = std::numeric_limits<double>::infinity();
    for (const PlotPoint& point : series.points) {
      if (point.fit) narrowest = std::min(narrowest, reach(point));
    }
    if (std::isfinite(narrowest)) limit = std::max(limit, 2 * narrowest);
  }
  for (PlotSeries& series : plot.series) {
    for (PlotPoint& point : series.points) {
      point.fit = point.fit && reach(point) <= limit;
      wide += point.fit ? 0 : 1;
      ++points;
    }
  }
  if (wide == 0 || wide == points) return {};
  return concat("<p>The scale fits the points of at least ", format_count(kBlockBases),
                " bases whose interval reaches at most ", format_number(limit, 2),
                " bits per base to either side; the other ", wide, " of the ", points,
                " points are cut off where they lie outside. The table has all.</p>\n");
}

}  // namespace

void BlockSums::add(double total, double bases) {
  ++blocks_;
  total_ += total;
  bases_ += bases;
  total_squared_ += total * total;
  bases_squared_ += bases * bases;
  product_ += total * bases;
}

Interval95 BlockSums::interval() const {
  const double none = std::numeric_limits<double>::quiet_NaN();
  if (bases_ <= 0) return {none, none, none};
  const double mean = total_ / bases_;
  if (blocks_ < 2) return {mean, none, none};
  const auto n = static_cast<double>(blocks_);
  const double residual =
      total_squared_ - 2 * mean * product_ + mean * mean * bases_squared_;  // of total - mean bases
  const double deviation = std::sqrt(std::max(0.0, residual) * n / (n - 1)) / bases_;
  const double half = student_95(blocks_ - 1) * deviation;
  return {mean, mean - half, mean + half};
}

PositionLoss::PositionLoss(Context& ctx, const Model& model, int64_t segment, int64_t limit,
                           Progress* progress)
    : ctx_(ctx),
      model_(model),
      segment_(segment),
      limit_(limit),
      progress_(progress),
      whole_(model.config(), 1, ctx.device()),
      limited_(model.config(), 1, ctx.device()) {}

void PositionLoss::run(RecordFeed& feed, const TokenSource& source) {
  source_ = &source;
  while (true) {
    switch (feed.next()) {
      case RecordFeed::Kind::kEnd:
        return;
      case RecordFeed::Kind::kWave:
        run_wave(feed.wave());
        break;
      case RecordFeed::Kind::kLong:
        run_record(feed);
        break;
    }
  }
}

/// Tokens read together from position `at` on: whole windows of a limit that is shorter than a
/// segment, and never across the border of a longer one.
int64_t PositionLoss::piece_tokens(int64_t at) const {
  if (limit_ == 0) return segment_;
  if (limit_ <= segment_) return segment_ / limit_ * limit_;
  return std::min(segment_, limit_ - at % limit_);
}

void PositionLoss::advance(int64_t bases) {
  bases_ += bases;
  if (progress_ == nullptr) return;
  if (const double fraction = source_->fraction(); fraction >= 0) progress_->set_fraction(fraction);
  progress_->add(bases);
}

/// States that a batch may hold together.
int64_t PositionLoss::most_rows() const {
  const int64_t state_bytes = std::max<int64_t>(1, SequenceState::bytes(model_.config(), 1));
  return std::max<int64_t>(1, kBatchStateBytes / state_bytes);
}

/// Whole records as rows; then, where their contexts are limited, the windows of all of them.
/// Losses are counted record by record, so that a record's neighbours change nothing.
void PositionLoss::run_wave(const std::vector<HeldRecord>& wave) {
  std::vector<std::vector<int32_t>> targets;
  std::vector<std::vector<float>> losses, limited;
  for (const HeldRecord& record : wave) {
    targets.push_back(next_base_targets(model_.vocabulary(), record.tokens, record.info.length));
    losses.emplace_back(record.tokens.size());
    limited.emplace_back(limit_ > 0 ? record.tokens.size() : 0);
  }
  std::vector<Row> windows;
  for (const std::vector<size_t>& batch : plan_batches(wave, segment_, most_rows())) {
    check_stop();
    std::vector<Row> rows;
    for (const size_t i : batch) rows.push_back({wave[i].tokens, targets[i], losses[i]});
    run_rows(rows);
  }
  for (size_t i = 0; i < wave.size() && limit_ > 0; ++i) {
    const auto length = wave[i].tokens.size();
    const auto limit = static_cast<size_t>(limit_);
    if (length <= limit) {  // the limit is never reached
      limited[i] = losses[i];
      continue;
    }
    for (size_t at = 0; at < length; at += limit) {
      const size_t size = std::min(limit, length - at);
      windows.push_back({std::span(wave[i].tokens).subspan(at, size),
                         std::span(targets[i]).subspan(at, size),
                         std::span(limited[i]).subspan(at, size)});
    }
  }
  const auto group =
      static_cast<size_t>(limit_ > 0 ? std::clamp<int64_t>(segment_ / limit_, 1, most_rows()) : 1);
  for (size_t begin = 0; begin < windows.size(); begin += group) {
    check_stop();
    run_rows(std::span(windows).subspan(begin, std::min(group, windows.size() - begin)));
  }
  for (size_t i = 0; i < wave.size(); ++i) {
    count_losses(targets[i], losses[i], limited[i], 0);
    close_block();
    advance(wave[i].info.length);
  }
}

/// Each row from an empty state; what pads it comes after its last token and changes nothing.
void PositionLoss::run_rows(std::span<const Row> rows) {
  size_t longest = 0;
  for (const Row& row : rows) longest = std::max(longest, row.tokens.size());
  if (longest == 0) return;
  const size_t count = rows.size() * longest;
  std::vector<uint8_t> tokens(count, static_cast<uint8_t>(model_.vocabulary().n));
  std::vector<int32_t> targets(count, kIgnoreTarget);
  std::vector<float> losses(count);
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto at = static_cast<std::ptrdiff_t>(r * longest);
    std::copy(rows[r].tokens.begin(), rows[r].tokens.end(), tokens.begin() + at);
    std::copy(rows[r].targets.begin(), rows[r].targets.end(), targets.begin() + at);
  }
  const Arena::Scope scope(ctx_.arena());
  const auto batch = static_cast<int64_t>(rows.size());
  SequenceState state = SequenceState::scratch(ctx_, model_.config(), batch);
  add_losses(tokens, targets, batch, state, losses);
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy_n(losses.begin() + static_cast<std::ptrdiff_t>(r * longest), rows[r].losses.size(),
                rows[r].losses.begin());
  }
}

void PositionLoss::run_record(RecordFeed& feed) {
  std::vector<uint8_t> tokens(static_cast<size_t>(segment_) + 1);
  whole_.reset();
  int64_t held = 0;
  for (int64_t at = 0;;) {
    check_stop();
    // one token more than is read: the target of the last
    const int64_t want = piece_tokens(at) + 1;
    held += feed.read(
        std::span(tokens).subspan(static_cast<size_t>(held), static_cast<size_t>(want - held)));
    const bool last = held < want;
    const int64_t count = last ? held : want - 1;
    run_piece(std::span(tokens).first(static_cast<size_t>(held)), at, count);
    advance(count);
    if (last) break;
    tokens[0] = tokens[static_cast<size_t>(want - 1)];
    held = 1;
    at += count;
  }
  close_block();
}

/// `count` tokens from position `at`, and the one after them if there is one.
void PositionLoss::run_piece(std::span<const uint8_t> tokens, int64_t at, int64_t count) {
  if (count == 0) return;
  const std::vector<int32_t> targets = next_base_targets(model_.vocabulary(), tokens, count);
  const auto read = tokens.first(static_cast<size_t>(count));
  std::vector<float> losses(static_cast<size_t>(count));
  std::vector<float> limited(limit_ > 0 ? losses.size() : 0);
  add_losses(read, targets, 1, whole_, losses);
  if (limit_ > 0) limited_losses(read, targets, at, limited);
  count_losses(targets, losses, limited, at);
}

void PositionLoss::count_losses(std::span<const int32_t> targets, std::span<const float> losses,
                                std::span<const float> limited, int64_t at) {
  for (size_t i = 0; i < losses.size(); ++i) {
    if (targets[i] == kIgnoreTarget) continue;
    const size_t bin = bin_of(at + static_cast<int64_t>(i) + 1);
    if (bin != block_.bin || block_.bases == kBlockBases) close_block();
    block_.bin = bin;
    block_.whole += static_cast<double>(losses[i]);
    if (limit_ > 0) block_.limited += static_cast<double>(limited[i]);
    ++block_.bases;
    ++predicted_;
  }
}

/// Loss of each of `rows` equal parts of the tokens, going on from `state`.
void PositionLoss::add_losses(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                              int64_t rows, SequenceState& state, std::span<float> losses) {
  const Arena::Scope scope(ctx_.arena());
  const auto count = static_cast<int64_t>(tokens.size());
  const Shape shape = {rows, count / rows};
  const int64_t d_model = model_.config().d_model;
  const TensorView hidden = ctx_.arena().f32({rows, count / rows, d_model});
  const TensorView logits = ctx_.arena().f32({count, model_.config().vocab_size});
  const TensorView each = ctx_.arena().f32({count});
  const std::array<ConstTensorView, 2> host = {host_view(tokens.data(), shape),
                                               host_view(targets.data(), {count})};
  const Staged staged = ctx_.stage(host);
  model_.forward(ctx_, staged.view(0), state, hidden);
  model_.logits(ctx_, hidden.reshape({count, d_model}), logits);
  cross_entropy(ctx_, {.logits = logits, .targets = staged.view(1), .losses = each});
  ctx_.download(each, host_view(losses.data(), {count}));
}

void PositionLoss::limited_losses(std::span<const uint8_t> tokens, std::span<const int32_t> targets,
                                  int64_t at, std::span<float> losses) {
  if (limit_ > segment_) {
    if (at % limit_ == 0) limited_.reset();
    add_losses(tokens, targets, 1, limited_, losses);
    return;
  }
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t begin = 0; begin < count;) {
    // whole windows as rows of a batch, each from an empty state; the rest of the record alone
    const int64_t rows = std::clamp<int64_t>((count - begin) / limit_, 1, most_rows());
    const int64_t size = std::min(count - begin, rows * limit_);
    const Arena::Scope scope(ctx_.arena());
    SequenceState state = SequenceState::scratch(ctx_, model_.config(), rows);
    const auto from = static_cast<size_t>(begin);
    const auto part = static_cast<size_t>(size);
    add_losses(tokens.subspan(from, part), targets.subspan(from, part), rows, state,
               losses.subspan(from, part));
    begin += size;
  }
}

void PositionLoss::close_block() {
  if (block_.bases > 0) {
    while (bins_.size() <= block_.bin) {
      const int64_t from = int64_t{1} << bins_.size();
      bins_.push_back({from, 2 * from - 1, {}, {}, {}});
    }
    PositionBin& bin = bins_[block_.bin];
    const auto bases = static_cast<double>(block_.bases);
    bin.loss.add(block_.whole, bases);
    if (limit_ > 0) {
      bin.limited.add(block_.limited, bases);
      bin.difference.add(block_.limited - block_.whole, bases);
    }
  }
  block_ = {};
}

std::vector<PositionBin> PositionLoss::bins() const {
  std::vector<PositionBin> filled;
  std::copy_if(bins_.begin(), bins_.end(), std::back_inserter(filled),
               [](const PositionBin& bin) { return bin.loss.blocks() > 0; });
  return filled;
}

std::string position_table(const std::vector<PositionBin>& bins, bool limited) {
  std::string table;
  for (const std::vector<std::string>& row : rows_of(bins, limited)) table += tsv_line(row);
  return table;
}

Json position_json(const std::vector<PositionBin>& bins, bool limited) {
  Json list = Json::array();
  for (const PositionBin& bin : bins) {
    const Interval95 loss = bin.loss.interval();
    Json entry = {{"context_from", bin.from},
                  {"context_to", bin.to},
                  {"bases", std::llround(bin.loss.bases())},
                  {"blocks", bin.loss.blocks()},
                  {"loss", to_json(loss)},
                  {"bits_per_base", finite(loss.mean / kNatsPerBit)}};
    if (limited) {
      entry["limited_loss"] = to_json(bin.limited.interval());
      entry["difference"] = to_json(bin.difference.interval());
    }
    list.push_back(std::move(entry));
  }
  return list;
}

std::string position_page(const std::string& model, const std::vector<PositionBin>& bins,
                          int64_t limit) {
  Plot curve{.title = "Loss against the context seen",
             .x_label = "bases of context seen",
             .y_label = "bits per base",
             .x_scale = PlotScale::kLog2,
             .series = {},
             .levels = {}};
  Plot gain = curve;
  gain.title = concat("What more than ", format_count(limit), " bases of context give");
  gain.y_label = "bits per base saved";
  gain.levels.push_back({"no difference", 0});
  PlotSeries whole{
      .label = "all context", .points = {}, .colour = 0, .markers = true, .band = true};
  PlotSeries less{.label = concat("at most ", format_count(limit), " bases"),
                  .points = {},
                  .colour = 1,
                  .markers = true,
                  .band = true};
  PlotSeries paired{.label = "paired difference, with its 95% interval",
                    .points = {},
                    .colour = 2,
                    .markers = true,
                    .band = true};
  for (const PositionBin& bin : bins) {
    whole.points.push_back(point_of(bin, bin.loss.interval()));
    less.points.push_back(point_of(bin, bin.limited.interval()));
    paired.points.push_back(point_of(bin, bin.difference.interval()));
  }
  curve.series.push_back(std::move(whole));
  if (limit > 0) curve.series.push_back(std::move(less));
  gain.series.push_back(std::move(paired));
  const std::string curve_note = fit_narrow(curve);
  const std::string gain_note = fit_narrow(gain);
  std::string body = concat("<h1>", html_escape(model),
                            "</h1>\n<p>Loss against the bases read since the model's state "
                            "was empty. Shaded: 95% intervals over blocks of at most ",
                            kBlockBases, " bases.</p>\n", draw_plot(curve), curve_note);
  if (limit > 0) body += draw_plot(gain) + gain_note;
  return html_page(concat(model, " - loss by context"),
                   body + html_table(rows_of(bins, limit > 0)));
}

}  // namespace gmamba
