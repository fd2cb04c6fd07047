// The gradients of the columns in once_backward: a warp's part of db (tile, columns) = dS^T a, or
// of dv_b = P_a^T dO_a, from what all warps left in shared memory, added to what earlier rows gave.

#pragma once

#include "once_parts.h"
#include "products.h"
#include "smem.h"

namespace mmer::cuda {

template <class Element, int columns, int row_class>
struct OnceGradients {
  static constexpr OnceConfig config = once_config(row_class);
  static constexpr OnceSmem Smem{row_class, columns};
  static constexpr int column_parts = config.column_parts(columns);
  static constexpr int part_columns = config.part_columns(columns);
  static constexpr int row_strips = config.part_rows(columns) / warp_rows;
  static constexpr int strip_values = part_columns / 8, values = row_strips * strip_values;
  using HeadTile = Tile<Element, columns>;
  using Parts = WarpParts<columns>;
  static_assert(values == Parts::values);

  const OnceBackwardProblem& problem;
  int batch, head;
  bool of_scores;  // db, else dv_b
  int tile_row, first_column;
  LanePlaces<Element, columns> right;
  uint32_t weights_place;
  float* parts_gmem;               // where the thread keeps those of the tile
  float gradient_rmem[values][4];  // one strip of 16 rows after the other

  MMER_DEVICE OnceGradients(const OnceBackwardProblem& problem, uint32_t base, int batch, int head,
                            int row_group, int tile)
      : problem(problem),
        batch(batch),
        head(head),
        of_scores(warp() >= config.warps / 2),
        tile_row(part() / column_parts * config.part_rows(columns)),
        first_column(part() % column_parts * part_columns),
        right(value_places(HeadTile{base + (of_scores ? Smem.a : Smem.grad_out_a)}, first_column)),
        parts_gmem(problem.column_parts) {
    const int lane = threadIdx.x % 32;
    weights_place =
        kept(base + Smem.weights + of_scores * Smem.weights_bytes +
             (lane / 16 * 8 + lane % 8) * Smem.weights_stride + tile_row * 2 + lane / 8 % 2 * 16);
    right.keep();
    if (!parts_gmem) return;
    const int64_t batch_head =
        int64_t{row_group} * problem.batch * problem.heads + batch * problem.heads + head;
    parts_gmem += (batch_head * problem.column_tiles + tile) * tile_floats +
                  warp() * Parts::floats + Parts::thread_place();
  }

  MMER_DEVICE void clear() { set_zero(gradient_rmem); }

  // Whether a tile with so many columns left has any for this warp.
  MMER_DEVICE bool exists(int columns_left) const { return tile_row < columns_left; }

  // What was kept of the tile.
  MMER_DEVICE void fetch() { Parts::fetch(gradient_rmem, parts_gmem); }

  // Adds what `rows_left` rows of the block give:
  // (part_rows, part_columns) = P_a^T (part_rows, rows) dO_a (rows, part_columns), or dS^T a.
  MMER_DEVICE void add(int rows_left) {
    if (rows_left >= config.rows()) {
      unrolled<config.rows() / 16>([&](auto step) { add_step(step); });
    } else {
      unrolled<config.rows() / 16>([&](auto step) {
        if (step * 16 < rows_left) add_step(step);
      });
    }
  }

  // To where so many tiles further are kept.
  MMER_DEVICE void move(int tiles) { parts_gmem += tiles * tile_floats; }

  // For a later tile of rows, or for merge_gradients.
  MMER_DEVICE void keep() const { Parts::keep(parts_gmem, gradient_rmem); }

  // Rounded, through two tiles of shared memory: one for each of the two gradients.
  MMER_DEVICE void store(uint32_t staging, int number) const {
    const float scale = of_scores ? problem.grad_scale : 1.0f;
    const Rows& target = of_scores ? problem.grad_columns : problem.grad_value_columns;
    store_warp_rows<part_columns, row_strips>(
        HeadTile{staging + of_scores * Smem.tile_bytes}, tile_row, target, batch, head,
        number * config.tile + tile_row, problem.sides[1].time, first_column,
        [&](int n, int e) { return gradient_rmem[n][e] * scale; });
  }

 private:
  // 16 rows of the block.
  template <int step>
  MMER_DEVICE void add_step(std::integral_constant<int, step>) {
    uint32_t left[row_strips][4];
    unrolled<row_strips>([&](auto m) {
      ldmatrix_transposed<step * 16 * Smem.weights_stride + m * 32>(left[m], weights_place);
    });
    unrolled<part_columns / 16>([&](auto n) {
      uint32_t b[4];
      ldmatrix_transposed<right.offset(step * 16, n)>(b, right.place(n));
#pragma unroll
      for (int m = 0; m < row_strips; ++m) {
        Element::mma(gradient_rmem[m * strip_values + 2 * n], left[m], b[0], b[1]);
        Element::mma(gradient_rmem[m * strip_values + 2 * n + 1], left[m], b[2], b[3]);
      }
    });
  }

  static constexpr int64_t tile_floats = config.warps * Parts::floats;

  static MMER_DEVICE int warp() { return threadIdx.x / 32; }
  static MMER_DEVICE int part() { return warp() % (config.warps / 2); }
};

}  // namespace mmer::cuda
