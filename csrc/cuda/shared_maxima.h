// What the shared forward subtracts before its exponentials: one reference for all of a head where
// that is safe, otherwise the maximum of every row and of every column.

#pragma once

#include "shared_block.h"

namespace mmer::cuda {

// The maximum of the first strip of S.
template <class Block>
MMER_DEVICE float find_reference(const Block& block, const SharedRows<Block>& rows) {
  using Range = SafeRange<typename Block::Element>;
  float largest = -infinity;
  if (block.column_group == 0) {
    float scores_rmem[Block::row_tiles][2][4];
    rows.multiply_strip(scores_rmem, block, block.tile_address(0) + block.score_place());
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float bias = block.bias_smem[block.strip_column(0, e / 4, e)];
#pragma unroll
      for (int m = 0; m < Block::row_tiles; ++m) {
        largest = fmaxf(largest, fmaf(scores_rmem[m][e / 4][e % 4], block.problem.scale, bias));
      }
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      largest = fmaxf(largest, shuffle_xor(largest, lanes));
    }
    if (block.lane == 0) block.warp_parts_smem[block.row_warp] = largest;
  }
  __syncthreads();
  largest = block.warp_parts_smem[0];
  for (int n = 1; n < Block::row_warps; ++n) largest = fmaxf(largest, block.warp_parts_smem[n]);
  return largest > block.hidden().nothing_seen ? largest - Range::first_maximum : 0.0f;
}

// The maximum of each column over the rows of a warp, for the strips of a tile.
template <class Block>
MMER_DEVICE void find_strip_maxima(const Block& block, const SharedRows<Block>& rows, int number,
                                   float (&row_max)[Block::row_tiles][2]) {
  const int strip_end = block.strip_count(number);
#pragma unroll 1
  for (int strip = block.column_group; strip < strip_end; strip += Block::column_groups) {
    float scores_rmem[Block::row_tiles][2][4];
    rows.multiply_strip(
        scores_rmem, block,
        block.tile_address(number) + block.score_place() + strip * Block::strip_bytes);
    float column_max[4] = {-infinity, -infinity, -infinity, -infinity};
#pragma unroll
    for (int m = 0; m < Block::row_tiles; ++m) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float bias =
            block.bias_smem[number * Block::tile + block.strip_column(strip, e / 4, e)];
        const float logit = fmaf(scores_rmem[m][e / 4][e % 4], block.problem.scale, bias);
        float& of_row = row_max[m][e % 4 / 2];
        of_row = fmaxf(of_row, logit);
        float& of_column = column_max[e / 4 * 2 + e % 2];
        of_column = fmaxf(of_column, logit);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        column_max[n] = fmaxf(column_max[n], shuffle_xor(column_max[n], lanes));
      }
      if (block.first_of_eight == 0) {
        block.parts_smem[Block::part_place(block.strip_column(strip, n / 2, n), block.row_warp)] =
            column_max[n];
      }
    }
  }
}

// The maximum of every row and of every column, for the exact pass; starts to load its first tile.
template <class Block>
MMER_DEVICE void find_maxima(const Block& block, const SharedRows<Block>& rows,
                             const ColumnResults<Block>& results) {
  constexpr int tile = Block::tile, row_tiles = Block::row_tiles;
  float row_max[row_tiles][2];
#pragma unroll
  for (int m = 0; m < row_tiles; ++m) row_max[m][0] = row_max[m][1] = -infinity;
  for (int number = 0; number < block.tile_count; ++number) {
    block.load_tile_anew(number);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    find_strip_maxima(block, rows, number, row_max);
    __syncthreads();
    const int busy_warps = (block.row_count + row_tiles * 16 - 1) / (row_tiles * 16);
    for (int in_tile = threadIdx.x; in_tile < tile; in_tile += Block::threads) {
      const int column = number * tile + in_tile;
      float largest = results.earlier_point(column);
      for (int n = 0; n < busy_warps; ++n) {
        largest = fmaxf(largest, block.parts_smem[Block::part_place(in_tile, n)]);
      }
      block.reference_smem[column] = largest > block.hidden().nothing_seen ? largest : 0.0f;
    }
    __syncthreads();
  }
  for (int turn = 0; turn < Block::column_groups; ++turn) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = row_maximum(row_max[m][half]);
        float& point =
            block.row_reference_smem[block.tile_row(m) + half * 8 + block.first_of_eight];
        if (block.quad != 0 || block.column_group != turn) continue;
        if (turn > 0) largest = fmaxf(largest, point);
        // What no group has seen must stay below what the next one finds.
        point = largest > block.hidden().nothing_seen || turn + 1 < Block::column_groups ? largest
                                                                                         : 0.0f;
      }
    }
    __syncthreads();
  }
  block.load_tile_anew(0);
  cp_async_commit();
}

}  // namespace mmer::cuda
