// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/pretrain.h"

namespace gmamba::app {

Command pretrain_command() {
  return {
      .name = "pretrain",
      .group = "Train",
      .summary = "a model on reference genomes",
      .usage = "--fasta G.fa[.gz]... --out RUN (--steps N | --tokens N) [options]",
      .details =
          "RUN holds model/ (what --model takes everywhere), checkpoints/, metrics.jsonl and\n"
          "run.json. SIGINT and SIGTERM save a checkpoint and stop; --resume goes on from it.\n",
      .bind = bind_pipeline<PretrainOptions>(&pretrain)};
}

}  // namespace gmamba::app
