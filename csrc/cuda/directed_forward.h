// Attention of the queries of one sequence to the keys of another, forward. Both directions of
// cross-attention are one launch; chunked attention is one direction whose rows see an interval.
//
// A block owns a tile of queries of one head and reads the keys that any of them sees, tile by
// tile, two in flight: S = q k^T, an online softmax in units of log2, out += P v.

#pragma once

#include "config.h"
#include "dropout.h"
#include "products.h"
#include "side_loader.h"
#include "visible.h"

namespace mmer::cuda {

// The exponents of a row are taken relative to a reference, which moves to the row's maximum only
// where that has left it by more than the slack: what is summed up is rarely rescaled then.
constexpr float reference_slack = 8.0f;
constexpr float lowest_reference = -3e38f;

template <class Element, int columns>
struct ForwardSmem {
  static constexpr Config config = forward_config(columns, Element::bytes);
  static constexpr int q_bytes = config.rows() * columns * Element::bytes;
  static constexpr int tile_bytes = config.tile * columns * Element::bytes;
  static constexpr int k = q_bytes;                          // two stages
  static constexpr int v = k + 2 * tile_bytes;               // two stages
  static constexpr int sources = v + 2 * tile_bytes;         // of both segments
  static constexpr int bias = sources + head_sources_bytes;  // two stages of floats
  static constexpr int times = bias + 8 * config.tile;       // two stages of floats, with extras
  static constexpr int flags = times + 8 * config.tile;
};

template <class Element, int columns, bool extras>
MMER_DEVICE void directed_forward(const ForwardProblem& problem) {
  constexpr Config config = forward_config(columns, Element::bytes);
  constexpr int rows = config.rows(), keys = config.tile;
  using Smem = ForwardSmem<Element, columns>;
  using HeadTile = Tile<Element, columns>;
  extern __shared__ __align__(128) unsigned char smem[];
  float* bias_smem = reinterpret_cast<float*>(smem + Smem::bias);
  float* times_smem = reinterpret_cast<float*>(smem + Smem::times);
  uint8_t* flags_smem = smem + Smem::flags;
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

  const auto tiles_of = [&](const Segment& segment) {
    return tiles_seen<rows, keys>(segment.window, row, direction.time, segment.time);
  };
  const Tiles tokens = tiles_of(direction.segments[0]);
  const Tiles summaries =
      extras && direction.segment_count > 1 ? tiles_of(direction.segments[1]) : Tiles{0, 0};
  const int tile_count = tokens.count + summaries.count;
  const bool timed = extras && direction.times.data != nullptr;
  const bool skips = timed && problem.extras.max_gap < infinity;
  if (skips) {
    const Segment& segment = direction.segments[0];
    mark_near_tiles<rows, keys, config.warps>(
        flags_smem, tokens, {direction.mask, direction.times, direction.time},
        {segment.mask, segment.times, segment.time}, batch, row, problem.extras.max_gap);
  }
  // The largest score gives the largest logit only where the scale is not negative.
  const bool always_hides = timed || problem.scale < 0.0f;
  const bool by_position = hides_by_position(direction.segments[0].window, direction.time);
  const auto next_tile = [&](int tile) {
    while (skips && tile < tokens.count && !flags_smem[tile]) ++tile;
    return tile;
  };

  const auto first_step = [&](int tile) {
    return !extras || tile < tokens.count ? tokens.first + tile * keys
                                          : summaries.first + (tile - tokens.count) * keys;
  };

  constexpr int threads = config.threads();
  using KeyLoader = SideLoader<Segment, Element, columns, threads, extras, true, false>;
  HeadSource* sources_smem = reinterpret_cast<HeadSource*>(smem + Smem::sources);
  KeyLoader::template find_sources<extras ? 2 : 1>(sources_smem, direction.segments, batch, head);
  __syncthreads();
  const Segment& token_segment = direction.segments[0];
  const bool plain = KeyLoader::is_plain(token_segment, batch, true);
  const uint32_t thread_place = kept(KeyLoader::Loader::first_place(HeadTile{0}));
  // k, v (keys, columns) and what is known of each key
  const auto load_tile = [&](int tile, int stage) {
    if (tile >= tile_count) return;
    const int number = extras && tile >= tokens.count;
    const Segment& segment = direction.segments[number];
    const KeyLoader loader(segment, batch, batch_head, sources_smem + 3 * number, thread_place,
                           plain && number == 0);
    const int first = first_step(tile);
    loader.template load<keys, Smem::v - Smem::k>(
        HeadTile{base + Smem::k + stage * Smem::tile_bytes}, first);
    if (threadIdx.x < keys &&
        (always_hides || by_position || !loader.weighting.whole(first + keys))) {
      const int key = first + threadIdx.x, place = stage * keys + threadIdx.x;
      const float bias = loader.weighting(key);
      bias_smem[place] = bias;
      if (timed) times_smem[place] = time_of(segment.times, batch, key, bias > -infinity);
    }
  };

  const Visibility query_visible(direction.mask, batch, direction.time);
  // q (rows, columns)
  SideLoader<Direction, Element, columns, threads, false, false, false>(direction, batch, head,
                                                                        problem.heads, true)
      .template load_by_row<rows, 0>(q_smem, row);
  cp_async_commit();

  float row_times[2] = {0.0f, 0.0f};
  float decay = 0.0f;
  if (timed) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_row + lane / 4 + half * 8;
      row_times[half] = time_of(direction.times, batch, query, query_visible(query));
    }
    if (problem.extras.decay) {
      decay = problem.extras.decay[head * problem.extras.decay_stride] * log2_e;
    }
  }
  const RowsSeen token_rows(direction.segments[0].window, first_row, direction.time,
                            direction.segments[0].time);
  const Dropout dropout(problem.extras, batch_head);

  float out_rmem[columns / 8][4];  // (16, columns) of the warp
  set_zero(out_rmem);
  // Of the exponents of each row. A row that has seen no key yet starts below all logits.
  float reference[2] = {lowest_reference, lowest_reference};
  float row_sum[2] = {0.0f, 0.0f};  // of this thread's columns
  // Wide queries stay in shared memory: the sums need the registers.
  constexpr bool holds_queries = columns * Element::bytes <= 256;
  uint32_t q_rmem[holds_queries ? steps_of<Element, columns> : 1][4];
  bool have_queries = false;

  // The first pass only loads.
  int tile = -1;
