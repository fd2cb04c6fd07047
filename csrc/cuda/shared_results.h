// What the forms of the shared forward have in common: which steps are hidden, and where the
// results of the columns go.

#pragma once

#include "pair_loader.h"
#include "products.h"
#include "safe_range.h"

namespace mmer::cuda {

// Says that each row and each column has a reference of its own.
constexpr float no_reference = infinity;

struct HiddenRows {
  // Rows that no query sees start their sums of products here: the exponential is 0.
  const float score;
  // A maximum of hidden pairs only; the reference is 0 then, and their exponentials are too.
  const float nothing_seen;

  MMER_DEVICE explicit HiddenRows(float scale)
      : score(scale < 0.0f ? 1e30f : -1e30f), nothing_seen(0.5f * score * scale) {}
};

// Which head a block has, and which rows of it. Where it is worked out again, nothing is kept for
// it in between.
struct BlockPlace {
  int row_group, batch_head, batch, head, first_row;

  MMER_DEVICE explicit BlockPlace(const SharedForwardProblem& problem) {
    const int number = kept(blockIdx.x);
    row_group = number % problem.row_groups;
    batch_head = number / problem.row_groups;
    batch = batch_head / problem.heads;
    head = batch_head % problem.heads;
    first_row = row_group * problem.rows_a_group;
  }
};

// Writes 0 for each step that is visible and `hidden` for the others; returns whether any is.
template <int threads, class Visible>
MMER_DEVICE bool mark_steps(float* bias_smem, int count, float hidden, const Visible& visible) {
  int any = 0;
  for (int step = threadIdx.x; step < count; step += threads) {
    const bool seen = visible(step);
    any |= seen;
    bias_smem[step] = seen ? 0.0f : hidden;
  }
  return __syncthreads_or(any);
}

// Where the columns' results go: of several groups of rows each has sums of its own.
template <class Block>
struct ColumnResults {
  static constexpr int values = Block::warp_values;
  const Block& block;
  using Writer = RowWriter<typename Block::Element, Block::columns, values>;
  float* const lse_gmem;
  Writer writer;

  MMER_DEVICE explicit ColumnResults(const Block& block)
      : block(block),
        lse_gmem(
            kept((has_parts() ? block.problem.part_lse : block.column_side.lse) + first_row())),
        writer(block.column_side.out, block.place.batch, block.place.head, block.first_value) {
    if (!has_parts()) return;
    // In place of what is not written then: no two more registers.
    float* const part_gmem = block.problem.parts +
                             (first_row() + block.first_of_eight) * Block::columns +
                             block.first_value + block.quad * 2;
    writer.piece_gmem = reinterpret_cast<typename Writer::Bits*>(part_gmem);
  }

  MMER_DEVICE bool has_parts() const { return block.problem.parts != nullptr; }
  MMER_DEVICE int64_t first_row() const {
    return (int64_t{block.place.row_group} * block.problem.batch * block.problem.heads +
            block.place.batch_head) *
           block.column_side.time;
  }

  MMER_DEVICE void store_lse(int column, float sum, float point) const {
    const float unit = has_parts() ? 1.0f : ln_2;
    lse_gmem[column] = sum > 0.0f ? (log2_fast(sum) + point) * unit : -infinity;
  }

  // out (16 tiles, values) of a warp, from column `first_column` on; through rows of a tile in
  // shared memory.
  template <int tiles = 1, class Value>
  MMER_DEVICE void store(uint32_t rows_smem, int first_column, const Value& value) const {
    const int time = block.column_side.time;
    if (!has_parts()) {
      writer.template store<tiles>(rows_smem, first_column, time, value);
      return;
    }
    float* const part_gmem =
        reinterpret_cast<float*>(writer.piece_gmem) + int64_t{first_column} * Block::columns;
#pragma unroll
    for (int half = 0; half < 2 * tiles; ++half) {
      if (first_column + half * 8 + block.first_of_eight >= time) continue;
#pragma unroll
      for (int n = 0; n < values / 8; ++n) {
        *reinterpret_cast<float2*>(part_gmem + half * 8 * Block::columns + n * 8) =
            make_float2(value(half / 2 * (values / 8) + n, half % 2 * 2),
                        value(half / 2 * (values / 8) + n, half % 2 * 2 + 1));
      }
    }
  }
};

}  // namespace mmer::cuda
