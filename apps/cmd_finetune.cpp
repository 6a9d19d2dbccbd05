// SPDX-License-Identifier: Apache-2.0
#include "apps/commands.h"
#include "pipelines/finetune.h"

namespace gmamba::app {

Command finetune_command() {
  return {.name = "finetune",
          .group = "Train",
          .summary = "a classifier or regressor on labelled sequences",
          .usage =
              "--model M --out RUN (--train T [--valid V] | --labels L.tsv FASTA... |\n"
              "       --class NAME=FASTA --class NAME=FASTA ...) [options]",
          .details =
              "RUN/model is the best model on what is held out, with the labels in its config.\n"
              "SIGINT and SIGTERM save a checkpoint and stop; --resume goes on from it.\n",
          .bind = bind_pipeline<FinetuneOptions>(&finetune)};
}

}  // namespace gmamba::app
