#include "cpu_features.h"

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mmer {
namespace {

#if defined(__x86_64__) || defined(__i386__)

struct CpuidRegisters {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidRegisters cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidRegisters registers;
  __get_cpuid_count(leaf, subleaf, &registers.eax, &registers.ebx, &registers.ecx, &registers.edx);
  return registers;
}

constexpr bool has_bit(uint32_t word, int bit) {
  return (word >> bit & 1) != 0;
}

// Which register states the operating system saves (XCR0). The compiler's intrinsic for this
// instruction would need a flag of its own.
uint32_t saved_register_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux lets a process use the tiles of AMX once it has asked for them (ARCH_REQ_XCOMP_PERM with
// the state XTILEDATA), which every thread then may.
bool request_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// Bit numbers from Intel's Software Developer's Manual, volume 2A, CPUID.
CpuFeatures detect() {
  CpuFeatures features;
  const CpuidRegisters basic = cpuid(1, 0);
  const CpuidRegisters extended = cpuid(7, 0);
  const CpuidRegisters extended_1 = cpuid(7, 1);
  features.sse4_2 = has_bit(basic.ecx, 20);

  constexpr uint32_t ymm_states = 0x06, zmm_states = 0xE6, tile_states = 0x60000;
  const bool has_xgetbv = has_bit(basic.ecx, 27);
  const uint32_t saved = has_xgetbv ? saved_register_states() : 0;
  if ((saved & ymm_states) == ymm_states) {
    features.avx = has_bit(basic.ecx, 28);
    features.f16c = has_bit(basic.ecx, 29);
    features.fma = has_bit(basic.ecx, 12);
    features.avx2 = has_bit(extended.ebx, 5);
  }
  if ((saved & zmm_states) == zmm_states) {
    features.avx512f = has_bit(extended.ebx, 16);
    features.avx512dq = has_bit(extended.ebx, 17);
    features.avx512bw = has_bit(extended.ebx, 30);
    features.avx512vl = has_bit(extended.ebx, 31);
    features.avx512_bf16 = has_bit(extended_1.eax, 5);
  }
  if ((saved & tile_states) == tile_states) {
    features.amx_bf16 = has_bit(extended.edx, 22) && has_bit(extended.edx, 24) && request_tiles();
  }
  return features;
}

#else

CpuFeatures detect() {
  CpuFeatures features;
#if defined(__aarch64__)
  features.neon = true;
#endif
  return features;
}

#endif

const std::vector<std::string>& known_capabilities() {
  static const std::vector<std::string> names{"amx",  "avx512_bf16", "avx512",
                                              "avx2", "neon",        "portable"};
  return names;
}

std::string join(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

std::vector<std::string> cpu_capabilities(const CpuFeatures& features) {
  const bool avx2 = features.avx2 && features.fma && features.f16c;
  const bool avx512 =
      avx2 && features.avx512f && features.avx512bw && features.avx512dq && features.avx512vl;
  std::vector<std::string> capabilities;
  if (avx512 && features.avx512_bf16 && features.amx_bf16) capabilities.push_back("amx");
  if (avx512 && features.avx512_bf16) capabilities.push_back("avx512_bf16");
  if (avx512) capabilities.push_back("avx512");
  if (avx2) capabilities.push_back("avx2");
  if (features.neon) capabilities.push_back("neon");
  capabilities.push_back("portable");
  return capabilities;
}

std::string choose_cpu_capability(const CpuFeatures& features, const char* requested) {
  const std::vector<std::string> capabilities = cpu_capabilities(features);
  const std::string name = requested == nullptr ? "" : requested;
  if (name.empty()) return capabilities.front();
  if (!contains(known_capabilities(), name)) {
    throw std::invalid_argument("MMER_CPU_CAPABILITY must be one of " + join(known_capabilities()) +
                                ", got " + name);
  }
  if (!contains(capabilities, name)) {
    throw std::invalid_argument("MMER_CPU_CAPABILITY is " + name + ", but this CPU has only " +
                                join(capabilities));
  }
  return name;
}

}  // namespace mmer
