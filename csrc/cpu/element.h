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

// `lanes` elements
inline Vector load_bfloat16(const uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
#elif defined(__AVX2__)
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
#else
  Vector x;
  for (int lane = 0; lane < lanes; ++lane) x[lane] = from_bfloat16(from[lane]);
  return x;
#endif
}

inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7FC0u : rounded);
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

// rounded (lanes) = x as float16 or bfloat16
inline void round_vector(Vector x, ElementType type, uint16_t (&rounded)[lanes]) {
#if defined(__AVX512BF16__)
  if (type == ElementType::bfloat16) {
    const __m256bh narrow = _mm512_cvtneps_pbh(x);
    std::memcpy(rounded, &narrow, sizeof narrow);
    return;
  }
#endif
  if (type == ElementType::bfloat16) {
    for (int lane = 0; lane < lanes; ++lane) rounded[lane] = to_bfloat16(x[lane]);
  } else {
    for (int lane = 0; lane < lanes; ++lane) rounded[lane] = to_float16(x[lane]);
  }
}

inline int64_t element_offset(const TensorView& tensor, int64_t batch, int64_t head, int64_t time) {
  return batch * tensor.strides[0] + head * tensor.strides[1] + time * tensor.strides[2];
}

// Elements `stride` apart as float32. The loop over contiguous ones is the compiler's to vectorise.
template <class Element, class Convert>
inline void convert_row(const Element* from, int64_t stride, int64_t count, float* row,
                        const Convert& convert) {
  if (stride == 1) {
    for (int64_t n = 0; n < count; ++n) row[n] = convert(from[n]);
  } else {
    for (int64_t n = 0; n < count; ++n) row[n] = convert(from[n * stride]);
  }
}

// row (count) of the tensor, as float32; room for whole vectors is filled up with zeros.
inline void read_row(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                     int64_t count, float* row) {
  const int64_t offset = element_offset(tensor, batch, head, time), stride = tensor.strides[3];
  if (count % lanes != 0) store(row + count / lanes * lanes, Vector{});
  if (tensor.type == ElementType::float32) {
    const float* from = static_cast<const float*>(tensor.data) + offset;
    if (stride == 1) {
      for (int64_t n = 0; n < count; n += lanes) store(row + n, load_part(from, n, count));
    } else {
      convert_row(from, stride, count, row, [](float x) { return x; });
    }
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(tensor.data) + offset;
  if (tensor.type == ElementType::bfloat16 && stride == 1 && count % lanes == 0) {
    for (int64_t n = 0; n < count; n += lanes) store(row + n, load_bfloat16(from + n));
  } else if (tensor.type == ElementType::bfloat16) {
    convert_row(from, stride, count, row, from_bfloat16);
  } else {
    convert_row(from, stride, count, row, from_float16);
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
    uint16_t rounded[lanes];
    round_vector(vector_at(k), tensor.type, rounded);
    if (k + lanes <= count) {
      std::memcpy(to + k, rounded, sizeof rounded);
    } else {
      std::memcpy(to + k, rounded, 2 * (count - k));
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
