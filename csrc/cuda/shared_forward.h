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

#pragma once

#include <type_traits>

#include "config.h"
#include "kernel_id.h"
#include "products.h"
#include "visible.h"

namespace mmer::cuda {

// Where sums of P may lie, and where the first maximum is put, in log2. Of float16 the products
// must neither overflow nor lose what matters below 2^-24.
template <class Element>
struct SafeRange {
  static constexpr float lowest = 1e-16f, highest = 1e30f, first_maximum = 0.0f;
};
template <>
struct SafeRange<float16> {
  static constexpr float lowest = 0.015625f, highest = 32768.0f, first_maximum = 8.0f;
};

template <class Element, int columns, int row_class>
MMER_DEVICE void shared_forward(const SharedForwardProblem& problem) {
  using Range = SafeRange<Element>;
  using HeadTile = Tile<Element, columns>;
  constexpr SharedConfig config = shared_config(row_class, columns);
  constexpr SharedSmem Smem(row_class, columns);
  constexpr int rows = config.rows(), threads = config.threads(), row_tiles = config.row_tiles;
  constexpr int row_warps = config.row_warps(), column_groups = config.column_groups;
  constexpr int tile = Smem.tile, strips = tile / 16, parts_stride = Smem.parts_stride;
  constexpr int column_warps = tile / 16, value_warps = config.warps / column_warps;
  constexpr int warp_values = columns / value_warps;
  // Warps that share their rows end with one row tile each.
  constexpr int last_row_tiles = row_tiles / column_groups;
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  float* parts_smem = reinterpret_cast<float*>(smem + Smem.column_parts);
  float* row_bias_smem = reinterpret_cast<float*>(smem + Smem.row_bias);
  // Of each row, in the exact pass; its registers would be missed in every pass.
  float* row_reference_smem = reinterpret_cast<float*>(smem + Smem.row_reference);
  float* row_parts_smem = reinterpret_cast<float*>(smem + Smem.row_parts);
  float* warp_parts_smem = reinterpret_cast<float*>(smem + Smem.warp_parts);
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.column_bias);
  const HeadTile a_smem{base + Smem.weights}, value_a_smem{base + Smem.value_a};

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_warp = warp % row_warps, column_group = warp / row_warps;
  const int quad = lane % 4, first_of_eight = lane / 4;
  const int row_group = blockIdx.x % problem.row_groups;
  const int batch_head = blockIdx.x / problem.row_groups;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const SharedSide &row_side = problem.rows, &column_side = problem.columns;
  const int block_row = row_group * problem.rows_a_group;
  const int row_count = min(row_side.time - block_row, problem.rows_a_group);
  const Visibility sequence_visible(row_side.mask, batch, row_side.time);
  const auto row_visible = [&](int row) {
    return row < row_count && sequence_visible(block_row + row);
  };
  const auto whole_rows = [&](int end) { return end <= row_count && !row_side.mask.data; };
  const Visibility column_visible(column_side.mask, batch, column_side.time);
  const int tile_count = (column_side.time + tile - 1) / tile;
  const int row_steps = (row_count + 15) / 16;
  const int warp_row = row_warp * row_tiles * 16;
  const bool busy = warp_row < row_count;
  // Two warps of the same rows count their row tiles from different ends.
  const auto tile_row = [&](int m) {
    return warp_row + (column_groups == 1 ? m : m ^ column_group) * 16;
  };
  // Rows that no query sees start their sums of products here: the exponential is 0.
  const float hidden_row = problem.scale < 0.0f ? 1e30f : -1e30f;
  float* reference_smem = bias_smem + tile_count * tile;  // of each column, in the exact pass

  // Where the columns' results go: of several groups of rows each has sums of its own.
  const int64_t of_columns =
      (int64_t{row_group} * problem.batch * problem.heads + batch_head) * column_side.time;
  const bool has_parts = problem.parts != nullptr;
  float* column_lse_gmem = (has_parts ? problem.part_lse : column_side.lse) + of_columns;
  const float lse_unit = has_parts ? 1.0f : ln_2;

