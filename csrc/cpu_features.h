// What this CPU can execute, and which set of kernels is chosen for it.

#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

namespace mmer {

// Instruction sets that the CPU has and that the operating system keeps across context switches.
struct CpuFeatures {
  bool sse4_2 = false;
  bool avx = false;
  bool f16c = false;
  bool fma = false;
  bool avx2 = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_bf16 = false;
  bool amx_bf16 = false;
  bool neon = false;
};

struct NamedCpuFeature {
  const char* name;
  bool CpuFeatures::* value;
};

constexpr std::array<NamedCpuFeature, 12> named_cpu_features{{
    {"sse4_2", &CpuFeatures::sse4_2},
    {"avx", &CpuFeatures::avx},
    {"f16c", &CpuFeatures::f16c},
    {"fma", &CpuFeatures::fma},
    {"avx2", &CpuFeatures::avx2},
    {"avx512f", &CpuFeatures::avx512f},
    {"avx512bw", &CpuFeatures::avx512bw},
    {"avx512dq", &CpuFeatures::avx512dq},
    {"avx512vl", &CpuFeatures::avx512vl},
    {"avx512_bf16", &CpuFeatures::avx512_bf16},
    {"amx_bf16", &CpuFeatures::amx_bf16},
    {"neon", &CpuFeatures::neon},
}};

const CpuFeatures& cpu_features();

// The capabilities that the given features allow, best first; "portable" is always the last.
std::vector<std::string> cpu_capabilities(const CpuFeatures& features);

// The best capability, or the requested one. Throws std::invalid_argument, naming
// MMER_CPU_CAPABILITY, for a request that is unknown or that the features do not allow: an explicit
// request never falls back silently. nullptr or "" requests nothing.
std::string choose_cpu_capability(const CpuFeatures& features, const char* requested);

}  // namespace mmer
