// Shared cross-attention backward with S computed once: seven products where two owners of tiles
// (owner_backward.h) make ten. A block owns a head, or a group of its tiles of rows a, 16 rows a
// warp, and for each tile of rows reads the tiles of b one after the other.
//
//   P_a = exp(S - lse_a)   P_b = exp(S - lse_b)
//   dS = P_a (dO_a v_b^T - correction_a) + P_b (v_a dO_b^T - correction_b)
//   da += dS b     dv_a += P_b dO_b     db += dS^T a     dv_b += P_a^T dO_a
//
// The gradients of a stay in registers. For those of b, dS and P_a pass through shared memory,
// transposed, and each warp takes a part of the tile of one of the two. From one tile of rows to
// the next they wait in global memory, where each thread finds its own: nothing is added up across
// blocks but by merge_gradients, in the order of the groups, and the same inputs give the same bits.

#pragma once

#include "config.h"
#include "once_gradients.h"
#include "owner_backward.h"
#include "products.h"
#include "visible.h"

namespace mmer::cuda {

template <class Element, int columns, int row_class>
MMER_DEVICE void once_backward(const OnceBackwardProblem& problem) {
  using HeadTile = Tile<Element, columns>;
  constexpr OnceConfig config = once_config(row_class);
  constexpr int rows = config.rows(), tile = config.tile;
  using Loader = RowLoader<Element, columns, config.threads()>;
  constexpr OnceSmem Smem(row_class, columns);
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.bias);
  float* states_smem = reinterpret_cast<float*>(smem + Smem.states);
  const HeadTile a_smem{base + Smem.a}, value_a_smem{base + Smem.value_a};
  const HeadTile grad_out_a_smem{base + Smem.grad_out_a};

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * warp_rows;
  const int batch_head = blockIdx.x / problem.groups, group = blockIdx.x % problem.groups;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const Side &row_side = problem.rows, &column_side = problem.columns;
  const Visibility row_visible(row_side.mask, batch, row_side.time);
  const Visibility column_visible(column_side.mask, batch, column_side.time);
  // Nothing hides a step from all that could see it: only the end of a sequence has to be minded.
  const bool all_see = !row_side.mask.data && !column_side.mask.data;
  const int tile_count = (column_side.time + tile - 1) / tile;
  const int first_row_tile = group * problem.tiles_a_group;
  const int end_row_tile = min(first_row_tile + problem.tiles_a_group, problem.row_tiles);

  const Loader load_b(column_side.x, batch, head), load_value_b(column_side.value, batch, head);
  const Loader load_grad_out_b(column_side.grad_out, batch, head);
  const auto load_tile = [&](int number, int stage) {
    const HeadTile b_smem{base + Smem.stages + stage * Smem.stage_bytes};
    const int first = number * tile;
    const bool whole = column_visible.whole(first + tile);
    // b, v_b, dO_b (tile, columns)
    Loader::template load_two<tile, Smem.tile_bytes>(load_b, load_value_b, b_smem, first, whole,
                                                     column_visible);
    load_grad_out_b.template load<tile>(
        HeadTile{b_smem.address + 2 * Smem.tile_bytes}, first, all_see && whole,
        [&](int step) { return state_of(column_side, batch_head, step).x < infinity; });
    if (threadIdx.x < tile) {
      const int step = first + threadIdx.x, place = stage * tile + threadIdx.x;
      const float2 state = state_of(column_side, batch_head, step);
      bias_smem[place] = column_visible(step) ? 0.0f : -infinity;
      states_smem[place / 2 * 4 + place % 2] = -state.x;
      states_smem[place / 2 * 4 + place % 2 + 2] = -state.y;
    }
  };

