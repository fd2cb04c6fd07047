// A block of the shared forward: which head and rows it owns, where things stand in its shared
// memory, how tiles of b come there, and the scores that every pass starts from.

#pragma once

#include "shared_results.h"
#include "smem.h"

namespace mmer::cuda {

template <class ElementType, int column_class, int row_class>
struct SharedBlock {
  using Element = ElementType;
  static constexpr int columns = column_class;
  static constexpr SharedConfig config() { return shared_config(row_class, columns); }
  static constexpr SharedSmem layout() { return SharedSmem(row_class, columns); }
  static constexpr int rows = config().rows(), threads = config().threads();
  static constexpr int row_tiles = config().row_tiles, row_warps = config().row_warps();
  static constexpr int column_groups = config().column_groups;
  // Warps that share their rows end with one row tile each.
  static constexpr int last_row_tiles = row_tiles / column_groups;
  static constexpr int tile = layout().tile, strips = tile / 16;
  // Warps that have the same columns of P, and their parts of the value dimension.
  static constexpr int value_warps = config().warps / strips;
  static constexpr int warp_values = columns / value_warps;
  using HeadTile = Tile<Element, columns>;
  using Loader = PairLoader<Element, columns, threads>;
  static constexpr int strip_bytes = 16 * HeadTile::row_bytes;

  const SharedForwardProblem& problem;
  const SharedSide &row_side, &column_side;
  const int lane, warp, quad, first_of_eight;
  const int row_warp, column_group;
  const int first_value;  // of this warp's part of the columns' outputs
  const int warp_row, tile_count;
  // Of this turn.
  int turn;
  BlockPlace place;
  int row_count, row_steps;
  bool busy;

  unsigned char* const smem;
  const uint32_t base;
  const HeadTile a_smem, value_a_smem;
  float* const parts_smem;
  float* const row_bias_smem;
  // Of each row, in the exact pass; its registers would be missed in every pass.
  float* const row_reference_smem;
  float* const row_parts_smem;
  float* const warp_parts_smem;
  float* const bias_smem;
  float* const reference_smem;  // of each column, in the exact pass

  const Loader tile_loader;

  MMER_DEVICE explicit SharedBlock(const SharedForwardProblem& problem)
      : problem(problem),
        row_side(problem.rows),
        column_side(problem.columns),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        quad(lane % 4),
        first_of_eight(lane / 4),
        row_warp(warp % row_warps),
        column_group(column_groups == 1 ? 0 : warp / row_warps),
        first_value(warp % value_warps * warp_values),
        warp_row(row_warp * row_tiles * 16),
        tile_count((column_side.time + tile - 1) / tile),
        place(problem),
        smem(block_smem()),
        base(shared_address(smem)),
        a_smem{base + layout().weights},
        value_a_smem{base + layout().value_a},
        parts_smem(reinterpret_cast<float*>(smem + layout().column_parts)),
        row_bias_smem(reinterpret_cast<float*>(smem + layout().row_bias)),
        row_reference_smem(reinterpret_cast<float*>(smem + layout().row_reference)),
        row_parts_smem(reinterpret_cast<float*>(smem + layout().row_parts)),
        warp_parts_smem(reinterpret_cast<float*>(smem + layout().warp_parts)),
        bias_smem(reinterpret_cast<float*>(smem + layout().column_bias)),
        reference_smem(bias_smem + tile_count * tile),
        tile_loader(column_side, column_side.time, place.batch, place.head) {}

  MMER_DEVICE void take_turn(int number) {
    turn = number;
    place = BlockPlace(problem, turn);
    row_count = place.row_count(problem);
    row_steps = (row_count + 15) / 16;
    busy = warp_row < row_count;
  }

  // Two warps of the same rows count their row tiles from different ends.
  MMER_DEVICE int tile_row(int m) const {
    return warp_row + (column_groups == 1 ? m : m ^ column_group) * 16;
  }
  // Where a lane starts to read in a tile: columns of b for the scores, rows of a value.
  MMER_DEVICE uint32_t score_place() const {
    return kept(HeadTile{0}.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2));
  }
  MMER_DEVICE uint32_t value_place() const { return kept(HeadTile{0}.piece(lane % 16, lane / 16)); }
  MMER_DEVICE bool whole_rows(int end) const { return end <= row_side.whole_end(row_count); }
  // Of a strip's columns, those of this thread: 2 quad, 2 quad + 1, and 8 further.
  MMER_DEVICE int strip_column(int strip, int n, int e) const {
    return strip * 16 + n * 8 + quad * 2 + e % 2;
  }
  MMER_DEVICE int strip_count(int number) const {
    return busy ? min((column_side.time - number * tile + 15) >> 4, strips) : 0;
  }
  // Of a column's sum or maximum in a tile; steps of 16 bytes are in different banks.
  static MMER_DEVICE int part_place(int column, int part) {
    return column * layout().parts_stride + column / 8 % 2 * 4 + part;
  }
  // Where the sums of a row's products start.
  MMER_DEVICE float row_start(int m, int half) const {
    return row_bias_smem[tile_row(m) + half * 8 + first_of_eight];
  }

