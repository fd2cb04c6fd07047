// The gradients of one sequence, backward. A block owns a tile of its rows and reads the tiles of
// the other sequence: each row's gradients stay in the registers of one warp, so that nothing is
// added up across blocks and the same inputs give the same bits.
//
//   as query: P = exp(S - lse)         dS = P (dO v^T - correction)             dq = dS k
//   as key:   P = exp(S^T - lse^T)     dS = P (v dO^T - correction^T)           dk = dS q, dv = P
//   dO
//
// In shared cross-attention a row is both, through one S: five products instead of seven.

#pragma once

#include "block_tiles.h"
#include "products.h"
#include "score_gradients.h"
#include "side_loader.h"
#include "smem.h"

namespace mmer::cuda {

template <class Element, int columns, bool as_query, bool as_key, bool extras>
MMER_DEVICE void owner_backward(const BackwardProblem& problem) {
  constexpr Config config = backward_config(columns, Element::bytes);
  constexpr int rows = config.rows(), tile_steps = config.tile, threads = config.threads();
  constexpr int gradients = gradient_columns(columns, Element::bytes, extras),
                parts = columns / gradients;
  constexpr BackwardSmem Smem(columns, Element::bytes, as_query, as_key);
  using HeadTile = Tile<Element, columns>;
  extern __shared__ __align__(128) unsigned char smem[];
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.bias);
  float* times_smem = reinterpret_cast<float*>(smem + Smem.times);
  float* minus_lse_smem = reinterpret_cast<float*>(smem + Smem.minus_lse);
  float* minus_correction_smem = reinterpret_cast<float*>(smem + Smem.minus_correction);
  uint8_t* flags_smem = smem + Smem.flags;
  const uint32_t base = shared_address(smem);
  const HeadTile own_x_smem{base + Smem.own_x};

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_column = blockIdx.x % parts * gradients;
  const int block = blockIdx.x / parts;
  const int tiles_of_head = problem.owners[0].tiles + problem.owners[1].tiles;
  const int batch_head = block / tiles_of_head;
  const bool second = block % tiles_of_head >= problem.owners[0].tiles;
  const Owner& owner = problem.owners[second];
  const int own_tile = block % tiles_of_head - (second ? problem.owners[0].tiles : 0);
  const int row = own_tile * rows;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const int warp_row = warp * warp_rows;
  const int first_row = row + warp_row;
  const Side& own = owner.own;