  // Rows that nothing sees start their sums of products here: both exponentials are 0.
  const float hidden_row = problem.scale < 0.0f ? 1e30f : -1e30f;
  // A softmax over one step is constant. To find that from differences would leave their rounding.
  const bool constant_of_a = column_side.time == 1, constant_of_b = row_side.time == 1;
  LanePlaces a_places = left_places(a_smem, warp_row);
  LanePlaces b_places = transposed_places(HeadTile{base + Smem.stages});
  LanePlaces b_values = value_places(HeadTile{base + Smem.stages});
  a_places.keep();
  b_places.keep();
  b_values.keep();
  // P_a and dS (rows, tile) go to shared memory.
  const uint32_t pair_place = kept(base + Smem.weights +
                                   (warp_row + lane / 4) * Smem.weights_stride + lane % 4 * 4);
  OnceGradients<Element, columns, row_class> gradients(problem, base, batch_head, group);

  int stage = 0;
  load_tile(0, stage);
  for (int row_tile = first_row_tile; row_tile < end_row_tile; ++row_tile) {
    const int first_row = row_tile * rows;
    // a, v_a, dO_a (rows, columns)
    const bool whole_rows = row_visible.whole(first_row + rows);
    Loader::template load_two<rows, Smem.value_a - Smem.a>(
        Loader(row_side.x, batch, head), Loader(row_side.value, batch, head), a_smem, first_row,
        whole_rows, row_visible);
    load_rows<rows, config.threads()>(
        grad_out_a_smem, row_side.grad_out, batch, head, first_row, all_see && whole_rows,
        [&](int step) { return state_of(row_side, batch_head, step).x < infinity; });
    cp_async_commit();

    float row_start[2], row_lse[2], row_correction[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + warp_row + lane / 4 + half * 8;
      const float2 state = state_of(row_side, batch_head, row);
      row_start[half] = row_visible(row) ? 0.0f : hidden_row;
      row_lse[half] = state.x;
      row_correction[half] = state.y;
    }
    const int rows_left = row_side.time - first_row;
    float grad_a_rmem[columns / 8][4], grad_value_a_rmem[columns / 8][4];
    set_zero(grad_a_rmem);
    set_zero(grad_value_a_rmem);
    for (int number = 0; number < tile_count; ++number, stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();
      // The last tile is followed by the first, for the next rows.
      const int following = number + 1 < tile_count ? number + 1 : 0;
      if (following > 0 || row_tile + 1 < end_row_tile) load_tile(following, stage ^ 1);
      cp_async_commit();

      if (warp_row < rows_left) {
        // Of the columns 8 n + 2 (lane % 4) and the next, which a lane holds.
        const float* pairs_smem = states_smem + (stage * tile + lane % 4 * 2) * 2;
        // S (16, tile) = a b^T, and the gradients of both P, which start at minus the corrections:
        // dO_a v_b^T and v_a dO_b^T
        float scores_rmem[tile / 8][4], grad_rows_rmem[tile / 8][4], grad_columns_rmem[tile / 8][4];
#pragma unroll
        for (int n = 0; n < tile / 8; ++n) {
          const float2 correction = *reinterpret_cast<const float2*>(pairs_smem + n * 16 + 2);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            scores_rmem[n][e] = row_start[e / 2];
            grad_rows_rmem[n][e] = -row_correction[e / 2];
            grad_columns_rmem[n][e] = e % 2 ? correction.y : correction.x;
          }
        }
        const auto left = [&](auto distance) {
          return [&](int step, uint32_t (&fragment)[4]) {
            ldmatrix<decltype(distance)::value>(fragment, a_places.places[step]);
          };
        };
        using std::integral_constant;
        multiply_transposed<tile>(scores_rmem, b_places, left(integral_constant<int, 0>{}));
        if (!constant_of_a) {
          multiply_transposed<tile, Smem.tile_bytes>(
              grad_rows_rmem, b_places, left(integral_constant<int, Smem.grad_out_a>{}));
        }
        if (!constant_of_b) {
          multiply_transposed<tile, 2 * Smem.tile_bytes>(
              grad_columns_rmem, b_places, left(integral_constant<int, Smem.value_a>{}));
        }
        float factor = problem.scale;
        if (!column_visible.whole((number + 1) * tile)) {
          const float* tile_bias_smem = bias_smem + stage * tile + lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < tile / 8; ++n) {
            const float2 bias = *reinterpret_cast<const float2*>(tile_bias_smem + n * 8);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              scores_rmem[n][e] = fmaf(scores_rmem[n][e], factor, e % 2 ? bias.y : bias.x);
            }
          }
          factor = 1.0f;
        }
        uint32_t of_columns[tile / 8][2], grad_scores[tile / 8][2];  // P_b and dS, rounded
        unrolled<tile / 8>([&](auto n) {
          constexpr int number = decltype(n)::value;
          const float2 lse = *reinterpret_cast<const float2*>(pairs_smem + n * 16);
          float of_row[4], of_column[4], grad[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float score = scores_rmem[n][e];
            of_row[e] = exp2_fast(fmaf(score, factor, -row_lse[e / 2]));
            of_column[e] =
                exp2_fast(fmaf(score, factor, e % 2 ? lse.y : lse.x));
            grad[e] = fmaf(of_row[e], grad_rows_rmem[n][e], of_column[e] * grad_columns_rmem[n][e]);
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            of_columns[n][half] = Element::pack(of_column[2 * half], of_column[2 * half + 1]);
            grad_scores[n][half] = Element::pack(grad[2 * half], grad[2 * half + 1]);
          }
          constexpr int place = number * 16, below = place + 8 * Smem.weights_stride;
          store_shared<place>(pair_place, Element::pack(of_row[0], of_row[1]));
          store_shared<below>(pair_place, Element::pack(of_row[2], of_row[3]));
          store_shared<Smem.weights_bytes + place>(pair_place, grad_scores[n][0]);
          store_shared<Smem.weights_bytes + below>(pair_place, grad_scores[n][1]);
        });
        unrolled<tile / 16>([&](auto step) {
          const auto left_operand = [&](uint32_t (&a)[4], const uint32_t (&words)[tile / 8][2]) {
#pragma unroll
            for (int n = 0; n < 4; ++n) a[n] = words[2 * step + n / 2][n % 2];
          };
          constexpr int number = decltype(step)::value;
          uint32_t a[4];
          left_operand(a, of_columns);
          accumulate_step<number, 2 * Smem.tile_bytes, columns>(grad_value_a_rmem, a, b_values);
          left_operand(a, grad_scores);
          accumulate_step<number, 0, columns>(grad_a_rmem, a, b_values);
        });
      }
      gradients.clear();
      if (row_tile > first_row_tile) {
        gradients.fetch(number, [](float& sum, float part) { sum = part; });
      }
      __syncthreads();
      gradients.add(number, rows_left);
      if (problem.groups == 1 && row_tile + 1 == end_row_tile) {
        gradients.store(base + Smem.stages + stage * Smem.stage_bytes, number);
      } else {
        gradients.keep(number);
      }
      b_places.move(stage ? -Smem.stage_bytes : Smem.stage_bytes);
      b_values.move(stage ? -Smem.stage_bytes : Smem.stage_bytes);
    }
    // Others still read the rows' tiles.
    __syncthreads();
    if (warp_row < rows_left) {
      const auto store = [&](const Rows& target, const auto& gradient_rmem, float scale) {
        store_warp_rows<columns>(a_smem, warp_row, target, batch, head, first_row + warp_row,
                                 row_side.time, 0,
                                 [&](int n, int e) { return gradient_rmem[n][e] * scale; });
      };
      store(problem.grad_rows, grad_a_rmem, problem.grad_scale);
      store(problem.grad_value_rows, grad_value_a_rmem, 1.0f);
    }
    __syncthreads();
  }
}

}  // namespace mmer::cuda
