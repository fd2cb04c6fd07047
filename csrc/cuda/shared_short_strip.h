// What a pass of the shared forward of short sides does with a strip of b: S^T becomes P^T and adds
// to out_a; then the columns' sums and out_b are finished.

#pragma once

#include "shared_short_block.h"

namespace mmer::cuda {

// What a warp adds up over its strips: half of the values of out_a, and the sums of a thread's 16
// rows over its columns.
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

  // out_a (rows, half of the values) += P (rows, strip) v_b (strip, half of the values)
  MMER_DEVICE void add_strip(const Block& block, uint32_t weights_place, uint32_t value_b_place) {
    using Element = typename Block::Element;
    using HeadTile = typename Block::HeadTile;
    value_b_place = kept(value_b_place);  // for this strip
    unrolled<Block::strip_tiles>([&](auto t) {
      uint32_t weights[Block::row_tiles][4];
      unrolled<Block::row_tiles>([&](auto m) {
        const uint4 words = load_shared<(t * Block::row_tiles + m) * 512>(weights_place);
        weights[m][0] = words.x, weights[m][1] = words.y;
        weights[m][2] = words.z, weights[m][3] = words.w;
      });
      const auto multiply = [&](int n, uint32_t b_low, uint32_t b_high) {
#pragma unroll
        for (int m = 0; m < Block::row_tiles; ++m) {
          Element::mma(out_rmem[m / 2][m % 2][n], weights[m], b_low, b_high);
        }
      };
      uint32_t b[4];
      if constexpr (Block::half_columns == 8) {
        ldmatrix_transposed<t * 16 * HeadTile::row_bytes>(b, value_b_place);
        multiply(0, block.half ? b[2] : b[0], block.half ? b[3] : b[1]);
      } else {
#pragma unroll
        for (int n = 0; n < Block::half_columns / 16; ++n) {
          ldmatrix_transposed<t * 16 * HeadTile::row_bytes>(
              b, HeadTile::advance(value_b_place, n * 2));
          multiply(2 * n, b[0], b[1]);
          multiply(2 * n + 1, b[2], b[3]);
        }
      }
    });
  }
};

// P^T (strip, rows) as left factor of out_b, and the sum and the reference of the column that this
// lane finishes. Of eight columns, the `eighth`, the lanes of a quad have the same.
template <class Block>
struct ShortWeights {
  static constexpr int tiles = Block::strip_tiles, row_tiles = Block::row_tiles;
  uint32_t of_columns[tiles][row_tiles][4];
  float sum, point;

