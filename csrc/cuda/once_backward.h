// Shared cross-attention backward with S computed once: seven products where two owners of tiles
// (owner_backward.h) make ten. A block owns a head: all rows of the shorter sequence a, 16 a warp,
// and the tiles of b one after the other.
//
//   P_a = exp(S - lse_a)   P_b = exp(S - lse_b)
//   dS = P_a (dO_a v_b^T - correction_a) + P_b (v_a dO_b^T - correction_b)
//   da += dS b     dv_a += P_b dO_b     db = dS^T a     dv_b = P_a^T dO_a
//
// The gradients of a stay in registers. Those of b are whole after each tile: dS and P_a pass
// through shared memory, transposed, and a warp takes 16 columns of one of the two.

#pragma once

#include "config.h"
#include "owner_backward.h"
#include "products.h"
#include "visible.h"

namespace mmer::cuda {

template <class Element, int columns>
MMER_DEVICE void once_backward(const OnceBackwardProblem& problem) {
  using HeadTile = Tile<Element, columns>;
  using Loader = RowLoader<Element, columns, once_backward_threads>;
  constexpr OnceSmem Smem(columns);
  constexpr int rows = once_backward_rows, tile = once_backward_tile;
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.bias);
  float* lse_smem = reinterpret_cast<float*>(smem + Smem.lse);
  float* correction_smem = reinterpret_cast<float*>(smem + Smem.correction);
  const HeadTile a_smem{base + Smem.a}, value_a_smem{base + Smem.value_a};
  const HeadTile grad_out_a_smem{base + Smem.grad_out_a};

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_row = warp * warp_rows;
  const int batch_head = blockIdx.x;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const Side &row_side = problem.rows, &column_side = problem.columns;
  const Visibility row_visible(row_side.mask, batch, row_side.time);
  const Visibility column_visible(column_side.mask, batch, column_side.time);
  // Nothing hides a step from all that could see it: only the end of a sequence has to be minded.
  const bool all_see = !row_side.mask.data && !column_side.mask.data;
  const int tile_count = (column_side.time + tile - 1) / tile;
  const int row_steps = (row_side.time + warp_rows - 1) / warp_rows;

  const Loader load_b(column_side.x, batch, head), load_value_b(column_side.value, batch, head);
  const Loader load_grad_out_b(column_side.grad_out, batch, head);
  const auto load_tile = [&](int number) {
    if (number >= tile_count) return;
    const uint32_t stage = base + Smem.stages + number % 2 * Smem.stage_bytes;
    const int first = number * tile;
    const bool whole = column_visible.whole(first + tile);
    // b, v_b, dO_b (tile, columns)
    Loader::template load_two<tile, Smem.tile_bytes>(load_b, load_value_b, HeadTile{stage}, first,
                                                     whole, column_visible);
    load_grad_out_b.template load<tile>(
        HeadTile{stage + 2 * Smem.tile_bytes}, first, all_see && whole,
        [&](int step) { return state_of(column_side, batch_head, step).x < infinity; });
    if (threadIdx.x < tile) {
      const int step = first + threadIdx.x, place = number % 2 * tile + threadIdx.x;
      const float2 state = state_of(column_side, batch_head, step);
      bias_smem[place] = column_visible(step) ? 0.0f : -infinity;
      lse_smem[place] = state.x;
      correction_smem[place] = state.y;
    }
  };
  // a, v_a, dO_a (rows, columns)
  const bool whole_rows = row_visible.whole(rows);
  Loader::template load_two<rows, Smem.value_a - Smem.a>(Loader(row_side.x, batch, head),
                                                         Loader(row_side.value, batch, head),
                                                         a_smem, 0, whole_rows, row_visible);
  load_rows<rows, once_backward_threads>(
      grad_out_a_smem, row_side.grad_out, batch, head, 0, all_see && whole_rows,
      [&](int step) { return state_of(row_side, batch_head, step).x < infinity; });
  load_tile(0);
  cp_async_commit();

  // Rows that nothing sees start their sums of products here: both exponentials are 0.
  const float hidden_row = problem.scale < 0.0f ? 1e30f : -1e30f;
  float row_start[2], row_lse[2], row_correction[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + lane / 4 + half * 8;
    const float2 state = state_of(row_side, batch_head, row);
    row_start[half] = row_visible(row) ? 0.0f : hidden_row;
    row_lse[half] = state.x;
    row_correction[half] = state.y;
  }
  // A softmax over one step is constant. To find that from differences would leave their rounding.
  const bool constant_of_a = column_side.time == 1, constant_of_b = row_side.time == 1;

