// SPDX-License-Identifier: Apache-2.0
/// How busy the NVIDIA driver saw a GPU: the figure that nvidia-smi shows as utilisation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace gmamba::detail {

/// The mean share, 0 to 1, of the driver's samples newer than `since` (microseconds of its clock,
/// moved to the newest) in which some kernel ran on the GPU with this PCI bus id. Empty where the
/// driver does not say, or has no newer sample.
std::optional<double> gpu_busy_share(const std::string& bus_id, uint64_t& since);

}  // namespace gmamba::detail
