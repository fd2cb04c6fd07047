// Products of bfloat16 factors by the tiles of AMX.

#pragma once

#include "bfloat16_layout.h"

namespace mmer::cpu {
namespace {

// Eight tiles of 16 rows of 64 bytes.
alignas(64) constexpr struct {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
} tile_layout;

// The tiles of a thread while kernels run.
class TileConfiguration {
 public:
  TileConfiguration() { _tile_loadconfig(&tile_layout); }
  ~TileConfiguration() { _tile_release(); }
  TileConfiguration(const TileConfiguration&) = delete;
  TileConfiguration& operator=(const TileConfiguration&) = delete;
};

// result (16 row_tiles, 16 column_tiles) = or += left right, with `inner` a multiple of 32. Tiles
// are named in the instructions: 0 to 3 hold the result, 4 and 5 the left, 6 and 7 the right.
template <Result result_is, int row_tiles, int column_tiles>
inline void multiply_tiles(int64_t inner, const uint16_t* left, int64_t left_stride,
                           const uint32_t* right, int64_t right_stride, float* result,
                           int64_t result_stride) {
  const int64_t left_bytes = 2 * left_stride, right_bytes = 4 * right_stride;
  const int64_t result_bytes = 4 * result_stride;
  float* below = result + tile_side * result_stride;
  if constexpr (result_is == Result::added_to) {
    _tile_loadd(0, result, result_bytes);
    if constexpr (column_tiles > 1) _tile_loadd(1, result + tile_side, result_bytes);
    if constexpr (row_tiles > 1) _tile_loadd(2, below, result_bytes);
    if constexpr (row_tiles > 1 && column_tiles > 1) {
      _tile_loadd(3, below + tile_side, result_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < inner; k += inner_unit) {
    _tile_loadd(4, left + k, left_bytes);
    _tile_loadd(6, right, right_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (column_tiles > 1) {
      _tile_loadd(7, right + tile_side, right_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (row_tiles > 1) {
      _tile_loadd(5, left + tile_side * left_stride + k, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (column_tiles > 1) _tile_dpbf16ps(3, 5, 7);
    }
    right += inner_unit / 2 * right_stride;
  }
  _tile_stored(0, result, result_bytes);
  if constexpr (column_tiles > 1) _tile_stored(1, result + tile_side, result_bytes);
  if constexpr (row_tiles > 1) _tile_stored(2, below, result_bytes);
  if constexpr (row_tiles > 1 && column_tiles > 1) {
    _tile_stored(3, below + tile_side, result_bytes);
  }
}

// One panel; rows and columns are rounded up to whole tiles.
template <Result result_is>
inline void multiply_panel(int64_t rows, int64_t inner, int64_t vectors, const uint16_t* left,
                           int64_t left_stride, const uint32_t* right, int64_t right_stride,
                           float* result, int64_t result_stride) {
  // GCC does not know that loading a tile reads memory.
  __asm__ volatile("" ::: "memory");
  for (int64_t v = 0; v < vectors; v += 2) {
    const bool wide = v + 1 < vectors;
    for (int64_t row = 0; row < rows; row += 2 * tile_side) {
      const bool tall = row + tile_side < rows;
      const auto multiply =
          wide ? (tall ? multiply_tiles<result_is, 2, 2> : multiply_tiles<result_is, 1, 2>)
               : (tall ? multiply_tiles<result_is, 2, 1> : multiply_tiles<result_is, 1, 1>);
      multiply(inner, left + row * left_stride, left_stride, right + v * lanes, right_stride,
               result + row * result_stride + v * lanes, result_stride);
    }
  }
}

}  // namespace
}  // namespace mmer::cpu
