// What a pass of the shared forward does with a tile of b: the warps' strips of S become P and add
// to out_a; then the columns' sums and out_b are finished.

#pragma once

#include "shared_maxima.h"

namespace mmer::cuda {

// A pass over the tiles. `exact`: each direction has an exponential of its own, from the maxima of
// its rows or columns.
template <class Block, bool exact>
struct SharedPass {
  using Element = typename Block::Element;
  using HeadTile = typename Block::HeadTile;
  static constexpr int columns = Block::columns, rows = Block::rows, tile = Block::tile;
  static constexpr int row_tiles = Block::row_tiles, column_groups = Block::column_groups;
  static constexpr SharedSmem layout() { return Block::layout(); }
  static constexpr int warp_values = Block::warp_values;

  const Block& block;
  const float shift, scale;  // of the scores: what is added, and before that multiplied
  uint32_t weights_places[column_groups];  // where a lane stores what it has of P
  const uint32_t sum_place;  // where it stores the sums that it is left with, of two columns
  // Where it starts to read P^T and the values for out_b.
  const int tile_column;
  const uint32_t transposed_place, value_a_place;
  const uint32_t b_place;  // the same in b, and further on in v_b

  MMER_DEVICE SharedPass(const Block& block, float shift)
      : block(block),
        shift(shift),
        scale(block.problem.scale),
        sum_place(kept(block.base + layout().column_parts +
                       4 * Block::part_place(block.strip_column(0, block.lane / 16, 0),
                                             block.row_warp * 4 + block.first_of_eight % 4))),
        tile_column(block.warp / Block::value_warps * 16),
        transposed_place(kept(block.base + layout().weights +
                              (block.lane / 16 * 8 + block.lane % 8) * layout().row_bytes +
                              tile_column * 2 + block.lane / 8 % 2 * 16)),
        value_a_place(HeadTile::advance(block.value_a_smem.address + block.value_place(),
                                        block.first_value / 8)),
        b_place(block.base + block.column_group * Block::strip_bytes + block.score_place()) {
#pragma unroll
    for (int m = 0; m < column_groups; ++m) weights_places[m] = kept(weights_place(m));
  }