  using Loader = RowLoader<Element, columns, threads>;
  const Loader load_b(column_side.x, batch, head), load_value_b(column_side.value, batch, head);
  const auto load_tile = [&](int number) {
    if (number >= tile_count) return;
    const int first = number * tile;
    // b, v_b (tile, columns)
    Loader::template load_two<tile, Smem.value_b - Smem.b>(
        load_b, load_value_b, HeadTile{base + Smem.b + number % 2 * Smem.tile_bytes}, first,
        column_visible.whole(first + tile), [&](int column) { return bias_smem[column] == 0.0f; });
  };
  int visible_rows = 0, visible_columns = 0;
  for (int row = threadIdx.x; row < rows; row += threads) {
    const bool visible = row_visible(row);
    visible_rows |= visible;
    row_bias_smem[row] = visible ? 0.0f : hidden_row;
  }
  for (int column = threadIdx.x; column < tile_count * tile; column += threads) {
    const bool visible = column_visible(column);
    visible_columns |= visible;
    bias_smem[column] = visible ? 0.0f : -infinity;
  }
  if (!busy && column_group == 0) {
    for (int column = lane; column < tile; column += 32) {
      parts_smem[row_warp * parts_stride + column] = 0.0f;
    }
  }
  // Sums of nothing are as they should be.
  const bool sees_something = __syncthreads_or(visible_rows) & __syncthreads_or(visible_columns);
  // a, v_a (rows, columns)
  Loader::template load_two<rows, Smem.value_a - Smem.weights>(
      Loader(row_side.x, batch, head), Loader(row_side.value, batch, head), a_smem, block_row,
      whole_rows(rows), [&](int step) { return row_bias_smem[step - block_row] == 0.0f; });
  load_tile(0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  uint32_t a_rmem[row_tiles][columns / 16][4];
#pragma unroll
  for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      load_fragment(a_rmem[m][step], a_smem, tile_row(m), step);
    }
  }
  __syncthreads();  // P takes a's place

  // Where the sums of a row's products start.
  const auto row_start = [&](int m, int half) {
    return row_bias_smem[tile_row(m) + half * 8 + first_of_eight];
  };
  const bool hides_rows = !whole_rows(warp_row + row_tiles * 16);
  // Where a lane starts to read in a tile: columns of b for the scores, rows of a value.
  const uint32_t score_place = kept(HeadTile{0}.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2));
  const uint32_t value_place = kept(HeadTile{0}.piece(lane % 16, lane / 16));
  constexpr int strip_bytes = 16 * HeadTile::row_bytes;
  // scores (16 row_tiles, 16) = a (16 row_tiles, columns) b^T of a strip of 16 columns
  const auto multiply_strip = [&](float (&scores)[row_tiles][2][4], uint32_t first) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) set_zero(scores[m]);
    if (hides_rows) {
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float start = row_start(m, half);
#pragma unroll
          for (int n = 0; n < 2; ++n) scores[m][n][2 * half] = scores[m][n][2 * half + 1] = start;
        }
      }
    }
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      uint32_t b[4];
      ldmatrix(b, HeadTile::advance(first, step * 2));
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        Element::mma(scores[m][0], a_rmem[m][step], b[0], b[1]);
        Element::mma(scores[m][1], a_rmem[m][step], b[2], b[3]);
      }
    }
  };
  // Of a strip's columns, those of this thread: 2 quad, 2 quad + 1, and 8 further.
  const auto strip_column = [&](int strip, int n, int e) {
    return strip * 16 + n * 8 + quad * 2 + e % 2;
  };
  const auto strip_count = [&](int number) {
    return busy ? min((column_side.time - number * tile + 15) >> 4, strips) : 0;
  };

  // A maximum of hidden pairs only; the reference is 0 then, and their exponentials are too.
  const float nothing_seen = 0.5f * hidden_row * problem.scale;
  float reference = 0.0f;
  {
    float largest = -infinity;
    if (column_group == 0) {
      float scores_rmem[row_tiles][2][4];
      multiply_strip(scores_rmem, base + Smem.b + score_place);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float bias = bias_smem[strip_column(0, e / 4, e)];
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          largest = fmaxf(largest, fmaf(scores_rmem[m][e / 4][e % 4], problem.scale, bias));
        }
      }
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        largest = fmaxf(largest, shuffle_xor(largest, lanes));
      }
      if (lane == 0) warp_parts_smem[row_warp] = largest;
    }
    __syncthreads();
    largest = warp_parts_smem[0];
    for (int n = 1; n < row_warps; ++n) largest = fmaxf(largest, warp_parts_smem[n]);
    if (largest > nothing_seen) reference = largest - Range::first_maximum;
  }

  const auto is_safe = [](float sum) { return (sum > Range::lowest) & (sum < Range::highest); };
  float out_rmem[row_tiles][columns / 8][4];
  float row_sum[row_tiles][2];

  // The maximum of every row and of every column, for the exact pass.
  const auto find_maxima = [&] {
    float row_max[row_tiles][2];
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) row_max[m][0] = row_max[m][1] = -infinity;
    for (int number = 0; number < tile_count; ++number) {
      load_tile(number);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      const int strip_end = strip_count(number);
#pragma unroll 1
      for (int strip = column_group; strip < strip_end; strip += column_groups) {
        float scores_rmem[row_tiles][2][4];
        multiply_strip(scores_rmem, base + Smem.b + number % 2 * Smem.tile_bytes + score_place +
                                        strip * strip_bytes);
        float column_max[4] = {-infinity, -infinity, -infinity, -infinity};
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float bias = bias_smem[number * tile + strip_column(strip, e / 4, e)];
            const float logit = fmaf(scores_rmem[m][e / 4][e % 4], problem.scale, bias);
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
          if (first_of_eight == 0) {
            parts_smem[row_warp * parts_stride + strip_column(strip, n / 2, n)] = column_max[n];
          }
        }
      }
      __syncthreads();
      const int busy_warps = (row_count + row_tiles * 16 - 1) / (row_tiles * 16);
      for (int column = threadIdx.x; column < tile; column += threads) {
        float largest = -infinity;
        for (int n = 0; n < busy_warps; ++n) {
          largest = fmaxf(largest, parts_smem[n * parts_stride + column]);
        }
        reference_smem[number * tile + column] = largest > nothing_seen ? largest : 0.0f;
      }
      __syncthreads();
    }
    for (int turn = 0; turn < column_groups; ++turn) {
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float largest = row_maximum(row_max[m][half]);
          float& point = row_reference_smem[tile_row(m) + half * 8 + first_of_eight];
          if (quad != 0 || column_group != turn) continue;
          if (turn > 0) largest = fmaxf(largest, point);
          // What no group has seen must stay below what the next one finds.
          point = largest > nothing_seen || turn + 1 < column_groups ? largest : 0.0f;
        }
      }
      __syncthreads();
    }
    load_tile(0);
    cp_async_commit();
  };

  // Both outputs; returns whether a sum left the safe range.
  const auto attend = [&](auto exactly) {
    constexpr bool exact = decltype(exactly)::value;
    bool unsafe = false;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
      set_zero(out_rmem[m]);
      row_sum[m][0] = row_sum[m][1] = 0.0f;
    }
    const float scale = problem.scale;
    // Where a lane stores what it has of P.
    const auto weights_place = [&](int m) -> uint32_t {
#if __CUDA_ARCH__ >= 900
      return Smem.weights + (tile_row(m) + lane % 16) * Smem.row_bytes + lane / 16 * 16;
#else
      return Smem.weights + (tile_row(m) + first_of_eight) * Smem.row_bytes + quad * 4;
#endif
    };
    uint32_t weights_places[column_groups];
