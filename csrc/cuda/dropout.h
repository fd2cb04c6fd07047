// Dropout: the random words of csrc/philox.h for the weights that a thread holds.

#pragma once

#include "../philox.h"
#include "instructions.h"
#include "problem.h"

namespace mmer::cuda {

struct Dropout {
  PhiloxKey key;
  uint64_t threshold;
  uint32_t batch_head;

  MMER_DEVICE Dropout(const Extras& extras, int batch_head)
      : key{}, threshold(extras.keep_threshold), batch_head(batch_head) {
    if (active()) key = philox_key(*extras.seed);
  }
  MMER_DEVICE bool active() const { return threshold != 0; }
  MMER_DEVICE bool keeps(uint32_t word) const { return word >= threshold; }

  // keep[e] for the four weights that a thread holds of an accumulator (16, 8) whose rows are
  // queries. A generator's call serves four keys of one query, held by two threads: each makes one
  // call and they exchange halves.
  MMER_DEVICE void draw_queries(bool (&keep)[4], int first_query, int first_key,
                                uint32_t stream) const {
    const int lane = threadIdx.x % 32;
    const bool odd = lane % 2;
    const uint32_t query = first_query + lane / 4 + (odd ? 8 : 0);
    const uint32_t key_group = first_key / 4 + lane % 4 / 2;
    const PhiloxWords words = philox_attention_words(key, batch_head, query, key_group, stream);
    const uint32_t near_0 = odd ? words.word[2] : words.word[0];
    const uint32_t near_1 = odd ? words.word[3] : words.word[1];
    const uint32_t far_0 = shuffle_xor(odd ? words.word[0] : words.word[2], 1);
    const uint32_t far_1 = shuffle_xor(odd ? words.word[1] : words.word[3], 1);
    keep[0] = keeps(odd ? far_0 : near_0);
    keep[1] = keeps(odd ? far_1 : near_1);
    keep[2] = keeps(odd ? near_0 : far_0);
    keep[3] = keeps(odd ? near_1 : far_1);
  }

  // The same where the rows are keys. The four threads that hold the four keys of a call have
  // lanes 4 apart: each makes one of their four calls, and they transpose the words.
  MMER_DEVICE void draw_keys(bool (&keep)[4], int first_key, int first_query,
                             uint32_t stream) const {
    const int lane = threadIdx.x % 32;
    const int turn = lane / 4 % 4;
    const uint32_t query = first_query + lane % 4 * 2 + turn % 2;
    const uint32_t key_group = first_key / 4 + lane / 16 + turn / 2 * 2;
    PhiloxWords words = philox_attention_words(key, batch_head, query, key_group, stream);
    uint32_t (&word)[4] = words.word;
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      const uint32_t got = shuffle_xor(turn & 1 ? word[n] : word[n + 1], 4);
      (turn & 1 ? word[n] : word[n + 1]) = got;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t got = shuffle_xor(turn & 2 ? word[n] : word[n + 2], 8);
      (turn & 2 ? word[n] : word[n + 2]) = got;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) keep[e] = keeps(word[e]);
  }
};

}  // namespace mmer::cuda