  const auto rows_see = [&](int number, int from, int count) {
    const Window& window = owner.windows[number];
    return RowsSeen(window, hides_by_position(window, own.time), from, count, own.time,
                    owner.others[number].time);
  };
  const RowsSeen block_sees = rows_see(0, row, rows);
  BlockTiles<tile_steps, extras> tiles{tiles_seen<tile_steps>(block_sees), {0, 0}, nullptr};
  if (extras && owner.other_count > 1) {
    tiles.summaries = tiles_seen<tile_steps>(rows_see(1, row, rows));
  }
  const bool timed = extras && own.times.data != nullptr;
  const bool skips = timed && problem.extras.max_gap < infinity;
  if (skips) {
    const Side& other = owner.others[0];
    mark_near_tiles<rows, tile_steps, config.warps>(
        flags_smem, tiles.tokens, {own.mask, own.times, own.time},
        {other.mask, other.times, other.time}, batch, row, problem.extras.max_gap);
    tiles.near_smem = flags_smem;
  }
  // Nothing hides a step from all that could see it: only the end of a sequence has to be minded.
  const bool all_see = !own.mask.data && !owner.others[0].mask.data && !skips;
  using OwnLoader = SideLoader<Side, Element, columns, threads, extras, as_key, as_query>;
  using OtherLoader = SideLoader<Side, Element, columns, threads, extras, as_query, as_key>;
  HeadSource* own_sources_smem = reinterpret_cast<HeadSource*>(smem + Smem.sources);
  HeadSource* sources_smem = own_sources_smem + OwnLoader::tensors;
  constexpr int tensors = OtherLoader::tensors;
  find_sources<Element, OwnLoader::tensors + (extras ? 2 : 1) * tensors>(
      own_sources_smem, batch, head, [&](int number) -> const Rows& {
        if (number < OwnLoader::tensors) return OwnLoader::tensor(own, number);
        number -= OwnLoader::tensors;
        return OtherLoader::tensor(owner.others[number / tensors], number % tensors);
      });
  __syncthreads();
  const uint32_t thread_place = kept(OtherLoader::Loader::first_place(HeadTile{base}));
  const bool plain = kept(uint32_t{OtherLoader::is_plain(owner.others[0], batch, all_see)});
  const auto plain_tiles = [&](int first) {
    return PlainTiles<Element, columns, threads, tile_steps, as_query, as_key>(
        OtherLoader(owner.others[0], batch, batch_head, sources_smem, thread_place, true), first);
  };
  // Gradients of 128 columns leave no registers for what goes along with the tiles.
  constexpr bool goes_along = gradients <= 64;
  auto plain_tokens = plain_tiles(tiles.tokens.first);
  // x, value, dO (tile_steps, columns) and what is known of each step
  const auto load_tile = [&](int tile, uint32_t stage) {
    if (tile >= tiles.count()) return;
    const int number = tiles.of_tokens(tile) ? 0 : 1;
    const Side& other = owner.others[number];
    if (plain && number == 0) {
      if constexpr (!goes_along) plain_tokens = plain_tiles(tiles.first_step(tile));
      plain_tokens.template load<Smem.other_x, 2 * Smem.tile_bytes>(stage);
    } else {
      OtherLoader(other, batch, batch_head, sources_smem + tensors * number, thread_place - base,
                  false)
          .template load_by_row<tile_steps, 2 * Smem.tile_bytes>(
              HeadTile{base + Smem.other_x + stage}, tiles.first_step(tile));
    }
    if (threadIdx.x < tile_steps) {
      const int step = tiles.first_step(tile) + threadIdx.x;
      const int place = stage / Smem.tile_bytes * tile_steps + threadIdx.x;
      const float bias = Weighting<extras>(other, batch)(step);
      bias_smem[place] = bias;
      if (timed) times_smem[place] = time_of(other.times, batch, step, bias > -infinity);
      if constexpr (as_key) {
        const float2 state = state_of(other, batch_head, step);
        minus_lse_smem[place] = -state.x;
        minus_correction_smem[place] = -state.y;
      }
    }
  };

  // A softmax over one step is constant. To find that from differences would leave their rounding.
  const bool constant_as_query = owner.others[0].time == 1, constant_as_key = own.time == 1;
  const Weighting<extras> own_weighting(own, batch);
  const OwnLoader own_loader(own, batch, batch_head, own_sources_smem, thread_place - base,
                             OwnLoader::is_plain(own, batch, all_see));
  if (own_loader.plain) {
    own_loader.template load_plain<rows, Smem.own_bytes>(own_x_smem, row);
  } else {
    own_loader.template load_by_row<rows, Smem.own_bytes>(own_x_smem, row);
  }
  cp_async_commit();

  float own_bias[2], minus_own_lse[2], minus_own_correction[2], own_times[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int step = first_row + lane / 4 + half * 8;
    own_bias[half] = own_weighting(step);
    if constexpr (as_query) {
      const float2 state = state_of(own, batch_head, step);
      minus_own_lse[half] = -state.x;
      minus_own_correction[half] = -state.y;
    }
    if (timed) own_times[half] = time_of(own.times, batch, step, own_bias[half] > -infinity);
  }
  float decay = 0.0f;
  if (timed && problem.extras.decay) {
    decay = problem.extras.decay[head * problem.extras.decay_stride] * log2_e;
  }
  const bool wants_decay = extras && owner.grad_decay != nullptr;
  float grad_decay = 0.0f;
  RowsSeen token_rows = block_sees;
  if (hides_by_position(owner.windows[0], own.time)) token_rows = rows_see(0, first_row, warp_rows);
  if (first_row >= own.time) token_rows.some.end = 0;
  const TilesOfRows<tile_steps> token_tiles(token_rows);
  const Dropout dropout(problem.extras, batch_head);

