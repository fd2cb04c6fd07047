// The types of elements: how they are moved, rounded and multiplied. The kernels are written for
// any of them.

#pragma once

#include "instructions.h"

namespace mmer::cuda {

// What float16 and bfloat16 share: a register holds two, and one mma contracts 16.
template <class Half>
struct HalfElement {
  using Bits = uint16_t;
  static constexpr int bytes = 2;
  static constexpr int depth = 16;

  static MMER_DEVICE Bits round(float value) { return static_cast<Bits>(Half::pack(value, 0.0f)); }
  // 16 bytes of elements.
  static MMER_DEVICE uint4 piece(const float (&values)[8]) {
    return make_uint4(Half::pack(values[0], values[1]), Half::pack(values[2], values[3]),
                      Half::pack(values[4], values[5]), Half::pack(values[6], values[7]));
  }
  template <int offset = 0>
  static MMER_DEVICE void store_pair(uint32_t address, float low, float high) {
    store_shared<offset>(address, Half::pack(low, high));
  }
  static MMER_DEVICE Bits load(uint32_t address) { return load_shared_half(address); }
  // What several products with the same left factor share.
  static MMER_DEVICE const uint32_t (&shared_left(const uint32_t (&a)[4]))[4] { return a; }
  // a (16, depth) from the columns [step * depth, (step + 1) * depth) of an accumulator.
  template <int count>
  static MMER_DEVICE void left_operand(uint32_t (&a)[4], const float (&accumulator)[count][4],
                                       int step) {
    const float (&left)[4] = accumulator[2 * step];
    const float (&right)[4] = accumulator[2 * step + 1];
    a[0] = Half::pack(left[0], left[1]);
    a[1] = Half::pack(left[2], left[3]);
    a[2] = Half::pack(right[0], right[1]);
    a[3] = Half::pack(right[2], right[3]);
  }
  // The same where the accumulator was rounded before.
  template <int count>
  static MMER_DEVICE void left_operand(uint32_t (&a)[4], const uint32_t (&words)[count][2],
                                       int step) {
#pragma unroll
    for (int n = 0; n < 4; ++n) a[n] = words[2 * step + n / 2][n % 2];
  }
};

struct float16 : HalfElement<float16> {
  static MMER_DEVICE uint32_t pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
  }
  static MMER_DEVICE float unpack(Bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  // accumulator (16, 8) += a (16, depth) b (depth, 8)
  static MMER_DEVICE void mma(float (&accumulator)[4], const uint32_t (&a)[4], uint32_t b_low,
                              uint32_t b_high) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
  }
};

struct bfloat16 : HalfElement<bfloat16> {
  static MMER_DEVICE uint32_t pack(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
  }
  static MMER_DEVICE float unpack(Bits bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
  static MMER_DEVICE void mma(float (&accumulator)[4], const uint32_t (&a)[4], uint32_t b_low,
                              uint32_t b_high) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
  }
};

// Tensor cores multiply tf32, which has 11 of float32's 24 bits. Each operand is split into the sum
// of two of them, to 2^-22, and the product of the two small ones, at most 2^-22, is left out.
struct float32 {
  using Bits = uint32_t;
  static constexpr int bytes = 4;
  static constexpr int depth = 8;

  static MMER_DEVICE Bits round(float value) { return __float_as_uint(value); }
  static MMER_DEVICE float unpack(Bits bits) { return __uint_as_float(bits); }
  static MMER_DEVICE uint4 piece(const float (&values)[4]) {
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                      __float_as_uint(values[2]), __float_as_uint(values[3]));
  }
  template <int offset = 0>
  static MMER_DEVICE void store_pair(uint32_t address, float low, float high) {
    store_shared<offset>(address, make_float2(low, high));
  }
  static MMER_DEVICE Bits load(uint32_t address) { return load_shared_word(address); }
  // Contracted in the order of the accumulator: elements t and t + 4 of an operand are its columns
  // 2 t and 2 t + 1, so that a thread has what it needs.
  template <int count>
  static MMER_DEVICE void left_operand(uint32_t (&a)[4], const float (&accumulator)[count][4],
                                       int step) {
    a[0] = __float_as_uint(accumulator[step][0]);
    a[1] = __float_as_uint(accumulator[step][2]);
    a[2] = __float_as_uint(accumulator[step][1]);
    a[3] = __float_as_uint(accumulator[step][3]);
  }
  struct Left {
    uint32_t large[4], small[4];
  };
  static MMER_DEVICE Left shared_left(const uint32_t (&a)[4]) {
    Left left;
#pragma unroll
    for (int n = 0; n < 4; ++n) split(a[n], left.large[n], left.small[n]);
    return left;
  }
  static MMER_DEVICE void mma(float (&accumulator)[4], const Left& a, uint32_t b_low,
                              uint32_t b_high) {
    uint32_t b_large[2], b_small[2];
    split(b_low, b_large[0], b_small[0]);
    split(b_high, b_large[1], b_small[1]);
    multiply(accumulator, a.small, b_large);
    multiply(accumulator, a.large, b_small);
    multiply(accumulator, a.large, b_large);
  }

 private:
  static constexpr uint32_t tf32_bits = 0xFFFFE000u;

  // The large part is rounded to nearest by two integer instructions, where cvt.rna takes three:
  // what NaN becomes does not matter, as the small part is NaN too. That one is cut off where
  // tensor cores do not look: the assembler leaves the instruction out.
  static MMER_DEVICE void split(uint32_t bits, uint32_t& large, uint32_t& small) {
    large = (bits + 0x1000) & tf32_bits;
    small = __float_as_uint(__uint_as_float(bits) - __uint_as_float(large)) & tf32_bits;
  }
  static MMER_DEVICE void multiply(float (&accumulator)[4], const uint32_t (&a)[4],
                                   const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(accumulator[0]), "+f"(accumulator[1]), "+f"(accumulator[2]), "+f"(accumulator[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

}  // namespace mmer::cuda
