// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/classify.h"

namespace gmamba::app {

Command classify_command() {
  return {
      .name = "classify",
      .group = "Use",
      .summary = "sequences to labels",
      .usage = "--model M INPUT... [-o OUT.tsv] [options]",
      .details =
          R"(Each record gives a line, in input order: id, length, label, probability, then p_<class> of every
class; a regression model gives id, length, value. A record without bases has the label NA.)",
      .bind = bind_pipeline<ClassifyOptions>(classify)};
}

}  // namespace gmamba::app
