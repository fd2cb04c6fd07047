// Gradients in float32 that a block of once_backward is not the only one to find, as the threads of
// its warps hold them, and merge_gradients, which adds them up in the order of the groups.

#pragma once

#include "config.h"
#include "elements.h"
#include "problem.h"

namespace mmer::cuda {

// What a warp keeps together: accumulators of 16 rows and all columns, or of 32 rows and half of
// them, one after the other, 16 bytes a thread.
template <int columns>
struct WarpParts {
  static constexpr int values = columns / 8;
  static constexpr int64_t floats = values * 128;

  static MMER_DEVICE int thread_place() { return threadIdx.x % 32 * 4; }

  static MMER_DEVICE void keep(float* parts_gmem, const float (&sums)[values][4]) {
    float4* target_gmem = reinterpret_cast<float4*>(parts_gmem);
#pragma unroll
    for (int n = 0; n < values; ++n) {
      target_gmem[n * 32] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
    }
  }
  static MMER_DEVICE void fetch(float (&sums)[values][4], const float* parts_gmem) {
    const float4* source_gmem = reinterpret_cast<const float4*>(parts_gmem);
#pragma unroll
    for (int n = 0; n < values; ++n) {
      const float4 part = source_gmem[n * 32];
      sums[n][0] = part.x;
      sums[n][1] = part.y;
      sums[n][2] = part.z;
      sums[n][3] = part.w;
    }
  }
};

// Where the accumulators of a warp's parts belong: the second half of them lies below the first, or
// beside it.
struct PartPlace {
  int first_row, first_column;
  int half_rows, half_columns;
};

template <class Element, int values>
MMER_DEVICE void store_parts(const Rows& target, int batch, int head, int time,
                             const PartPlace& place, const float (&sums)[values][4]) {
  using Bits = typename Element::Bits;
  constexpr int half_values = values / 2;
  const int lane = threadIdx.x % 32;
  const int row = place.first_row + lane / 4, column = place.first_column + lane % 4 * 2;
  const int64_t first =
      batch * target.batch_stride + head * target.head_stride + row * target.time_stride + column;
  const int64_t second = first + place.half_rows * target.time_stride + place.half_columns;
  if (!target.wide && target.aligned && place.first_row + place.half_rows + 16 <= time &&
      place.first_column + place.half_columns + half_values * 8 <= target.dim) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Bits* upper_gmem = static_cast<Bits*>(target.data) + (half ? second : first);
      Bits* lower_gmem = upper_gmem + 8 * target.time_stride;
#pragma unroll
      for (int n = 0; n < half_values; ++n) {
        const float (&sum)[4] = sums[half * half_values + n];
        reinterpret_cast<uint32_t*>(upper_gmem)[n * 4] = Element::pack(sum[0], sum[1]);
        reinterpret_cast<uint32_t*>(lower_gmem)[n * 4] = Element::pack(sum[2], sum[3]);
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < values; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int half = n / half_values, right = n % half_values * 8 + e % 2, below = e / 2 * 8;
      if (row + half * place.half_rows + below >= time ||
          column + half * place.half_columns + right >= target.dim) {
        continue;
      }
      const int64_t element = (half ? second : first) + below * target.time_stride + right;
      if (target.wide) {
        static_cast<float*>(target.data)[element] = sums[n][e];
      } else {
        static_cast<Bits*>(target.data)[element] = Element::round(sums[n][e]);
      }
    }
  }
}

// Warps for the tiles of columns that several groups of rows share, then for the tiles of rows that
// several groups of columns share. Each adds up the two gradients of the same rows and columns.
template <class Element, int columns, int row_class>
MMER_DEVICE void merge_gradients(const OnceBackwardProblem& problem) {
  using Parts = WarpParts<columns>;
  constexpr OnceConfig config = once_config(row_class);
  constexpr int half_warps = config.warps / 2;
  constexpr int part_rows = config.part_rows(columns), part_columns = config.part_columns(columns);
  constexpr int column_parts = config.column_parts(columns);
  const int batch_heads = problem.batch * problem.heads;
  const int column_warps = problem.column_tiles * half_warps;  // of a head
  const int all_column_warps =
      config.many_tiles(columns) && problem.row_groups > 1 ? batch_heads * column_warps : 0;
  int number = blockIdx.x * once_merge_warps + threadIdx.x / 32;
  const bool of_rows = number >= all_column_warps;
  if (of_rows) number -= all_column_warps;
  const int warps_a_head = of_rows ? problem.row_tiles * config.warps : column_warps;
  const int batch_head = number / warps_a_head;
  number %= warps_a_head;
  if (batch_head >= batch_heads) return;

  const float* parts_gmem;
  int time, groups, first_part, next_part;  // of the values' gradient, and to the other's
  PartPlace place;
  if (of_rows) {
    parts_gmem = problem.row_parts;
    time = problem.sides[0].time;
    groups = problem.column_groups;
    first_part = number * 2 + 1;
    next_part = -1;
    place = {number * warp_rows, 0, 0, columns / 2};
  } else {
    const int part = number % half_warps;
    parts_gmem = problem.column_parts;
    time = problem.sides[1].time;
    groups = problem.row_groups;
    first_part = number / half_warps * config.warps + part;
    next_part = half_warps;
    place = {number / half_warps * config.tile + part / column_parts * part_rows,
             part % column_parts * part_columns, part_rows - warp_rows,
             part_rows > warp_rows ? 0 : part_columns / 2};
  }
  if (place.first_row >= time) return;
  parts_gmem +=
      (batch_head * warps_a_head * int64_t{2} + first_part) * Parts::floats + Parts::thread_place();
  const int64_t group_floats = batch_heads * warps_a_head * 2 * Parts::floats;
#pragma unroll 1
  for (int of_scores = 0; of_scores < 2; ++of_scores) {
    float sums[Parts::values][4];
    Parts::fetch(sums, parts_gmem);
    const float* group_gmem = parts_gmem;
#pragma unroll 1
    for (int group = 1; group < groups; ++group) {
      group_gmem += group_floats;
      float part[Parts::values][4];
      Parts::fetch(part, group_gmem);
#pragma unroll
      for (int n = 0; n < Parts::values * 4; ++n) sums[n / 4][n % 4] += part[n / 4][n % 4];
    }
    if (of_scores) {
#pragma unroll
      for (int n = 0; n < Parts::values * 4; ++n) sums[n / 4][n % 4] *= problem.grad_scale;
    }
    const Rows& row_target = of_scores ? problem.grad_rows : problem.grad_value_rows;
    const Rows& column_target = of_scores ? problem.grad_columns : problem.grad_value_columns;
    store_parts<Element>(of_rows ? row_target : column_target, batch_head / problem.heads,
                         batch_head % problem.heads, time, place, sums);
    parts_gmem += next_part * Parts::floats;
  }
}

}  // namespace mmer::cuda