  // Writes down which are real.
  MMER_DEVICE void mark_columns() const {
    mark_steps<threads>(bias_smem, tile_count * tile, -infinity,
                        Visibility(column_side.mask, place.batch, column_side.time));
  }
  MMER_DEVICE void mark_rows() const {
    if (!busy && column_group == 0) {
      for (int column = lane; column < tile; column += 32) {
        for (int n = 0; n < 4; ++n) parts_smem[part_place(column, row_warp * 4 + n)] = 0.0f;
      }
    }
    const Visibility visible(row_side.mask, place.batch, place.first_row + row_count);
    mark_steps<threads>(row_bias_smem, rows, hidden().score,
                        [&](int row) { return visible(place.first_row + row); });
  }
  // Worked out anew: nothing is kept for it.
  MMER_DEVICE HiddenRows hidden() const { return HiddenRows(kept(problem.scale)); }
  MMER_DEVICE bool sees_something() const {
    return is_any_marked<threads>(row_bias_smem, rows) &&
           is_any_marked<threads>(bias_smem, tile_count * tile);
  }

  // a, v_a (rows, columns)
  MMER_DEVICE void load_rows() const {
    const Loader loader(row_side, place.first_row + row_count, place.batch, place.head);
    loader.template load<rows, layout().value_a - layout().weights>(
        a_smem, place.first_row,
        [&](int step) { return row_bias_smem[step - place.first_row] == 0.0f; });
  }

  // b, v_b (tile, columns)
  MMER_DEVICE void load_tile(int number) const { load_tile(number, tile_loader); }
  // The same where it is rarely done, or where registers are scarce: nothing is kept for it.
  MMER_DEVICE void load_tile_anew(int number) const {
    const BlockPlace same_place(problem, turn);
    load_tile(number, Loader(column_side, column_side.time, same_place.batch, same_place.head));
  }
  static MMER_DEVICE uint32_t tile_offset(int number) {
    return layout().b + number % 2 * layout().tile_bytes;
  }
  MMER_DEVICE uint32_t tile_address(int number) const { return base + tile_offset(number); }

 private:
  MMER_DEVICE void load_tile(int number, const Loader& loader) const {
    if (number >= tile_count) return;
    loader.template load<tile, layout().value_b - layout().b>(
        HeadTile{tile_address(number)}, number * tile,
        [&](int column) { return bias_smem[column] == 0.0f; });
  }
  static MMER_DEVICE unsigned char* block_smem() {
    extern __shared__ __align__(128) unsigned char smem[];
    return smem;
  }
};

// The rows that a warp owns.
template <class Block>
struct SharedRows {
  static constexpr int row_tiles = Block::row_tiles, columns = Block::columns;
  using Scores = float[row_tiles][2][4];

  uint32_t a_rmem[row_tiles][columns / 16][4];
  float out_rmem[row_tiles][columns / 8][4];
  float sum[row_tiles][2];
  bool whole;  // none is hidden

  MMER_DEVICE explicit SharedRows(const Block& block)
      : whole(block.whole_rows(block.warp_row + row_tiles * 16)) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int step = 0; step < columns / 16; ++step) {
        load_fragment(a_rmem[m][step], block.a_smem, block.tile_row(m), step);
      }
    }
  }

  // scores (16 row_tiles, 16) = a (16 row_tiles, columns) b^T of a strip of 16 columns
  MMER_DEVICE void multiply_strip(Scores& scores, const Block& block, uint32_t first) const {
    using Element = typename Block::Element;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) set_zero(scores[m]);
    if (!whole) {
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float start = block.row_start(m, half);
#pragma unroll
          for (int n = 0; n < 2; ++n) scores[m][n][2 * half] = scores[m][n][2 * half + 1] = start;
        }
      }
    }
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      uint32_t b[4];
      ldmatrix(b, Block::HeadTile::advance(first, step * 2));
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        Element::mma(scores[m][0], a_rmem[m][step], b[0], b[1]);
        Element::mma(scores[m][1], a_rmem[m][step], b[2], b[3]);
      }
    }
  }
};

}  // namespace mmer::cuda