  constexpr int steps = steps_of<Element, columns>;
  uint32_t a_rmem[steps][4], value_a_rmem[steps][4], grad_out_a_rmem[steps][4];
  float grad_a_rmem[columns / 8][4], grad_value_a_rmem[columns / 8][4];
  set_zero(grad_a_rmem);
  set_zero(grad_value_a_rmem);
  for (int number = 0; number < tile_count; ++number) {
    load_tile(number + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (number == 0) {
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        load_fragment(a_rmem[step], a_smem, warp_row, step);
        load_fragment(value_a_rmem[step], value_a_smem, warp_row, step);
        load_fragment(grad_out_a_rmem[step], grad_out_a_smem, warp_row, step);
      }
    }
    const uint32_t stage = base + Smem.stages + number % 2 * Smem.stage_bytes;
    const HeadTile b_smem{stage}, value_b_smem{stage + Smem.tile_bytes};
    const HeadTile grad_out_b_smem{stage + 2 * Smem.tile_bytes};
    const int first_column = number * tile;
    if (warp_row < row_side.time) {
      const auto from = [](const uint32_t (&fragments)[steps][4]) {
        return [&](int step, uint32_t (&fragment)[4]) {
#pragma unroll
          for (int n = 0; n < 4; ++n) fragment[n] = fragments[step][n];
        };
      };
      // Of the columns 8 n + 2 (lane % 4) and the next, which a lane holds.
      const auto pair_of = [&](const float* values_smem, int n) {
        return *reinterpret_cast<const float2*>(values_smem + number % 2 * tile + n * 8 +
                                                lane % 4 * 2);
      };
      // S (16, tile) = a b^T, and the gradients of both P, which start at minus the corrections:
      // dO_a v_b^T and v_a dO_b^T
      float scores_rmem[tile / 8][4], grad_rows_rmem[tile / 8][4], grad_columns_rmem[tile / 8][4];
#pragma unroll
      for (int n = 0; n < tile / 8; ++n) {
        const float2 correction = pair_of(correction_smem, n);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          scores_rmem[n][e] = row_start[e / 2];
          grad_rows_rmem[n][e] = -row_correction[e / 2];
          grad_columns_rmem[n][e] = e % 2 ? -correction.y : -correction.x;
        }
      }
      multiply_transposed<tile>(scores_rmem, b_smem, from(a_rmem));
      if (!constant_of_a) {
        multiply_transposed<tile>(grad_rows_rmem, value_b_smem, from(grad_out_a_rmem));
      }
      if (!constant_of_b) {
        multiply_transposed<tile>(grad_columns_rmem, grad_out_b_smem, from(value_a_rmem));
      }
      float factor = problem.scale;
      if (!column_visible.whole(first_column + tile)) {
#pragma unroll
        for (int n = 0; n < tile / 8; ++n) {
          const float2 bias = pair_of(bias_smem, n);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            scores_rmem[n][e] = fmaf(scores_rmem[n][e], factor, e % 2 ? bias.y : bias.x);
          }
        }
        factor = 1.0f;
      }
      // P_b takes the place of its gradient, P_a that of its own, dS that of S; P_a and dS (rows,
      // tile) go to shared memory.
      const uint32_t pair_place =
          base + Smem.weights + (warp_row + lane / 4) * Smem.weights_stride + lane % 4 * 4;
#pragma unroll
      for (int n = 0; n < tile / 8; ++n) {
        const float2 lse = pair_of(lse_smem, n);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float of_row = exp2_fast(fmaf(scores_rmem[n][e], factor, -row_lse[e / 2]));
          const float of_column =
              exp2_fast(fmaf(scores_rmem[n][e], factor, e % 2 ? -lse.y : -lse.x));
          scores_rmem[n][e] =
              fmaf(of_row, grad_rows_rmem[n][e], of_column * grad_columns_rmem[n][e]);
          grad_rows_rmem[n][e] = of_row;
          grad_columns_rmem[n][e] = of_column;
        }
        const auto store = [&](auto distance, const float (&values)[4]) {
          constexpr int below = 8 * Smem.weights_stride + decltype(distance)::value;
          store_shared<decltype(distance)::value>(pair_place + n * 16,
                                                  Element::pack(values[0], values[1]));
          store_shared<below>(pair_place + n * 16, Element::pack(values[2], values[3]));
        };
        store(std::integral_constant<int, 0>{}, grad_rows_rmem[n]);
        store(std::integral_constant<int, Smem.weights_bytes>{}, scores_rmem[n]);
      }
      accumulate<tile, columns>(grad_value_a_rmem, grad_columns_rmem, grad_out_b_smem, 0);
      accumulate<tile, columns>(grad_a_rmem, scores_rmem, b_smem, 0);
    }
    __syncthreads();

    const int strip = warp % 2 * 16, of_scores = warp / 2;
    if (first_column + strip < column_side.time) {
      // (16, columns) = P_a^T (16, rows) dO_a (rows, columns), or dS^T a
      float gradient_rmem[columns / 8][4];
      set_zero(gradient_rmem);
      const HeadTile right_smem = of_scores ? a_smem : grad_out_a_smem;
      uint32_t weights_address = base + Smem.weights + of_scores * Smem.weights_bytes +
                                 (lane / 16 * 8 + lane % 8) * Smem.weights_stride + strip * 2 +
                                 lane / 8 % 2 * 16;
#pragma unroll
      for (int step = 0; step < rows / 16; ++step) {
        if (step >= row_steps) break;
        uint32_t transposed[4];
        ldmatrix_transposed(transposed, weights_address);
#pragma unroll
        for (int n = 0; n < columns / 16; ++n) {
          uint32_t b[4];
          load_values(b, right_smem, step, n * 16);
          Element::mma(gradient_rmem[2 * n], transposed, b[0], b[1]);
          Element::mma(gradient_rmem[2 * n + 1], transposed, b[2], b[3]);
        }
        weights_address += 16 * Smem.weights_stride;
      }
      const float scale = of_scores ? problem.grad_scale : 1.0f;
      store_warp_rows<columns>(of_scores ? b_smem : value_b_smem, strip,
                               of_scores ? problem.grad_columns : problem.grad_value_columns, batch,
                               head, first_column + strip, column_side.time, 0,
                               [&](int n, int e) { return gradient_rmem[n][e] * scale; });
    }
    __syncthreads();
  }
  cp_async_wait<0>();
  if (warp_row >= row_side.time) return;
  const auto store = [&](const Rows& target, const auto& gradient_rmem, float scale) {
    store_warp_rows<columns>(a_smem, warp_row, target, batch, head, warp_row, row_side.time, 0,
                             [&](int n, int e) { return gradient_rmem[n][e] * scale; });
  };
  store(problem.grad_rows, grad_a_rmem, problem.grad_scale);
  store(problem.grad_value_rows, grad_value_a_rmem, 1.0f);
}

}  // namespace mmer::cuda
