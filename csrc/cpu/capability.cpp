#include "capability.h"

#include <cstdlib>

#include "../cpu_features.h"

namespace mmer::cpu {

extern const KernelTable kernels_portable;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#elif defined(__aarch64__)
extern const KernelTable kernels_neon;
#endif

namespace {

struct NamedTable {
  const char* name;
  const KernelTable* table;
};

NamedTable choose_kernels() {
  const std::string capability =
      choose_cpu_capability(cpu_features(), std::getenv("MMER_CPU_CAPABILITY"));
#if defined(__x86_64__)
  // Products are accumulated in float32: the bfloat16 instructions have no kernels of their own.
  if (capability == "avx512" || capability == "avx512_bf16") return {"avx512", &kernels_avx512};
  if (capability == "avx2") return {"avx2", &kernels_avx2};
#elif defined(__aarch64__)
  if (capability == "neon") return {"neon", &kernels_neon};
#endif
  return {"portable", &kernels_portable};
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
