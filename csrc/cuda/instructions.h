// The instructions that the kernels are made of, under the names of the PTX manual.

#pragma once

#include <cstdint>
#include <utility>

#define MMER_DEVICE __device__ __forceinline__

namespace mmer::cuda {

template <class Do, int... numbers>
MMER_DEVICE void call_with_each(const Do& act, std::integer_sequence<int, numbers...>) {
  (act(std::integral_constant<int, numbers>{}), ...);
}

// Calls act(n) for the numbers from 0 on, each a constant, as the offsets of instructions have to
// be.
template <int count, class Do>
MMER_DEVICE void unrolled(const Do& act) {
  call_with_each(act, std::make_integer_sequence<int, count>{});
}

MMER_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies the first `bytes` of 16 and sets the rest to zero.
template <int offset = 0>
MMER_DEVICE void cp_async(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0+%3], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes), "n"(offset)
               : "memory");
}

MMER_DEVICE void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all but the newest `groups` committed groups of this thread have landed.
template <int groups>
MMER_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

template <int offset = 0>
MMER_DEVICE void ldmatrix(uint32_t (&fragment)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address), "n"(offset)
               : "memory");
}

template <int offset = 0>
MMER_DEVICE void ldmatrix(uint32_t (&fragment)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2+%3];"
               : "=r"(fragment[0]), "=r"(fragment[1])
               : "r"(address), "n"(offset)
               : "memory");
}

template <int offset = 0>
MMER_DEVICE void ldmatrix_transposed(uint32_t (&fragment)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address), "n"(offset)
               : "memory");
}

// The inverse of `ldmatrix`, from compute capability 9.0 on: four 8 x 8 matrices in registers to 32
// rows of 16 bytes.
MMER_DEVICE void stmatrix(uint32_t address, const uint32_t (&fragment)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}

template <int offset>
MMER_DEVICE void store_shared(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0+%2], %1;" ::"r"(address), "r"(word), "n"(offset) : "memory");
}

template <int offset>
MMER_DEVICE void store_shared(uint32_t address, float2 pair) {
  asm volatile("st.shared.v2.f32 [%0+%3], {%1,%2};" ::"r"(address), "f"(pair.x), "f"(pair.y),
               "n"(offset)
               : "memory");
}

// The transpose of an 8 x 8 matrix in registers.
MMER_DEVICE uint32_t movmatrix_transposed(uint32_t fragment) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(fragment));
  return transposed;
}

template <int offset = 0>
MMER_DEVICE void store_shared(uint32_t address, uint4 words) {
  asm volatile("st.shared.v4.b32 [%0+%5], {%1,%2,%3,%4};" ::"r"(address), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w), "n"(offset)
               : "memory");
}

template <int offset = 0>
MMER_DEVICE uint32_t load_shared_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1+%2];" : "=r"(word) : "r"(address), "n"(offset) : "memory");
  return word;
}

MMER_DEVICE uint4 words_of(const float (&values)[4]) {
  return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                    __float_as_uint(values[2]), __float_as_uint(values[3]));
}

MMER_DEVICE uint4 words_of(const uint32_t (&words)[4]) {
  return make_uint4(words[0], words[1], words[2], words[3]);
}

MMER_DEVICE void add_words(float (&sums)[4], uint4 words) {
  sums[0] += __uint_as_float(words.x);
  sums[1] += __uint_as_float(words.y);
  sums[2] += __uint_as_float(words.z);
  sums[3] += __uint_as_float(words.w);
}

template <int offset>
MMER_DEVICE float2 load_shared_pair(uint32_t address) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2+%3];"
               : "=f"(pair.x), "=f"(pair.y)
               : "r"(address), "n"(offset)
               : "memory");
  return pair;
}

MMER_DEVICE uint16_t load_shared_half(uint32_t address) {
  uint16_t half;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(half) : "r"(address) : "memory");
  return half;
}

template <int offset = 0>
MMER_DEVICE uint4 load_shared(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address), "n"(offset)
               : "memory");
  return words;
}

// Elements `first` and, if there are two in a word, the next of a row of `count`: zero beyond its
// end, where nothing is read. A branch around each would take the compiler far longer.
template <int first>
MMER_DEVICE uint32_t load_global_word(const uint16_t* row, int count) {
  uint32_t word;
  asm("{.reg .pred p, q; .reg .b16 low, high;\n"
      "setp.gt.s32 p, %2, %3; setp.gt.s32 q, %2, %4; mov.b16 low, 0; mov.b16 high, 0;\n"
      "@p ld.global.b16 low, [%1+%5]; @q ld.global.b16 high, [%1+%6];\n"
      "mov.b32 %0, {low, high};}"
      : "=r"(word)
      : "l"(row), "r"(count), "n"(first), "n"(first + 1), "n"(2 * first), "n"(2 * first + 2));
  return word;
}

template <int first>
MMER_DEVICE uint32_t load_global_word(const uint32_t* row, int count) {
  uint32_t word;
  asm("{.reg .pred p;\n"
      "setp.gt.s32 p, %2, %3; mov.b32 %0, 0; @p ld.global.b32 %0, [%1+%4];}"
      : "=&r"(word)
      : "l"(row), "r"(count), "n"(first), "n"(4 * first));
  return word;
}

// In one piece, which the compiler does not make of an assignment.
MMER_DEVICE void store_global(void* pointer, uint4 words) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(pointer), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
}

MMER_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

MMER_DEVICE float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Keeps what a loop needs in a register: the compiler would compute it again in every pass.
MMER_DEVICE uint32_t kept(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

MMER_DEVICE int64_t kept(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

MMER_DEVICE int kept(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

MMER_DEVICE float kept(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

template <class Value>
MMER_DEVICE Value* kept(Value* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

template <class Value>
MMER_DEVICE Value shuffle_xor(Value value, int lanes) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
}

// What `lane` has.
MMER_DEVICE float shuffle(float value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}

MMER_DEVICE bool any_lane(bool condition) {
  return __any_sync(0xFFFFFFFFu, condition);
}
MMER_DEVICE bool all_lanes(bool condition) {
  return __all_sync(0xFFFFFFFFu, condition);
}

// Over the four threads that hold one row of an accumulator.
MMER_DEVICE float row_maximum(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

MMER_DEVICE float row_total(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Adds up `count` numbers over two lanes that are `lanes` apart: the lower lane keeps the first
// half of the sums, the upper one the second, each in the first half of the array.
template <int lanes, int count, int size>
MMER_DEVICE void add_and_halve(float (&numbers)[size]) {
  static_assert(count <= size);
  const bool upper = kept(threadIdx.x) & lanes;
#pragma unroll
  for (int n = 0; n < count / 2; ++n) {
    const float other = shuffle_xor(upper ? numbers[n] : numbers[n + count / 2], lanes);
    numbers[n] = (upper ? numbers[n + count / 2] : numbers[n]) + other;
  }
}

MMER_DEVICE float warp_total(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}

}  // namespace mmer::cuda
