// Products of bfloat16 factors by the bfloat16 instructions of AVX-512.

#pragma once

#include "bfloat16_layout.h"

namespace mmer::cpu {
namespace {

struct TileConfiguration {};

// result (rows, vectors * lanes) = or += left (rows, inner) right (inner, vectors * lanes)
template <Result result_is, int rows, int vectors>
__attribute__((noinline)) void multiply_pairs(int64_t inner, const uint16_t* __restrict left,
                                              int64_t left_stride, const uint32_t* __restrict right,
                                              int64_t right_stride, float* __restrict result,
                                              int64_t result_stride) {
  Vector sums[rows][vectors] = {};
  for (int64_t k = 0; k < inner; k += 2) {
    __m512i right_row[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right_row[v] = _mm512_loadu_si512(right + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      uint32_t pair;
      std::memcpy(&pair, left + i * left_stride + k, sizeof pair);
      const __m512bh factor = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const __m512bh other = reinterpret_cast<__m512bh>(right_row[v]);
        sums[i][v] = _mm512_dpbf16_ps(sums[i][v], factor, other);
      }
    }
    right += right_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      float* place = result + i * result_stride + v * lanes;
      store(place, result_is == Result::added_to ? load(place) + sums[i][v] : sums[i][v]);
    }
  }
}

template <Result result_is, int vectors, int rows = tile_rows(vectors)>
inline void multiply_pair_rows(int count, int64_t inner, const uint16_t* left, int64_t left_stride,
                               const uint32_t* right, int64_t right_stride, float* result,
                               int64_t result_stride) {
  if (count == rows) {
    multiply_pairs<result_is, rows, vectors>(inner, left, left_stride, right, right_stride, result,
                                             result_stride);
  } else if constexpr (rows > 1) {
    multiply_pair_rows<result_is, vectors, rows - 1>(count, inner, left, left_stride, right,
                                                     right_stride, result, result_stride);
  }
}

template <Result result_is, int width = panel_vectors>
inline void multiply_panel(int64_t rows, int64_t inner, int64_t vectors, const uint16_t* left,
                           int64_t left_stride, const uint32_t* right, int64_t right_stride,
                           float* result, int64_t result_stride) {
  if (vectors != width) {
    if constexpr (width > 1) {
      multiply_panel<result_is, width - 1>(rows, inner, vectors, left, left_stride, right,
                                           right_stride, result, result_stride);
    }
    return;
  }
  const int64_t tiles = (rows + tile_rows(width) - 1) / tile_rows(width);
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int count = static_cast<int>(rows / tiles + (tile < rows % tiles));
    multiply_pair_rows<result_is, width>(count, inner, left + row * left_stride, left_stride, right,
                                         right_stride, result + row * result_stride, result_stride);
    row += count;
  }
}

}  // namespace
}  // namespace mmer::cpu
