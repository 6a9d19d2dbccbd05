// SPDX-License-Identifier: Apache-2.0
/// Checkpoints of a training run: RUN/checkpoints/step-00001000/ holding the model folder's files,
/// optimizer.safetensors, trainer_state.json and manifest.json (size and SHA-256 of every file).
/// Written to a temporary folder, files and folder fsynced, renamed, parent fsynced: a run killed
/// at any instant leaves whole checkpoints only. Old ones are pruned after the new one is on disk;
/// two are always kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "libmamba/core/json.h"
#include "libmamba/model.h"

namespace gmamba {

/// What a step of training continues from.
struct Checkpoint {
  Model model;
  ParameterBuffer exp_avg;
  ParameterBuffer exp_avg_sq;
  Json trainer_state;  ///< step, tokens, data cursor, options: the trainer's own record
  int64_t step = 0;
  std::filesystem::path folder;
  std::map<std::string, Tensor> carried;  ///< fp32 on the CPU: what the run remembers besides
};

/// Refuses (kInput) to write a value that is not finite. `carried` are fp32 tensors, on the CPU or
/// the model's device, that come back as they are (carried.safetensors, where there are any).
void save_checkpoint(const std::filesystem::path& run, int64_t step, const Model& model,
                     const ParameterBuffer& exp_avg, const ParameterBuffer& exp_avg_sq,
                     const Json& trainer_state, int keep,
                     const std::map<std::string, ConstTensorView>& carried = {});

/// The newest checkpoint that is whole. A damaged one is named in a warning and the one before it
/// used; when some exist but none is whole, throws kInput naming each. Nothing there: nullopt.
std::optional<Checkpoint> load_newest_checkpoint(const std::filesystem::path& run, Device device,
                                                 Log* log);

/// `trainer_state` of the newest checkpoint in which it is whole: what a run must know before it
/// takes up the rest. Nothing is checked beyond it, and nothing there is an error.
std::optional<Json> newest_trainer_state(const std::filesystem::path& run);

/// Checks one checkpoint folder against its manifest; throws kInput naming the file that differs.
void verify_checkpoint(const std::filesystem::path& folder);

/// Steps that have a checkpoint folder, ascending; temporary folders are not among them.
std::vector<int64_t> list_checkpoints(const std::filesystem::path& run);

/// One process per run folder: holds RUN/lock until destroyed; throws kUsage naming the holder's
/// pid.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& run);
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

 private:
  int descriptor_ = -1;
};

}  // namespace gmamba
