// SPDX-License-Identifier: Apache-2.0
#include "libmamba/core/device.h"

#include <algorithm>

#include "libmamba/core/error.h"
#include "libmamba/core/text.h"

namespace gmamba {

std::string to_string(Device device) {
  return device.is_cpu() ? "cpu" : concat("cuda:", device.index);
}

Backend& backend_for(DeviceKind kind) {
  return kind == DeviceKind::kCpu ? detail::cpu_backend() : detail::cuda_backend();
}

int64_t Backend::allocated_bytes(int index) const {
  const std::lock_guard<std::mutex> lock(accounts_mutex_);
  const auto found = accounts_.find(index);
  return found == accounts_.end() ? 0 : found->second.now;
}

int64_t Backend::peak_allocated_bytes(int index) const {
  const std::lock_guard<std::mutex> lock(accounts_mutex_);
  const auto found = accounts_.find(index);
  return found == accounts_.end() ? 0 : found->second.peak;
}

void Backend::reset_peak(int index) {
  const std::lock_guard<std::mutex> lock(accounts_mutex_);
  accounts_[index].peak = accounts_[index].now;
}

void Backend::note_allocated(int index, void* data, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(accounts_mutex_);
  Account& account = accounts_[index];
  account.sizes[data] = bytes;
  account.now += bytes;
  account.peak = std::max(account.peak, account.now);
}

void Backend::note_released(int index, void* data) noexcept {
  const std::lock_guard<std::mutex> lock(accounts_mutex_);
  const auto account = accounts_.find(index);
  if (account == accounts_.end()) return;
  const auto size = account->second.sizes.find(data);
  if (size == account->second.sizes.end()) return;
  account->second.now -= size->second;
  account->second.sizes.erase(size);
}

Device parse_device(std::string_view text) {
  if (text == "cpu") {
    return {};
  }
  Backend& cuda = detail::cuda_backend();
  if (text == "auto") {
    return cuda.device_count() > 0 ? Device{DeviceKind::kCuda, 0} : Device{};
  }
  require(text == "cuda" || text.starts_with("cuda:"), ErrorKind::kUsage,
          "--device: expected auto, cpu, cuda or cuda:N, found '", printable(text), "'");
  int64_t index = 0;
  if (text.size() > 4) {
    try {
      index = parse_int(text.substr(5), "--device");
    } catch (const Error& error) {
      fail(ErrorKind::kUsage, error.message());
    }
  }
  const int count = cuda.device_count();
  require(count > 0, ErrorKind::kUnsupported, "--device ", text, ": ", cuda.why_none());
  require(index >= 0 && index < count, ErrorKind::kUsage, "--device ", text, ": this machine has ",
          count, " usable GPU", count == 1 ? "" : "s", ", numbered from 0");
  return {DeviceKind::kCuda, static_cast<int>(index)};
}

}  // namespace gmamba
