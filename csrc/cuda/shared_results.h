// What the forms of the shared forward have in common: which steps are hidden, and where the
// results of the columns go.

#pragma once

#include "pair_loader.h"
#include "products.h"
#include "safe_range.h"

namespace mmer::cuda {

// Says that each row and each column has a reference of its own.
constexpr float no_reference = infinity, no_shift = -no_reference;

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

  MMER_DEVICE explicit BlockPlace(const SharedForwardProblem& problem, int turn = 0) {
    const int number = kept(blockIdx.x);
    row_group = number % problem.blocks_a_head * problem.turns + turn;
    batch_head = number / problem.blocks_a_head;
    batch = batch_head / problem.heads;
    head = batch_head % problem.heads;
    first_row = row_group * problem.rows_a_group;
  }
  MMER_DEVICE int row_count(const SharedForwardProblem& problem) const {
    return min(problem.rows.time - first_row, problem.rows_a_group);
  }
};

// Writes 0 for each step that is visible and `hidden` for the others.
template <int threads, class Visible>
MMER_DEVICE void mark_steps(float* bias_smem, int count, float hidden, const Visible& visible) {
  for (int step = threadIdx.x; step < count; step += threads) {
    bias_smem[step] = visible(step) ? 0.0f : hidden;
  }
}

// Whether any step is visible.
template <int threads>
MMER_DEVICE bool is_any_marked(const float* bias_smem, int count) {
  int any = 0;
  for (int step = threadIdx.x; step < count; step += threads) any |= bias_smem[step] == 0.0f;
  return __syncthreads_or(any);
}

// Where the columns' results go: of several groups of rows each has sums of its own, or adds them
// to those of the turns before.
template <class Block>
struct ColumnResults {
  static constexpr int values = Block::warp_values;
  const Block& block;
  using Writer = RowWriter<typename Block::Element, Block::columns, values>;
  float* const lse_gmem;
  Writer writer;

  MMER_DEVICE explicit ColumnResults(const Block& block)
      : block(block),
        lse_gmem(kept(has_parts() ? reinterpret_cast<float*>(sums_of(part_row(block.turn)))
                                  : block.column_side.lse +
                                        int64_t{block.place.batch_head} * block.column_side.time)),
        writer(block.column_side.out, block.place.batch, block.place.head, block.first_value) {
    if (!has_parts()) return;
    // In place of what is not written then: no two more registers.
    writer.piece_gmem = reinterpret_cast<typename Writer::Bits*>(parts_of(part_row(block.turn)));
  }

  MMER_DEVICE bool has_parts() const {
    return block.problem.blocks_a_head > 1 || block.turn + 1 < block.problem.turns;
  }

  // `sum` of the exponentials of a column's scores less `point`.
  MMER_DEVICE void store_sum(int column, float sum, float point) const {
    if (has_parts()) {
      reinterpret_cast<float2*>(lse_gmem)[column] = make_float2(sum, point);
    } else {
      lse_gmem[column] = sum > 0.0f ? (log2_fast(sum) + point) * ln_2 : -infinity;
    }
  }

  // out (16 tiles, values) of a warp, sums of products yet, from column `first_column` on; through
  // rows of a tile in shared memory.
  template <int tiles>
  MMER_DEVICE void store(uint32_t rows_smem, int first_column, float (&out)[tiles][values / 8][4],
                         const float (&inverse_sums)[tiles][2]) const {
    constexpr int count = values / 8;
#pragma unroll
    for (int t = 0; t < tiles; ++t) clear_rows(out[t], inverse_sums[t]);
    if (!has_parts()) {
      writer.template store<tiles>(
          rows_smem, first_column, block.column_side.time, [&](int n, int e) {
            return out[n / count][n % count][e] * inverse_sums[n / count][e / 2];
          });
      return;
    }
    float* const part_gmem =
        reinterpret_cast<float*>(writer.piece_gmem) + int64_t{first_column} * Block::columns;
    for_each_pair<tiles>(part_gmem, first_column, [&](float* pair_gmem, int n, int e) {
      const float (&sums)[4] = out[n / count][n % count];
      *reinterpret_cast<float2*>(pair_gmem) = make_float2(sums[e], sums[e + 1]);
    });
  }

  // What was subtracted from a column's scores in the turns before, if they saw any.
  MMER_DEVICE float earlier_point(int column) const {
    if (block.turn == 0 || column >= block.column_side.time) return -infinity;
    const float2 found = sums_of(part_row(block.turn - 1))[column];
    return found.x > 0.0f ? found.y : -infinity;
  }

  // What the turns before have found of 16 columns, in terms of what is subtracted now; `column` is
  // one of them, with `point`, whose sum is returned.
  MMER_DEVICE float load_earlier(int first_column, int column, float point,
                                 float (&out)[values / 8][4]) const {
    const int64_t row = part_row(block.turn - 1);
    float* const first_gmem = parts_of(row + first_column);
    float factor = 1.0f, sum = 0.0f;
    if (column < block.column_side.time) {
      const float2 found = sums_of(row)[column];
      if (found.x > 0.0f) factor = exp2_fast(found.y - point);
      sum = found.x * factor;
    }
    for_each_pair<1>(first_gmem, first_column, [&](const float* pair_gmem, int n, int e) {
      const float2 sums = *reinterpret_cast<const float2*>(pair_gmem);
      out[n][e] = sums.x;
      out[n][e + 1] = sums.y;
    });
    if (any_lane(factor != 1.0f)) {
      const float factors[2] = {shuffle(factor, block.first_of_eight),
                                shuffle(factor, block.first_of_eight + 8)};
#pragma unroll
      for (int n = 0; n < values / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[n][e] *= factors[e / 2];
      }
    }
    return sum;
  }

 private:
  // Calls act(where the pair stands, its accumulator, its first element) for a thread's pairs of
  // parts (16 tiles, values).
  template <int tiles, class Do>
  MMER_DEVICE void for_each_pair(float* part_gmem, int first_column, const Do& act) const {
#pragma unroll
    for (int half = 0; half < 2 * tiles; ++half) {
      if (first_column + half * 8 + block.first_of_eight >= block.column_side.time) continue;
#pragma unroll
      for (int n = 0; n < values / 8; ++n) {
        act(part_gmem + half * 8 * Block::columns + n * 8, half / 2 * (values / 8) + n,
            half % 2 * 2);
      }
    }
  }
  // The columns in what this block finds in a turn.
  MMER_DEVICE int64_t part_row(int turn) const {
    const int64_t slots = block.problem.part_slots;
    return (blockIdx.x * slots + turn % block.problem.part_slots) * block.column_side.time;
  }
  MMER_DEVICE float2* sums_of(int64_t row) const {
    return reinterpret_cast<float2*>(block.problem.part_sums) + row;
  }
  // This thread's first value of the tile from `row` on.
  MMER_DEVICE float* parts_of(int64_t row) const {
    return block.problem.parts + (row + block.first_of_eight) * Block::columns + block.first_value +
           block.quad * 2;
  }
};

}  // namespace mmer::cuda
