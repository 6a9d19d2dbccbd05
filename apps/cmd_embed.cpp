// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/embed.h"

namespace gmamba::app {

Command embed_command() {
  return {
      .name = "embed",
      .group = "Use",
      .summary = "sequences to vectors",
      .usage = "--model M INPUT... [-o OUT.npy|OUT.tsv] [options]",
      .details =
          R"(The array has one row for each vector, in input order; OUT.npy.index.tsv says which bases each row
is of (row, id, start, end, length; 0-based, half-open). With --pool none a line of the index is a
record, whose first row is given. Records may be of any length: memory does not grow with them. The
reverse complement of a long record waits in a temporary file beside the output.)",
      .bind = bind_pipeline<EmbedOptions>(embed)};
}

}  // namespace gmamba::app
