// SPDX-License-Identifier: Apache-2.0
/// Self-test on the user's machine: does this build compute here what the equations say?
#pragma once

#include <string>
#include <vector>

#include "pipelines/job.h"

namespace gmamba {

struct DoctorOptions {
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    common.visit(v);
  }
  void validate() const {}
};

/// Outcome of one check.
struct DoctorCheck {
  enum class Outcome { kPassed, kFailed, kSkipped };
  std::string name;
  Outcome outcome = Outcome::kSkipped;
  double error = 0;  ///< what was found, and the most that is allowed; relative (norm over norm)
  double limit = 0;
  std::string note;  ///< what was compared, or why it was skipped
  double seconds = 0;
};

/// All checks on the device of the context.
std::vector<DoctorCheck> run_checks(Context& ctx, uint64_t seed);

/// Runs the checks, reports them as a table that ends in a verdict, with `-o` also as JSON. Throws
/// kDevice after reporting when a check failed.
void doctor(const DoctorOptions& options, Job& job);

}  // namespace gmamba
