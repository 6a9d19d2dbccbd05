// SPDX-License-Identifier: Apache-2.0
#include "libmamba/run_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "libmamba/atomic_folder.h"
#include "libmamba/core/error.h"
#include "libmamba/core/file.h"
#include "libmamba/core/text.h"
#include "libmamba/manifest.h"
#include "libmamba/model_folder.h"
#include "libmamba/safetensors.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLongestState = int64_t{256} << 20;
constexpr size_t kAlwaysKept = 2;
constexpr std::string_view kStep = "step-";
constexpr size_t kDigits = 8;
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kCarried = "carried.safetensors";
constexpr const char* kState = "trainer_state.json";
constexpr std::string_view kFirst = "exp_avg.";
constexpr std::string_view kSecond = "exp_avg_sq.";

std::string shown(const fs::path& path) { return printable(std::string_view(path.native())); }

fs::path checkpoints_of(const fs::path& run) { return run / "checkpoints"; }

std::string folder_name(int64_t step) {
  std::string digits = std::to_string(step);
  if (digits.size() < kDigits) digits.insert(0, kDigits - digits.size(), '0');
  return std::string(kStep) + digits;
}

/// The step of a checkpoint folder's name, or -1 for any other name.
int64_t step_of(const std::string& name) {
  if (!name.starts_with(kStep) || name.size() > kStep.size() + 18) return -1;
  const std::string digits = name.substr(kStep.size());
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return -1;
  const int64_t step = parse_int(digits, "step");
  return folder_name(step) == name ? step : -1;
}

/// What JSON cannot hold would come back as something else, or not at all.
void check_state(const Json& value, const std::string& place) {
  require(!value.is_number_float() || std::isfinite(value.get<double>()), ErrorKind::kInput,
          "not saved: ", printable(std::string_view(place)),
          " in the state of the trainer is not finite");
  require(!value.is_string() || is_utf8(value.get_ref<const std::string&>()), ErrorKind::kInput,
          "not saved: ", printable(std::string_view(place)),
          " in the state of the trainer is not UTF-8 text");
  if (!value.is_structured()) return;
  for (const auto& [key, member] : value.items()) {
    const std::string inner = place.empty() ? key : place + "." + key;
    require(is_utf8(key), ErrorKind::kInput, "not saved: the key ",
            printable(std::string_view(inner)), " is not UTF-8 text");
    check_state(member, inner);
  }
}

void add_moments(const ParameterBuffer& values, std::string_view prefix,
                 std::vector<SafetensorsItem>& items) {
  for (const ParameterInfo& info : values.layout().all()) {
    items.push_back({std::string(prefix) + info.name, values.view(info.name), info.shape});
  }
}

/// On the CPU, checked to be finite.
std::map<std::string, Tensor> host_copies(const std::map<std::string, ConstTensorView>& carried) {
  std::map<std::string, Tensor> copies;
  for (const auto& [name, view] : carried) {
    Tensor copy(Device{}, view.dtype, view.shape());
    Backend& backend = backend_for(view.device.kind);
    backend.synchronize(view.device.index, nullptr);
    backend.copy_out(view.device.index, nullptr, copy.view().data, view.data, copy.bytes());
    backend.synchronize(view.device.index, nullptr);
    const auto values = copy.host<const float>();
    require(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }),
            ErrorKind::kInput, "not saved: a value of ", name, " is not finite");
    copies.emplace(name, std::move(copy));
  }
  return copies;
}

void write_carried(const fs::path& path, const std::map<std::string, Tensor>& carried) {
  if (carried.empty()) return;
  std::vector<SafetensorsItem> items;
  for (const auto& [name, tensor] : carried) items.push_back({name, tensor.view(), {}});
  write_safetensors(path, std::move(items), {});
}

