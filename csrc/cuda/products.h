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

// Sets rows to zero whose factor is: 0 times what they hold need not be 0.
template <int count>
MMER_DEVICE void clear_rows(float (&accumulator)[count][4], const float (&factors)[2]) {
  if (!any_lane(factors[0] == 0.0f || factors[1] == 0.0f)) return;
#pragma unroll
  for (int n = 0; n < count; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (factors[e / 2] == 0.0f) accumulator[n][e] = 0.0f;
    }
  }
}

// a (16, depth) from the warp's rows of a tile: step n is their bytes [32 n, 32 n + 32).
template <class Element, int columns>
MMER_DEVICE void load_fragment(uint32_t (&a)[4], Tile<Element, columns> rows_smem, int first_row,
                               int step) {
  const int lane = threadIdx.x % 32;
  ldmatrix(a, rows_smem.piece(first_row + lane % 16, step * 2 + lane / 16));
}

// Steps of a product that contracts the columns of a tile.
template <class Element, int columns>
constexpr int steps_of = columns / Element::depth;

// scores (16, keys) += rows (16, depth) times the transposed tile (keys, depth). `fragment(step,
// a)` gives the rows, step by step.
template <int keys, class Element, int depth, class Fragment>
MMER_DEVICE void multiply_transposed(float (&scores)[keys / 8][4], Tile<Element, depth> keys_smem,
                                     const Fragment& fragment) {
  const int lane = threadIdx.x % 32;
  using KeyTile = Tile<Element, depth>;
  const uint32_t first = keys_smem.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  constexpr int steps = steps_of<Element, depth>;
  // Rows of more than 256 bytes are not held in registers: their steps need not be unrolled.
  constexpr int unrolled = steps > 8 ? 4 : steps;
#pragma unroll unrolled
  for (int step = 0; step < steps; ++step) {
    uint32_t a[4];
    fragment(step, a);
#pragma unroll
    for (int n = 0; n < keys / 16; ++n) {
      uint32_t b[4];
      ldmatrix(b, KeyTile::advance(first, step * 2) + n * 16 * KeyTile::row_bytes);
      Element::mma(scores[2 * n], a, b[0], b[1]);
      Element::mma(scores[2 * n + 1], a, b[2], b[3]);
    }
    if constexpr (keys % 16 != 0) {
      uint32_t b[2];
      ldmatrix(b, keys_smem.piece(keys - 8 + lane % 8, step * 2 + lane / 8 % 2));
      Element::mma(scores[keys / 8 - 1], a, b[0], b[1]);
    }
  }
}

// b (depth, 16) from the rows of a tile, in the order of Element::left_operand.
template <class Element, int columns>
MMER_DEVICE void load_values(uint32_t (&b)[4], Tile<Element, columns> values_smem, int step,
                             int first_column) {
  const int lane = threadIdx.x % 32;
  if constexpr (Element::bytes == 2) {
    const uint32_t first = values_smem.piece(lane % 16, lane / 16);
    ldmatrix_transposed(
        b, values_smem.advance(first, first_column / 8) + step * 16 * values_smem.row_bytes);
  } else {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      b[n] = load_shared_word(values_smem.element(step * 8 + lane % 4 * 2 + n % 2,
                                                  first_column + n / 2 * 8 + lane / 4));
    }
  }
}

// sums (16, columns) += weights (16, keys) times columns of the tile (keys, tile_columns).
template <int keys, int columns, class Element, int tile_columns>
MMER_DEVICE void accumulate(float (&sums)[columns / 8][4], const float (&weights)[keys / 8][4],
                            Tile<Element, tile_columns> values_smem, int first_column) {
#pragma unroll
  for (int step = 0; step < steps_of<Element, keys>; ++step) {
    uint32_t a[4];
    Element::left_operand(a, weights, step);
#pragma unroll
    for (int n = 0; n < columns / 16; ++n) {
      uint32_t b[4];
      load_values(b, values_smem, step, first_column + n * 16);
      Element::mma(sums[2 * n], a, b[0], b[1]);
      Element::mma(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace mmer::cuda
