// Factors of dropout, 0 or the scale, for a tile of weights: the words of kernels/philox.py.

#pragma once

#include "../philox.h"
#include "register_tile.h"
#include "steps.h"

namespace mmer::cpu {
namespace {

// Philox4x32-10 for `lanes` counters side by side.
inline void philox_lanes(uint32_t (&words)[4][lanes], PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    for (int n = 0; n < lanes; ++n) {
      const PhiloxWords mixed =
          philox_round({{words[0][n], words[1][n], words[2][n], words[3][n]}}, key);
      for (int word = 0; word < 4; ++word) words[word][n] = mixed.word[word];
    }
    key.word[0] += 0x9E3779B9;
    key.word[1] += 0xBB67AE85;
  }
}

// What the drawing of one head's factors needs.
struct DropoutDraw {
  Dropout dropout;
  uint32_t row;
  uint32_t stream;

  float factor(uint32_t word) const { return word >= dropout.threshold ? dropout.scale : 0.0f; }
};

// factors (queries, keys), in whole vectors; the first key is a multiple of 4.
inline void draw_by_rows(const DropoutDraw& draw, Range queries, Range keys, Matrix factors) {
  const PhiloxKey seed = philox_key(draw.dropout.seed);
  const int64_t count = keys.end - keys.begin;
  for (int64_t query = queries.begin; query < queries.end; ++query) {
    float* row = factors.data + (query - queries.begin) * factors.stride;
    for (int64_t first = 0; first < count; first += 4 * lanes) {
      uint32_t words[4][lanes];
      for (int n = 0; n < lanes; ++n) {
        words[0][n] = static_cast<uint32_t>((keys.begin + first) / 4 + n);
        words[1][n] = static_cast<uint32_t>(query);
        words[2][n] = draw.row;
        words[3][n] = draw.stream;
      }
      philox_lanes(words, seed);
      const int64_t drawn = smaller(4 * lanes, round_up(count, lanes) - first);
      for (int64_t n = 0; n < drawn; ++n) row[first + n] = draw.factor(words[n % 4][n / 4]);
    }
  }
}

// factors (keys, queries): the same with queries along the columns.
inline void draw_by_columns(const DropoutDraw& draw, Range keys, Range queries, Matrix factors) {
  const PhiloxKey seed = philox_key(draw.dropout.seed);
  const int64_t count = queries.end - queries.begin;
  for (int64_t group = keys.begin / 4; 4 * group < keys.end; ++group) {
    for (int64_t first = 0; first < count; first += lanes) {
      uint32_t words[4][lanes];
      for (int n = 0; n < lanes; ++n) {
        words[0][n] = static_cast<uint32_t>(group);
        words[1][n] = static_cast<uint32_t>(queries.begin + first + n);
        words[2][n] = draw.row;
        words[3][n] = draw.stream;
      }
      philox_lanes(words, seed);
      for (int64_t key = larger(4 * group, keys.begin); key < smaller(4 * group + 4, keys.end);
           ++key) {
        float* row = factors.data + (key - keys.begin) * factors.stride + first;
        for (int n = 0; n < lanes; ++n) row[n] = draw.factor(words[key - 4 * group][n]);
      }
    }
  }
}

}  // namespace
}  // namespace mmer::cpu
