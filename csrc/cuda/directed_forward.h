// Attention of the queries of one sequence to the keys of another, forward. Both directions of
// cross-attention are one launch; chunked attention is one direction whose rows see an interval.
//
// A block owns a tile of queries of one head and reads the keys that any of them sees, tile by
// tile, two in flight: S = q k^T, an online softmax in units of log2, out += P v.

#pragma once

#include "config.h"
#include "dropout.h"
#include "products.h"
#include "visible.h"

namespace mmer::cuda {

template <class Element, int columns>
struct ForwardSmem {
  static constexpr Config config = forward_config(columns, Element::bytes);
  static constexpr int q_bytes = config.rows() * columns * Element::bytes;
  static constexpr int tile_bytes = config.tile * columns * Element::bytes;
  static constexpr int k = q_bytes;                     // two stages
  static constexpr int v = k + 2 * tile_bytes;          // two stages
  static constexpr int bias = v + 2 * tile_bytes;       // two stages of floats
  static constexpr int times = bias + 8 * config.tile;  // two stages of floats, with extras
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
  const auto next_tile = [&](int tile) {
    while (skips && tile < tokens.count && !flags_smem[tile]) ++tile;
    return tile;
  };

  // k, v (keys, columns) and what is known of each key
  const auto load_segment = [&](const Segment& segment, int first, int stage) {
    const Visibility visible(segment.mask, batch, segment.time);
    const float* log_counts = segment.log_counts;
    if (extras && log_counts) log_counts += static_cast<int64_t>(batch) * segment.time;
    const auto seen = [&](int key) {
      return visible(key) && !(extras && log_counts && log_counts[key] == -infinity);
    };
    load_rows<keys, config.threads()>(HeadTile{base + Smem::k + stage * Smem::tile_bytes},
                                      segment.key, batch, head, first, seen);
    load_rows<keys, config.threads()>(HeadTile{base + Smem::v + stage * Smem::tile_bytes},
                                      segment.value, batch, head, first, seen);
    if (threadIdx.x < keys) {
      const int key = first + threadIdx.x;
      const bool is_seen = seen(key);
      const float bias = extras && is_seen && log_counts ? log_counts[key] : 0.0f;
      bias_smem[stage * keys + threadIdx.x] = is_seen ? bias : -infinity;
      if (timed) {
        times_smem[stage * keys + threadIdx.x] = time_of(segment.times, batch, key, is_seen);
      }
    }
  };
  const auto load_tile = [&](int tile, int stage) {
    if (tile < tokens.count) {
      load_segment(direction.segments[0], tokens.first + tile * keys, stage);
    } else if (extras && tile < tile_count) {
      load_segment(direction.segments[1], summaries.first + (tile - tokens.count) * keys, stage);
    }
  };

  const Visibility query_visible(direction.mask, batch, direction.time);
  int tile = next_tile(0);
  // q (rows, columns)
  load_rows<rows, config.threads()>(q_smem, direction.query, batch, head, row, query_visible);
  load_tile(tile, 0);
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
  float row_max[2] = {-infinity, -infinity};
  float row_sum[2] = {0.0f, 0.0f};  // of this thread's columns
  // Wide queries stay in shared memory: the sums need the registers.
  constexpr bool holds_queries = columns * Element::bytes <= 256;
  uint32_t q_rmem[holds_queries ? steps_of<Element, columns> : 1][4];
  bool have_queries = false;

  for (int stage = 0; tile < tile_count; stage ^= 1) {
    const int following = next_tile(tile + 1);
    load_tile(following, stage ^ 1);
    cp_async_commit();
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
    const int first_key =
        of_tokens ? tokens.first + tile * keys : summaries.first + (tile - tokens.count) * keys;
    const RowsSeen seen =
        of_tokens ? token_rows : RowsSeen(segment.window, first_row, direction.time, segment.time);
    if (first_row < direction.time && !seen.none(first_key, first_key + keys)) {
      const HeadTile k_smem{base + Smem::k + stage * Smem::tile_bytes};
      const HeadTile v_smem{base + Smem::v + stage * Smem::tile_bytes};
      float scores_rmem[keys / 8][4];  // (16, keys) = q (16, columns) k^T (columns, keys)
      multiply_transposed<keys>(scores_rmem, k_smem, [&](int step, uint32_t (&a)[4]) {
        if constexpr (holds_queries) {
#pragma unroll
          for (int n = 0; n < 4; ++n) a[n] = q_rmem[step][n];
        } else {
          load_fragment(a, q_smem, warp_row, step);
        }
      });
      // The largest score gives the largest logit only where the scale is not negative.
      float factor = problem.scale;
      if (timed || !of_tokens || segment.mask.data || factor < 0.0f ||
          !seen.whole(first_key, first_key + keys)) {
        hide<keys>(scores_rmem, factor, bias_smem + stage * keys, seen, first_key,
                   hides_by_position(segment.window, direction.time));
        if (timed) {
          subtract_gaps<keys>(scores_rmem, row_times, times_smem + stage * keys, decay,
                              problem.extras.max_gap);
        }
        factor = 1.0f;
      }

#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float tile_max = -infinity;
#pragma unroll
        for (int n = 0; n < keys / 8; ++n) {
          tile_max = fmaxf(tile_max, fmaxf(scores_rmem[n][2 * half], scores_rmem[n][2 * half + 1]));
        }
        const float new_max = fmaxf(row_max[half], row_maximum(tile_max) * factor);
        // A row that has seen no key yet has no reference: 0 keeps the exponents -inf.
        const float reference = new_max == -infinity ? 0.0f : new_max;
        const float shrink = exp2_fast(row_max[half] - reference);
        row_max[half] = new_max;
        row_sum[half] *= shrink;
#pragma unroll
        for (int n = 0; n < columns / 8; ++n) {
          out_rmem[n][2 * half] *= shrink;
          out_rmem[n][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            const float weight = exp2_fast(fmaf(scores_rmem[n][e], factor, -reference));
            row_sum[half] += weight;
            scores_rmem[n][e] = weight;
          }
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
          sees_a_key ? (row_max[half] + log2_fast(sum)) * ln_2 : -infinity;
    }
    if (extras && dropout.active()) inverse[half] *= problem.extras.keep_scale;
  }
  if (first_row >= direction.time) return;
  store_warp_rows<columns>(q_smem, warp_row, direction.out, batch, head, first_row, direction.time,
                           0, [&](int n, int e) {
                             // 0 times what stands in padding need not be 0.
                             const float factor = inverse[e / 2];
                             return factor == 0.0f ? 0.0f : out_rmem[n][e] * factor;
                           });
}

}  // namespace mmer::cuda
