#include "arithmetic_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mmer {
namespace {

using Clock = std::chrono::steady_clock;

// A loop of multiply-adds on registers alone; enough of them do not depend on each other to fill
// the pipelines. Assembly, because a compiler would leave out arithmetic that nobody reads.
struct Loop {
  const char* name;
  void (*run)(int64_t iterations);
  double operations_per_iteration;
};

#if defined(__x86_64__)

constexpr int wide_sums = 24, narrow_sums = 12;

__attribute__((target("avx512f"))) void multiply_add_avx512(int64_t iterations) {
  __m512 sums[wide_sums];
#pragma GCC unroll 24
  for (int i = 0; i < wide_sums; ++i) sums[i] = _mm512_setzero_ps();
  const __m512 factor = _mm512_setzero_ps();
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 24
    for (int i = 0; i < wide_sums; ++i) {
      __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(sums[i]) : "v"(factor));
    }
  }
}

__attribute__((target("avx2,fma"))) void multiply_add_avx2(int64_t iterations) {
  __m256 sums[narrow_sums];
#pragma GCC unroll 12
  for (int i = 0; i < narrow_sums; ++i) sums[i] = _mm256_setzero_ps();
  const __m256 factor = _mm256_setzero_ps();
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 12
    for (int i = 0; i < narrow_sums; ++i) {
      __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(sums[i]) : "x"(factor));
    }
  }
}

__attribute__((target("avx512f,avx512bf16"))) void multiply_add_avx512_bf16(int64_t iterations) {
  __m512 sums[wide_sums];
#pragma GCC unroll 24
  for (int i = 0; i < wide_sums; ++i) sums[i] = _mm512_setzero_ps();
  const __m512 factor = _mm512_setzero_ps();
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 24
    for (int i = 0; i < wide_sums; ++i) {
      __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(sums[i]) : "v"(factor));
    }
  }
}

#if __has_include(<amxbf16intrin.h>)
#define MMER_HAS_TILES 1

struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile,amx-bf16"))) void multiply_add_amx_bf16(int64_t iterations) {
  const TileConfiguration configuration;
  // GCC believes that the next instruction reads 8 bytes of it, and would not write the others.
  __asm__ volatile("" : : "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (; iterations > 0; --iterations) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#endif

std::vector<Loop> loops_of(const CpuFeatures& features) {
  std::vector<Loop> loops;
  if (features.avx512f) {
    loops.push_back({"float32", multiply_add_avx512, 2.0 * 16 * wide_sums});
  } else if (features.avx2 && features.fma) {
    loops.push_back({"float32", multiply_add_avx2, 2.0 * 8 * narrow_sums});
  }
  if (features.avx512f && features.avx512_bf16) {
    loops.push_back({"avx512_bf16", multiply_add_avx512_bf16, 2.0 * 32 * wide_sums});
  }
#if defined(MMER_HAS_TILES)
  if (features.amx_bf16) {
    loops.push_back({"amx_bf16", multiply_add_amx_bf16, 4 * 2.0 * 16 * 16 * 32});
  }
#endif
  return loops;
}

#elif defined(__aarch64__)

constexpr int sums_count = 24;
using Vector = float __attribute__((vector_size(16)));

void multiply_add_neon(int64_t iterations) {
  Vector sums[sums_count] = {};
  const Vector factor = {};
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 24
    for (int i = 0; i < sums_count; ++i) {
      __asm__ volatile("fmla %0.4s, %1.4s, %1.4s" : "+w"(sums[i]) : "w"(factor));
    }
  }
}

std::vector<Loop> loops_of(const CpuFeatures&) {
  return {{"float32", multiply_add_neon, 2.0 * 4 * sums_count}};
}

#else

std::vector<Loop> loops_of(const CpuFeatures&) {
  return {};
}

#endif

// Seconds that `threads` threads need for the loop together, from a common start.
double time_loop(const Loop& loop, int threads, int64_t iterations) {
  std::atomic<int> waiting{threads};
  const auto work = [&] {
    --waiting;
    while (waiting.load() > 0) std::this_thread::yield();
    loop.run(iterations);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  while (waiting.load() > 1) std::this_thread::yield();
  const auto start = Clock::now();
  work();
  for (std::thread& thread : others) thread.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double measure(const Loop& loop, int threads, double seconds) {
  constexpr int repetitions = 5;
  int64_t iterations = 1 << 12;
  while (time_loop(loop, threads, iterations) < seconds / (2 * repetitions)) iterations *= 2;
  double best = 0;
  for (int i = 0; i < repetitions; ++i) {
    const double operations = loop.operations_per_iteration * iterations * threads;
    best = std::max(best, operations / time_loop(loop, threads, iterations));
  }
  return best;
}

}  // namespace

std::map<std::string, double> measure_arithmetic_peaks(int threads, double seconds) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  if (!(seconds > 0 && seconds <= 60)) throw std::invalid_argument("seconds must lie in (0, 60]");
  std::map<std::string, double> peaks;
  for (const Loop& loop : loops_of(cpu_features())) {
    peaks[loop.name] = measure(loop, threads, seconds);
  }
  return peaks;
}

}  // namespace mmer
