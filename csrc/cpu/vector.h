// The vectors of the instruction set that this unit is compiled for, on the vector extensions that
// GCC and Clang share. Everything in these headers lies in an anonymous namespace: the linker must
// never merge copies that were compiled for different instruction sets.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mmer::cpu {
namespace {

// A product keeps rows x vectors accumulators, one row of vectors and a broadcast in registers.
#if defined(__AVX512F__)
constexpr int lanes = 16;
constexpr int panel_vectors = 4;
constexpr int accumulators = 24;
#elif defined(__AVX2__)
constexpr int lanes = 8;
constexpr int panel_vectors = 2;
constexpr int accumulators = 12;
#elif defined(__aarch64__)
constexpr int lanes = 4;
constexpr int panel_vectors = 4;
constexpr int accumulators = 24;
#else
constexpr int lanes = 4;
constexpr int panel_vectors = 2;
constexpr int accumulators = 8;
#endif
constexpr int panel_width = panel_vectors * lanes;

typedef float Vector __attribute__((vector_size(4 * lanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * lanes)));
typedef uint32_t WordVector __attribute__((vector_size(4 * lanes)));

inline Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, Vector x) {
  std::memcpy(to, &x, sizeof x);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
inline __m256i first_lanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
#endif

// The first `count` of a vector's elements, then zeros.
inline Vector load_first(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(from, first_lanes(count));
#else
  Vector x{};
  std::memcpy(&x, from, count * sizeof(float));
  return x;
#endif
}

// The elements from k on of a row (dim), then zeros.
inline Vector load_part(const float* row, int64_t k, int64_t dim) {
  return k + lanes <= dim ? load(row + k) : load_first(row + k, dim - k);
}

inline void store_first(float* to, Vector x, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(to, first_lanes(count), x);
#else
  std::memcpy(to, &x, count * sizeof(float));
#endif
}

inline Vector broadcast(float x) {
  return x - Vector{};
}

// GCC makes two instructions of the comparison, and exponentials need both on every score. Of NaN
// and a number the second argument is returned.
inline Vector maximum(Vector x, Vector y) {
#if defined(__AVX512F__)
  return _mm512_max_ps(x, y);
#elif defined(__AVX2__)
  return _mm256_max_ps(x, y);
#else
  return x > y ? x : y;
#endif
}

inline Vector minimum(Vector x, Vector y) {
#if defined(__AVX512F__)
  return _mm512_min_ps(x, y);
#elif defined(__AVX2__)
  return _mm256_min_ps(x, y);
#else
  return x < y ? x : y;
#endif
}

inline Vector absolute(Vector x) {
  return reinterpret_cast<Vector>(reinterpret_cast<IntVector>(x) & 0x7FFFFFFF);
}

inline float sum_lanes(Vector x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(x);
#else
  float sum = 0.0f;
  for (int lane = 0; lane < lanes; ++lane) sum += x[lane];
  return sum;
#endif
}

inline float max_lanes(Vector x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(x);
#else
  float largest = x[0];
  for (int lane = 1; lane < lanes; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
#endif
}

template <int... lane>
struct Lanes {};
#if defined(__AVX512F__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(__AVX2__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

// Exchanges the lanes whose number has the bit `distance` in x with those that lack it in y.
template <int distance, int... lane>
__attribute__((always_inline)) inline void exchange_lanes(Vector& x, Vector& y, Lanes<lane...>) {
  const Vector a = x, b = y;
#if defined(__clang__)
  x = __builtin_shufflevector(a, b, (lane & distance ? lanes + lane - distance : lane)...);
  y = __builtin_shufflevector(a, b, (lane & distance ? lanes + lane : lane + distance)...);
#else
  x = __builtin_shuffle(a, b, IntVector{(lane & distance ? lanes + lane - distance : lane)...});
  y = __builtin_shuffle(a, b, IntVector{(lane & distance ? lanes + lane : lane + distance)...});
#endif
}

template <int distance = 1>
__attribute__((always_inline)) inline void transpose(Vector (&rows)[lanes]) {
  if constexpr (distance < lanes) {
#pragma GCC unroll 16
    for (int row = 0; row < lanes; ++row) {
      if ((row & distance) == 0) {
        exchange_lanes<distance>(rows[row], rows[row + distance], AllLanes{});
      }
    }
    transpose<2 * distance>(rows);
  }
}

// The sum of each row's lanes, in the lane of the row's number.
template <int distance = 1>
__attribute__((always_inline)) inline Vector sum_each(Vector (&rows)[lanes]) {
  if constexpr (distance < lanes) {
#pragma GCC unroll 16
    for (int row = 0; row < lanes; row += 2 * distance) {
      exchange_lanes<distance>(rows[row], rows[row + distance], AllLanes{});
      rows[row] += rows[row + distance];
    }
    return sum_each<2 * distance>(rows);
  } else {
    return rows[0];
  }
}

inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

inline int64_t smaller(int64_t x, int64_t y) {
  return x < y ? x : y;
}

inline int64_t larger(int64_t x, int64_t y) {
  return x > y ? x : y;
}

}  // namespace
}  // namespace mmer::cpu