  // The strips of this warp: P to shared memory, the columns' sums, and
  // out_a (16 row_tiles, columns) += P v_b.
  MMER_DEVICE void attend_strips(SharedRows<Block>& own, int number) const {
    // Of all lanes, which is the same: it would be worked out for each strip.
    const bool whole =
        all_lanes(number * tile + tile <= block.column_side.whole_end(block.column_side.time));
    int strips_left = block.strip_count(number) - block.column_group;
    uint32_t b_address = Block::tile_offset(number) + b_place;
    uint32_t strip_offset = block.column_group * 32;
#pragma unroll 1
    for (; strips_left > 0; strips_left -= column_groups) {
      b_address = kept(b_address);
      strip_offset = kept(strip_offset);
      const int first_column = number * tile + strip_offset / 2;  // of the strip
      float scores_rmem[row_tiles][2][4];
      own.multiply_strip(scores_rmem, block, b_address);
      float summand[4];  // of the exponents of this thread's columns
#pragma unroll
      for (int n = 0; n < 4; ++n) summand[n] = exact ? 0.0f : shift;
      if (exact || !whole) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          summand[n] += block.bias_smem[first_column + block.strip_column(0, n / 2, n)];
        }
      }
      float column_sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      uint32_t row_weights[row_tiles][4];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        uint32_t column_weights[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          // Two neighbours of a row: register n of the fragment of P.
          float of_row[2], of_column[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float exponent =
                fmaf(scores_rmem[m][n / 2][n % 2 * 2 + e], scale, summand[n / 2 * 2 + e]);
            if constexpr (exact) {
              const int row = block.tile_row(m) + n % 2 * 8 + block.first_of_eight;
              const int column = first_column + block.strip_column(0, n / 2, e);
              of_row[e] = exp2_fast(exponent - block.row_reference_smem[row]);
              of_column[e] = exp2_fast(exponent - block.reference_smem[column]);
            } else {
              of_row[e] = of_column[e] = exp2_fast(exponent);
            }
            own.sum[m][n % 2] += of_row[e];
            float& sum = column_sum[n / 2 * 2 + e];
            sum = m == 0 && n % 2 == 0 ? of_column[e] : sum + of_column[e];
          }
          row_weights[m][n] = Element::pack(of_row[0], of_row[1]);
          column_weights[n] = exact ? Element::pack(of_column[0], of_column[1]) : row_weights[m][n];
        }
        store_weights(m, strip_offset, column_weights);
      }
      // To eight rows' lanes: two of them add up theirs, and leave four parts of the sums.
      add_and_halve<16, 4>(column_sum);
      const uint32_t sum_address = sum_place + strip_offset * 2 * layout().parts_stride;
      store_shared<0>(sum_address, __float_as_uint(column_sum[0]));
      store_shared<4 * layout().parts_stride>(sum_address, __float_as_uint(column_sum[1]));
      // out_a (16 row_tiles, columns) += P (16 row_tiles, 16) v_b (16, columns)
#pragma unroll
      for (int n = 0; n < columns / 16; ++n) {
        uint32_t b[4];
        ldmatrix_transposed<layout().value_b - layout().b>(b, HeadTile::advance(b_address, n * 2));
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          Element::mma(own.out_rmem[m][2 * n], row_weights[m], b[0], b[2]);
          Element::mma(own.out_rmem[m][2 * n + 1], row_weights[m], b[1], b[3]);
        }
      }
      b_address += column_groups * Block::strip_bytes;
      strip_offset += column_groups * 32;
    }
  }

  // The columns of this warp, of which all of P is in shared memory; returns whether a sum left the
  // safe range.
  MMER_DEVICE int finish_columns(const ColumnResults<Block>& results, int number) const {
    const SharedSide& side = block.column_side;
    const int lane = block.lane;
    if (number * tile + tile_column >= side.time) return 0;
    // A column for each half warp's lane.
    const int in_tile = tile_column + lane % 16, column = number * tile + in_tile;
    const int first_column = number * tile + tile_column;
    float out_rmem[1][warp_values / 8][4];
    set_zero(out_rmem[0]);
    float sum = 0.0f;
    if (block.turn > 0) {
      sum = results.load_earlier(first_column, column, column_point(column), out_rmem[0]);
      if (lane >= 16) sum = 0.0f;
    }
    multiply_columns(out_rmem[0]);
    const float* const parts_smem =
        block.parts_smem + Block::part_place(in_tile, lane / 16 * Block::row_warps * 2);
#pragma unroll
    for (int n = 0; n < Block::row_warps * 2; n += 4) {
      const float4 parts = *reinterpret_cast<const float4*>(parts_smem + n);
      sum += parts.x + parts.y + parts.z + parts.w;
    }
    sum += shuffle_xor(sum, 16);
    const int unsafe = (block.bias_smem[column] == 0.0f) & !is_safe<Element>(sum);
    if (lane < 16 && block.first_value == 0 && column < side.time) {
      results.store_sum(column, sum, column_point(column));
    }
    const float column_inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    const float inverse[1][2] = {{shuffle(column_inverse, block.first_of_eight),
                                  shuffle(column_inverse, block.first_of_eight + 8)}};
    results.store(block.tile_address(number) + tile_column * HeadTile::row_bytes, first_column,
                  out_rmem, inverse);
    return unsafe;
  }

 private:
  // What is subtracted from the scores of a column.
  MMER_DEVICE float column_point(int column) const {
    return exact ? block.reference_smem[column] : -shift;
  }

  MMER_DEVICE uint32_t weights_place(int m) const {
#if __CUDA_ARCH__ >= 900
    return layout().weights + (block.tile_row(m) + block.lane % 16) * layout().row_bytes +
           block.lane / 16 * 16;
#else
    return layout().weights + (block.tile_row(m) + block.first_of_eight) * layout().row_bytes +
           block.quad * 4;
#endif
  }

  // P (16, 16) of row tile m and a strip
  MMER_DEVICE void store_weights(int m, uint32_t strip_offset, const uint32_t (&weights)[4]) const {
    const uint32_t target = weights_places[m % column_groups] + strip_offset +
                            m / column_groups * column_groups * 16 * layout().row_bytes;
#if __CUDA_ARCH__ >= 900
    stmatrix(block.base + target, weights);
#else
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t place = target + n % 2 * 8 * layout().row_bytes + n / 2 * 16;
      *reinterpret_cast<uint32_t*>(block.smem + place) = weights[n];
    }
#endif
  }

  // out_b (16, warp_values) += P^T (16, rows) v_a (rows, warp_values)
  MMER_DEVICE void multiply_columns(float (&out_rmem)[warp_values / 8][4]) const {
    uint32_t weights_address = transposed_place;
    LanePlaces<Element, columns> values(value_a_place);
    const auto multiply = [&](auto steps) {
      weights_address = kept(weights_address);
      unrolled<steps>([&](auto step) {
        uint32_t transposed[4];
        ldmatrix_transposed<step * 16 * layout().row_bytes>(transposed, weights_address);
        accumulate_step<step, 0, warp_values>(out_rmem, transposed, values);
      });
      weights_address += steps * 16 * layout().row_bytes;
      values.move(steps * Block::strip_bytes);
    };
    int steps_left = block.row_steps;
#pragma unroll 1
    for (; steps_left >= 4; steps_left -= 4) multiply(std::integral_constant<int, 4>{});
#pragma unroll 1
    for (; steps_left > 0; --steps_left) multiply(std::integral_constant<int, 1>{});
  }
};

}  // namespace mmer::cuda
