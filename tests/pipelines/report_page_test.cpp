// SPDX-License-Identifier: Apache-2.0
#include "pipelines/report_page.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "pipelines/run_figures.h"
#include "pipelines/svg_plot.h"
#include "tests/pipelines/pipeline_fixture.h"

namespace gmamba::test {
namespace {

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

/// Every element that is opened is closed, in order; '<' and '>' stand for tags alone, and quotes
/// within them are even.
void expect_well_formed(const std::string& html) {
  std::vector<std::string> open;
  size_t after = 0;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', after)) {
    // the style sheet selects children by '>'
    if (open.empty() || open.back() != "style") {
      ASSERT_EQ(html.substr(after, at - after).find('>'), std::string::npos) << after;
    }
    const size_t end = html.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = html.substr(at + 1, end - at - 1);
    after = end + 1;
    ASSERT_EQ(tag.find('<'), std::string::npos) << tag;
    ASSERT_EQ(count_of(tag, "\"") % 2, 0U) << tag;
    if (tag == "!DOCTYPE html" || tag.starts_with("meta ") || tag.back() == '/') continue;
    if (tag[0] != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
      continue;
    }
    ASSERT_FALSE(open.empty()) << tag;
    ASSERT_EQ(open.back(), tag.substr(1));
    open.pop_back();
  }
  EXPECT_TRUE(open.empty());
}

std::vector<Json> metrics_of_a_run() {
  std::vector<Json> metrics;
  for (int step = 1; step <= 2000; ++step) {
    metrics.push_back({{"step", step},
                       {"split", "train"},
                       {"tokens", 1000 * step},
                       {"loss", 1.5 / step + 1.3},
                       {"bits_per_base", (1.5 / step + 1.3) * 1.4427},
                       {"learning_rate", 1e-3},
                       {"gradient_norm", step == 7 ? Json() : Json(0.5)},
                       {"tokens_per_second", 4e6},
                       {"peak_memory_bytes", 1 << 30}});
  }
  metrics.push_back({{"step", 2000},
                     {"split", "valid"},
                     {"tokens", 2000000},
                     {"loss", 1.3125},
                     {"bits_per_base", 1.8935},
                     {"contigs", Json::array({{{"contig", "<b>chr1</b>"},
                                               {"file", "a&b.fa"},
                                               {"bases", 12345},
                                               {"loss", 1.25},
                                               {"bits_per_base", 1.8034}}})}});
  return metrics;
}

Json record_of_a_run() {
  return {{"gmamba", "0.1.0"},
          {"command", "pretrain"},
          {"command_line", {"gmamba", "pretrain", "--out", "a 'run' <script>alert(1)</script>"}},
          {"options", {{"out", "\"><img src=x>"}, {"lr", 0.008}}},
          {"device", {{"name", "cpu"}, {"threads", 2}}},
          {"results", {{"finished", true}, {"markov_order_3_bits_per_base", 1.9417}}}};
}

TEST(ReportPage, ShowsCurvesBaselinesContigsAndOrigin) {
  const std::string page = report_page("my run", record_of_a_run(), metrics_of_a_run());
  expect_well_formed(page);
  for (const char* part :
       {"Bits per base", "Learning rate", "Gradient norm", "tokens per second",
        "Peak resident memory", "order-3 Markov model 1.9417", "12,345", "1.8034", "--lr", "0.008",
        "a &#39;\\&#39;&#39;run&#39;\\&#39;&#39; &lt;script&gt;", "prefers-color-scheme",
        "finished", "1.8935"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(count_of(page, "<figure>"), 6U);
}

TEST(ReportPage, ShowsMemoryOfTheDeviceContextAndWaiting) {
  std::vector<Json> metrics = metrics_of_a_run();
  for (Json& line : metrics) {
    line["device_memory_bytes"] = 1 << 28;
    line["device_peak_memory_bytes"] = 1 << 29;
    line["context"] = 1024;
    line["input_wait"] = 0.01;
  }
  const std::string page = report_page("my run", record_of_a_run(), metrics);
  expect_well_formed(page);
  for (const char* part : {"Device memory of this run", "Device memory, peak",
                           "Peak resident memory", "Waiting for input", ">Context<"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(page.find("GPU memory in use"), std::string::npos) << "there was none";
  for (Json& line : metrics) line["gpu_used_bytes"] = int64_t{1} << 33;
  EXPECT_NE(report_page("my run", record_of_a_run(), metrics).find("GPU memory in use"),
            std::string::npos);
  EXPECT_EQ(page.find("GPU idle"), std::string::npos) << "no driver said";
  for (Json& line : metrics) line["gpu_idle"] = 0.02;
  EXPECT_NE(report_page("my run", record_of_a_run(), metrics).find("GPU idle"), std::string::npos);
}

TEST(ReportPage, TheSpeedAtTheTopIsTheMeanOfTheRun) {
  std::vector<Json> metrics;
  // half of the tokens at 1M/s, half at 4M/s: 2000 in 1.25 ms
  for (const auto& [tokens, rate] : {std::pair{1000, 1e6}, {2000, 4e6}}) {
    metrics.push_back({{"step", tokens / 1000},
                       {"split", "train"},
                       {"tokens", tokens},
                       {"loss", 1.3},
                       {"tokens_per_second", rate}});
  }
  const std::string page = report_page("r", record_of_a_run(), metrics);
  EXPECT_NE(page.find("<b>1.6M</b><span>tokens per second, mean of all steps</span>"),
            std::string::npos);
}

TEST(ReportPage, ASampleAndAllThatIsHeldOutAreToldApart) {
  std::vector<Json> metrics = metrics_of_a_run();
  const Json contigs = metrics.back()["contigs"];
  metrics.pop_back();
  const auto evaluated = [&](const char* split, int step, int bases, double bits) {
    metrics.push_back({{"step", step},
                       {"split", split},
                       {"tokens", 1000 * step},
                       {"loss", bits / 1.4427},
                       {"bits_per_base", bits},
                       {"bases", bases},
                       {"contigs", contigs}});
  };
  evaluated("valid", 1000, 5000, 1.9125);
  evaluated("valid", 2000, 5000, 1.9025);
  const std::string running = report_page("r", record_of_a_run(), metrics);
  EXPECT_NE(running.find("<b>1.9025</b><span>held-out bits per base</span>"), std::string::npos);
  EXPECT_EQ(running.find("all that is held out"), std::string::npos);
  evaluated("valid_all", 2000, 70000, 1.8875);
  const std::string page = report_page("r", record_of_a_run(), metrics);
  expect_well_formed(page);
  for (const char* part :
       {"<b>1.8875</b><span>bits per base, all that is held out</span>",
        "<b>1.9025</b><span>bits per base, the sample of each evaluation</span>",
        "held out, a sample of 5,000 bases: 1.9025", "all that is held out, 70,000 bases: 1.8875",
        "<th>on 70,000 held-out bases</th>", "<td>this model, step 2,000</td><td>1.8875</td>"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(page.find("a sample of 5,000 bases: 1.8875"), std::string::npos);
  // where the sample is all, there is one result
  metrics.back()["bases"] = 5000;
  EXPECT_EQ(report_page("r", record_of_a_run(), metrics).find("a sample of"), std::string::npos);
}

TEST(ReportPage, IsSelfContainedAndEscapesWhatFilesSay) {
  const std::string page = report_page("<i>&", record_of_a_run(), metrics_of_a_run());
  for (const char* part :
       {"<script", "<img", "<b>chr1", "a&b.fa", "<i>&", "http", "src=x>", "url("}) {
    EXPECT_EQ(page.find(part), std::string::npos) << part;
  }
  EXPECT_NE(page.find("&lt;b&gt;chr1&lt;/b&gt;"), std::string::npos);
  EXPECT_NE(page.find("a&amp;b.fa"), std::string::npos);
}

TEST(ReportPage, IsMadeOfWhateverIsThere) {
  expect_well_formed(report_page("empty", Json::object(), {}));
  expect_well_formed(report_page("null", Json(), {Json::object(), Json({{"split", 3}})}));
  const std::vector<Json> odd = {
      {{"split", "train"}, {"step", "x"}, {"tokens", 5}, {"loss", nullptr}},
      {{"split", "valid"}, {"step", 1}, {"loss", 2.0}, {"contigs", {1, "two", nullptr}}}};
  expect_well_formed(report_page("odd", {{"results", 5}, {"options", "no"}}, odd));
}

TEST(ReportPage, OptionsWithoutAValueAreLeftOut) {
  Json record = record_of_a_run();
  record["options"] = {{"lr", 0.008},
                       {"carry", false},
                       {"share", nullptr},
                       {"init", ""},
                       {"contigs", Json::array()}};
  const std::string page = report_page("r", record, metrics_of_a_run());
  expect_well_formed(page);
  EXPECT_NE(page.find("<td>--carry</td><td>false</td>"), std::string::npos);
  EXPECT_NE(page.find("<td>--lr</td><td>0.008</td>"), std::string::npos);
  for (const char* part : {"null", "--share", "--init", "--contigs"}) {
    EXPECT_EQ(page.find(part), std::string::npos) << part;
  }
}

TEST(ReportPage, LongCurvesAreThinned) {
  const std::string page = report_page("r", record_of_a_run(), metrics_of_a_run());
  EXPECT_LT(page.size(), 200000U);
}

TEST(ReportPage, SaysWhatAPointIsTheMeanOf) {
  const auto page_of = [](int steps, size_t lines) {
    std::vector<Json> metrics = metrics_of_a_run();
    metrics.resize(lines);
    for (Json& line : metrics) line["steps"] = steps;
    return report_page("r", record_of_a_run(), metrics);
  };
  const auto has = [](const std::string& page, const char* words) {
    return page.find(words) != std::string::npos;
  };
  const std::string thinned = page_of(10, 2000);
  EXPECT_TRUE(has(thinned, "means over the steps since the point before, up to 10;"));
  EXPECT_TRUE(has(thinned, "Of 2,000 such points 500 means of neighbours are drawn, shaded"));
  const std::string short_run = page_of(10, 300);
  EXPECT_TRUE(has(short_run, "up to 10;"));
  EXPECT_FALSE(has(short_run, "shaded")) << "nothing is";
  const std::string each = page_of(1, 300);
  EXPECT_TRUE(has(each, "A training point is a step."));
  EXPECT_FALSE(has(each, "means over"));
}

class ReportFile : public PipelineTest {};

TEST_F(ReportFile, IsWrittenFromTheRunFolderEvenOfAKilledRun) {
  std::filesystem::create_directories(path("run"));
  std::ofstream(path("run") + "/metrics.jsonl")
      << R"({"step":1,"split":"train","tokens":10,"loss":2.5})"
      << "\n"
      << R"({"step":2,"split":"train","tokens":20,"lo)";
  EXPECT_EQ(read_metrics(path("run") + "/metrics.jsonl").size(), 1U);
  write_report(path("run"));
  const std::string page = slurp(path("run") + "/report.html");
  expect_well_formed(page);
  EXPECT_NE(page.find("<h1>run</h1>"), std::string::npos);
}

TEST(SvgPlot, TicksAreRoundAndInside) {
  EXPECT_EQ(round_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  const std::vector<double> ticks = round_ticks(1.31, 1.47, 6);
  ASSERT_GE(ticks.size(), 3U);
  EXPECT_GE(ticks.front(), 1.31);
  EXPECT_LE(ticks.back(), 1.47);
  EXPECT_NEAR(ticks[1] - ticks[0], 0.02, 1e-12);
  EXPECT_TRUE(round_ticks(3, 3, 5).empty());
  EXPECT_TRUE(round_ticks(0, std::numeric_limits<double>::infinity(), 5).empty());
  EXPECT_EQ(tick_text(0.25, 0.05, 1.0), "0.25");
  EXPECT_EQ(tick_text(50000, 50000, 150000), "50k");
  EXPECT_EQ(tick_text(2500000, 500000, 4e6), "2.5M");
  EXPECT_EQ(tick_text(0, 1, 5), "0");
}

TEST(SvgPlot, CoordinatesFollowTheData) {
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .series = {}, .levels = {}};
  plot.series.push_back({.label = "a", .points = {{0, 1, 0, 0}, {5, 2, 0, 0}, {10, 3, 0, 0}}});
  const std::string svg = draw_plot(plot);
  expect_well_formed(svg);
  // the plot area is 70 to 742 by 254 to 10, with 6% of the span above and below
  EXPECT_NE(svg.find("M70.0 240.9 L406.0 132.0 L742.0 23.1 "), std::string::npos) << svg;
}

TEST(SvgPlot, FocusFitsTheAxisToTheLaterCurve) {
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .series = {}, .levels = {}};
  plot.series.push_back({.label = "a", .points = {{0, 1000, 0, 0}, {5, 2, 0, 0}, {10, 3, 0, 0}}});
  plot.focus = true;
  // 2 and 3 span the frame, as if the first point were not there
  EXPECT_NE(draw_plot(plot).find("L406.0 240.9 L742.0 23.1 "), std::string::npos);
}

TEST(SvgPlot, TheAxisFitsThePointsThatAreToFit) {
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .series = {}, .levels = {}};
  plot.series.push_back({.label = "a", .points = {{0, 1000, 0, 0, false}, {5, 2, 0, 0}}});
  plot.series.push_back({.label = "b", .points = {{0, 900, 0, 0, false}, {10, 3, 0, 0}}});
  const std::string svg = draw_plot(plot);
  EXPECT_NE(svg.find("L406.0 240.9 "), std::string::npos) << svg;
  EXPECT_NE(svg.find("L742.0 23.1 "), std::string::npos) << svg;
  // where none is to fit, all are
  for (PlotSeries& series : plot.series) series.points.resize(1);
  EXPECT_NE(draw_plot(plot).find(">1000<"), std::string::npos);
}

TEST(SvgPlot, TooltipsCountInWholeNumbers) {
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .series = {}, .levels = {}};
  plot.x_scale = PlotScale::kLog2;
  plot.series.push_back({.label = "a",
                         .points = {{2.44948974, 1, 0, 0}, {2965820.6, 2, 0, 0}},
                         .colour = 0,
                         .markers = true});
  const std::string svg = draw_plot(plot);
  EXPECT_NE(svg.find("<title>a: 1 at 2</title>"), std::string::npos);
  EXPECT_NE(svg.find("<title>a: 2 at 2,965,821</title>"), std::string::npos);
}

TEST(SvgPlot, GapsAndConstantsAreDrawn) {
  const double gap = std::numeric_limits<double>::quiet_NaN();
  Plot plot{.title = "t", .x_label = "x", .y_label = "y", .series = {}, .levels = {}};
  plot.series.push_back(
      {.label = "a", .points = {{0, 2, 0, 0}, {1, gap, 0, 0}, {2, 2, 0, 0}, {3, 2, 0, 0}}});
  const std::string svg = draw_plot(plot);
  for (const char* word : {"\"nan", " nan", "-nan", ">nan", "\"inf", " inf", "-inf", ">inf"}) {
    EXPECT_EQ(svg.find(word), std::string::npos) << word;
  }
  EXPECT_EQ(count_of(svg, "M7") + count_of(svg, " M"), 2U);
  plot.series[0].points = {{0, gap, 0, 0}};
  EXPECT_EQ(draw_plot(plot), "");
}

TEST(SvgPlot, ThinningKeepsMeansAndExtremes) {
  std::vector<PlotPoint> points;
  for (int i = 0; i < 1000; ++i) points.push_back({double(i), i % 2 == 0 ? 1.0 : 3.0, 0, 0});
  const std::vector<PlotPoint> thin = thin_points(points, 10);
  ASSERT_EQ(thin.size(), 10U);
  EXPECT_DOUBLE_EQ(thin[0].y, 2);
  EXPECT_DOUBLE_EQ(thin[0].x, 49.5);
  EXPECT_EQ(thin[9].low, 1);
  EXPECT_EQ(thin[9].high, 3);
}

TEST(SvgPlot, EscapesLongTextWhole) {
  const std::string text(500, '<');
  EXPECT_EQ(count_of(html_escape(text), "&lt;"), 500U);
  std::string words;
  for (int i = 0; i < 100; ++i) words += "\xc3\xa9\xe2\x82\xac";  // two- and three-byte letters
  EXPECT_EQ(html_escape(words), words);
  EXPECT_EQ(html_escape("\x1b[31m"), "\\x1b[31m");
}

}  // namespace
}  // namespace gmamba::test
