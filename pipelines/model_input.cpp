// SPDX-License-Identifier: Apache-2.0
#include "pipelines/model_input.h"

#include <cmath>
#include <filesystem>

#include "libmamba/core/text.h"
#include "libmamba/model_folder.h"

namespace gmamba {
namespace {

/// Names parameters that hold values which are not finite, once.
void warn_nonfinite(const Model& model, const std::string& folder, Job& job) {
  const ParameterBuffer& values = model.parameters();
  for (size_t i = 0; i < values.layout().all().size(); ++i) {
    const ConstTensorView view = values.view(static_cast<int>(i));
    if (!view.device.is_cpu()) return;
    for (const float value : view.flat<const float>()) {
      if (std::isfinite(value)) continue;
      log_line(job.log, LogLevel::kWarning,
               concat(printable(folder), ": the weights '", values.layout().all()[i].name,
                      "' hold values that are not finite; results will not be either"));
      break;
    }
  }
}

}  // namespace

std::string model_folder_of(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path inner = fs::path(path) / "model";
  const bool is_run = !fs::exists(fs::path(path) / "config.json") && fs::is_directory(inner);
  return is_run ? inner.string() : path;
}

Model open_model(const std::string& path, const Context& ctx, Job& job) {
  const std::string folder = model_folder_of(path);
  Model model = load_model(folder, ctx.device(), job.log);
  job.record.set_model(folder, model_digest(folder));
  warn_nonfinite(model, folder, job);
  log_line(job.log, LogLevel::kInfo,
           concat("model ", printable(folder), ": ", model.config().arch, ", ",
                  format_short(static_cast<double>(model.parameters().layout().count())),
                  " parameters"));
  return model;
}

void report_letters(const TokenSource& source, Job& job) {
  const int64_t count = source.ambiguous_letters();
  job.record.set_result("ambiguous_letters", count);
  if (count > 0) {
    log_line(job.log, LogLevel::kInfo,
             concat(format_count(count), count == 1 ? " letter" : " letters",
                    " other than A, C, G, T and N read as N"));
  }
}

}  // namespace gmamba
