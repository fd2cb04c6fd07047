// Shared cross-attention backward with S computed once: seven products where two owners of tiles
// (owner_backward.h) make ten. A block owns a head, or what a group of its tiles of rows a and a
// group of its tiles of columns b have in common: 16 rows a warp, and for each tile of rows it
// reads the tiles of b one after the other.
//
//   P_a = exp(S - lse_a)   P_b = exp(S - lse_b)
//   dS = P_a (dO_a v_b^T - correction_a) + P_b (v_a dO_b^T - correction_b)
//   da += dS b     dv_a += P_b dO_b     db += dS^T a     dv_b += P_a^T dO_a
//
// The gradients of a stay in registers. For those of b, dS and P_a pass through shared memory,
// transposed, and each warp takes a part of the tile of one of the two. From one tile of rows to
// the next they wait in global memory, where each thread finds its own: nothing is added up across
// blocks but by merge_gradients (once_parts.h), in the order of the groups, and the same inputs
// give the same bits.

#pragma once

#include "once_gradients.h"
#include "products.h"
#include "side_loader.h"
#include "smem.h"
#include "visible.h"

namespace mmer::cuda {

// The rows of a warp (16, columns), `distance` bytes behind the tile of the places: held in
// registers for a whole pass over the columns, or read for each product.
template <class Element, int columns, int distance, bool held>
struct WarpRows {
  using Places = LanePlaces<Element, columns>;
  static constexpr int steps = steps_of<Element, columns>;
  const Places& places;
  uint32_t fragments[held ? steps : 1][4];

  MMER_DEVICE explicit WarpRows(const Places& places) : places(places) {
    if constexpr (held) {
#pragma unroll
      for (int step = 0; step < steps; ++step) read(step, fragments[step]);
    }
  }
  MMER_DEVICE void read(int step, uint32_t (&fragment)[4]) const {
    ldmatrix<distance>(fragment, places.place(step) + step / Places::count * 128);
  }
  MMER_DEVICE void operator()(int step, uint32_t (&fragment)[4]) const {
    if constexpr (held) {
#pragma unroll
      for (int n = 0; n < 4; ++n) fragment[n] = fragments[step][n];
    } else {
      read(step, fragment);
    }
  }
};

// As accumulate_step, with the places that the transposed product has.
template <int step, int distance, class Element, int columns>
MMER_DEVICE void accumulate_transposed(float (&sums)[columns / 8][4], const uint32_t (&a)[4],
                                       const LanePlaces<Element, columns>& places) {
  unrolled<columns / 16>([&](auto n) {
    uint32_t b[4];
    ldmatrix_transposed<distance + places.offset(step * 16, n)>(b, places.place(n));
    Element::mma(sums[2 * n], a, b[0], b[2]);
    Element::mma(sums[2 * n + 1], a, b[1], b[3]);
  });
}

template <class Element, int columns, int row_class>
MMER_DEVICE void once_backward(const OnceBackwardProblem& problem) {
  using HeadTile = Tile<Element, columns>;
  using Parts = WarpParts<columns>;
  constexpr OnceConfig config = once_config(row_class);
  constexpr int rows = config.rows(), tile = config.tile, strip = 32;
  using Loader = SideLoader<Side, Element, columns, config.threads(), false, true, true>;
  constexpr OnceSmem Smem(row_class, columns);
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = shared_address(smem);
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.bias);
  float* states_smem = reinterpret_cast<float*>(smem + Smem.states);
  const HeadTile a_smem{base + Smem.a};

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * warp_rows;
  const int groups = problem.row_groups * problem.column_groups;
  const int batch_head = blockIdx.x / groups, group = blockIdx.x % groups;
  const int row_group = group / problem.column_groups, column_group = group % problem.column_groups;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const Side &row_side = problem.sides[0], &column_side = problem.sides[1];
  const Visibility row_visible(row_side.mask, batch, row_side.time);
  const bool all_real = !column_side.mask.data;
  const int first_row_tile = row_group * problem.row_tiles_a_group;
  const int end_row_tile = min(first_row_tile + problem.row_tiles_a_group, problem.row_tiles);
  const int first_tile = column_group * problem.column_tiles_a_group;
  const int end_tile = min(first_tile + problem.column_tiles_a_group, problem.column_tiles);

  HeadSource* sources_smem = reinterpret_cast<HeadSource*>(smem + Smem.sources);
  find_sources<Element, 6>(sources_smem, batch, head, [&](int number) -> const Rows& {
    return Loader::tensor(problem.sides[number / 3], number % 3);
  });
  __syncthreads();
  const uint32_t thread_place = kept(Loader::Loader::first_place(HeadTile{0}));
  Loader column_loader(column_side, batch, batch_head, sources_smem + 3, thread_place,
                       problem.plain[1]);
  column_loader.keep();
  column_loader.move(first_tile * tile);
  int loaded = first_tile * tile;  // where the next tile of the columns starts
  const auto load_tile = [&](int stage) {
    // b, v_b, dO_b (tile, columns)
    column_loader.template load_next<tile, Smem.tile_bytes>(
        HeadTile{base + Smem.stages + stage * Smem.stage_bytes}, loaded);
    if (threadIdx.x < tile) {
      const int step = loaded + threadIdx.x, place = stage * tile + threadIdx.x;
      const float2 state = state_of(column_side, batch_head, step);
      bias_smem[place] = column_loader.weighting.visible(step) ? 0.0f : -infinity;
      states_smem[place / 2 * 4 + place % 2] = -state.x;
      states_smem[place / 2 * 4 + place % 2 + 2] = -state.y;
    }
    loaded += tile;
    // The last tile is followed by the first, for the next rows.
    if (loaded == end_tile * tile) {
      loaded = first_tile * tile;
      column_loader.move((first_tile - end_tile) * tile);
    }
  };