#pragma unroll
    for (int m = 0; m < column_groups; ++m) weights_places[m] = kept(weights_place(m));
    // Where it stores the sum of the strip's column that is left to it.
    const bool upper = lane & 16, odd = lane & 8, holds_sum = !(lane & 4);
    const uint32_t sum_place =
        kept(Smem.column_parts + 4u * (row_warp * parts_stride + strip_column(0, upper, odd)));
    for (int number = 0; number < tile_count; ++number) {
      const uint32_t b_address = base + Smem.b + number % 2 * Smem.tile_bytes;
      const bool hides_columns = !column_visible.whole(number * tile + tile);
      int strips_left = strip_count(number) - column_group;
      load_tile(number + 1);
      cp_async_commit();
      cp_async_wait<1>();
      __syncthreads();
      uint32_t score_address = b_address + column_group * strip_bytes + score_place;
      uint32_t value_address =
          b_address + Smem.value_b - Smem.b + column_group * strip_bytes + value_place;
      uint32_t strip_offset = column_group * 32;
#pragma unroll 1
      for (; strips_left > 0; strips_left -= column_groups) {
        score_address = kept(score_address);
        value_address = kept(value_address);
        strip_offset = kept(strip_offset);
        float scores_rmem[row_tiles][2][4];
        multiply_strip(scores_rmem, score_address);
        float summand[4];  // of the exponents of this thread's columns
#pragma unroll
        for (int n = 0; n < 4; ++n) summand[n] = exact ? 0.0f : -reference;
        const int first_column = number * tile + strip_offset / 2;  // of the strip
        if (exact || hides_columns) {
#pragma unroll
          for (int n = 0; n < 4; ++n)
            summand[n] += bias_smem[first_column + strip_column(0, n / 2, n)];
        }
        float column_sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        uint32_t row_weights[row_tiles][4];
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          uint32_t column_weights[4];
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            // Two neighbours of a row: register n of the fragment of P.
            float of_row[2], of_column[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float exponent =
                  fmaf(scores_rmem[m][n / 2][n % 2 * 2 + e], scale, summand[n / 2 * 2 + e]);
              if constexpr (exact) {
                const int row = tile_row(m) + n % 2 * 8 + first_of_eight;
                const int column = first_column + strip_column(0, n / 2, e);
                of_row[e] = exp2_fast(exponent - row_reference_smem[row]);
                of_column[e] = exp2_fast(exponent - reference_smem[column]);
              } else {
                of_row[e] = of_column[e] = exp2_fast(exponent);
              }
              row_sum[m][n % 2] += of_row[e];
              float& sum = column_sum[n / 2 * 2 + e];
              sum = m == 0 && n % 2 == 0 ? of_column[e] : sum + of_column[e];
            }
            row_weights[m][n] = Element::pack(of_row[0], of_row[1]);
            column_weights[n] =
                exact ? Element::pack(of_column[0], of_column[1]) : row_weights[m][n];
          }
          // P (rows, tile)
          const uint32_t target = weights_places[m % column_groups] + strip_offset +
                                  m / column_groups * column_groups * 16 * Smem.row_bytes;
#if __CUDA_ARCH__ >= 900
          stmatrix(base + target, column_weights);
#else
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            *reinterpret_cast<uint32_t*>(smem + target + n % 2 * 8 * Smem.row_bytes + n / 2 * 16) =
                column_weights[n];
          }
