// The gradients of the columns in once_backward: a warp's part of db (tile, columns) = dS^T a, or
// of dv_b = P_a^T dO_a, from what all warps left in shared memory, added to what earlier rows gave.

#pragma once

#include "config.h"
#include "products.h"

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

  const OnceBackwardProblem& problem;
  int batch, head;
  bool of_scores;  // db, else dv_b
  int tile_row, first_column;
  LanePlaces<Element, columns> right;
  uint32_t weights_place;
  float* parts_gmem;               // this thread's of the first tile
  float gradient_rmem[values][4];  // one strip of 16 rows after the other

  MMER_DEVICE OnceGradients(const OnceBackwardProblem& problem, uint32_t base, int batch, int head,
                            int group)
      : problem(problem),
        batch(batch),
        head(head),
        of_scores(warp() >= config.warps / 2),
        tile_row(part() / column_parts * config.part_rows(columns)),
        first_column(part() % column_parts * part_columns),
        right(value_places(HeadTile{base + (of_scores ? Smem.a : Smem.grad_out_a)}, first_column)),
        parts_gmem(problem.parts) {
    const int lane = threadIdx.x % 32;
    weights_place =
        kept(base + Smem.weights + of_scores * Smem.weights_bytes +
             (lane / 16 * 8 + lane % 8) * Smem.weights_stride + tile_row * 2 + lane / 8 % 2 * 16);
    right.keep();
    if (!parts_gmem) return;
    parts_gmem += group * group_floats() + (batch * problem.heads + head) * head_floats() +
                  warp() * values * 128 + lane * 4;
  }

  MMER_DEVICE void clear() { set_zero(gradient_rmem); }

  // What was kept of a tile of the columns; `act(sum, part)` takes it.
  template <class Do>
  MMER_DEVICE void fetch(int number, const Do& act) {
    if (!exists(number)) return;
    const float4* source_gmem = reinterpret_cast<const float4*>(parts_gmem + number * tile_floats);
#pragma unroll
    for (int n = 0; n < values; ++n) {
      const float4 part = source_gmem[n * 32];
      act(gradient_rmem[n][0], part.x);
      act(gradient_rmem[n][1], part.y);
      act(gradient_rmem[n][2], part.z);
      act(gradient_rmem[n][3], part.w);
    }
  }

  // Adds what `rows_left` rows of the block give to the tile `number` of the columns:
  // (part_rows, part_columns) = P_a^T (part_rows, rows) dO_a (rows, part_columns), or dS^T a.
  MMER_DEVICE void add(int number, int rows_left) {
    if (!exists(number)) return;
    if (rows_left >= config.rows()) {
      unrolled<config.rows() / 16>([&](auto step) { add_step(step); });
    } else {
      unrolled<config.rows() / 16>([&](auto step) {
        if (step * 16 < rows_left) add_step(step);
      });
    }
  }

  MMER_DEVICE void next_group() { parts_gmem += group_floats(); }

  // For a later tile of rows, or for merge_gradients.
  MMER_DEVICE void keep(int number) const {
    if (!exists(number)) return;
    float4* target_gmem = reinterpret_cast<float4*>(parts_gmem + number * tile_floats);
#pragma unroll
    for (int n = 0; n < values; ++n) {
      const float (&sum)[4] = gradient_rmem[n];
      target_gmem[n * 32] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
  }

  // Rounded, through two tiles of shared memory: one for each of the two gradients.
  MMER_DEVICE void store(uint32_t staging, int number) const {
    if (!exists(number)) return;
    const float scale = of_scores ? problem.grad_scale : 1.0f;
    const Rows& target = of_scores ? problem.grad_columns : problem.grad_value_columns;
    store_warp_rows<part_columns, row_strips>(
        HeadTile{staging + of_scores * Smem.tile_bytes}, tile_row, target, batch, head,
        number * config.tile + tile_row, problem.columns.time, first_column,
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

  static constexpr int64_t tile_floats = 2 * config.tile * columns;

  static MMER_DEVICE int warp() { return threadIdx.x / 32; }
  static MMER_DEVICE int part() { return warp() % (config.warps / 2); }
  MMER_DEVICE int64_t head_floats() const {
    return (problem.columns.time + config.tile - 1) / config.tile * tile_floats;
  }
  MMER_DEVICE int64_t group_floats() const {
    return int64_t{problem.batch} * problem.heads * head_floats();
  }
  MMER_DEVICE bool exists(int number) const {
    return number * config.tile + tile_row < problem.columns.time;
  }
};

// The gradients of a tile of the columns, of what the groups of once_backward found.
template <class Element, int columns, int row_class>
MMER_DEVICE void merge_gradients(const OnceBackwardProblem& problem) {
  extern __shared__ __align__(128) unsigned char smem[];
  constexpr OnceConfig config = once_config(row_class);
  const int tiles = (problem.columns.time + config.tile - 1) / config.tile;
  const int batch_head = blockIdx.x / tiles, number = blockIdx.x % tiles;
  OnceGradients<Element, columns, row_class> gradients(
      problem, shared_address(smem), batch_head / problem.heads, batch_head % problem.heads, 0);
  gradients.clear();
  for (int group = 0; group < problem.groups; ++group) {
    gradients.fetch(number, [](float& sum, float part) { sum += part; });
    gradients.next_group();
  }
  gradients.store(shared_address(smem), number);
}

}  // namespace mmer::cuda
