#include "capability.h"

#include <cstdlib>
#include <stdexcept>

#include "../cpu_features.h"

namespace mmer::cpu {

extern const KernelTable kernels_portable;
#if defined(MMER_WITH_AVX2)
extern const KernelTable kernels_avx2;
#endif
#if defined(MMER_WITH_AVX512)
extern const KernelTable kernels_avx512;
#endif
#if defined(MMER_WITH_AVX512_BF16)
extern const KernelTable kernels_avx512_bf16;
#endif
#if defined(MMER_WITH_AMX)
extern const KernelTable kernels_amx;
#endif
#if defined(MMER_WITH_NEON)
extern const KernelTable kernels_neon;
#endif

namespace {

struct NamedTable {
  const char* name;
  const KernelTable* table;
};

// What the compiler could build, best first.
constexpr NamedTable tables[] = {
#if defined(MMER_WITH_AMX)
    {"amx", &kernels_amx},
#endif
#if defined(MMER_WITH_AVX512_BF16)
    {"avx512_bf16", &kernels_avx512_bf16},
#endif
#if defined(MMER_WITH_AVX512)
    {"avx512", &kernels_avx512},
#endif
#if defined(MMER_WITH_AVX2)
    {"avx2", &kernels_avx2},
#endif
#if defined(MMER_WITH_NEON)
    {"neon", &kernels_neon},
#endif
    {"portable", &kernels_portable},
};

// The set of the requested capability or, if nothing was requested, the best one that this CPU has
// and the compiler could build.
NamedTable choose_kernels() {
  const char* requested = std::getenv("MMER_CPU_CAPABILITY");
  const std::string best = choose_cpu_capability(cpu_features(), requested);
  const bool is_requested = requested != nullptr && *requested != '\0';
  for (const std::string& capability : cpu_capabilities(cpu_features())) {
    for (const NamedTable& named : tables) {
      if (capability == named.name && (!is_requested || capability == best)) return named;
    }
  }
  throw std::invalid_argument("MMER_CPU_CAPABILITY is " + best +
                              ", whose kernels the compiler of this build could not make");
}

const NamedTable& chosen_kernels() {
  static const NamedTable chosen = choose_kernels();
  return chosen;
}

}  // namespace

const KernelTable& kernels() {
  return *chosen_kernels().table;
}

std::string kernel_capability() {
  return chosen_kernels().name;
}

}  // namespace mmer::cpu
