#pragma once

#include <vector>

#include "plan.h"

namespace mmer::cuda {

// Of the current device. Throws std::runtime_error with CUDA's reason.
DeviceLimits device_limits();

// Launches plans in order on a stream of the current device; nothing waits for them, so a stream
// that is being captured into a graph will do. Throws std::runtime_error with CUDA's reason.
void launch(const std::vector<Plan>& plans, void* stream);

}  // namespace mmer::cuda