std::map<std::string, Tensor> read_carried(const fs::path& path) {
  std::map<std::string, Tensor> carried;
  if (!path_exists(path)) return carried;
  const SafetensorsReader reader(path);
  for (const SafetensorsEntry& entry : reader.entries()) {
    require(entry.shape.size() <= kMaxRank && entry.dtype == "F32", ErrorKind::kInput, shown(path),
            ": expected fp32 of at most ", kMaxRank, " extents, found ", printable(entry.name),
            " of type ", printable(entry.dtype), " and shape ", to_string(entry.shape));
    Tensor tensor(Device{}, DType::kF32, entry.shape);
    reader.read_f32(entry, tensor.host<float>());
    carried.emplace(entry.name, std::move(tensor));
  }
  return carried;
}

void write_checkpoint_files(const fs::path& folder, int64_t step, const Model& model,
                            const ParameterBuffer& exp_avg, const ParameterBuffer& exp_avg_sq,
                            const Json& trainer_state,
                            const std::map<std::string, Tensor>& carried) {
  write_model_files(model, folder, {{"step", std::to_string(step)}});
  const HostParameters first(exp_avg);
  const HostParameters second(exp_avg_sq);
  std::vector<SafetensorsItem> items;
  add_moments(first.get(), kFirst, items);
  add_moments(second.get(), kSecond, items);
  write_safetensors(folder / kOptimizer, std::move(items), {{"step", std::to_string(step)}});
  write_carried(folder / kCarried, carried);
  write_file(folder / kState, trainer_state.dump(2) + "\n");
  write_manifest(folder, step);
}

/// Removes what killed runs left behind; the run's lock makes this process the only writer. What a
/// save set aside to make room for its own may be the only copy until a new one is on disk.
void remove_leftovers(const fs::path& checkpoints, bool set_aside_too) {
  for (const fs::path& path : list_folder(checkpoints)) {
    const std::string name = path.filename().string();
    const bool set_aside = name.find(".old.tmp.") != std::string::npos;
    if (is_temporary(path) && name.starts_with(kStep) && (set_aside_too || !set_aside)) {
      remove_tree(path);
    }
  }
}

/// Old checkpoints go once the new one is on disk. Those of later steps are left alone: a run that
/// went back to an older checkpoint writes them again.
void prune(const fs::path& run, int64_t step, int keep) {
  std::vector<int64_t> steps = list_checkpoints(run);
  std::erase_if(steps, [&](int64_t other) { return other > step; });
  const size_t kept = std::max(kAlwaysKept, static_cast<size_t>(std::max(keep, 0)));
  for (size_t i = 0; i + kept < steps.size(); ++i) {
    remove_folder_atomically(checkpoints_of(run) / folder_name(steps[i]));
  }
}

void read_moments(const SafetensorsReader& reader, std::string_view prefix, const fs::path& path,
                  ParameterBuffer& to) {
  const ParameterLayout& layout = to.layout();
  ParameterBuffer host(to.shared_layout(), Device{});
  for (const ParameterInfo& info : layout.all()) {
    const std::string name = std::string(prefix) + info.name;
    const SafetensorsEntry* entry = reader.find(name);
    require(entry != nullptr && entry->shape == info.shape, ErrorKind::kInput, shown(path),
            ": expected the tensor ", name, " of shape ", to_string(info.shape), ", found ",
            entry == nullptr ? "none" : to_string(entry->shape));
    reader.read_f32(*entry, host.view(info.name).flat<float>());
  }
  require_finite(host, shown(path));
  to = to.device().is_cpu() ? std::move(host) : host.clone_to(to.device());
}

Json read_state(const fs::path& folder) {
  const fs::path path = folder / kState;
  return parse_json(read_file(path, kLongestState), shown(path), {.depth = 64});
}

Checkpoint load_checkpoint(const fs::path& folder, int64_t step, Device device, Log* log) {
  verify_checkpoint(folder);
  Model model = load_model(folder, device, log);
  require_finite(model.parameters(), shown(folder / "model.safetensors"));
  const auto layout = model.parameters().shared_layout();
  ParameterBuffer exp_avg(layout, device);
  ParameterBuffer exp_avg_sq(layout, device);
  const fs::path moments = folder / kOptimizer;
  const SafetensorsReader reader(moments);
  require(reader.entries().size() == 2 * layout->all().size(), ErrorKind::kInput, shown(moments),
          ": expected ", 2 * layout->all().size(), " tensors, found ", reader.entries().size());
  read_moments(reader, kFirst, moments, exp_avg);
  read_moments(reader, kSecond, moments, exp_avg_sq);
  Json trainer_state = read_state(folder);
  return {std::move(model),
          std::move(exp_avg),
          std::move(exp_avg_sq),
          std::move(trainer_state),
          step,
          folder,
          read_carried(folder / kCarried)};
}

}  // namespace

