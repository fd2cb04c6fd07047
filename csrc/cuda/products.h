// The two products of attention on tensor cores, for the 16 rows that a warp owns.
//
// An accumulator (16, columns) is [columns / 8][4] in registers: thread `lane` holds rows lane / 4
// (elements 0, 1) and lane / 4 + 8 (elements 2, 3) of columns 8 n + 2 (lane % 4) and the next.

#pragma once

#include "tile.h"

namespace mmer::cuda {

template <int count>
MMER_DEVICE void set_zero(float (&accumulator)[count][4]) {
#pragma unroll
  for (int n = 0; n < count; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) accumulator[n][e] = 0.0f;
  }
}

// a (16, 16) from the warp's rows of a tile.
template <int columns>
MMER_DEVICE void load_fragment(uint32_t (&a)[4], Tile<columns> rows_smem, int first_row, int step) {
  const int lane = threadIdx.x % 32;
  ldmatrix(a, rows_smem.piece(first_row + lane % 16, step * 2 + lane / 16));
}

// scores (16, keys) = rows (16, depth) times the transposed tile (keys, depth). `fragment(step, a)`
// gives the rows, 16 columns at a time.
template <class Element, int keys, int depth, class Fragment>
MMER_DEVICE void multiply_transposed(float (&scores)[keys / 8][4], Tile<depth> keys_smem,
                                     const Fragment& fragment) {
  const int lane = threadIdx.x % 32;
  const int row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
  set_zero(scores);
#pragma unroll
  for (int step = 0; step < depth / 16; ++step) {
    uint32_t a[4];
    fragment(step, a);
#pragma unroll
    for (int n = 0; n < keys / 16; ++n) {
      uint32_t b[4];
      ldmatrix(b, keys_smem.piece(n * 16 + row, step * 2 + half));
      Element::mma(scores[2 * n], a, b[0], b[1]);
      Element::mma(scores[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// sums (16, columns) += weights (16, keys) times columns of the tile (keys, tile_columns).
template <class Element, int keys, int columns, int tile_columns>
MMER_DEVICE void accumulate(float (&sums)[columns / 8][4], const float (&weights)[keys / 8][4],
                            Tile<tile_columns> values_smem, int first_column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < keys / 16; ++step) {
    const float (&left)[4] = weights[2 * step];
    const float (&right)[4] = weights[2 * step + 1];
    const uint32_t a[4] = {Element::pack(left[0], left[1]), Element::pack(left[2], left[3]),
                           Element::pack(right[0], right[1]), Element::pack(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < columns / 16; ++n) {
      uint32_t b[4];
      ldmatrix_transposed(
          b, values_smem.piece(step * 16 + lane % 16, first_column / 8 + n * 2 + lane / 16));
      Element::mma(sums[2 * n], a, b[0], b[1]);
      Element::mma(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace mmer::cuda
