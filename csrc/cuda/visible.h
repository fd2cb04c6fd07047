// Which pairs see each other, and what is added to their logits.

#pragma once

#include "tile.h"

namespace mmer::cuda {

constexpr float infinity = __builtin_huge_valf();
constexpr float log2_e = 1.4426950408889634f;
constexpr float ln_2 = 0.6931471805599453f;

// The steps [first, end) of the other sequence that one of our own sees. Both grow with `step`.
struct Interval {
  int first, end;
};

MMER_DEVICE Interval interval_of(const Window& window, int step, int other_time) {
  const int chunk = step / window.own_chunk;
  Interval seen{max((chunk + window.first_chunk) * window.other_chunk, 0),
                min((chunk + window.end_chunk) * window.other_chunk, other_time)};
  if (window.causal > 0) seen.end = min(seen.end, step + 1);
  if (window.causal < 0) seen.first = max(seen.first, step);
  return seen;
}

// Tiles of the other sequence: `count` from step `first` on.
struct Tiles {
  int first, count;
};

// Those that any of a block's rows sees. `first` is a multiple of 8, as the groups of dropout need.
template <int rows, int tile>
MMER_DEVICE Tiles tiles_seen(const Window& window, int row, int own_time, int other_time) {
  const int last_row = min(row + rows, own_time) - 1;
  const int first = interval_of(window, row, other_time).first / 8 * 8;
  const int end = interval_of(window, last_row, other_time).end;
  return {first, max((end - first + tile - 1) / tile, 0)};
}

// Whether steps of the same sequence see different ones of the other.
MMER_DEVICE bool hides_by_position(const Window& window, int own_time) {
  return window.own_chunk < own_time || window.causal != 0;
}

// What the 16 rows of a warp see.
struct RowsSeen {
  Interval all;   // what every row sees
  Interval some;  // what any of them sees

  MMER_DEVICE RowsSeen(const Window& window, int warp_first, int own_time, int other_time) {
    const int last = own_time - 1;
    const Interval from = interval_of(window, min(warp_first, last), other_time);
    const Interval to = interval_of(window, min(warp_first + 15, last), other_time);
    all = {to.first, from.end};
    some = {from.first, to.end};
  }
  MMER_DEVICE bool whole(int first, int end) const { return first >= all.first && end <= all.end; }
  MMER_DEVICE bool none(int first, int end) const { return end <= some.first || first >= some.end; }
};

// logits = scale * scores + the bias of each key. Keys past the end have a bias of -inf.
template <int keys>
MMER_DEVICE void add_bias(float (&scores)[keys / 8][4], float scale, const float* bias_smem) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[n][e] = fmaf(scores[n][e], scale, bias_smem[n * 8 + lane % 4 * 2 + e % 2]);
    }
  }
}

// logits = -inf where a row of the warp, from `warp_first` on, does not see the key.
template <int keys>
MMER_DEVICE void hide(float (&logits)[keys / 8][4], const Window& window, int warp_first,
                      int own_time, int other_time, int first_key) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = min(warp_first + lane / 4 + half * 8, own_time - 1);
    const Interval seen = interval_of(window, row, other_time);
#pragma unroll
    for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + n * 8 + lane % 4 * 2 + e;
        if (!(key >= seen.first && key < seen.end)) logits[n][2 * half + e] = -infinity;
      }
    }
  }
}

// Subtracts decay * |time - time|; pairs further apart than max_gap do not see each other.
template <int keys>
MMER_DEVICE void subtract_gaps(float (&logits)[keys / 8][4], const float (&row_times)[2],
                               const float* times_smem, float decay, float max_gap) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float gap = fabsf(row_times[e / 2] - times_smem[n * 8 + lane % 4 * 2 + e % 2]);
      logits[n][e] = gap > max_gap ? -infinity : fmaf(-decay, gap, logits[n][e]);
    }
  }
}

// The time of a step, 0 if it is padded: what stands there may be NaN.
MMER_DEVICE float time_of(const Steps& times, int batch, int step, bool visible) {
  if (!visible) return 0.0f;
  const float* times_gmem = static_cast<const float*>(times.data);
  return times_gmem[batch * times.batch_stride + step * times.time_stride];
}

struct TimedSteps {
  const Steps& mask;
  const Steps& times;
  int time;
};

// Marks in shared memory which tiles hold a step within max_gap of any of the block's rows.
template <int rows, int tile, int warps>
MMER_DEVICE void mark_near_tiles(uint8_t* flags_smem, Tiles tiles, const TimedSteps& own,
                                 const TimedSteps& other, int batch, int first_row, float max_gap) {
  const Visibility own_visible(own.mask, batch, own.time);
  const Visibility other_visible(other.mask, batch, other.time);
  const int lane = threadIdx.x % 32;
  float earliest = infinity, latest = -infinity;
#pragma unroll 1
  for (int row = first_row + lane; row < first_row + rows; row += 32) {
    if (!own_visible(row)) continue;
    const float time = time_of(own.times, batch, row, true);
    earliest = fminf(earliest, time);
    latest = fmaxf(latest, time);
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    earliest = fminf(earliest, shuffle_xor(earliest, lanes));
    latest = fmaxf(latest, shuffle_xor(latest, lanes));
  }
#pragma unroll 1
  for (int number = threadIdx.x / 32; number < tiles.count; number += warps) {
    bool near = false;
#pragma unroll
    for (int first = 0; first < tile; first += 32) {
      const int step = tiles.first + number * tile + first + lane;
      if ((tile % 32 != 0 && first + lane >= tile) || !other_visible(step)) continue;
      const float time = time_of(other.times, batch, step, true);
      // Written as the pairs are judged, so that rounding cannot leave out one that is seen.
      if (!(earliest - time > max_gap || time - latest > max_gap)) near = true;
    }
    near = any_lane(near);
    if (lane == 0) flags_smem[number] = near;
  }
  __syncthreads();
}

}  // namespace mmer::cuda
