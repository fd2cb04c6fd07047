// Philox4x32-10: counter-based random words (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). kernels/philox.py is the same function in Python; both
// must give the same bits.
//
// Free of torch and of the standard library's templates. Every function is static: a source may be
// compiled several times with different instruction sets, and a shared inline copy could then run
// on a CPU that lacks them.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MMER_HOST_DEVICE __host__ __device__
#else
#define MMER_HOST_DEVICE
#endif

namespace mmer {

// A counter going in, its random words coming out.
struct PhiloxWords {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t word[2];
};

// The key of a 64-bit seed: low word first.
MMER_HOST_DEVICE static inline PhiloxKey philox_key(int64_t seed) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return {{static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)}};
}

struct PhiloxProduct {
  uint32_t low, high;
};

MMER_HOST_DEVICE static inline PhiloxProduct philox_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  // Both halves as they come: the compiler would shift and convert.
  PhiloxProduct product;
  asm("{.reg .b64 wide; mul.wide.u32 wide, %2, %3; mov.b64 {%0, %1}, wide;}"
      : "=r"(product.low), "=r"(product.high)
      : "r"(a), "r"(b));
  return product;
#else
  const uint64_t wide = uint64_t{a} * b;
  return {static_cast<uint32_t>(wide), static_cast<uint32_t>(wide >> 32)};
#endif
}

MMER_HOST_DEVICE static inline PhiloxWords philox_round(const PhiloxWords& counter,
                                                        const PhiloxKey& key) {
  const PhiloxProduct product_0 = philox_product(counter.word[0], 0xD2511F53);
  const PhiloxProduct product_1 = philox_product(counter.word[2], 0xCD9E8D57);
  return {{
      product_1.high ^ counter.word[1] ^ key.word[0],
      product_1.low,
      product_0.high ^ counter.word[3] ^ key.word[1],
      product_0.low,
  }};
}

// The four random words of a counter.
MMER_HOST_DEVICE static inline PhiloxWords philox4x32_10(PhiloxWords counter, PhiloxKey key) {
  constexpr int rounds = 10;
  for (int round = 0; round < rounds; ++round) {
    counter = philox_round(counter, key);
    key.word[0] += 0x9E3779B9;
    key.word[1] += 0xBB67AE85;
  }
  return counter;
}

// The words of attention weights 4 * key_group .. 4 * key_group + 3 of one query, as dropout draws
// them.
MMER_HOST_DEVICE static inline PhiloxWords philox_attention_words(
    PhiloxKey key, uint32_t batch_head, uint32_t query, uint32_t key_group, uint32_t stream) {
  return philox4x32_10({{key_group, query, batch_head, stream}}, key);
}

}  // namespace mmer
