#include "dropout_bits.h"

#include "philox.h"

namespace mmer {

void write_dropout_bits(int64_t* bits, int64_t seed, int64_t queries, int64_t keys, int64_t stream,
                        int64_t row_begin, int64_t row_end) {
  constexpr int64_t lanes = 4;
  const PhiloxKey philox_seed = philox_key(seed);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const uint32_t batch_head = static_cast<uint32_t>(row / queries);
    const uint32_t query = static_cast<uint32_t>(row % queries);
    int64_t* row_bits = bits + row * keys;
    for (int64_t first_key = 0; first_key < keys; first_key += lanes) {
      const PhiloxWords words = philox_attention_words(philox_seed, batch_head, query,
                                                       static_cast<uint32_t>(first_key / lanes),
                                                       static_cast<uint32_t>(stream));
      const int64_t group = keys - first_key < lanes ? keys - first_key : lanes;
      for (int64_t lane = 0; lane < group; ++lane) row_bits[first_key + lane] = words.word[lane];
    }
  }
}

}  // namespace mmer
