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

// row (count) of the tensor, as float32.
inline void read_row(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                     int64_t count, float* row) {
  const int64_t offset = element_offset(tensor, batch, head, time), stride = tensor.strides[3];
  if (tensor.type == ElementType::float32) {
    const float* from = static_cast<const float*>(tensor.data) + offset;
    if (stride == 1) {
      int64_t n = 0;
      for (; n + lanes <= count; n += lanes) store(row + n, load(from + n));
      if (n < count) store_first(row + n, load_first(from + n, count - n), count - n);
    } else {
      convert_row(from, stride, count, row, [](float x) { return x; });
    }
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(tensor.data) + offset;
  if (tensor.type == ElementType::bfloat16) {
    convert_row(from, stride, count, row, from_bfloat16);
  } else {
    convert_row(from, stride, count, row, from_float16);
  }
}

// The row of the tensor = factor * row (count); the tensor's last dimension is contiguous.
inline void write_row(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                      int64_t count, const float* row, float factor) {
  const int64_t offset = element_offset(tensor, batch, head, time);
  if (tensor.type == ElementType::float32) {
    float* to = static_cast<float*>(tensor.data) + offset;
    int64_t n = 0;
    for (; n + lanes <= count; n += lanes) store(to + n, factor * load(row + n));
    if (n < count) store_first(to + n, factor * load_first(row + n, count - n), count - n);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(tensor.data) + offset;
  if (tensor.type == ElementType::bfloat16) {
#if defined(__AVX512BF16__)
    const int64_t whole = count / lanes * lanes;
    for (int64_t n = 0; n < whole; n += lanes) {
      const __m256bh rounded = _mm512_cvtneps_pbh(factor * load(row + n));
      std::memcpy(to + n, &rounded, sizeof rounded);
    }
    to += whole;
    row += whole;
    count -= whole;
#endif
    for (int64_t n = 0; n < count; ++n) to[n] = to_bfloat16(factor * row[n]);
  } else {
    for (int64_t n = 0; n < count; ++n) to[n] = to_float16(factor * row[n]);
  }
}

inline void write_scalar(const TensorView& tensor, int64_t batch, int64_t head, int64_t time,
                         float x) {
  static_cast<float*>(tensor.data)[element_offset(tensor, batch, head, time)] = x;
}

inline float read_scalar(const TensorView& tensor, int64_t batch, int64_t head, int64_t time) {
  return static_cast<const float*>(tensor.data)[element_offset(tensor, batch, head, time)];
}

inline bool is_real(const MaskView& mask, int64_t batch, int64_t time) {
  return mask.data == nullptr || mask.data[batch * mask.strides[0] + time * mask.strides[1]];
}

}  // namespace
}  // namespace mmer::cpu