#pragma unroll 1
  for (int stage = 1; tile < tile_count; stage ^= 1) {
    const int following = next_tile(tile + 1);
    load_tile(following, stage ^ 1);
    cp_async_commit();
    if (tile < 0) {
      tile = following;
      continue;
    }
    cp_async_wait<1>();
    __syncthreads();
    if (holds_queries && !have_queries) {
#pragma unroll
      for (int step = 0; step < steps_of<Element, columns>; ++step) {
        load_fragment(q_rmem[holds_queries ? step : 0], q_smem, warp_row, step);
      }
      have_queries = true;
    }

    const bool of_tokens = !extras || tile < tokens.count;
    const Segment& segment = direction.segments[of_tokens ? 0 : 1];
    const int first_key = first_step(tile);
    const RowsSeen seen =
        of_tokens ? token_rows : RowsSeen(segment.window, first_row, direction.time, segment.time);
    if (first_row < direction.time && !seen.none(first_key, first_key + keys)) {
      const HeadTile k_smem{base + Smem::k + stage * Smem::tile_bytes};
      const HeadTile v_smem{base + Smem::v + stage * Smem::tile_bytes};
      float scores_rmem[keys / 8][4];  // (16, keys) = q (16, columns) k^T (columns, keys)
      set_zero(scores_rmem);
      multiply_transposed<keys>(scores_rmem, k_smem, [&](int step, uint32_t (&a)[4]) {
        if constexpr (holds_queries) {
#pragma unroll
          for (int n = 0; n < 4; ++n) a[n] = q_rmem[step][n];
        } else {
          load_fragment(a, q_smem, warp_row, step);
        }
      });
      float factor = problem.scale;
      if (always_hides || !of_tokens || segment.mask.data || first_key + keys > segment.time ||
          !seen.whole(first_key, first_key + keys)) {
        add_bias<keys>(scores_rmem, factor, bias_smem + stage * keys);
        if (hides_by_position(segment.window, direction.time) &&
            !seen.whole(first_key, first_key + keys)) {
          hide<keys>(scores_rmem, segment.window, first_row, direction.time, segment.time,
                     first_key);
        }
        if (timed) {
          subtract_gaps<keys>(scores_rmem, row_times, times_smem + stage * keys, decay,
                              problem.extras.max_gap);
        }
        factor = 1.0f;
      }

      float new_reference[2];
      bool moves = false;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float tile_max = -infinity;
#pragma unroll
        for (int n = 0; n < keys / 8; ++n) {
          tile_max = fmaxf(tile_max, fmaxf(scores_rmem[n][2 * half], scores_rmem[n][2 * half + 1]));
        }
        tile_max = row_maximum(tile_max) * factor;
        const bool too_low = tile_max > reference[half] + reference_slack;
        new_reference[half] = too_low ? tile_max : reference[half];
        moves = moves || too_low;
      }
      if (any_lane(moves)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float shrink = exp2_fast(reference[half] - new_reference[half]);
          reference[half] = new_reference[half];
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
          const float weight = exp2_fast(fmaf(scores_rmem[n][e], factor, -reference[e / 2]));
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
      accumulate<keys, columns>(out_rmem, scores_rmem, v_smem, 0);
    }
    __syncthreads();
    tile = following;
  }
  cp_async_wait<0>();
  __syncthreads();

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_row + lane / 4 + half * 8;
    const float sum = row_total(row_sum[half]);
    const bool sees_a_key = sum > 0.0f && query_visible(query);
    inverse[half] = sees_a_key ? 1.0f / sum : 0.0f;
    if (lane % 4 == 0 && query < direction.time) {
      direction.lse[static_cast<int64_t>(batch_head) * direction.time + query] =
          sees_a_key ? (reference[half] + log2_fast(sum)) * ln_2 : -infinity;
    }
    if (extras && dropout.active()) inverse[half] *= problem.extras.keep_scale;
  }
  if (first_row >= direction.time) return;
  clear_rows(out_rmem, inverse);
  store_warp_rows<columns>(q_smem, warp_row, direction.out, batch, head, first_row, direction.time,
                           0, [&](int n, int e) { return out_rmem[n][e] * inverse[e / 2]; });
}

}  // namespace mmer::cuda
