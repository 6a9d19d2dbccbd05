// SPDX-License-Identifier: Apache-2.0
/// The driver's management library (libnvidia-ml.so.1) comes with the driver and is opened at run
/// time: programs run where there is none. Declared here is what of its stable interface is used.
#include "libmamba/core/gpu_use.h"

#include <dlfcn.h>

#include <algorithm>
#include <vector>

namespace gmamba::detail {
namespace {

using DeviceHandle = void*;
union SampleValue {
  double as_double;
  unsigned int as_unsigned;
  unsigned long long as_long;
};
struct Sample {
  unsigned long long time;  // microseconds
  SampleValue value;
};
constexpr int kSuccess = 0;
constexpr int kUtilization = 1;  // a kind of sample: percent of the time in which kernels ran
constexpr int kUnsignedInt = 1;  // a type of value

class ManagementLibrary {
 public:
  ManagementLibrary() {
    void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    int (*initialize)() = nullptr;
    usable_ = find(initialize, "nvmlInit_v2") &&
              find(handle_, "nvmlDeviceGetHandleByPciBusId_v2") &&
              find(samples_, "nvmlDeviceGetSamples") && initialize() == kSuccess;
  }

  std::vector<Sample> samples(const std::string& bus_id, unsigned long long since) const {
    DeviceHandle device = nullptr;
    if (!usable_ || handle_(bus_id.c_str(), &device) != kSuccess) return {};
    unsigned int count = 0;
    int type = 0;
    if (samples_(device, kUtilization, since, &type, &count, nullptr) != kSuccess) return {};
    std::vector<Sample> found(count);
    if (count == 0 ||
        samples_(device, kUtilization, since, &type, &count, found.data()) != kSuccess ||
        type != kUnsignedInt) {
      return {};
    }
    found.resize(std::min<size_t>(count, found.size()));
    std::erase_if(found, [&](const Sample& sample) { return sample.time <= since; });
    return found;
  }

 private:
  bool usable_ = false;
  int (*handle_)(const char*, DeviceHandle*) = nullptr;
  int (*samples_)(DeviceHandle, int, unsigned long long, int*, unsigned int*, Sample*) = nullptr;
};

}  // namespace

std::optional<double> gpu_busy_share(const std::string& bus_id, uint64_t& since) {
  static const ManagementLibrary library;
  const std::vector<Sample> samples = library.samples(bus_id, since);
  if (samples.empty()) return {};
  double sum = 0;
  for (const Sample& sample : samples) {
    sum += sample.value.as_unsigned;
    since = std::max<uint64_t>(since, sample.time);
  }
  return sum / static_cast<double>(samples.size()) / 100;
}

}  // namespace gmamba::detail
