// Attention of the queries of one sequence to the keys of another, forward. Both directions of
// cross-attention are one launch; chunked attention is one direction whose rows see an interval.
//
// A block owns a tile of queries of one head and reads the keys that any of them sees, tile by
// tile, two in flight: S = q k^T, an online softmax in units of log2, out += P v.

#pragma once

#include "block_tiles.h"
#include "dropout.h"
#include "products.h"
#include "side_loader.h"
#include "smem.h"

namespace mmer::cuda {

// The exponents of a row are taken relative to a reference, which moves to the row's maximum only
// where that has left it by more than the slack: what is summed up is rarely rescaled then.
constexpr float reference_slack = 8.0f;
constexpr float lowest_reference = -3e38f;

template <class Element, int columns, bool extras>
MMER_DEVICE void directed_forward(const ForwardProblem& problem) {
  constexpr Config config = forward_config(columns, Element::bytes);
  constexpr int rows = config.rows(), keys = config.tile;
  constexpr ForwardSmem Smem(columns, Element::bytes);
  using HeadTile = Tile<Element, columns>;
  extern __shared__ __align__(128) unsigned char smem[];
  float* bias_smem = reinterpret_cast<float*>(smem + Smem.bias);
  float* times_smem = reinterpret_cast<float*>(smem + Smem.times);
  uint8_t* flags_smem = smem + Smem.flags;
  const uint32_t base = shared_address(smem);
  const HeadTile q_smem{base};

  const int lane = threadIdx.x % 32;
  const int tiles_of_head = problem.directions[0].tiles + problem.directions[1].tiles;
  const int batch_head = blockIdx.x / tiles_of_head;
  const int tile_of_head = blockIdx.x % tiles_of_head;
  const bool second = tile_of_head >= problem.directions[0].tiles;
  const Direction& direction = problem.directions[second];
  const int row = (second ? tile_of_head - problem.directions[0].tiles : tile_of_head) * rows;
  const int batch = batch_head / problem.heads, head = batch_head % problem.heads;
  const int warp_row = threadIdx.x / 32 * warp_rows;  // of the tile
  const int first_row = row + warp_row;

  const Segment& token_segment = direction.segments[0];
  const auto rows_see = [&](const Segment& segment, int from, int count) {
    return RowsSeen(segment.window, hides_by_position(segment.window, direction.time), from, count,
                    direction.time, segment.time);
  };
  const bool by_position = hides_by_position(token_segment.window, direction.time);
  const RowsSeen block_sees(token_segment.window, by_position, row, rows, direction.time,
                            token_segment.time);
  BlockTiles<keys, extras> tiles{tiles_seen<keys>(block_sees), {0, 0}, nullptr};
  if (extras && direction.segment_count > 1) {
    tiles.summaries = tiles_seen<keys>(rows_see(direction.segments[1], row, rows));
  }
  const bool timed = extras && direction.times.data != nullptr;
  if (timed && problem.extras.max_gap < infinity) {
    mark_near_tiles<rows, keys, config.warps>(
        flags_smem, tiles.tokens, {direction.mask, direction.times, direction.time},
        {token_segment.mask, token_segment.times, token_segment.time}, batch, row,
        problem.extras.max_gap);
    tiles.near_smem = flags_smem;
  }
  // Whether the logits of all tokens are written out before their largest is found: it belongs to
  // the largest score only where the scale is not negative, and 0 times -inf would be NaN.
  const bool biased = kept(uint32_t{timed || token_segment.mask.data || !(problem.scale > 0.0f)});

  constexpr int threads = config.threads();
  using KeyLoader = SideLoader<Segment, Element, columns, threads, extras, true, false>;
  HeadSource* sources_smem = reinterpret_cast<HeadSource*>(smem + Smem.sources);
  // Of k and v of both segments, then of q and out
  constexpr int query_source = extras ? 4 : 2;
  find_sources<Element, query_source + 2>(
      sources_smem, batch, head, [&](int number) -> const Rows& {
        if (number >= query_source) return number == query_source ? direction.query : direction.out;
        const Segment& segment = direction.segments[extras ? number / 2 : 0];
        return KeyLoader::tensor(segment, number % 2);
      });
  __syncthreads();

  // q (rows, columns). What stands in a padded row stays in its own scores.
  const uint32_t thread_place = kept(KeyLoader::Loader::first_place(q_smem));
  const RowLoader<Element, columns, threads> query_loader(direction.query,
                                                          sources_smem[query_source]);
  if (query_loader.aligned) {
    query_loader.template load_first<rows, 0>(thread_place, row, direction.time - row);
  } else {
    query_loader.template load_by_row<rows>(q_smem, row,
                                            [&](int query) { return query < direction.time; });
  }
  cp_async_commit();

  // k, v (keys, columns) and, where it matters, what is known of each key
  const bool plain = kept(uint32_t{KeyLoader::is_plain(token_segment, batch, true)});
  PlainTiles<Element, columns, threads, keys, true, false> plain_tokens(
      KeyLoader(token_segment, batch, batch_head, sources_smem, thread_place, true),
      tiles.tokens.first);
  const bool writes_bias = kept(uint32_t{biased && threadIdx.x < keys});
  const auto load_tile = [&](int tile, uint32_t stage) {
    if (tile >= tiles.count()) return;
    const bool of_tokens = tiles.of_tokens(tile);
    const Segment& segment = direction.segments[of_tokens ? 0 : 1];
    if (plain && of_tokens) {
      plain_tokens.template load<Smem.k, Smem.v - Smem.k>(stage);
    } else {
      KeyLoader(segment, batch, batch_head, sources_smem + (of_tokens ? 0 : 2), thread_place - base,
                false)
          .template load_by_row<keys, Smem.v - Smem.k>(HeadTile{base + Smem.k + stage},
                                                       tiles.first_step(tile));
    }
    if (writes_bias || (!of_tokens && threadIdx.x < keys)) {
      const int key = tiles.first_step(tile) + threadIdx.x;
      const int place = stage / Smem.tile_bytes * keys + threadIdx.x;
      const float bias = Weighting<extras>(segment, batch)(key);
      bias_smem[place] = bias;
      if (timed) times_smem[place] = time_of(segment.times, batch, key, bias > -infinity);
    }
  };

  float row_times[2] = {0.0f, 0.0f};
  float decay = 0.0f;
  if (timed) {
    const Visibility query_visible(direction.mask, batch, direction.time);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_row + lane / 4 + half * 8;
      row_times[half] = time_of(direction.times, batch, query, query_visible(query));
    }
    if (problem.extras.decay) {
      decay = problem.extras.decay[head * problem.extras.decay_stride] * log2_e;
    }
  }
  RowsSeen token_rows = block_sees;
  if (by_position) token_rows = rows_see(token_segment, first_row, warp_rows);
  if (first_row >= direction.time) token_rows.some.end = 0;
  const TilesOfRows<keys> token_tiles(token_rows);
  const Dropout dropout(problem.extras, batch_head);

