// Shared cross-attention forward with S computed once: S = a b^T, out_a = softmax_b(S) v_b,
// out_b = softmax_a(S)^T v_a. A block owns a head: all rows of the shorter sequence a, and the
// tiles of b one after the other.
//
// One exponential serves both directions: P = 2^(S - reference) with one reference, the maximum of
// the first strip of S, needs no rescaling while no row's or column's sum leaves the range of the
// element type. Where one does, the head is done again exactly: a pass over S finds the maximum of
// every row and column, and each direction has an exponential of its own.
//
// P is multiplied from registers for out_a, and through shared memory, transposed, for out_b: a
// warp then owns columns of out_b over all rows, and nothing is added up across warps.
//
// shared_block.h: what a block owns and loads, and S; shared_maxima.h: what is subtracted from S;
// shared_tile.h: a tile of b in a pass.

#pragma once

#include "kernel_id.h"
#include "shared_tile.h"

namespace mmer::cuda {

// The rows' sums over all columns; returns whether one left the safe range.
template <class Block>
MMER_DEVICE bool add_up_rows(const Block& block, SharedRows<Block>& own) {
  constexpr int column_groups = Block::column_groups;
  // Worked out anew in each pass: nothing is kept for it in between.
  const int lane_row = kept(static_cast<uint32_t>(block.first_of_eight));
  bool unsafe = false;
#pragma unroll
  for (int m = 0; m < Block::row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& sum = own.sum[m][half];
      sum = row_total(sum);
      if (column_groups == 2 && block.quad == 0) {
        const int row = block.tile_row(m) + half * 8 + lane_row;
        block.row_parts_smem[block.column_group * Block::rows + row] = sum;
      }
    }
  }
  if (column_groups == 2) __syncthreads();
#pragma unroll
  for (int m = 0; m < Block::last_row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& sum = own.sum[m][half];
      if (column_groups == 2) {
        const int row = block.tile_row(m) + half * 8 + lane_row;
        sum = block.row_parts_smem[row] + block.row_parts_smem[Block::rows + row];
      }
      unsafe |= (block.row_start(m, half) == 0.0f) & !is_safe<typename Block::Element>(sum);
    }
  }
  return unsafe;
}

// A pass over b for both outputs; returns whether a sum left the safe range.
template <bool exact, class Block>
MMER_DEVICE int attend(const Block& block, SharedRows<Block>& own,
                       const ColumnResults<Block>& results, float shift) {
  int unsafe = 0;
#pragma unroll
  for (int m = 0; m < Block::row_tiles; ++m) {
    set_zero(own.out_rmem[m]);
    own.sum[m][0] = own.sum[m][1] = 0.0f;
  }
  const SharedPass<Block, exact> pass(block, shift);
  for (int number = 0; number < block.tile_count; ++number) {
    if constexpr (exact) {
      block.load_tile_anew(number + 1);
    } else {
      block.load_tile(number + 1);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    pass.attend_strips(own, number);
    __syncthreads();
    unsafe |= pass.finish_columns(results, number);
    __syncthreads();
  }
  return unsafe | add_up_rows(block, own);
}

// Two warps of the same rows add up what each found of out_a: each ends with its first row tile.
template <class Block>
MMER_DEVICE void exchange_outputs(const Block& block, SharedRows<Block>& own) {
  constexpr int pairs = Block::columns / 8;
  // Of the row tile that the other warp of these rows ends with, (columns / 8, threads, 4).
  const auto exchange_address = [&](int group, int n) {
    return block.tile_address(0) +
           ((group * pairs + n) * Block::row_warps * 32 + block.row_warp * 32 + block.lane) * 16;
  };
#pragma unroll
  for (int n = 0; n < pairs; ++n) {
    store_shared(exchange_address(1 - block.column_group, n), words_of(own.out_rmem[1][n]));
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < pairs; ++n) {
    add_words(own.out_rmem[0][n], load_shared(exchange_address(block.column_group, n)));
  }
}

template <class Block>
MMER_DEVICE void finish_rows(const Block& block, SharedRows<Block>& own, float shift) {
  const SharedSide& side = block.row_side;
  const bool exact = shift == no_shift;
  if constexpr (Block::column_groups == 2) exchange_outputs(block, own);
  // Worked out anew: nothing is kept for it during the passes.
  const int lane_row = kept(static_cast<uint32_t>(block.first_of_eight));
  const BlockPlace place(block.problem, block.turn);
  const int row_count = place.row_count(block.problem);
  float* const lse_gmem = side.lse + int64_t{place.batch_head} * side.time + place.first_row;
  const RowWriter<typename Block::Element, Block::columns, Block::columns> writer(
      side.out, place.batch, place.head, 0);
#pragma unroll
  for (int m = 0; m < Block::last_row_tiles; ++m) {
    const int first_row = block.tile_row(m);
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + lane_row;
      const float sum = own.sum[m][half];
      inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
      if (block.quad == 0 && row < row_count) {
        const float point = exact ? block.row_reference_smem[row] : -shift;
        lse_gmem[row] = sum > 0.0f ? (log2_fast(sum) + point) * ln_2 : -infinity;
      }
    }
    if (first_row >= row_count) continue;
    clear_rows(own.out_rmem[m], inverse);
    writer.store(block.a_smem.address + first_row * Block::HeadTile::row_bytes,
                 place.first_row + first_row, place.first_row + row_count,
                 [&](int n, int e) { return own.out_rmem[m][n][e] * inverse[e / 2]; });
  }
}

template <class Element, int columns, int row_class>
MMER_DEVICE void shared_forward(const SharedForwardProblem& problem) {
  SharedBlock<Element, columns, row_class> block(problem);
  block.mark_columns();
  // Minus the reference, of a turn that saw something.
  float shift = 0.0f;
#pragma unroll 1
  for (int turn = 0; turn < problem.turns; ++turn) {
    block.take_turn(turn);
    const ColumnResults results(block);
    block.mark_rows();
    __syncthreads();
    block.load_rows();
    block.load_tile(0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    SharedRows own(block);
    __syncthreads();  // P takes a's place
    // The one of the turn before is likely to do.
    if (shift == 0.0f || shift == no_shift) shift = -find_reference(block, own);

    const int unsafe = attend<false>(block, own, results, shift);
    // Sums of nothing are as they should be, if no turn before has found something.
    if (__syncthreads_or(unsafe) && (turn > 0 || block.sees_something())) {
      shift = no_shift;
      find_maxima(block, own, results);
      attend<true>(block, own, results, shift);
    }
    cp_async_wait<0>();
    finish_rows(block, own, shift);
  }
}

}  // namespace mmer::cuda
