// e^x for vectors, to one unit in the last place, and division by a scalar.

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
