// How fast this machine can multiply and add, measured: what a kernel's speed is compared with.

#pragma once

#include <map>
#include <string>

namespace mmer {

// The most floating point operations a second that `threads` threads reached together, by kind of
// instruction: "float32" (the widest fused multiply-add here), and where the CPU has them
// "avx512_bf16" and "amx_bf16" (bfloat16 products added up in float32). Takes about `seconds` for
// each. Empty on a CPU for which there is no loop here. Throws std::invalid_argument.
std::map<std::string, double> measure_arithmetic_peaks(int threads, double seconds);

}  // namespace mmer
