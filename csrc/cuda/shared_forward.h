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

template <int columns, int row_class>
struct SharedSmem {
  static constexpr SharedConfig config = shared_config(row_class);
  static constexpr int tile = config.tile(columns);
  static constexpr int weights_stride = tile * 2 + 16;  // bytes: eight rows in different banks
  static constexpr int row_bytes = columns * 2 > weights_stride ? columns * 2 : weights_stride;
  static constexpr int tile_bytes = tile * columns * 2;
  static constexpr int value_a = 0;
  static constexpr int weights = value_a + config.rows() * columns * 2;  // first a, then P
  static constexpr int b = weights + config.rows() * row_bytes;          // two stages
  static constexpr int value_b = b + 2 * tile_bytes;                     // two stages
  static constexpr int column_parts = value_b + 2 * tile_bytes;          // (warps, tile) floats
  static constexpr int row_bias = column_parts + config.warps * (tile + 16) * 4;
  static constexpr int row_reference = row_bias + config.rows() * 4;
  static constexpr int warp_parts = row_reference + config.rows() * 4;
  static constexpr int column_bias = warp_parts + config.warps * 4;  // as many floats as columns
};

template <class Element, int columns, int row_class>
MMER_DEVICE void shared_forward(const SharedForwardProblem& problem) {
  using Smem = SharedSmem<columns, row_class>;
  using Range = SafeRange<Element>;
  using HeadTile = Tile<Element, columns>;
  constexpr SharedConfig config = shared_config(row_class);
  constexpr int rows = config.rows(), threads = config.threads(), row_tiles = config.row_tiles;
  constexpr int tile = Smem::tile, strips = tile / 16, parts_stride = tile + 16;
  constexpr int column_warps = tile / 16, value_warps = config.warps / column_warps;
  constexpr int warp_values = columns / value_warps;
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  float* parts_smem = reinterpret_cast<float*>(smem + Smem::column_parts);
  float* row_bias_smem = reinterpret_cast<float*>(smem + Smem::row_bias);
  // Of each row, in the exact pass; its registers would be missed in every pass.
  float* row_reference_smem = reinterpret_cast<float*>(smem + Smem::row_reference);
  float* warp_parts_smem = reinterpret_cast<float*>(smem + Smem::warp_parts);
  float* bias_smem = reinterpret_cast<float*>(smem + Smem::column_bias);
  const HeadTile a_smem{base + Smem::weights}, value_a_smem{base + Smem::value_a};

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int quad = lane % 4, first_of_eight = lane / 4;
  const int batch = blockIdx.x / problem.heads, head = blockIdx.x % problem.heads;
  const SharedSide &row_side = problem.rows, &column_side = problem.columns;
  const Visibility row_visible(row_side.mask, batch, row_side.time);
  const Visibility column_visible(column_side.mask, batch, column_side.time);
  const int tile_count = (column_side.time + tile - 1) / tile;
  const int row_steps = (row_side.time + 15) / 16;
  const int busy_warps = (row_steps + row_tiles - 1) / row_tiles;
  const int warp_row = warp * row_tiles * 16;
  // Rows that no query sees start their sums of products here: the exponential is 0.
  const float hidden_row = problem.scale < 0.0f ? 1e30f : -1e30f;
  constexpr int to_value = Smem::value_b - Smem::b;
  // Where a lane stores what it has of P.
  unsigned char* weights_smem =
      smem + Smem::weights + (warp_row + first_of_eight) * Smem::row_bytes + quad * 4;
  float* reference_smem = bias_smem + tile_count * tile;  // of each column, in the exact pass

  const auto load_tile = [&](int number) {
    if (number >= tile_count) return;
    const int offset = number % 2 * Smem::tile_bytes;
    // b, v_b (tile, columns)
    const bool whole = column_visible.whole(number * tile + tile);
    load_rows<tile, threads>(HeadTile{base + Smem::b + offset}, column_side.x, batch, head,
                             number * tile, whole, column_visible);
    load_rows<tile, threads>(HeadTile{base + Smem::value_b + offset}, column_side.value, batch,
                             head, number * tile, whole, column_visible);
  };
  for (int row = threadIdx.x; row < rows; row += threads) {
    row_bias_smem[row] = row_visible(row) ? 0.0f : hidden_row;
  }
  for (int column = threadIdx.x; column < tile_count * tile; column += threads) {
    bias_smem[column] = column_visible(column) ? 0.0f : -infinity;
  }
  // a, v_a (rows, columns)
  const bool whole_rows = row_visible.whole(rows);
  load_rows<rows, threads>(a_smem, row_side.x, batch, head, 0, whole_rows, row_visible);
  load_rows<rows, threads>(value_a_smem, row_side.value, batch, head, 0, whole_rows, row_visible);
  load_tile(0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  uint32_t a_rmem[row_tiles][columns / 16][4];
#pragma unroll
  for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      load_fragment(a_rmem[m][step], a_smem, warp_row + m * 16, step);
    }
  }
  __syncthreads();  // P takes a's place

  // Where the sums of a row's products start.
  const auto row_start = [&](int m, int half) {
    return row_bias_smem[warp_row + m * 16 + half * 8 + first_of_eight];
  };
  const bool hides_rows = !row_visible.whole(warp_row + row_tiles * 16);
  // Where a lane starts to read in a tile: columns of b for the scores, rows of a value.
  const uint32_t score_place = HeadTile{0}.piece(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const uint32_t value_place = HeadTile{0}.piece(lane % 16, lane / 16);
  constexpr int strip_bytes = 16 * HeadTile::row_bytes;
  // scores (16 row_tiles, 16) = a (16 row_tiles, columns) b^T of a strip of 16 columns
  const auto multiply_strip = [&](float (&scores)[row_tiles][2][4], uint32_t b_address) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) set_zero(scores[m]);
    if (hides_rows) {
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int e = 0; e < 8; ++e) scores[m][e / 4][e % 4] = row_start(m, e % 4 / 2);
      }
    }
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      uint32_t b[4];
      ldmatrix(b, HeadTile::advance(b_address + score_place, step * 2));
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

  // A maximum of hidden pairs only; the reference is 0 then, and their exponentials are too.
  const float nothing_seen = 0.5f * hidden_row * problem.scale;
  float reference = 0.0f;
  {
    float scores_rmem[row_tiles][2][4];
    multiply_strip(scores_rmem, base + Smem::b);
    float largest = -infinity;
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float bias = bias_smem[strip_column(0, e / 4, e)];
        largest = fmaxf(largest, fmaf(scores_rmem[m][e / 4][e % 4], problem.scale, bias));
      }
    }
    for (int lanes = 16; lanes > 0; lanes /= 2)
      largest = fmaxf(largest, shuffle_xor(largest, lanes));
    if (lane == 0) warp_parts_smem[warp] = largest;
    __syncthreads();
    largest = warp_parts_smem[0];
    for (int n = 1; n < config.warps; ++n) largest = fmaxf(largest, warp_parts_smem[n]);
    if (largest > nothing_seen) reference = largest - Range::first_maximum;
    __syncthreads();
  }

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
#pragma unroll 1
      for (int strip = 0; strip < strips; ++strip) {
        float scores_rmem[row_tiles][2][4];
        multiply_strip(scores_rmem,
                       base + Smem::b + number % 2 * Smem::tile_bytes + strip * strip_bytes);
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
            parts_smem[warp * parts_stride + strip_column(strip, n / 2, n)] = column_max[n];
          }
        }
      }
      __syncthreads();
      for (int column = threadIdx.x; column < tile; column += threads) {
        float largest = -infinity;
        for (int n = 0; n < busy_warps; ++n) {
          largest = fmaxf(largest, parts_smem[n * parts_stride + column]);
        }
        reference_smem[number * tile + column] = largest > nothing_seen ? largest : 0.0f;
      }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float largest = row_maximum(row_max[m][half]);
        if (quad == 0) {
          row_reference_smem[warp_row + m * 16 + half * 8 + first_of_eight] =
              largest > nothing_seen ? largest : 0.0f;
        }
      }
    }
    __syncwarp();
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
    for (int number = 0; number < tile_count; ++number) {
      const uint32_t b_address = base + Smem::b + number % 2 * Smem::tile_bytes;
      const bool whole = column_visible.whole(number * tile + tile);
      const int strip_count =
          warp < busy_warps ? min((column_side.time - number * tile + 15) / 16, strips) : 0;
      load_tile(number + 1);
      cp_async_commit();
      cp_async_wait<1>();
      __syncthreads();
#pragma unroll 1
      for (int strip = 0; strip < strip_count; ++strip) {
        const uint32_t strip_address = b_address + strip * strip_bytes;
        float scores_rmem[row_tiles][2][4];
        multiply_strip(scores_rmem, strip_address);
        float summand[4];  // of the exponents of this thread's columns
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          summand[n] = exact ? 0.0f : -reference;
          if (exact || !whole)
            summand[n] += bias_smem[number * tile + strip_column(strip, n / 2, n)];
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
                  fmaf(scores_rmem[m][n / 2][n % 2 * 2 + e], problem.scale, summand[n / 2 * 2 + e]);
              if constexpr (exact) {
                const int row = warp_row + m * 16 + n % 2 * 8 + first_of_eight;
                const int column = number * tile + strip_column(strip, n / 2, e);
                of_row[e] = exp2_fast(exponent - row_reference_smem[row]);
                of_column[e] = exp2_fast(exponent - reference_smem[column]);
              } else {
                of_row[e] = of_column[e] = exp2_fast(exponent);
              }
              row_sum[m][n % 2] += of_row[e];
              column_sum[n / 2 * 2 + e] += of_column[e];
            }
            row_weights[m][n] = Element::pack(of_row[0], of_row[1]);
            column_weights[n] =
                exact ? Element::pack(of_column[0], of_column[1]) : row_weights[m][n];
          }
          // P (rows, tile)
