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
// blocks but by merge_gradients, in the order of the groups, and the same inputs give the same
// bits.

#pragma once

#include "config.h"
#include "once_gradients.h"
#include "products.h"
#include "side_loader.h"
#include "visible.h"

namespace mmer::cuda {

MMER_DEVICE float2 read_pair(const float* pair_smem) {
  return *reinterpret_cast<const float2*>(pair_smem);
}

template <class Element, int columns, int row_class>
MMER_DEVICE void once_backward(const OnceBackwardProblem& problem) {
  using HeadTile = Tile<Element, columns>;
  constexpr OnceConfig config = once_config(row_class);
  constexpr int rows = config.rows(), tile = config.tile, strip = 32;
  constexpr int steps = steps_of<Element, columns>;
  using Loader = SideLoader<Side, Element, columns, config.threads(), false, true, true>;
  constexpr OnceSmem Smem(row_class, columns);
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.bias);
  float* states_smem = reinterpret_cast<float*>(smem + Smem.states);
  const HeadTile a_smem{base + Smem.a};

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * warp_rows;
  const int batch_head = blockIdx.x / problem.groups, group = blockIdx.x % problem.groups;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const Side &row_side = problem.rows, &column_side = problem.columns;
  const Visibility row_visible(row_side.mask, batch, row_side.time);
  const bool all_see = !row_side.mask.data && !column_side.mask.data;
  const int tile_count = (column_side.time + tile - 1) / tile;
  const int first_row_tile = group * problem.tiles_a_group;
  const int end_row_tile = min(first_row_tile + problem.tiles_a_group, problem.row_tiles);

  const Loader column_loader(column_side, batch, head, problem.heads, all_see);
  const auto load_tile = [&](int number, int stage) {
    const int first = number * tile;
    // b, v_b, dO_b (tile, columns)
    column_loader.template load<tile, Smem.tile_bytes>(
        HeadTile{base + Smem.stages + stage * Smem.stage_bytes}, first);
    if (threadIdx.x < tile) {
      const int step = first + threadIdx.x, place = stage * tile + threadIdx.x;
      const float2 state = state_of(column_side, batch_head, step);
      bias_smem[place] = column_loader.weighting.visible(step) ? 0.0f : -infinity;
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
  const uint32_t pair_place =
      kept(base + Smem.weights + (warp_row + lane / 4) * Smem.weights_stride + lane % 4 * 4);
  const int lane_pair = static_cast<int>(kept(static_cast<uint32_t>(lane % 4 * 2)));
  OnceGradients<Element, columns, row_class> gradients(problem, base, batch, head, group);

  const auto held = [](const uint32_t (&fragments)[steps][4]) {
    return [&](int step, uint32_t (&fragment)[4]) {
#pragma unroll
      for (int n = 0; n < 4; ++n) fragment[n] = fragments[step][n];
    };
  };

  int stage = 0;
  load_tile(0, stage);
  for (int row_tile = first_row_tile; row_tile < end_row_tile; ++row_tile) {
    const int first_row = row_tile * rows;
    // a, v_a, dO_a (rows, columns)
    Loader(row_side, batch, head, problem.heads, all_see)
        .template load<rows, Smem.row_bytes>(a_smem, first_row);
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
    cp_async_wait<0>();
    __syncthreads();
    uint32_t a_rmem[steps][4], grad_out_a_rmem[steps][4];
    unrolled<steps>([&](auto step) {
      ldmatrix(a_rmem[step], a_places.places[step]);
      ldmatrix<2 * Smem.row_bytes>(grad_out_a_rmem[step], a_places.places[step]);
    });
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

      // Strips of 32 columns: more of S and of both gradients of P would not fit into the
      // registers.
      unrolled<tile / strip>([&](auto of_tile) {
        constexpr int first = decltype(of_tile)::value * strip;
        constexpr int below = b_places.offset(first, 0);
        if (warp_row >= rows_left || number * tile + first >= column_side.time) return;
        // Of the columns 8 n + 2 (lane % 4) and the next, which a lane holds.
        const int pair = stage * tile + first + lane_pair;
        // S (16, strip) = a b^T, and the gradients of both P, which start at minus the corrections:
        // dO_a v_b^T and v_a dO_b^T
        float scores_rmem[strip / 8][4], grad_rows_rmem[strip / 8][4],
            grad_columns_rmem[strip / 8][4];
#pragma unroll
        for (int n = 0; n < strip / 8; ++n) {
          const float2 correction = read_pair(states_smem + pair * 2 + n * 16 + 2);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            scores_rmem[n][e] = row_start[e / 2];
            grad_rows_rmem[n][e] = -row_correction[e / 2];
            grad_columns_rmem[n][e] = e % 2 ? correction.y : correction.x;
          }
        }
        multiply_transposed<strip, below>(scores_rmem, b_places, held(a_rmem));
        if (!constant_of_a) {
          multiply_transposed<strip, Smem.tile_bytes + below>(grad_rows_rmem, b_places,
                                                              held(grad_out_a_rmem));
        }
        if (!constant_of_b) {
          multiply_transposed<strip, 2 * Smem.tile_bytes + below>(
              grad_columns_rmem, b_places, [&](int step, uint32_t (&fragment)[4]) {
                ldmatrix<Smem.row_bytes>(fragment, a_places.places[step]);
              });
        }
        float factor = problem.scale;
        if (!column_loader.weighting.visible.whole(number * tile + first + strip)) {
#pragma unroll
          for (int n = 0; n < strip / 8; ++n) {
            const float2 bias = read_pair(bias_smem + pair + n * 8);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              scores_rmem[n][e] = fmaf(scores_rmem[n][e], factor, e % 2 ? bias.y : bias.x);
            }
          }
          factor = 1.0f;
        }
        uint32_t of_columns[strip / 8][2], grad_scores[strip / 8][2];  // P_b and dS, rounded
        unrolled<strip / 8>([&](auto n) {
          const float2 lse = read_pair(states_smem + pair * 2 + n * 16);
          float of_row[4], of_column[4], grad[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float score = scores_rmem[n][e];
            of_row[e] = exp2_fast(fmaf(score, factor, -row_lse[e / 2]));
            of_column[e] = exp2_fast(fmaf(score, factor, e % 2 ? lse.y : lse.x));
            grad[e] = fmaf(of_row[e], grad_rows_rmem[n][e], of_column[e] * grad_columns_rmem[n][e]);
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            of_columns[n][half] = Element::pack(of_column[2 * half], of_column[2 * half + 1]);
            grad_scores[n][half] = Element::pack(grad[2 * half], grad[2 * half + 1]);
          }
          constexpr int place = first * 2 + decltype(n)::value * 16;
          constexpr int lower = place + 8 * Smem.weights_stride;
          store_shared<place>(pair_place, Element::pack(of_row[0], of_row[1]));
          store_shared<lower>(pair_place, Element::pack(of_row[2], of_row[3]));
          store_shared<Smem.weights_bytes + place>(pair_place, grad_scores[n][0]);
          store_shared<Smem.weights_bytes + lower>(pair_place, grad_scores[n][1]);
        });
        unrolled<strip / 16>([&](auto step) {
          constexpr int number = first / 16 + decltype(step)::value;
          uint32_t a[4];
          Element::left_operand(a, of_columns, step);
          accumulate_step<number, 2 * Smem.tile_bytes, columns>(grad_value_a_rmem, a, b_values);
          Element::left_operand(a, grad_scores, step);
          accumulate_step<number, 0, columns>(grad_a_rmem, a, b_values);
        });
      });
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
