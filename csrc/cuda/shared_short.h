// The shared forward where a block's rows of the shorter sequence a are at most 64.
//
// A warp takes strips of 32 steps of b, and all rows of a for each: S^T (32, 64). So a strip's sums
// and its out_b are complete in the registers of one warp, which loads its strips itself. out_a is
// added up over the strips in registers, too; two warps exchange what they have of P, so that each
// needs to hold one half of the value dimension.
//
// P^T, as the accumulators hold it, is the left factor of out_b = P^T v_a; transposed by movmatrix
// it is that of out_a = P v_b.
//
// shared_short_block.h: what a block owns and loads, and S; shared_short_strip.h: a pass over b.

#pragma once

#include "shared_short_strip.h"

namespace mmer::cuda {

// The maximum of the first 16 columns of S: each warp looks at 16 rows.
template <class Block>
MMER_DEVICE float find_short_reference(const Block& block) {
  using Range = SafeRange<typename Block::Element>;
  using HeadTile = typename Block::HeadTile;
  float scores_rmem[1][2][4], largest = -infinity;
  const uint32_t first_strip =
      HeadTile{block.base + Block::layout().strips}.piece(block.lane % 16, block.lane / 16);
  block.template multiply_strip<1, 16>(scores_rmem, first_strip, block.warp * 16);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float bias = block.column_biases(0)[8 * half];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float score = scores_rmem[0][e / 2][2 * half + e % 2];
      largest = fmaxf(largest, fmaf(score, block.scale, bias));
    }
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) largest = fmaxf(largest, shuffle_xor(largest, lanes));
  if (block.lane == 0) block.warp_parts_smem[block.warp] = largest;
  __syncthreads();
#pragma unroll
  for (int n = 0; n < Block::warps; ++n) largest = fmaxf(largest, block.warp_parts_smem[n]);
  return largest > block.hidden().nothing_seen ? largest - Range::first_maximum : 0.0f;
}

// The maximum of each row over all columns, for the exact pass.
template <class Block>
MMER_DEVICE void find_row_maxima(const Block& block) {
  float row_max[Block::rows / 4];
#pragma unroll
  for (float& x : row_max) x = -infinity;
#pragma unroll 1
  for (int number = block.first_strip; number < block.strip_count; number += Block::warps) {
    __syncwarp();
    block.load_b(number);
    cp_async_wait<0>();
    __syncwarp();
    float scores_rmem[Block::strip_tiles][Block::rows / 8][4];
    block.template multiply_strip<Block::strip_tiles, Block::rows>(scores_rmem, block.b_place, 0);
    const float* const biases_smem = block.column_biases(number);
#pragma unroll
    for (int eighth = 0; eighth < 2 * Block::strip_tiles; ++eighth) {
      const float bias = biases_smem[8 * eighth];
#pragma unroll
      for (int n = 0; n < Block::rows / 4; ++n) {
        const float score = scores_rmem[eighth / 2][n / 2][eighth % 2 * 2 + n % 2];
        row_max[n] = fmaxf(row_max[n], fmaf(score, block.scale, bias));
      }
    }
  }
  float* const warp_smem = block.row_parts_smem + block.warp * Block::rows;
#pragma unroll
  for (int n = 0; n < Block::rows / 4; ++n) {
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      row_max[n] = fmaxf(row_max[n], shuffle_xor(row_max[n], lanes));
    }
    if (block.first_of_eight == 0) warp_smem[block.row_pair(n / 2) + n % 2] = row_max[n];
  }
  __syncthreads();
  const int row = threadIdx.x;
  if (row < Block::rows) {
    float largest = -infinity;
#pragma unroll
    for (int n = 0; n < Block::warps; ++n) {
      largest = fmaxf(largest, block.row_parts_smem[n * Block::rows + row]);
    }
    block.row_reference_smem[row] = largest > block.hidden().nothing_seen ? largest : 0.0f;
  }
  __syncthreads();
}

