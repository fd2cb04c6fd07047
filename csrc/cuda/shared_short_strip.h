// What a pass of the shared forward of short sides does with a strip of b: S^T becomes P^T and adds
// to out_a; then the columns' sums and out_b are finished.

#pragma once

#include "shared_short_block.h"

namespace mmer::cuda {

// What a warp adds up over its strips: out_a, and the sums of a thread's 16 rows over its columns.
template <class Block>
struct ShortSums {
  using Half = float[2][Block::half_columns / 8][4];  // 32 rows
  Half out_rmem[2];
  float row_sum[Block::rows / 4];

  MMER_DEVICE void set_zero() {
#pragma unroll
    for (int m = 0; m < Block::row_tiles; ++m) mmer::cuda::set_zero(out_rmem[m / 2][m % 2]);
#pragma unroll
    for (float& sum : row_sum) sum = 0.0f;
  }
};

// P^T (16, rows) of a strip, rounded, two neighbouring rows a word.
template <class Block>
struct ShortWeights {
  static constexpr int words = Block::rows / 8;
  uint32_t of_columns[words][2], of_rows[words][2];
  float column_sum[2], bias[2], point[2];  // of each column

  // `exact`: each direction has an exponential of its own, from the maxima of its rows or columns.
  template <bool exact>
  MMER_DEVICE void weigh(const Block& block, ShortSums<Block>& own, int strip, uint32_t stage,
                         float reference) {
    using Element = typename Block::Element;
    float scores_rmem[words][4];
    block.template multiply_strip<Block::rows>(scores_rmem, stage, 0);
    load_column_bias(bias, block, strip);
    point[0] = point[1] = exact ? -infinity : reference;
    if constexpr (exact) {
#pragma unroll
      for (int n = 0; n < words; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float logit = fmaf(scores_rmem[n][e], block.scale, bias[e / 2]);
          point[e / 2] = fmaxf(point[e / 2], logit);
        }
      }
#pragma unroll
      for (float& largest : point) {
        largest = row_maximum(largest);
        if (!(largest > block.hidden.nothing_seen)) largest = 0.0f;
      }
    }
    const float summand[2] = {bias[0] - point[0], bias[1] - point[1]};
#pragma unroll
    for (int n = 0; n < words; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float of_column[2], of_row[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = scores_rmem[n][2 * half + e];
          of_column[e] = of_row[e] = exp2_fast(fmaf(score, block.scale, summand[half]));
          if constexpr (exact) {
            const float row_point = block.row_reference_smem[block.row_pair(n) + e];
            of_row[e] = exp2_fast(fmaf(score, block.scale, bias[half]) - row_point);
          }
          column_sum[half] = n + e == 0 ? of_column[0] : column_sum[half] + of_column[e];
          own.row_sum[2 * n + e] += of_row[e];
        }
        of_columns[n][half] = Element::pack(of_column[0], of_column[1]);
        of_rows[n][half] = exact ? Element::pack(of_row[0], of_row[1]) : of_columns[n][half];
      }
    }
  }
};

// out_a (rows, half of the columns) += P (rows, 16) v_b (16, half of the columns) in a stage
template <class Block>
MMER_DEVICE void add_strip(ShortSums<Block>& own, const Block& block, uint32_t stage,
                           const uint32_t (&weights)[Block::row_tiles][4]) {
  using Element = typename Block::Element;
  const auto multiply = [&](int n, uint32_t b_low, uint32_t b_high) {
#pragma unroll
    for (int m = 0; m < Block::row_tiles; ++m) {
      Element::mma(own.out_rmem[m / 2][m % 2][n], weights[m], b_low, b_high);
    }
  };
  const uint32_t place = block.value_place + stage;
  uint32_t b[4];
  if constexpr (Block::half_columns == 8) {
    ldmatrix_transposed(b, place);
    multiply(0, block.half ? b[2] : b[0], block.half ? b[3] : b[1]);
  } else {
#pragma unroll
    for (int n = 0; n < Block::half_columns / 16; ++n) {
      ldmatrix_transposed(b, Block::HeadTile::advance(place, n * 2));
      multiply(2 * n, b[0], b[1]);
      multiply(2 * n + 1, b[2], b[3]);
    }
  }
}

