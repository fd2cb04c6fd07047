// Which of the compiled sets of kernels runs here.

#pragma once

#include <string>

#include "problem.h"

namespace mmer::cpu {

// The kernels of the best capability of this CPU, or of the one that MMER_CPU_CAPABILITY named when
// they were first asked for. Throws std::invalid_argument if that one cannot run.
const KernelTable& kernels();

// The name of the set that kernels() returns.
std::string kernel_capability();

}  // namespace mmer::cpu
