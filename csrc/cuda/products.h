// The two products of attention on tensor cores, for the 16 rows that a warp owns.
//
// An accumulator (16, columns) is [columns / 8][4] in registers: thread `lane` holds rows lane / 4
// (elements 0, 1) and lane / 4 + 8 (elements 2, 3) of columns 8 n + 2 (lane % 4) and the next.

#pragma once

#include <type_traits>

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

// Where a lane reads a tile: a piece of a row, and those two, four and six pieces further. All else
// that it reads is a constant away, which the instruction adds itself: rows in steps of a period,
// further lines of 128 bytes, and other tiles of the same shape.
template <class Element, int columns>
struct LanePlaces {
  static constexpr int row_bytes = Tile<Element, columns>::row_bytes;
  static constexpr int count = row_bytes >= 128 ? 4 : row_bytes / 32;
  uint32_t places[count];

  MMER_DEVICE explicit LanePlaces(uint32_t first) {
#pragma unroll
    for (int n = 0; n < count; ++n) places[n] = Tile<Element, columns>::advance(first, 2 * n);
  }
  MMER_DEVICE void move(uint32_t bytes) {
#pragma unroll
    for (int n = 0; n < count; ++n) places[n] += bytes;
  }
  MMER_DEVICE void keep() {
#pragma unroll
    for (int n = 0; n < count; ++n) places[n] = kept(places[n]);
  }
  // Of the 32 bytes `pair` of a row, counted from the first place's.
  MMER_DEVICE uint32_t place(int pair) const { return places[pair % count]; }
  static constexpr int offset(int row, int pair) { return row * row_bytes + pair / count * 128; }
};

// Of the left factor (16, columns), rows of a tile from `first_row` on.
template <class Element, int columns>
MMER_DEVICE LanePlaces<Element, columns> left_places(Tile<Element, columns> rows_smem,
                                                     int first_row) {
  const int lane = threadIdx.x % 32;
  return LanePlaces<Element, columns>(rows_smem.piece(first_row + lane % 16, lane / 16));
}

// Of the right factor (columns, keys), a tile transposed.
template <class Element, int columns>
MMER_DEVICE LanePlaces<Element, columns> transposed_places(Tile<Element, columns> keys_smem) {
  const int lane = threadIdx.x % 32;
  return LanePlaces<Element, columns>(keys_smem.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2));
}

// The same, for multiply_keys.
template <int keys, class Element, int columns>
MMER_DEVICE uint32_t first_key_place(Tile<Element, columns> keys_smem) {
  static_assert(keys == 8 || keys % 16 == 0);
  constexpr int rows = keys < 16 ? keys : 16;
  const int lane = threadIdx.x % 32;
  return keys_smem.piece(lane % rows, lane / rows % 2);
}

// Of the right factor (keys, columns), the columns of a tile from `first_column` on, a multiple of
// 16 below 64 or of 64. Two bytes an element: a piece; four: a word of an even row (WordPlaces).
template <class Element, int columns>
MMER_DEVICE uint32_t first_value_place(Tile<Element, columns> values_smem, int first_column = 0) {
  const int lane = threadIdx.x % 32;
  const uint32_t first = Element::bytes == 2 ? values_smem.piece(lane % 16, lane / 16)
                                             : values_smem.element(lane % 4 * 2, lane / 4);
  return values_smem.advance(first, first_column / Tile<Element, columns>::piece_elements);
}

template <class Element, int columns>
MMER_DEVICE LanePlaces<Element, columns> value_places(Tile<Element, columns> values_smem,
                                                      int first_column = 0) {
  return LanePlaces<Element, columns>(first_value_place(values_smem, first_column));
}

// a (16, depth) from the warp's rows of a tile: step n is their bytes [32 n, 32 n + 32).
template <class Element, int columns>
MMER_DEVICE void load_fragment(uint32_t (&a)[4], Tile<Element, columns> rows_smem, int first_row,
                               int step) {
  const int lane = threadIdx.x % 32;
  ldmatrix(a, rows_smem.piece(first_row + lane % 16, step * 2 + lane / 16));
}