// The steps of a strip, of which a warp has all: log-sum-exp and out_b; returns whether a sum left
// the safe range.
template <class Block>
MMER_DEVICE int finish_strip(const Block& block, const ColumnResults<Block>& results, int strip,
                             uint32_t stage, float (&out_rmem)[Block::columns / 8][4],
                             const ShortWeights<Block>& weights) {
  const float sums[2] = {row_total(weights.column_sum[0]), row_total(weights.column_sum[1])};
  const bool second = block.lane & 1;
  const float sum = second ? sums[1] : sums[0];
  const float bias = second ? weights.bias[1] : weights.bias[0];
  const int column = strip * 16 + block.lane_column;
  const int unsafe = (bias == 0.0f) & !is_safe<typename Block::Element>(sum);
  if (block.quad < 2 && column < block.column_side.time) {
    results.store_lse(column, sum, second ? weights.point[1] : weights.point[0]);
  }
  const float column_inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
  const int first_lane = block.lane & 28;
  const float inverse[2] = {shuffle(column_inverse, first_lane),
                            shuffle(column_inverse, first_lane + 1)};
  clear_rows(out_rmem, inverse);
  results.store(block.strip_address(stage), strip * 16,
                [&](int n, int e) { return out_rmem[n][e] * inverse[e / 2]; });
  return unsafe;
}

// A pass over the strips, the first of which is being loaded.
template <bool exact, class Block>
MMER_DEVICE int attend_strips(const Block& block, ShortSums<Block>& own,
                              const ColumnResults<Block>& results, float reference) {
  using Element = typename Block::Element;
  constexpr int columns = Block::columns, row_tiles = Block::row_tiles;
  int unsafe = 0;
  own.set_zero();
#pragma unroll 1
  for (int strip = block.warp; strip < block.strip_count + block.warp; strip += Block::warps) {
    const bool exists = strip < block.strip_count;
    const uint32_t stage = kept(block.stage(strip));
    cp_async_wait<0>();
    __syncwarp();
    ShortWeights<Block> weights;
    uint32_t transposed[row_tiles][4];
    if (exists) {
      weights.template weigh<exact>(block, own, strip, stage, reference);
      unrolled<row_tiles>([&](auto m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          transposed[m][n] = movmatrix_transposed(weights.of_rows[2 * m + n % 2][n / 2]);
        }
        store_shared<m * 512>(block.exchanged(stage), words_of(transposed[m]));
      });
    }
    block.synchronize_pair();
    block.load_strip(strip + Block::warps, stage ^ Block::warps * Block::layout().stage_bytes);
    if (exists) {
      add_strip(own, block, stage, transposed);
      // out_b (16, columns) = P^T (16, rows) v_a (rows, columns)
      float out_rmem[columns / 8][4];
      set_zero(out_rmem);
      const typename Block::Places value_a_places(block.value_a_place);
      unrolled<row_tiles>([&](auto m) {
        uint32_t left[4];
        Element::left_operand(left, weights.of_columns, m);
        accumulate_step<m, 0, columns>(out_rmem, left, value_a_places);
      });
      unsafe |= finish_strip(block, results, strip, stage, out_rmem, weights);
    }
    if ((strip ^ 1) < block.strip_count) {
      const uint32_t other_stage = stage ^ Block::layout().stage_bytes;
      unrolled<row_tiles>([&](auto m) {
        const uint4 words = load_shared<m * 512>(block.exchanged(other_stage));
        transposed[m][0] = words.x, transposed[m][1] = words.y;
        transposed[m][2] = words.z, transposed[m][3] = words.w;
      });
      add_strip(own, block, other_stage, transposed);
    }
  }
  return unsafe;
}

}  // namespace mmer::cuda