  // Adds to the rows' sums, and puts P, as left factor of out_a, where the other warp finds it.
  // `exact`: each direction has an exponential of its own, from the maxima of its rows or columns.
  template <bool exact>
  MMER_DEVICE void weigh(const Block& block, ShortSums<Block>& own, int number, float reference) {
    using Element = typename Block::Element;
    float scores_rmem[tiles][2 * row_tiles][4];
    float bias[2 * tiles], summand[2 * tiles], column_sum[2 * tiles];
    point = reference;
    block.template multiply_strip<tiles, Block::rows>(scores_rmem, block.b_place, 0);
    const float* const biases_smem = block.column_biases(number);
#pragma unroll
    for (int eighth = 0; eighth < 2 * tiles; ++eighth) {
      bias[eighth] = biases_smem[8 * eighth];
      float of_column = reference;
      if constexpr (exact) {
        float largest = -infinity;
#pragma unroll
        for (int n = 0; n < 4 * row_tiles; ++n) {
          const float score = scores_rmem[eighth / 2][n / 2][eighth % 2 * 2 + n % 2];
          largest = fmaxf(largest, fmaf(score, block.scale, bias[eighth]));
        }
        largest = row_maximum(largest);
        of_column = largest > block.hidden().nothing_seen ? largest : 0.0f;
        if (block.quad == eighth) point = of_column;
      }
      summand[eighth] = bias[eighth] - of_column;
    }
    unrolled<tiles>([&](auto t) {
      unrolled<row_tiles>([&](auto m) {
        uint32_t (&left)[4] = of_columns[t][m];
        uint32_t of_rows[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {  // of a fragment: 8 columns and 8 rows
          const int eighth = 2 * t + n % 2, accumulator = 2 * m + n / 2;
          float of_column[2], of_row[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float score = scores_rmem[t][accumulator][n % 2 * 2 + e];
            of_column[e] = exp2_fast(fmaf(score, block.scale, summand[eighth]));
            of_row[e] = of_column[e];
            if constexpr (exact) {
              const float row_point = block.row_reference_smem[block.row_pair(accumulator) + e];
              of_row[e] = exp2_fast(fmaf(score, block.scale, bias[eighth]) - row_point);
            }
            float& total = column_sum[eighth];
            total = accumulator + e == 0 ? of_column[e] : total + of_column[e];
            own.row_sum[2 * accumulator + e] += of_row[e];
          }
          left[n] = Element::pack(of_column[0], of_column[1]);
          of_rows[n] = exact ? Element::pack(of_row[0], of_row[1]) : left[n];
        }
        store_shared<(t * row_tiles + m) * 512>(
            block.weights_place,
            make_uint4(movmatrix_transposed(of_rows[0]), movmatrix_transposed(of_rows[2]),
                       movmatrix_transposed(of_rows[1]), movmatrix_transposed(of_rows[3])));
      });
    });
    sum = 0.0f;
#pragma unroll
    for (int eighth = 0; eighth < 2 * tiles; ++eighth) {
      const float total = row_total(column_sum[eighth]);
      sum = block.quad == eighth ? total : sum;
    }
  }
};

// The steps of a strip, of which a warp has all: log-sum-exp and out_b (strip, columns) = P^T
// (strip, rows) v_a (rows, columns). Returns whether a sum left the safe range.
template <class Block>
MMER_DEVICE int finish_strip(const Block& block, const ColumnResults<Block>& results, int number,
                             const ShortWeights<Block>& weights) {
  using Element = typename Block::Element;
  using Places = typename Block::Places;
  constexpr int tiles = Block::strip_tiles, count = Block::columns / 8;
  float out_rmem[tiles][count][4];
#pragma unroll
  for (int t = 0; t < tiles; ++t) set_zero(out_rmem[t]);
  const Places value_a_places(block.value_a_place);
  unrolled<Block::row_tiles>([&](auto m) {
    unrolled<Block::columns / 16>([&](auto n) {
      uint32_t v[4];
      ldmatrix_transposed<Places::offset(m * 16, n)>(v, value_a_places.place(n));
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
        Element::mma(out_rmem[t][2 * n], weights.of_columns[t][m], v[0], v[1]);
        Element::mma(out_rmem[t][2 * n + 1], weights.of_columns[t][m], v[2], v[3]);
      }
    });
  });
  const int lane = kept(threadIdx.x % 32);  // worked out anew: a register less throughout
  const int column = number * Block::strip + lane % 4 * 8 + lane / 4;
  const int unsafe = (block.bias_smem[column] == 0.0f) & !is_safe<Element>(weights.sum);
  if (column < block.column_side.time) results.store_sum(column, weights.sum, weights.point);
  const float column_inverse = weights.sum > 0.0f ? 1.0f / weights.sum : 0.0f;
  float inverse[tiles][2];
#pragma unroll
  for (int eighth = 0; eighth < 2 * tiles; ++eighth) {
    inverse[eighth / 2][eighth % 2] = shuffle(column_inverse, (lane & 28) + eighth);
  }
  // Through b, which is done with.
  results.store(block.strip_smem, number * Block::strip, out_rmem, inverse);
  return unsafe;
}

// A pass over the strips, the first of which is being loaded.
template <bool exact, class Block>
MMER_DEVICE int attend_strips(const Block& block, ShortSums<Block>& own,
                              const ColumnResults<Block>& results, float reference) {
  int unsafe = 0;
  own.set_zero();
#pragma unroll 1
  for (int first = 0; first < block.strip_count; first += Block::warps) {
    const int number = first + block.first_strip;
    const bool exists = number < block.strip_count;
    ShortWeights<Block> weights;
    cp_async_wait<1>();
    __syncwarp();
    if (exists) weights.template weigh<exact>(block, own, number, reference);
    cp_async_wait<0>();
    block.synchronize_pair();
    if (exists) unsafe |= finish_strip(block, results, number, weights);
    __syncwarp();
    block.load_b(number + Block::warps);
    if (exists) own.add_strip(block, block.weights_place, block.value_b_place);
    if ((number ^ 2) < block.strip_count) {
      own.add_strip(block, block.weights_place + block.to_other_warp,
                    block.value_b_place + block.to_other_warp);
    }
    block.synchronize_pair();
    block.load_value_b(number + Block::warps);
  }
  return unsafe;
}

}  // namespace mmer::cuda