// The rows' sums over all columns; returns whether one left the safe range.
template <class Block>
MMER_DEVICE bool add_up_short_rows(const Block& block, ShortSums<Block>& own) {
  constexpr int rows = Block::rows;
  const int thread = kept(threadIdx.x);  // nothing is kept for it between two passes
  // A thread of eight is left with its pair of all 16 rows' sums.
  add_and_halve<16, 16>(own.row_sum);
  add_and_halve<8, 8>(own.row_sum);
  add_and_halve<4, 4>(own.row_sum);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    block.row_parts_smem[thread / 32 * rows + thread % 32 * 2 + e] = own.row_sum[e];
  }
  __syncthreads();
  const int row = thread;
  if (row >= rows) return false;
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < Block::warps; ++n) sum += block.row_parts_smem[n * rows + row];
  block.row_parts_smem[row] = sum;
  return (block.row_bias_smem[row] == 0.0f) & !is_safe<typename Block::Element>(sum);
}

// Adds up out_a of the two pairs, each of which ends with 32 rows, and stores it.
template <class Block>
MMER_DEVICE void finish_short_rows(const Block& block, ShortSums<Block>& own, float reference) {
  constexpr int count = Block::half_columns / 8;
  using Half = typename ShortSums<Block>::Half;
  Half &upper = own.out_rmem[0], &lower = own.out_rmem[1];
  // (2, pairs, 2, half of the columns / 8, lanes, 4): what each warp has of the other pair's rows.
  const auto exchanged = [&](int pair) {
    return kept(block.base + Block::layout().strips +
                ((block.half * 2 + pair) * 2 * count * 32 + block.lane) * 16);
  };
  const auto give = [&](const Half& part) {
    const uint32_t first = exchanged(1 - block.pair);
    unrolled<2 * count>(
        [&](auto n) { store_shared<n * 512>(first, words_of(part[n / count][n % count])); });
  };
  if (block.pair == 0) {
    give(lower);
  } else {
    give(upper);
#pragma unroll
    for (int n = 0; n < 8 * count; ++n) {
      upper[n / 4 / count][n / 4 % count][n % 4] = lower[n / 4 / count][n / 4 % count][n % 4];
    }
  }
  __syncthreads();
  const uint32_t first = exchanged(block.pair);
  unrolled<2 * count>(
      [&](auto n) { add_words(upper[n / count][n % count], load_shared<n * 512>(first)); });
  const SharedSide& side = block.row_side;
  // Worked out anew: nothing is kept for it during the passes.
  const BlockPlace place(block.problem);
  const int row_count = place.row_count(block.problem);
  float* const lse_gmem = side.lse + int64_t{place.batch_head} * side.time + place.first_row;
  float inverse[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = block.last_row(m, half);
      const float total = block.row_parts_smem[row];
      inverse[m][half] = total > 0.0f ? 1.0f / total : 0.0f;
      if (block.quad == 0 && block.half == 0 && row < row_count) {
        const float point = reference == no_reference ? block.row_reference_smem[row] : reference;
        lse_gmem[row] = total > 0.0f ? (log2_fast(total) + point) * ln_2 : -infinity;
      }
    }
    clear_rows(upper[m], inverse[m]);
  }
  const int first_row = block.pair * 32;
  if (first_row >= row_count) return;
  const RowWriter<typename Block::Element, Block::columns, Block::half_columns> writer(
      side.out, place.batch, place.head, block.half * Block::half_columns);
  writer.template store<2>(
      block.base + first_row * Block::HeadTile::row_bytes, place.first_row + first_row,
      place.first_row + row_count,
      [&](int n, int e) { return upper[n / count][n % count][e] * inverse[n / count][e / 2]; });
}

template <class Element, int columns>
MMER_DEVICE void shared_short(const SharedForwardProblem& problem) {
  const ShortBlock<Element, columns> block(problem);
  using Block = ShortBlock<Element, columns>;
  const ColumnResults results(block);
  block.mark_visible();
  __syncthreads();
  block.load_rows();
  block.load_b(block.first_strip);
  block.load_value_b(block.first_strip);
  cp_async_wait<0>();
  __syncthreads();
  float reference = find_short_reference(block);

  ShortSums<Block> own;
  int unsafe = attend_strips<false>(block, own, results, reference);
  unsafe |= add_up_short_rows(block, own);
  // Sums of nothing are as they should be.
  if (__syncthreads_or(unsafe) && block.sees_something()) {
    reference = no_reference;
    find_row_maxima(block);
    __syncwarp();
    block.load_b(block.first_strip);
    block.load_value_b(block.first_strip);
    attend_strips<true>(block, own, results, reference);
    add_up_short_rows(block, own);
    __syncthreads();
  }
  finish_short_rows(block, own, reference);
}

}  // namespace mmer::cuda