  float grad_x_rmem[gradients / 8][4];  // (16, gradients) of the warp
  set_zero(grad_x_rmem);
  float grad_value_rmem[as_key ? gradients / 8 : 1][4];
  set_zero(grad_value_rmem);

  // Where a lane reads tiles as factors of S and of the gradients of P: the warp's own rows, and
  // the other steps, which but of float32 are read like this for the gradients too.
  const uint32_t lane_place = kept(first_key_place<tile_steps>(HeadTile{base}));
  const uint32_t own_place =
      kept(first_own_place<tile_steps>(HeadTile{base}, lane_place, warp_row));
  const uint32_t word_place =
      Element::bytes == 2 ? 0 : kept(first_value_place(HeadTile{base}, first_column));
  const uint32_t pair_place = kept(base + lane % 4 * 8);  // of two floats of each eight steps

  // Three tensors' rows of more bytes, or what extras need, leave no registers for these.
  constexpr bool holds_own = !extras && columns * Element::bytes <= 128;
  OwnFragments<Element, columns, Smem.own_x, holds_own> own_x_rmem;
  OwnFragments<Element, columns, Smem.own_value, holds_own> own_value_rmem;
  OwnFragments<Element, columns, Smem.own_grad_out, holds_own> own_grad_out_rmem;

