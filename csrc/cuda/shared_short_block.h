// A block of the shared forward of short sides: which head and rows it owns, where things stand in
// its shared memory, how strips of b come there, and the scores that every pass starts from.

#pragma once

#include "config.h"
#include "shared_results.h"

namespace mmer::cuda {

template <class ElementType, int column_class>
struct ShortBlock {
  using Element = ElementType;
  static constexpr int columns = column_class, rows = short_rows, warps = short_warps;
  static constexpr int threads = warps * 32, row_tiles = rows / 16;
  static constexpr int half_columns = columns / 2;
  // Of a column's output a warp has all.
  static constexpr int warp_values = columns, first_value = 0;
  static constexpr ShortSmem layout() { return ShortSmem(columns); }
  using HeadTile = Tile<Element, columns>;
  using Places = LanePlaces<Element, columns>;

  const SharedForwardProblem& problem;
  const SharedSide &row_side, &column_side;
  const float scale;
  const int lane, warp, quad, first_of_eight;
  const int pair, half;  // the two warps of a pair have a half of the values each
  const int row_group, batch_head, batch, head;
  const int block_row, row_count, strip_count;
  const HiddenRows hidden;

  unsigned char* const smem;
  const uint32_t base;
  float *const row_bias_smem, *const row_reference_smem;
  float *const row_parts_smem, *const warp_parts_smem;  // (warps, rows); a float each
  float* const bias_smem;                               // of each column

  const Visibility row_mask, column_visible;
  const PairLoader<Element, columns, 32> strip_loader;
  // Where a lane reads: rows of a for the scores, rows of v_a, and 16 rows of a strip.
  const uint32_t a_place, value_a_place, strip_place;
  const uint32_t value_place;     // the same of v_b, this warp's half of the values
  const uint32_t exchange_place;  // of this lane, in the first buffer
  const uint32_t row_bias_place;  // of this thread's rows
  // Of a strip's columns, the one that this lane finishes: two of a quad's lanes have one each.
  const int lane_column;

  MMER_DEVICE explicit ShortBlock(const SharedForwardProblem& problem)
      : problem(problem),
        row_side(problem.rows),
        column_side(problem.columns),
        scale(problem.scale),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        quad(lane % 4),
        first_of_eight(lane / 4),
        pair(warp / 2),
        half(warp % 2),
        row_group(blockIdx.x % problem.row_groups),
        batch_head(blockIdx.x / problem.row_groups),
        batch(batch_head / problem.heads),
        head(batch_head % problem.heads),
        block_row(row_group * problem.rows_a_group),
        row_count(min(row_side.time - block_row, problem.rows_a_group)),
        strip_count((column_side.time + 15) / 16),
        hidden(problem.scale),
        smem(dynamic_smem()),
        base(shared_address(smem)),
        row_bias_smem(reinterpret_cast<float*>(smem + layout().row_bias)),
        row_reference_smem(reinterpret_cast<float*>(smem + layout().row_reference)),
        row_parts_smem(reinterpret_cast<float*>(smem + layout().row_parts)),
        warp_parts_smem(reinterpret_cast<float*>(smem + layout().warp_parts)),
        bias_smem(reinterpret_cast<float*>(smem + layout().column_bias)),
        row_mask(row_side.mask, batch, block_row + row_count),
        column_visible(column_side.mask, batch, column_side.time),
        strip_loader(column_side.x, column_side.value, column_visible, batch, head),
        a_place(kept(HeadTile{base}.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2))),
        value_a_place(kept(HeadTile{base + layout().value_a}.piece(lane % 16, lane / 16))),
        strip_place(kept(HeadTile{base + layout().strips}.piece(lane % 16, lane / 16))),
        value_place(kept(HeadTile::advance(strip_place + layout().stage_bytes / 2,
                                           half_columns < 16 ? 0 : half * (half_columns / 8)))),
        exchange_place(kept(base + layout().exchange + lane * 16)),
        row_bias_place(kept(base + layout().row_bias + quad * 8)),
        lane_column(kept(static_cast<uint32_t>(lane % 2 * 8 + first_of_eight))) {}

  MMER_DEVICE bool whole_rows() const { return rows <= row_count && !row_side.mask.data; }
  // Of the row block of a thread's n-th accumulator, the first of its two.
  MMER_DEVICE int row_pair(int n) const { return n * 8 + quad * 2; }

  // Of the rows that this thread ends with, in two tiles.
  MMER_DEVICE int last_row(int m, int half) const {
    return pair * 32 + m * 16 + half * 8 + first_of_eight;
  }

  // a, v_a (rows, columns)
  MMER_DEVICE void load_rows() const {
    const PairLoader<Element, columns, threads> loader(row_side.x, row_side.value, row_mask, batch,
                                                       head);
    loader.template load<rows, layout().value_a>(HeadTile{base}, block_row, [&](int step) {
      return row_bias_smem[step - block_row] == 0.0f;
    });
  }

  // Each warp has two stages of b and v_b (16, columns): how far from the first is a strip's?
  static MMER_DEVICE uint32_t stage(int strip) {
    return strip % (2 * warps) * layout().stage_bytes;
  }
  MMER_DEVICE uint32_t strip_address(uint32_t stage) const {
    return base + layout().strips + stage;
  }
  MMER_DEVICE void load_strip(int strip, uint32_t stage) const {
    if (strip < strip_count) {
      strip_loader.template load<16, layout().stage_bytes / 2>(
          HeadTile{strip_address(stage)}, strip * 16,
          [&](int column) { return bias_smem[column] == 0.0f; });
    }
    cp_async_commit();
  }
  // The two warps of a pair.
  MMER_DEVICE void synchronize_pair() const {
    asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
  }
  // Where P of the strip in a stage stands, as left factor: (row_tiles, lanes, 4) words.
  MMER_DEVICE uint32_t exchanged(uint32_t stage) const {
    constexpr int stage_bytes = layout().stage_bytes, bytes = layout().exchange_bytes;
    return exchange_place +
           (stage_bytes < bytes ? stage * (bytes / stage_bytes) : stage / (stage_bytes / bytes));
  }

  // scores (16, count) = b (16, columns) in a stage times the transpose of a's rows from
  // `first_row` on, (count, columns)
  template <int count>
  MMER_DEVICE void multiply_strip(float (&scores)[count / 8][4], uint32_t stage,
                                  int first_row) const {
    set_zero(scores);
    if (!whole_rows()) {
      unrolled<count / 8>([&](auto n) {
        const float2 starts = load_shared_pair<n * 32>(row_bias_place + first_row * 4);
        scores[n][0] = scores[n][2] = starts.x;
        scores[n][1] = scores[n][3] = starts.y;
      });
    }
    const Places row_places(a_place + first_row * Places::row_bytes);
    const uint32_t first = strip_place + stage;
    multiply_transposed<count>(scores, row_places, [&](int step, uint32_t (&b)[4]) {
      ldmatrix(b, HeadTile::advance(first, step * 2));
    });
  }

 private:
  static MMER_DEVICE unsigned char* dynamic_smem() {
    extern __shared__ __align__(128) unsigned char block_smem[];
    return block_smem;
  }
};

// Of this thread's columns, what is added to the scores of one.
template <class Block>
MMER_DEVICE void load_column_bias(float (&bias)[2], const Block& block, int strip) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    bias[half] = block.bias_smem[strip * 16 + half * 8 + block.first_of_eight];
  }
}

}  // namespace mmer::cuda