#endif
        }
        // Four columns of eight rows' lanes to one column a lane, in four shuffles.
        float even_sum = (upper ? column_sum[2] : column_sum[0]) +
                         shuffle_xor(upper ? column_sum[0] : column_sum[2], 16);
        float odd_sum = (upper ? column_sum[3] : column_sum[1]) +
                        shuffle_xor(upper ? column_sum[1] : column_sum[3], 16);
        float sum = (odd ? odd_sum : even_sum) + shuffle_xor(odd ? even_sum : odd_sum, 8);
        sum += shuffle_xor(sum, 4);
        if (holds_sum) *reinterpret_cast<float*>(smem + sum_place + 2 * strip_offset) = sum;
        // out_a (16 row_tiles, columns) += P (16 row_tiles, 16) v_b (16, columns)
#pragma unroll
        for (int n = 0; n < columns / 16; ++n) {
          uint32_t b[4];
          ldmatrix_transposed(b, HeadTile::advance(value_address, n * 2));
#pragma unroll
          for (int m = 0; m < row_tiles; ++m) {
            Element::mma(out_rmem[m][2 * n], row_weights[m], b[0], b[1]);
            Element::mma(out_rmem[m][2 * n + 1], row_weights[m], b[2], b[3]);
          }
        }
        score_address += column_groups * strip_bytes;
        value_address += column_groups * strip_bytes;
        strip_offset += column_groups * 32;
      }
      __syncthreads();

      const int tile_column = warp / value_warps * 16;
      const int first_value = warp % value_warps * warp_values;
      if (number * tile + tile_column < column_side.time) {
        // out_b (16, warp_values) = P^T (16, rows) v_a (rows, warp_values)
        float out_b_rmem[warp_values / 8][4];
        set_zero(out_b_rmem);
        uint32_t weights_address = base + Smem.weights +
                                   (lane / 16 * 8 + lane % 8) * Smem.row_bytes + tile_column * 2 +
                                   lane / 8 % 2 * 16;
        uint32_t values_address =
            HeadTile::advance(value_a_smem.address + value_place, first_value / 8);
#pragma unroll 2
        for (int step = 0; step < row_steps; ++step) {
          uint32_t transposed[4];
          ldmatrix_transposed(transposed, weights_address);
#pragma unroll
          for (int n = 0; n < warp_values / 16; ++n) {
            uint32_t b[4];
            ldmatrix_transposed(b, HeadTile::advance(values_address, n * 2));
            Element::mma(out_b_rmem[2 * n], transposed, b[0], b[1]);
            Element::mma(out_b_rmem[2 * n + 1], transposed, b[2], b[3]);
          }
          weights_address += 16 * Smem.row_bytes;
          values_address += strip_bytes;
        }
        // A column for each half warp's lane.
        const int in_tile = tile_column + lane % 16, column = number * tile + in_tile;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < row_warps; n += 2) {
          sum += parts_smem[(n + lane / 16) * parts_stride + in_tile];
        }
        sum += shuffle_xor(sum, 16);
        unsafe |= (bias_smem[column] == 0.0f) & !is_safe(sum);
        if (lane < 16 && first_value == 0 && column < column_side.time) {
          const float point = exact ? reference_smem[column] : reference;
          column_lse_gmem[column] = sum > 0.0f ? (log2_fast(sum) + point) * lse_unit : -infinity;
        }
        const float column_inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
        const float inverse[2] = {shuffle(column_inverse, first_of_eight),
                                  shuffle(column_inverse, first_of_eight + 8)};
        clear_rows(out_b_rmem, inverse);
        const auto value = [&](int n, int e) { return out_b_rmem[n][e] * inverse[e / 2]; };
        const int first_column = number * tile + tile_column;
        if (has_parts) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int column = first_column + half * 8 + first_of_eight;
            if (column >= column_side.time) continue;
            float* part_gmem =
                problem.parts + (of_columns + column) * columns + first_value + quad * 2;