// The same from the lane's places of those rows, `distance` bytes from there.
template <int distance, class Element, int columns>
MMER_DEVICE void load_fragment(uint32_t (&a)[4], const LanePlaces<Element, columns>& places,
                               int step) {
  constexpr int count = LanePlaces<Element, columns>::count;
  ldmatrix<distance>(a, places.places[step % count] + step / count * 128);
}

// Steps of a product that contracts the columns of a tile.
template <class Element, int columns>
constexpr int steps_of = columns / Element::depth;

// The first place of a warp's own rows as left factor, which is that of keys (first_key_place)
// further down where they are taken by 16.
template <int keys, class Element, int columns>
MMER_DEVICE uint32_t first_own_place(Tile<Element, columns> rows_smem, uint32_t key_place,
                                     int warp_row) {
  if constexpr (keys % 16 == 0) return key_place + warp_row * rows_smem.row_bytes;
  return left_places(rows_smem, warp_row).places[0];
}

// The warp's own rows (16, columns) as left factor, `distance` bytes from the lane's places: in
// registers where there are enough, else read again for each tile.
template <class Element, int columns, int distance, bool held>
struct OwnFragments {
  using Places = LanePlaces<Element, columns>;
  uint32_t words[held ? steps_of<Element, columns> : 1][4];

  MMER_DEVICE void load(const Places& places) {
    if constexpr (held) {
      unrolled<steps_of<Element, columns>>([&](auto step) {
        ldmatrix<distance + Places::offset(0, step)>(words[step], places.place(step));
      });
    }
  }
  MMER_DEVICE void get(uint32_t (&a)[4], const Places& places, int step) const {
    if constexpr (held) {
#pragma unroll
      for (int n = 0; n < 4; ++n) a[n] = words[step][n];
    } else {
      load_fragment<distance>(a, places, step);
    }
  }
};

// scores (16, keys) += rows (16, depth) times the transposed tile (keys, depth), `distance` bytes
// from the one of the places. `fragment(step, a)` gives the rows, step by step. `second`: the other
// of a lane's matrices that belongs to the same keys as its first.
template <int keys, int distance = 0, int second = 1, class Element, int depth, class Fragment>
MMER_DEVICE void multiply_transposed(float (&scores)[keys / 8][4],
                                     const LanePlaces<Element, depth>& places,
                                     const Fragment& fragment) {
  using Places = LanePlaces<Element, depth>;
  constexpr int steps = steps_of<Element, depth>, steps_a_line = Places::count;
  // Rows of more than 256 bytes are not held in registers: their steps need not be unrolled.
  constexpr int lines = steps / steps_a_line, unrolled_lines = steps > 8 ? 1 : lines;
#pragma unroll unrolled_lines
  for (int line = 0; line < lines; ++line) {
    unrolled<steps_a_line>([&](auto step) {
      uint32_t fragments[4];
      fragment(line * steps_a_line + step, fragments);
      const auto& a = Element::shared_left(fragments);
      const uint32_t place = places.places[step] + line * 128;
      unrolled<keys / 16>([&](auto n) {
        uint32_t b[4];
        ldmatrix<distance + Places::offset(n * 16, 0)>(b, place);
        Element::mma(scores[2 * n], a, b[0], b[second]);
        Element::mma(scores[2 * n + 1], a, b[3 - second], b[3]);
      });
      if constexpr (keys % 16 != 0) {
        uint32_t b[2];
        ldmatrix<distance + Places::offset(keys - 8, 0)>(b, place);
        Element::mma(scores[keys / 8 - 1], a, b[0], b[1]);
      }
    });
  }
}

// The same from places that follow from first_key_place: where keys are taken by 16, a lane reads
// them as it reads a left factor and, of two bytes an element, values.
template <int keys, int distance, class Element, int depth, class Fragment>
MMER_DEVICE void multiply_keys(float (&scores)[keys / 8][4],
                               const LanePlaces<Element, depth>& places, const Fragment& fragment) {
  multiply_transposed<keys, distance, 2>(scores, places, fragment);
}

