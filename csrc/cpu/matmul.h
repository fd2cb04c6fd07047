// Products of a small matrix with a panel: the only place where floating point work is counted.

#pragma once

#include "vector.h"

namespace mmer::cpu {
namespace {

// Left factor (rows, inner). Row-major keeps `inner` contiguous; transposed keeps `rows`.
enum class Left { row_major, transposed };
enum class Result { overwritten, added_to };

// Right factor (inner, columns) in panels of panel_width columns. A matrix in row-major order has
// panels panel_width apart.
struct Panels {
  const float* data;
  int64_t row_stride;
  int64_t panel_stride;
};

struct Matrix {
  float* data;
  int64_t stride;
};

// result (rows, vectors * lanes) = or += left (rows, inner) right (inner, vectors * lanes)
template <Left left_order, Result result_is, int rows, int vectors>
__attribute__((noinline)) void multiply_tile(int64_t inner, const float* __restrict left,
                                             int64_t left_stride, const float* __restrict right,
                                             int64_t right_stride, float* __restrict result,
                                             int64_t result_stride) {
  Vector sums[rows][vectors] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector right_row[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) right_row[v] = load(right + v * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const float factor = left_order == Left::row_major ? left[i * left_stride] : left[i];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[i][v] += factor * right_row[v];
    }
    left += left_order == Left::row_major ? 1 : left_stride;
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

constexpr int tile_rows(int vectors) {
  return accumulators / vectors < 12 ? accumulators / vectors : 12;
}

template <Left left_order, Result result_is, int vectors, int rows = tile_rows(vectors)>
inline void multiply_rows(int count, int64_t inner, const float* left, int64_t left_stride,
                          const float* right, int64_t right_stride, float* result,
                          int64_t result_stride) {
  if (count == rows) {
    multiply_tile<left_order, result_is, rows, vectors>(inner, left, left_stride, right,
                                                        right_stride, result, result_stride);
  } else if constexpr (rows > 1) {
    multiply_rows<left_order, result_is, vectors, rows - 1>(count, inner, left, left_stride, right,
                                                            right_stride, result, result_stride);
  }
}

// One panel of 1 to panel_vectors vectors. Rows are split evenly: a last tile of one or two rows
// would leave most of the multipliers idle.
template <Left left_order, Result result_is, int vectors = panel_vectors>
inline void multiply_panel(int width, int64_t rows, int64_t inner, const float* left,
                           int64_t left_stride, const float* right, int64_t right_stride,
                           float* result, int64_t result_stride) {
  if (width != vectors) {
    if constexpr (vectors > 1) {
      multiply_panel<left_order, result_is, vectors - 1>(
          width, rows, inner, left, left_stride, right, right_stride, result, result_stride);
    }
    return;
  }
  const int64_t tiles = (rows + tile_rows(vectors) - 1) / tile_rows(vectors);
  const int64_t step = left_order == Left::row_major ? left_stride : 1;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int count = static_cast<int>(rows / tiles + (tile < rows % tiles));
    multiply_rows<left_order, result_is, vectors>(count, inner, left + row * step, left_stride,
                                                  right, right_stride, result + row * result_stride,
                                                  result_stride);
    row += count;
  }
}

// Longer sums are added up in halves: their rounding error grows with the number of terms.
constexpr int64_t longest_sum = 128;

// result (rows, columns) = or += left (rows, inner) right (inner, columns); columns are rounded up
// to whole vectors, for which right and result must have room.
template <Left left_order, Result result_is>
inline void multiply(int64_t rows, int64_t inner, int64_t columns, const float* left,
                     int64_t left_stride, Panels right, Matrix result) {
  if (inner > longest_sum) {
    const int64_t half = inner / 2;
    const int64_t step = left_order == Left::row_major ? 1 : left_stride;
    multiply<left_order, result_is>(rows, half, columns, left, left_stride, right, result);
    right.data += half * right.row_stride;
    multiply<left_order, Result::added_to>(rows, inner - half, columns, left + half * step,
                                           left_stride, right, result);
    return;
  }
  int64_t vectors = (columns + lanes - 1) / lanes;
  const float* panel = right.data;
  float* place = result.data;
  for (; vectors > 0; vectors -= panel_vectors) {
    const int width = static_cast<int>(vectors < panel_vectors ? vectors : panel_vectors);
    multiply_panel<left_order, result_is>(width, rows, inner, left, left_stride, panel,
                                          right.row_stride, place, result.stride);
    panel += right.panel_stride;
    place += panel_width;
  }
}

}  // namespace
}  // namespace mmer::cpu