#if __CUDA_ARCH__ >= 900
          stmatrix(base + Smem::weights + (warp_row + m * 16 + lane % 16) * Smem::row_bytes +
                       strip * 32 + lane / 16 * 16,
                   column_weights);
#else
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            unsigned char* target_smem =
                weights_smem + strip * 32 + (m * 16 + n % 2 * 8) * Smem::row_bytes + n / 2 * 16;
            *reinterpret_cast<uint32_t*>(target_smem) = column_weights[n];
          }
#endif
        }
        // Four columns of eight rows' lanes to one column a lane, in four shuffles.
        const bool upper = lane & 16, odd = lane & 8;
        float even_sum = (upper ? column_sum[2] : column_sum[0]) +
                         shuffle_xor(upper ? column_sum[0] : column_sum[2], 16);
        float odd_sum = (upper ? column_sum[3] : column_sum[1]) +
                        shuffle_xor(upper ? column_sum[1] : column_sum[3], 16);
        float sum = (odd ? odd_sum : even_sum) + shuffle_xor(odd ? even_sum : odd_sum, 8);
        sum += shuffle_xor(sum, 4);
        if (!(lane & 4)) {
          parts_smem[warp * parts_stride + strip_column(strip, upper, odd)] = sum;
        }
        // out_a (16 row_tiles, columns) += P (16 row_tiles, 16) v_b (16, columns)