  // Rows that nothing sees start their sums of products here: both exponentials are 0.
  const float hidden_row = problem.scale < 0.0f ? 1e30f : -1e30f;
  LanePlaces a_places = left_places(a_smem, warp_row);
  LanePlaces b_places = transposed_places(HeadTile{base + Smem.stages});
  a_places.keep();
  b_places.keep();
  // P_a and dS (rows, tile) go to shared memory.
  const uint32_t pair_place =
      kept(base + Smem.weights + (warp_row + lane / 4) * Smem.weights_stride + lane % 4 * 4);
  // Of the columns 8 n + 2 (lane % 4) and the next, which a lane holds.
  uint32_t states_place = kept(base + Smem.states + lane % 4 * 16);
  OnceGradients<Element, columns, row_class> gradients(problem, base, batch, head, row_group,
                                                       first_tile);

  int stage = 0;
  load_tile(stage);
  for (int row_tile = first_row_tile; row_tile < end_row_tile; ++row_tile) {
    const int first_row = row_tile * rows;
    // a, v_a, dO_a (rows, columns)
    Loader(row_side, batch, batch_head, sources_smem, thread_place, problem.plain[0])
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
    const WarpRows<Element, columns, 0, columns <= 64> compared(a_places);
    const WarpRows<Element, columns, 2 * Smem.row_bytes, columns <= 64> grad_outs(a_places);
    const WarpRows<Element, columns, Smem.row_bytes, false> values(a_places);
    float grad_a_rmem[columns / 8][4], grad_value_a_rmem[columns / 8][4];
    set_zero(grad_a_rmem);
    set_zero(grad_value_a_rmem);
    const bool idle = warp_row >= rows_left;
    int columns_left = column_side.time - first_tile * tile;
    for (int number = first_tile; number < end_tile; ++number, stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();
      if (number + 1 < end_tile || row_tile + 1 < end_row_tile) load_tile(stage ^ 1);
      cp_async_commit();
      const int whole_left = all_real ? columns_left : 0;

      // Strips of 32 columns: more of S and of both gradients of P would not fit into the
      // registers.
      unrolled<tile / strip>([&](auto of_tile) {
        constexpr int first = decltype(of_tile)::value * strip;
        constexpr int below = b_places.offset(first, 0);
        if (idle || first >= columns_left) return;
        // S (16, strip) = a b^T, and the gradients of both P, which start at minus the corrections:
        // dO_a v_b^T and v_a dO_b^T
        float scores_rmem[strip / 8][4], grad_rows_rmem[strip / 8][4],
            grad_columns_rmem[strip / 8][4];
        unrolled<strip / 8>([&](auto n) {
          const float2 correction = load_shared_pair<first * 8 + n * 64 + 8>(states_place);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            scores_rmem[n][e] = row_start[e / 2];
            grad_rows_rmem[n][e] = -row_correction[e / 2];
            grad_columns_rmem[n][e] = e % 2 ? correction.y : correction.x;
          }
        });
        multiply_transposed<strip, below>(scores_rmem, b_places, compared);
        multiply_transposed<strip, Smem.tile_bytes + below>(grad_rows_rmem, b_places, grad_outs);
        multiply_transposed<strip, 2 * Smem.tile_bytes + below>(grad_columns_rmem, b_places,
                                                                values);
        float factor = problem.scale;
        if (first + strip > whole_left) {
#pragma unroll
          for (int n = 0; n < strip / 8; ++n) {
            const float* pair_smem = bias_smem + stage * tile + first + lane % 4 * 2 + n * 8;
            const float2 bias = *reinterpret_cast<const float2*>(pair_smem);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              scores_rmem[n][e] = fmaf(scores_rmem[n][e], factor, e % 2 ? bias.y : bias.x);
            }
          }
          factor = 1.0f;
        }
        uint32_t of_columns[strip / 8][2], grad_scores[strip / 8][2];  // P_b and dS, rounded
        unrolled<strip / 8>([&](auto n) {
          const float2 lse = load_shared_pair<first * 8 + n * 64>(states_place);
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
          accumulate_transposed<number, 2 * Smem.tile_bytes>(grad_value_a_rmem, a, b_places);
          Element::left_operand(a, grad_scores, step);
          accumulate_transposed<number, 0>(grad_a_rmem, a, b_places);
        });
      });
      gradients.clear();
      const bool wanted = gradients.exists(columns_left);
      if (config.many_tiles(columns) && wanted && row_tile > first_row_tile) gradients.fetch();
      __syncthreads();
      if (wanted) {
        gradients.add(rows_left);
        if (!config.many_tiles(columns) ||
            (problem.row_groups == 1 && row_tile + 1 == end_row_tile)) {
          gradients.store(base + Smem.stages + stage * Smem.stage_bytes, number);
        } else {
          gradients.keep();
        }
      }
      gradients.move(1);
      columns_left -= tile;
      b_places.move(stage ? -Smem.stage_bytes : Smem.stage_bytes);
      states_place += stage ? -8 * tile : 8 * tile;
    }
    gradients.move(first_tile - end_tile);
    // Others still read the rows' tiles.
    __syncthreads();
    if (!idle && problem.column_groups > 1) {
      const int64_t tile_number =
          (int64_t{column_group} * problem.batch * problem.heads + batch_head) * problem.row_tiles +
          row_tile;
      float* parts_gmem = problem.row_parts +
                          (tile_number * config.warps + warp_row / 16) * 2 * Parts::floats +
                          Parts::thread_place();
      Parts::keep(parts_gmem, grad_a_rmem);
      Parts::keep(parts_gmem + Parts::floats, grad_value_a_rmem);
    } else if (!idle) {
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
