// SPDX-License-Identifier: Apache-2.0
/// What a model folder or a run folder is.
#pragma once

#include <string>

#include "libmamba/model.h"
#include "pipelines/job.h"

namespace gmamba {

struct InfoOptions {
  std::string path;
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    v.heading("Input");
    v("path", path, "model folder, or folder of a training run",
      {.value = "MODEL|RUN", .required = true, .positional = true});
    common.visit(v);
  }
  void validate() const {}
};

/// Architecture, parameters, vocabulary, trained context and file hashes of a model; checkpoints
/// and last figures of a run. Text into the job's report, JSON to --out.
void info(const InfoOptions& options, Job& job);

/// The same as JSON.
Json describe_model(const std::string& folder, const Model& model);
/// Throws kInput for metrics.jsonl that is damaged before its last line.
Json describe_run(const std::string& folder);

}  // namespace gmamba