  // The first pass only loads.
  int tile = -1;
#pragma unroll 1
  for (uint32_t stage = Smem.tile_bytes;; stage ^= Smem.tile_bytes) {
    const int following = tiles.next(tile + 1, [&] { plain_tokens.skip(); });
    load_tile(following, stage ^ Smem.tile_bytes);
    cp_async_commit();

    const bool of_tokens = tiles.of_tokens(tile);
    const int number = of_tokens ? 0 : 1;
    const Side& other = owner.others[number];
    const int first = kept(uint32_t(tiles.first_step(tile)));
    const TilesOfRows<tile_steps> seen =
        of_tokens ? token_tiles : TilesOfRows<tile_steps>(rows_see(number, first_row, warp_rows));
    if (seen.some(first)) {
      const int place = stage / Smem.tile_bytes * tile_steps;
      const uint32_t pair_smem = pair_place + place * 4;
      LanePlaces<Element, columns> own_places(own_place), other_places(lane_place + stage);
      if constexpr (goes_along) own_places.keep();
      other_places.keep();

      float scores_rmem[tile_steps / 8][4];  // (16, steps) = x (16, columns) x^T (columns, steps)
      set_zero(scores_rmem);
      multiply_keys<tile_steps, Smem.other_x>(
          scores_rmem, other_places,
          [&](int step, uint32_t (&a)[4]) { own_x_rmem.get(a, own_places, step); });
      float factor = problem.scale;
      if (timed || !of_tokens || other.mask.data || !seen.whole(first)) {
        add_bias<tile_steps>(scores_rmem, factor, bias_smem + place);
        const Window& window = owner.windows[number];
        if (hides_by_position(window, own.time) && !seen.whole(first)) {
          hide<tile_steps>(scores_rmem, window, first_row, own.time, other.time, first);
        }
        if (timed) {
          subtract_gaps<tile_steps>(scores_rmem, own_times, times_smem + place, decay,
                                    problem.extras.max_gap);
        }
        factor = 1.0f;
      }

      // dS; the gradients of P start at minus the correction, but where dropout scales them.
      const ScoreGradients<extras> score_gradients{problem.extras, dropout, first_row, first,
                                                   factor};
      float grad_scores_rmem[tile_steps / 8][4];
      if constexpr (as_query) {
        float grad_weights_rmem[tile_steps / 8][4];  // (16, steps) = dO (16, columns) v^T
#pragma unroll
        for (int n = 0; n < tile_steps / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            grad_weights_rmem[n][e] = extras ? 0.0f : minus_own_correction[e / 2];
          }
        }
        if (!constant_as_query) {
          multiply_keys<tile_steps, Smem.other_value>(
              grad_weights_rmem, other_places,
              [&](int step, uint32_t (&a)[4]) { own_grad_out_rmem.get(a, own_places, step); });
        }
        score_gradients.of_queries(grad_scores_rmem, scores_rmem, grad_weights_rmem, minus_own_lse,
                                   minus_own_correction, of_tokens ? own.stream : own.stream + 1);
      }
      if constexpr (as_key) {
        float grad_weights_rmem[tile_steps / 8][4];  // (16, steps) = v (16, columns) dO^T
        set_zero(grad_weights_rmem);
        if constexpr (!extras) {
          unrolled<tile_steps / 8>([&](auto n) {
            const float2 pair = load_shared_pair<Smem.minus_correction + n * 32>(pair_smem);
#pragma unroll
            for (int e = 0; e < 4; ++e) grad_weights_rmem[n][e] = e % 2 ? pair.y : pair.x;
          });
        }
        if (!constant_as_key) {
          multiply_keys<tile_steps, Smem.other_grad_out>(
              grad_weights_rmem, other_places,
              [&](int step, uint32_t (&a)[4]) { own_value_rmem.get(a, own_places, step); });
        }
        score_gradients.template of_keys<as_query, Smem.minus_lse, Smem.minus_correction>(
            grad_scores_rmem, scores_rmem, grad_weights_rmem, own_bias, pair_smem, other.stream);
      }
      // grad_value (16, gradients) += weights (16, steps) dO (steps, gradients)
      // grad_x (16, gradients) += dS (16, steps) x (steps, gradients)
      const auto add_gradients = [&](const auto& places) {
        if constexpr (as_key) {
          accumulate<tile_steps, gradients, Smem.other_grad_out>(grad_value_rmem, scores_rmem,
                                                                 places);
        }
        accumulate<tile_steps, gradients, Smem.other_x>(grad_x_rmem, grad_scores_rmem, places);
      };
      if constexpr (Element::bytes == 2) {
        if constexpr (parts > 1) other_places.move(first_column * Element::bytes);
        add_gradients(other_places);
      } else {
        add_gradients(WordPlaces<Element, columns>(word_place + stage));
      }
      if (wants_decay) {
#pragma unroll
        for (int n = 0; n < tile_steps / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float time = times_smem[place + n * 8 + lane % 4 * 2 + e % 2];
            grad_decay -= grad_scores_rmem[n][e] * fabsf(own_times[e / 2] - time);
          }
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();
    if (holds_own && tile < 0) {
      const LanePlaces<Element, columns> own_places(own_place);
      own_x_rmem.load(own_places);
      if constexpr (as_key) own_value_rmem.load(own_places);
      if constexpr (as_query) own_grad_out_rmem.load(own_places);
    }
    if (following >= tiles.count()) break;
    tile = following;
  }

  if (wants_decay) {
    float* sums_smem = reinterpret_cast<float*>(smem + Smem.sums);
    grad_decay = warp_total(grad_decay);
    if (lane == 0) sums_smem[warp] = grad_decay;
    __syncthreads();
    if (threadIdx.x == 0 && first_column == 0) {
      float sum = 0.0f;
      for (int n = 0; n < config.warps; ++n) sum += sums_smem[n];
      owner.grad_decay[static_cast<int64_t>(batch_head) * problem.decay_blocks +
                       owner.first_decay_block + own_tile] = sum;
    }
  }
  if (first_row >= own.time) return;
  // A padded row has no gradient. A loop: each of these is much for the compiler.
  float scale = problem.grad_scale;
  const float real[2] = {own_bias[0] > -infinity ? 1.0f : 0.0f,
                         own_bias[1] > -infinity ? 1.0f : 0.0f};
#pragma unroll 1
  for (int number = 0; number <= as_key; ++number) {
    const Rows& target = number == 0 ? owner.grad_x : owner.grad_value;
    clear_rows(grad_x_rmem, real);
    store_warp_rows<gradients>(own_x_smem, warp_row, target, batch, head, first_row, own.time,
                               first_column,
                               [&](int n, int e) { return grad_x_rmem[n][e] * scale; });
    if constexpr (as_key) {
#pragma unroll
      for (int n = 0; n < gradients / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) grad_x_rmem[n][e] = grad_value_rmem[n][e];
      }
    }
    scale = 1.0f;
  }
}

}  // namespace mmer::cuda
