// A small product in registers: rows x vectors sums, and what becomes of them.

#pragma once

#include "vector.h"

namespace mmer::cpu {
namespace {

// Left factor (rows, inner). Row-major keeps `inner` contiguous; transposed keeps `rows`.
enum class Left { row_major, transposed };
enum class Result { overwritten, added_to };

// float32 (rows, columns)
struct Matrix {
  float* data;
  int64_t stride;
};

// What becomes of the sums of a register tile: they are written or added to the result.
template <Result result_is>
struct Store {
  Matrix result;

  template <int rows, int vectors>
  void prepare(int64_t row, int64_t column) const {
    if constexpr (result_is == Result::added_to) {
      for (int i = 0; i < rows; ++i) {
        const float* place = result.data + (row + i) * result.stride + column;
        for (int v = 0; v < vectors; ++v) __builtin_prefetch(place + v * lanes, 1);
      }
    }
  }

  template <int rows, int vectors>
  void finish(Vector (&sums)[rows][vectors], int64_t row, int64_t column) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        float* place = result.data + (row + i) * result.stride + column + v * lanes;
        store(place, result_is == Result::added_to ? load(place) + sums[i][v] : sums[i][v]);
      }
    }
  }
};

// The sums are added to what stands in the tile, before they are finished.
template <class Finish>
struct AddBefore {
  Matrix tile;
  Finish next;

  template <int rows, int vectors>
  void prepare(int64_t, int64_t) const {}

  template <int rows, int vectors>
  __attribute__((always_inline)) void finish(Vector (&sums)[rows][vectors], int64_t row,
                                             int64_t column) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        sums[i][v] += load(tile.data + (row + i) * tile.stride + column + v * lanes);
      }
    }
    next.finish(sums, row, column);
  }
};

// sums (rows, vectors * lanes) = left (rows, inner) right (inner, vectors * lanes), in registers
template <Left left_order, int rows, int vectors, class Finish>
__attribute__((noinline)) void multiply_tile(int64_t inner, const float* __restrict left,
                                             int64_t left_stride, const float* __restrict right,
                                             int64_t right_stride, const Finish& finish,
                                             int64_t row, int64_t column) {
  // A copy stays in registers; what lies in memory would be read again after every store.
  const Finish own = finish;
  own.template prepare<rows, vectors>(row, column);
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
  own.template finish<rows, vectors>(sums, row, column);
}

constexpr int tile_rows(int vectors) {
  return accumulators / vectors < 12 ? accumulators / vectors : 12;
}

template <Left left_order, int vectors, class Finish, int rows = tile_rows(vectors)>
inline void multiply_rows(int count, int64_t inner, const float* left, int64_t left_stride,
                          const float* right, int64_t right_stride, const Finish& finish,
                          int64_t row, int64_t column) {
  if (count == rows) {
    multiply_tile<left_order, rows, vectors>(inner, left, left_stride, right, right_stride, finish,
                                             row, column);
  } else if constexpr (rows > 1) {
    multiply_rows<left_order, vectors, Finish, rows - 1>(count, inner, left, left_stride, right,
                                                         right_stride, finish, row, column);
  }
}

// One panel of 1 to panel_vectors vectors. Rows are split evenly: a last tile of one or two rows
// would leave most of the multipliers idle.
template <Left left_order, class Finish, int vectors = panel_vectors>
inline void multiply_panel(int width, int64_t rows, int64_t inner, const float* left,
                           int64_t left_stride, const float* right, int64_t right_stride,
                           const Finish& finish, int64_t column) {
  if (width != vectors) {
    if constexpr (vectors > 1) {
      multiply_panel<left_order, Finish, vectors - 1>(width, rows, inner, left, left_stride, right,
                                                      right_stride, finish, column);
    }
    return;
  }
  const int64_t tiles = (rows + tile_rows(vectors) - 1) / tile_rows(vectors);
  const int64_t step = left_order == Left::row_major ? left_stride : 1;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int count = static_cast<int>(rows / tiles + (tile < rows % tiles));
    multiply_rows<left_order, vectors>(count, inner, left + row * step, left_stride, right,
                                       right_stride, finish, row, column);
    row += count;
  }
}

template <int rows, class Finish>
inline void finish_rows(Matrix tile, int64_t row, int64_t columns, const Finish& finish) {
  for (int64_t column = 0; column < columns; column += lanes) {
    Vector sums[rows][1];
    for (int i = 0; i < rows; ++i) sums[i][0] = load(tile.data + (row + i) * tile.stride + column);
    finish.template finish<rows, 1>(sums, row, column);
  }
}

// Applies `finish` to a tile that is in memory.
template <class Finish>
inline void finish_tile(Matrix tile, int64_t rows, int64_t columns, const Finish& finish) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) finish_rows<4>(tile, row, columns, finish);
  for (; row < rows; ++row) finish_rows<1>(tile, row, columns, finish);
}

}  // namespace
}  // namespace mmer::cpu
