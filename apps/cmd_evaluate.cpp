// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/evaluate.h"

namespace gmamba::app {

Command evaluate_command() {
  return {
      .name = "evaluate",
      .group = "Measure",
      .summary = "loss, perplexity, bits per base, accuracy on given sequences",
      .usage = "--model M INPUT... | --table T [options]",
      .details =
          R"(A language model is judged by its loss on every A, C, G and T but the first of each record, given all
before it. A model with a task head is judged against --labels or --table. With --baseline-train the
same is said of Markov models, or of a k-mer regression, trained on those files. A table for people
goes to stdout, or with --out the figures to a JSON file. --by-position shows whether long context
pays: a table of loss against the context seen.)",
      .bind = bind_pipeline<EvaluateOptions>(evaluate)};
}

}  // namespace gmamba::app
