// Reading and writing rows of tensors: conversion to and from float32, rounding to nearest even.

#pragma once

#include "problem.h"
#include "vector.h"

namespace mmer::cpu {
namespace {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float from_bfloat16(uint16_t x) {
  return bits_float(static_cast<uint32_t>(x) << 16);
}

inline float from_float16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x & 0x7FFFu) << 13;
  // The factor 2^112 moves the exponent's bias, and makes denormal numbers normal.
  const uint32_t finite = float_bits(bits_float(magnitude) * bits_float(0x77800000u));
  return bits_float(sign | (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : finite));
}

inline uint16_t to_float16(float x) {
  const uint32_t sign = float_bits(x) & 0x80000000u;
  const uint32_t magnitude = float_bits(x) ^ sign;
  // Below 2^-14 the addition of 1/2 itself rounds to the denormal numbers' spacing.
  const uint32_t denormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t half =
      magnitude >= 0x47800000u ? special : (magnitude < 0x38800000u ? denormal : normal);
  return static_cast<uint16_t>(half | sign >> 16);
}

typedef uint16_t HalfVector __attribute__((vector_size(2 * lanes)));

// `lanes` elements of float16 or bfloat16
inline Vector load_half(const uint16_t* from, ElementType type) {
  HalfVector narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  if (type == ElementType::bfloat16) {
    return reinterpret_cast<Vector>(__builtin_convertvector(narrow, WordVector) << 16);
  }
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(narrow));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(narrow));
#else
  Vector x;
  for (int lane = 0; lane < lanes; ++lane) x[lane] = from_float16(narrow[lane]);
  return x;
#endif
}

// x as float16 or bfloat16
inline HalfVector round_vector(Vector x, ElementType type) {
  if (type == ElementType::bfloat16) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<HalfVector>(_mm512_cvtneps_pbh(x));
#else
    const WordVector bits = reinterpret_cast<WordVector>(x);
    const WordVector rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    const WordVector nan = WordVector{} + 0x7FC0u;
    return __builtin_convertvector(x == x ? rounded : nan, HalfVector);
#endif
  }
#if defined(__AVX512F__)
  return reinterpret_cast<HalfVector>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return reinterpret_cast<HalfVector>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  HalfVector rounded;
  for (int lane = 0; lane < lanes; ++lane) rounded[lane] = to_float16(x[lane]);
  return rounded;
#endif
}

inline int64_t element_offset(const TensorView& tensor, int64_t batch, int64_t head, int64_t time) {
  return batch * tensor.strides[0] + head * tensor.strides[1] + time * tensor.strides[2];
}

// row (count) of the tensor, as float32; room for whole vectors is filled up with zeros.
inline void read_row(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                     int64_t count, float* row) {
  const int64_t offset = element_offset(tensor, batch, head, time), stride = tensor.strides[3];
  if (count % lanes != 0) store(row + count / lanes * lanes, Vector{});
  int64_t n = 0;
  if (tensor.type == ElementType::float32) {
    const float* from = static_cast<const float*>(tensor.data) + offset;
    if (stride == 1) {
      for (; n < count; n += lanes) store(row + n, load_part(from, n, count));
    }
    for (; n < count; ++n) row[n] = from[n * stride];
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(tensor.data) + offset;
  if (stride == 1) {
    for (; n + lanes <= count; n += lanes) store(row + n, load_half(from + n, tensor.type));
  }
  const bool is_bfloat16 = tensor.type == ElementType::bfloat16;
  for (; n < count; ++n) {
    row[n] = is_bfloat16 ? from_bfloat16(from[n * stride]) : from_float16(from[n * stride]);
  }
}

// The row (count) of the tensor = the vectors that begin at its elements k; its last dimension is
// contiguous.
template <class VectorAt>
inline void write_vectors(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                          int64_t count, const VectorAt& vector_at) {
  const int64_t offset = element_offset(tensor, batch, head, time);
  if (tensor.type == ElementType::float32) {
    float* to = static_cast<float*>(tensor.data) + offset;
    int64_t k = 0;
    for (; k + lanes <= count; k += lanes) store(to + k, vector_at(k));
    if (k < count) store_first(to + k, vector_at(k), count - k);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(tensor.data) + offset;
  for (int64_t k = 0; k < count; k += lanes) {
    const HalfVector rounded = round_vector(vector_at(k), tensor.type);
    if (k + lanes <= count) {
      std::memcpy(to + k, &rounded, sizeof rounded);
    } else {
      std::memcpy(to + k, &rounded, 2 * (count - k));
    }
  }
}

// The row of the tensor = factor * row (count), which has room for whole vectors.
inline void write_row(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                      int64_t count, const float* row, float factor) {
  write_vectors(tensor, batch, head, time, count,
                [&](int64_t k) { return factor * load(row + k); });
}

// The first `count` scalars from the step `time` on.
inline void write_scalars(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                          int64_t count, Vector x) {
  float* to = static_cast<float*>(tensor.data) + element_offset(tensor, batch, head, time);
  if (tensor.strides[2] == 1) {
    store_first(to, x, count);
  } else {
    for (int64_t n = 0; n < count; ++n) to[n * tensor.strides[2]] = x[n];
  }
}

inline float read_scalar(const TensorView& tensor, int64_t batch, int64_t head, int64_t time) {
  return static_cast<const float*>(tensor.data)[element_offset(tensor, batch, head, time)];
}

inline bool is_real(const MaskView& mask, int64_t batch, int64_t time) {
  return mask.data == nullptr || mask.data[batch * mask.strides[0] + time * mask.strides[1]];
}

}  // namespace
}  // namespace mmer::cpu
