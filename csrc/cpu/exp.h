// e^x and log(x) for vectors, to one unit in the last place, and division by a scalar.

#pragma once

#include "vector.h"

namespace mmer::cpu {
namespace {

constexpr float infinity = __builtin_huge_valf();

// e^x = 2^n 2^f with n the nearest integer to x log2(e); 2^f by the minimax polynomial of degree 6
// on [-1/2, 1/2], relative error 2e-9. The result is 0 instead of denormal, so also of -infinity,
// and huge from 88 up; NaN stays NaN.
__attribute__((always_inline)) inline Vector exp_vector(Vector x) {
  constexpr float log2_e = 1.44269504088896341f;
#if !defined(__AVX512F__)
  x = minimum(broadcast(88.0f), maximum(broadcast(-88.1f), x));
#endif
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
  const Vector shifter = broadcast(12582912.0f);
  const Vector shifted = x * log2_e + shifter;
  const Vector fraction = x * log2_e - (shifted - shifter);
  Vector power = broadcast(1.535336062e-04f);
  power = power * fraction + 1.339887487e-03f;
  power = power * fraction + 9.618437366e-03f;
  power = power * fraction + 5.550332470e-02f;
  power = power * fraction + 2.402264791e-01f;
  power = power * fraction + 6.931472029e-01f;
  power = power * fraction + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 is_normal = _mm512_cmp_ps_mask(x, broadcast(-87.3f), _CMP_NLE_UQ);
  return _mm512_maskz_scalef_ps(is_normal, power, shifted - shifter);
#else
  const WordVector exponent = (reinterpret_cast<WordVector>(shifted) + 127u) << 23;
  return power * reinterpret_cast<Vector>(exponent);
#endif
}

inline float exp_scalar(float x) {
  return exp_vector(broadcast(x))[0];
}

// log(x) of normal numbers: x = 2^n (1 + f) with 1 + f between the square roots of 1/2 and 2, and
// log(1 + f) by the polynomial of the Cephes library's logf. 0 becomes -infinity; infinity and NaN
// stay what they are.
__attribute__((always_inline)) inline Vector log_vector(Vector x) {
  constexpr int32_t root_of_half = 0x3F3504F3;
  const IntVector bits = reinterpret_cast<IntVector>(x) - root_of_half;
  const IntVector exponent = bits >> 23;
  const IntVector fraction_bits = (bits & 0x7FFFFF) + root_of_half;
  const Vector f = reinterpret_cast<Vector>(fraction_bits) - 1.0f;
  const Vector n = __builtin_convertvector(exponent, Vector);
  Vector power = broadcast(7.0376836292e-2f);
  power = power * f - 1.1514610310e-1f;
  power = power * f + 1.1676998740e-1f;
  power = power * f - 1.2420140846e-1f;
  power = power * f + 1.4249322787e-1f;
  power = power * f - 1.6668057665e-1f;
  power = power * f + 2.0000714765e-1f;
  power = power * f - 2.4999993993e-1f;
  power = power * f + 3.3333331174e-1f;
  // n log(2) in two parts, of which the first is exact.
  const Vector low = power * f * f * f - n * 2.12194440e-4f - 0.5f * f * f;
  const Vector logarithm = f + low + n * 0.693359375f;
  const Vector ends = x == Vector{} ? broadcast(-infinity) : x;
  return x > Vector{} && x < broadcast(infinity) ? logarithm : ends;
}

// x / divisor, correctly rounded, from the divisor's inverse (Markstein, 1990): a division of
// vectors takes longer than these three operations.
__attribute__((always_inline)) inline Vector divide(Vector x, float divisor, float inverse) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const Vector quotient = x * inverse;
  const Vector corrected = quotient + (x - quotient * divisor) * inverse;
  return corrected == corrected ? corrected : quotient;
#else
  (void)inverse;
  return x / divisor;
#endif
}

}  // namespace
}  // namespace mmer::cpu
