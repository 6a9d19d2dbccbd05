// SPDX-License-Identifier: Apache-2.0
#include "io/table.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "pipelines/evaluate.h"
#include "pipelines/inference_plan.h"
#include "pipelines/position_loss.h"

namespace gmamba {

void detail::evaluate_positions(const EvaluateOptions& options, Context& ctx, const Model& model,
                                Job& job) {
  const InferencePlan plan = plan_inference(model.config(), options.common);
  if (options.common.plan) {
    job.report = plan_report(ctx, model, plan);
    return;
  }
  const Tokenizer tokenizer(model.vocabulary());
  TokenSource source(options.input, tokenizer, ctx.threads(), job.log);
  for (const std::string& input : options.input.inputs) job.record.add_input(input);
  RecordFeed feed(source, PositionLoss::feed_limits(plan.segment));
  PositionLoss loss(ctx, model, plan.segment, options.context, &job.progress);
  job.progress.start("evaluating", "bases", source.total_bases());
  loss.run(feed, source);
  job.progress.finish();
  require(loss.predicted() > 0, ErrorKind::kInput,
          "the inputs hold no base to predict: A, C, G or T after another base of its record");
  report_letters(source, job);

  const bool limited = options.context > 0;
  const std::vector<PositionBin> bins = loss.bins();
  job.record.add_bases(loss.bases());
  job.record.add_records(feed.records());
  job.record.set_result("segment", plan.segment);
  job.record.set_result("predicted_bases", loss.predicted());
  job.record.set_result("by_position", position_json(bins, limited));
  if (!options.report.empty()) {
    write_file(options.report, position_page(options.model, bins, options.context));
    job.record.add_output(options.report);
  }
  const std::string table = position_table(bins, limited);
  const std::string& out = options.common.out;
  if (out.empty() || out == "-") {
    job.report = table;
    return;
  }
  TextWriter writer(out);
  writer.write(table);
  writer.commit();
  job.record.add_output(out);
  if (!options.common.no_provenance) job.record.write_beside(out);
}

}  // namespace gmamba