#pragma unroll
            for (int n = 0; n < warp_values / 8; ++n) {
              *reinterpret_cast<float2*>(part_gmem + n * 8) =
                  make_float2(value(n, 2 * half), value(n, 2 * half + 1));
            }
          }
        } else {
          store_warp_rows<warp_values>(HeadTile{b_address}, tile_column, column_side.out, batch,
                                       head, first_column, column_side.time, first_value, value);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = row_sum[m][half];
        sum = row_total(sum);
        if (column_groups == 2 && quad == 0) {
          row_parts_smem[column_group * rows + tile_row(m) + half * 8 + first_of_eight] = sum;
        }
      }
    }
    if (column_groups == 2) __syncthreads();
#pragma unroll
    for (int m = 0; m < last_row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = row_sum[m][half];
        if (column_groups == 2) {
          const int row = tile_row(m) + half * 8 + first_of_eight;
          sum = row_parts_smem[row] + row_parts_smem[rows + row];
        }
        unsafe |= (row_start(m, half) == 0.0f) & !is_safe(sum);
      }
    }
    return unsafe;
  };

  const bool exact = __syncthreads_or(attend(std::false_type{}) && sees_something);
  if (exact) {
    find_maxima();
    attend(std::true_type{});
  }
  cp_async_wait<0>();

  if constexpr (column_groups == 2) {
    // Of the row tile that the other warp of these rows ends with, (columns / 8, threads, 4).
    const auto exchange_address = [&](int group, int n) {
      return base + Smem.b +
             ((group * (columns / 8) + n) * row_warps * 32 + row_warp * 32 + lane) * 16;
    };
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
      const float (&sums)[4] = out_rmem[1][n];
      store_shared(exchange_address(1 - column_group, n),
                   make_uint4(__float_as_uint(sums[0]), __float_as_uint(sums[1]),
                              __float_as_uint(sums[2]), __float_as_uint(sums[3])));
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
      const uint4 sums = load_shared(exchange_address(column_group, n));
      out_rmem[0][n][0] += __uint_as_float(sums.x);
      out_rmem[0][n][1] += __uint_as_float(sums.y);
      out_rmem[0][n][2] += __uint_as_float(sums.z);
      out_rmem[0][n][3] += __uint_as_float(sums.w);
    }
  }
#pragma unroll
  for (int m = 0; m < last_row_tiles; ++m) {
    const int first_row = tile_row(m);
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + first_of_eight;
      const float sum = row_sum[m][half];
      inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
      if (quad == 0 && row < row_count) {
        const float point = exact ? row_reference_smem[row] : reference;
        row_side.lse[static_cast<int64_t>(batch_head) * row_side.time + block_row + row] =
            sum > 0.0f ? (log2_fast(sum) + point) * ln_2 : -infinity;
      }
    }
    if (first_row >= row_count) continue;
    clear_rows(out_rmem[m], inverse);
    store_warp_rows<columns>(a_smem, first_row, row_side.out, batch, head, block_row + first_row,
                             block_row + row_count, 0,
                             [&](int n, int e) { return out_rmem[m][n][e] * inverse[e / 2]; });
  }
}

}  // namespace mmer::cuda