template <int keys, class Element, int depth, class Fragment>
MMER_DEVICE void multiply_transposed(float (&scores)[keys / 8][4], Tile<Element, depth> keys_smem,
                                     const Fragment& fragment) {
  multiply_transposed<keys>(scores, transposed_places(keys_smem), fragment);
}

// sums (16, columns) += a (16, depth) times the rows of a tile from `step` times depth on.
template <int step, int distance, int columns, class Element, int tile_columns>
MMER_DEVICE void accumulate_step(float (&sums)[columns / 8][4], const uint32_t (&a)[4],
                                 const LanePlaces<Element, tile_columns>& places) {
  using Places = LanePlaces<Element, tile_columns>;
  unrolled<columns / 16>([&](auto n) {
    uint32_t b[4];
    ldmatrix_transposed<distance + Places::offset(step * 16, n)>(b, places.place(n));
    Element::mma(sums[2 * n], a, b[0], b[1]);
    Element::mma(sums[2 * n + 1], a, b[2], b[3]);
  });
}

// Of the right factor (keys, columns) in float32, in the order of Element::left_operand: a word of
// an even and of an odd row.
template <class Element, int columns>
struct WordPlaces {
  using Places = LanePlaces<Element, columns>;
  Places even, odd;

  // `first`: the word of the even row.
  MMER_DEVICE explicit WordPlaces(uint32_t first)
      : even(first), odd(Tile<Element, columns>::below(first, 1)) {}

  // b (depth, 16), the 16 columns `number` of step `step`.
  template <int step, int number, int distance>
  MMER_DEVICE void load(uint32_t (&b)[4]) const {
    unrolled<2>([&](auto half) {
      constexpr int pair = 2 * number + decltype(half)::value;
      constexpr int offset = distance + Places::offset(step * Element::depth, pair);
      b[2 * half] = load_shared_word<offset>(even.place(pair));
      b[2 * half + 1] = load_shared_word<offset>(odd.place(pair));
    });
  }
};

// Of the right factor (keys, columns) of any type.
template <class Element, int columns>
using ValuePlaces = std::conditional_t<Element::bytes == 2, LanePlaces<Element, columns>,
                                       WordPlaces<Element, columns>>;

// sums (16, columns) += weights (16, keys) times the columns of a tile (keys, tile_columns),
// `distance` bytes from the one of the places.
template <int keys, int columns, int distance, class Element, int tile_columns>
MMER_DEVICE void accumulate(float (&sums)[columns / 8][4], const float (&weights)[keys / 8][4],
                            const LanePlaces<Element, tile_columns>& places) {
  unrolled<steps_of<Element, keys>>([&](auto step) {
    uint32_t a[4];
    Element::left_operand(a, weights, step);
    accumulate_step<step, distance, columns>(sums, a, places);
  });
}

template <int keys, int columns, int distance, class Element, int tile_columns>
MMER_DEVICE void accumulate(float (&sums)[columns / 8][4], const float (&weights)[keys / 8][4],
                            const WordPlaces<Element, tile_columns>& places) {
  unrolled<steps_of<Element, keys>>([&](auto step) {
    uint32_t words[4];
    Element::left_operand(words, weights, step);
    const auto& a = Element::shared_left(words);
    unrolled<columns / 16>([&](auto n) {
      uint32_t b[4];
      places.template load<step, n, distance>(b);
      Element::mma(sums[2 * n], a, b[0], b[1]);
      Element::mma(sums[2 * n + 1], a, b[2], b[3]);
    });
  });
}

// The same of the columns from `first_column` on, as for value_places.
template <int keys, int columns, class Element, int tile_columns>
MMER_DEVICE void accumulate(float (&sums)[columns / 8][4], const float (&weights)[keys / 8][4],
                            Tile<Element, tile_columns> values_smem, int first_column) {
  const ValuePlaces<Element, tile_columns> places(first_value_place(values_smem, first_column));
  accumulate<keys, columns, 0>(sums, weights, places);
}

}  // namespace mmer::cuda