void save_checkpoint(const fs::path& run, int64_t step, const Model& model,
                     const ParameterBuffer& exp_avg, const ParameterBuffer& exp_avg_sq,
                     const Json& trainer_state, int keep,
                     const std::map<std::string, ConstTensorView>& carried) {
  require(step >= 0, ErrorKind::kInternal, "save_checkpoint: the step ", step, " is negative");
  require_finite(model.parameters(), "not saved: the model");
  require_finite(exp_avg, "not saved: exp_avg");
  require_finite(exp_avg_sq, "not saved: exp_avg_sq");
  check_state(trainer_state, "");
  const std::map<std::string, Tensor> carried_here = host_copies(carried);
  const fs::path checkpoints = checkpoints_of(run);
  create_folders(checkpoints);
  const fs::path folder = checkpoints / folder_name(step);
  with_frame(
      [&] {
        remove_leftovers(checkpoints, false);
        AtomicFolder writing(folder);
        write_checkpoint_files(writing.temporary(), step, model, exp_avg, exp_avg_sq, trainer_state,
                               carried_here);
        writing.commit();
        remove_leftovers(checkpoints, true);
        prune(run, step, keep);
      },
      [&] { return concat("while saving the checkpoint ", shown(folder)); });
}

std::vector<int64_t> list_checkpoints(const fs::path& run) {
  std::vector<int64_t> steps;
  if (!path_exists(checkpoints_of(run))) return steps;
  for (const fs::path& path : list_folder(checkpoints_of(run))) {
    std::error_code code;
    const int64_t step = step_of(path.filename().string());
    if (step >= 0 && fs::is_directory(path, code)) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void verify_checkpoint(const fs::path& folder) {
  const fs::path named = folder.has_filename() ? folder : folder.parent_path();
  verify_manifest(folder, step_of(named.filename().string()));
}

std::optional<Json> newest_trainer_state(const fs::path& run) {
  const std::vector<int64_t> steps = list_checkpoints(run);
  for (size_t i = steps.size(); i-- > 0;) {
    const fs::path folder = checkpoints_of(run) / folder_name(steps[i]);
    try {
      verify_manifest(folder, steps[i], kState);
      return read_state(folder);
    } catch (const Error& error) {
      // load_newest_checkpoint says what is wrong with it
      if (error.kind() != ErrorKind::kInput && error.kind() != ErrorKind::kIo) throw;
    }
  }
  return std::nullopt;
}

std::optional<Checkpoint> load_newest_checkpoint(const fs::path& run, Device device, Log* log) {
  const std::vector<int64_t> steps = list_checkpoints(run);
  std::string damage;
  for (size_t i = steps.size(); i-- > 0;) {
    const fs::path folder = checkpoints_of(run) / folder_name(steps[i]);
    try {
      Checkpoint checkpoint = load_checkpoint(folder, steps[i], device, log);
      if (!damage.empty()) {
        log_line(log, LogLevel::kWarning,
                 concat("continuing from the older checkpoint ", shown(folder)));
      }
      return checkpoint;
    } catch (const Error& error) {
      // a machine without memory or an unknown format is no reason to fall back in silence
      if (error.kind() != ErrorKind::kInput && error.kind() != ErrorKind::kIo) throw;
      log_line(log, LogLevel::kWarning,
               concat("the checkpoint ", shown(folder), " is damaged: ", error.message()));
      damage += concat(damage.empty() ? "" : "; ", error.message());
    }
  }
  require(steps.empty(), ErrorKind::kInput, shown(checkpoints_of(run)), ": none of ", steps.size(),
          " checkpoints is whole; put back a copy of one, or train into another folder: ", damage);
  return std::nullopt;
}

}  // namespace gmamba