  float out_rmem[columns / 8][4];  // (16, columns) of the warp
  set_zero(out_rmem);
  // Minus the reference of the exponents of each row. A row that has seen no key yet starts below
  // all logits.
  float minus_reference[2] = {-lowest_reference, -lowest_reference};
  float row_sum[2] = {0.0f, 0.0f};  // of this thread's columns
  // Wide queries stay in shared memory: the sums need the registers.
  constexpr bool holds_queries = columns * Element::bytes <= 256;
  OwnFragments<Element, columns, 0, holds_queries> q_rmem;
  // Where a lane reads a tile of q, of keys and, but of float32, of values.
  const uint32_t lane_place = kept(first_key_place<keys>(HeadTile{base}));
  const uint32_t own_place = first_own_place<keys>(q_smem, lane_place, warp_row);
  const uint32_t word_place = Element::bytes == 2 ? 0 : kept(first_value_place(HeadTile{base}));

  // The first pass only loads.
  int tile = -1;
#pragma unroll 1
  for (uint32_t stage = Smem.tile_bytes;; stage ^= Smem.tile_bytes) {
    const int following = tiles.next(tile + 1, [&] { plain_tokens.skip(); });
    load_tile(following, stage ^ Smem.tile_bytes);
    cp_async_commit();

    const bool of_tokens = tiles.of_tokens(tile);
    const Segment& segment = direction.segments[of_tokens ? 0 : 1];
    const int first_key = kept(uint32_t(tiles.first_step(tile)));
    const TilesOfRows<keys> seen =
        of_tokens ? token_tiles : TilesOfRows<keys>(rows_see(segment, first_row, warp_rows));
    if (seen.some(first_key)) {
      float scores_rmem[keys / 8][4];  // (16, keys) = q (16, columns) k^T (columns, keys)
      set_zero(scores_rmem);
      LanePlaces<Element, columns> places(lane_place + stage);
      places.keep();
      multiply_keys<keys, Smem.k>(scores_rmem, places, [&](int step, uint32_t (&a)[4]) {
        q_rmem.get(a, LanePlaces<Element, columns>(own_place), step);
      });
      float factor = problem.scale;
      if (biased || !of_tokens) {
        const int place = stage / Smem.tile_bytes * keys;
        add_bias<keys>(scores_rmem, factor, bias_smem + place);
        if (timed) {
          subtract_gaps<keys>(scores_rmem, row_times, times_smem + place, decay,
                              problem.extras.max_gap);
        }
        factor = 1.0f;
      }
      if (!seen.whole(first_key)) {
        if (by_position || !of_tokens) {
          hide<keys>(scores_rmem, segment.window, first_row, direction.time, segment.time,
                     first_key);
        } else {
          hide_end<keys>(scores_rmem, segment.time - first_key);
        }
      }

      // The largest score of each row in this thread's columns.
      float largest[2];
      bool moves = false;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[half] = fmaxf(scores_rmem[0][2 * half], scores_rmem[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < keys / 8; ++n) {
          largest[half] =
              fmaxf(largest[half], fmaxf(scores_rmem[n][2 * half], scores_rmem[n][2 * half + 1]));
        }
        moves |= fmaf(largest[half], factor, minus_reference[half]) > reference_slack;
      }
      if (any_lane(moves)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float logit = row_maximum(largest[half]) * factor;
          const float old = minus_reference[half];
          minus_reference[half] = logit + old > reference_slack ? -logit : old;
          // Nothing is summed up before the first tile.
          if (tile == 0) continue;
          const float shrink = exp2_fast(minus_reference[half] - old);
          row_sum[half] *= shrink;
#pragma unroll
          for (int n = 0; n < columns / 8; ++n) {
            out_rmem[n][2 * half] *= shrink;
            out_rmem[n][2 * half + 1] *= shrink;
          }
        }
      }
#pragma unroll
      for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float weight = exp2_fast(fmaf(scores_rmem[n][e], factor, minus_reference[e / 2]));
          row_sum[e / 2] += weight;
          scores_rmem[n][e] = weight;
        }
      }
      if (extras && dropout.active()) {
#pragma unroll
        for (int n = 0; n < keys / 8; ++n) {
          bool keep[4];
          dropout.draw_queries(keep, first_row, first_key + n * 8, segment.stream);
#pragma unroll
          for (int e = 0; e < 4; ++e) scores_rmem[n][e] = keep[e] ? scores_rmem[n][e] : 0.0f;
        }
      }
      // out (16, columns) += weights (16, keys) v (keys, columns)
      if constexpr (Element::bytes == 2) {
        accumulate<keys, columns, Smem.v>(out_rmem, scores_rmem, places);
      } else {
        accumulate<keys, columns, Smem.v>(out_rmem, scores_rmem,
                                          WordPlaces<Element, columns>(word_place + stage));
      }
    } else if (tile < 0) {
      cp_async_wait<1>();
      __syncthreads();
      q_rmem.load(LanePlaces<Element, columns>(own_place));
    }
    if (following >= tiles.count()) break;
    cp_async_wait<0>();
    __syncthreads();
    tile = following;
  }

  const int time = kept(uint32_t(direction.time)), query = first_row + lane / 4;
  if (first_row >= time) return;
  float sum[2], inverse[2], lse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) sum[half] = row_total(row_sum[half]);
  if (direction.mask.data) {
    const Visibility query_visible(direction.mask, batch, time);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!query_visible(query + half * 8)) sum[half] = 0.0f;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool sees_a_key = sum[half] > 0.0f;
    const float sum_inverse = 1.0f / sum[half], log_sum = kept(log2_fast(sum[half]));
    inverse[half] = sees_a_key ? sum_inverse : 0.0f;
    lse[half] = sees_a_key ? (log_sum - minus_reference[half]) * ln_2 : -infinity;
    if (extras && dropout.active()) inverse[half] *= problem.extras.keep_scale;
  }
  if (lane % 4 == 0 && query < time) {
    float* lse_gmem = direction.lse + (static_cast<int64_t>(batch_head) * time + query);
    lse_gmem[0] = lse[0];
    if (query + 8 < time) lse_gmem[8] = lse[1];
  }
  clear_rows(out_rmem, inverse);
  // The warp's rows of q, which no other has read.
  const RowWriter<Element, columns, columns> writer(direction.out, sources_smem[query_source + 1],
                                                    0);
  writer.store(q_smem.address + warp_row * HeadTile::row_bytes, first_row, time,
               [&](int n, int e) { return out_rmem[n][e] * inverse[e / 2]; });
}

}  // namespace mmer::cuda