#pragma unroll
        for (int n = 0; n < columns / 16; ++n) {
          uint32_t b[4];
          ldmatrix_transposed(b, HeadTile::advance(strip_address + to_value + value_place, n * 2));
#pragma unroll
          for (int m = 0; m < row_tiles; ++m) {
            Element::mma(out_rmem[m][2 * n], row_weights[m], b[0], b[1]);
            Element::mma(out_rmem[m][2 * n + 1], row_weights[m], b[2], b[3]);
          }
        }
      }
      __syncthreads();

      const int tile_column = warp / value_warps * 16;
      const int first_value = warp % value_warps * warp_values;
      if (number * tile + tile_column < column_side.time) {
        // out_b (16, warp_values) = P^T (16, rows) v_a (rows, warp_values)
        float out_b_rmem[warp_values / 8][4];
        set_zero(out_b_rmem);
        uint32_t weights_address = base + Smem::weights +
                                   (lane / 16 * 8 + lane % 8) * Smem::row_bytes + tile_column * 2 +
                                   lane / 8 % 2 * 16;
        uint32_t value_address =
            HeadTile::advance(value_a_smem.address + value_place, first_value / 8);
#pragma unroll 2
        for (int step = 0; step < row_steps; ++step) {
          uint32_t transposed[4];
          ldmatrix_transposed(transposed, weights_address);
#pragma unroll
          for (int n = 0; n < warp_values / 16; ++n) {
            uint32_t b[4];
            ldmatrix_transposed(b, HeadTile::advance(value_address, n * 2));
            Element::mma(out_b_rmem[2 * n], transposed, b[0], b[1]);
            Element::mma(out_b_rmem[2 * n + 1], transposed, b[2], b[3]);
          }
          weights_address += 16 * Smem::row_bytes;
          value_address += strip_bytes;
        }
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int in_tile = tile_column + half * 8 + first_of_eight;
          const int column = number * tile + in_tile;
          float sum = 0.0f;
          for (int n = quad; n < busy_warps; n += 4) sum += parts_smem[n * parts_stride + in_tile];
          sum = row_total(sum);
          const bool visible = bias_smem[column] == 0.0f;
          const bool safe = sum > Range::lowest && sum < Range::highest;
          unsafe = unsafe || (visible && !safe);
          inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
          if (quad == 0 && first_value == 0 && column < column_side.time) {
            const float point = exact ? reference_smem[column] : reference;
            column_side.lse[static_cast<int64_t>(blockIdx.x) * column_side.time + column] =
                sum > 0.0f ? (log2_fast(sum) + point) * ln_2 : -infinity;
          }
        }
        clear_rows(out_b_rmem, inverse);
        store_warp_rows<warp_values>(
            HeadTile{b_address}, tile_column, column_side.out, batch, head,
            number * tile + tile_column, column_side.time, first_value,
            [&](int n, int e) { return out_b_rmem[n][e] * inverse[e / 2]; });
      }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = row_sum[m][half];
        sum = row_total(sum);
        const bool safe = sum > Range::lowest && sum < Range::highest;
        unsafe = unsafe || (row_start(m, half) == 0.0f && !safe);
      }
    }
    return unsafe;
  };

  const bool exact = __syncthreads_or(attend(std::false_type{}));
  if (exact) {
    find_maxima();
    attend(std::true_type{});
  }
  cp_async_wait<0>();

#pragma unroll
  for (int m = 0; m < row_tiles; ++m) {
    const int first_row = warp_row + m * 16;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + first_of_eight;
      const float sum = row_sum[m][half];
      inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
      if (quad == 0 && row < row_side.time) {
        const float point = exact ? row_reference_smem[row] : reference;
        row_side.lse[static_cast<int64_t>(blockIdx.x) * row_side.time + row] =
            sum > 0.0f ? (log2_fast(sum) + point) * ln_2 : -infinity;
      }
    }
    if (first_row >= row_side.time) continue;
    clear_rows(out_rmem[m], inverse);
    store_warp_rows<columns>(a_smem, first_row, row_side.out, batch, head, first_row, row_side.time,
                             0, [&](int n, int e) { return out_rmem[m][n][e] * inverse[e / 2]; });
  }
}

}  // namespace mmer::cuda
