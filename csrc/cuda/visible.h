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

MMER_DEVICE Interval interval_of_chunk(const Window& window, int chunk, int other_time) {
  return {max((chunk + window.first_chunk) * window.other_chunk, 0),
          min((chunk + window.end_chunk) * window.other_chunk, other_time)};
}

MMER_DEVICE Interval interval_of(const Window& window, int step, int other_time) {
  Interval seen = interval_of_chunk(window, step / window.own_chunk, other_time);
  if (window.causal > 0) seen.end = min(seen.end, step + 1);
  if (window.causal < 0) seen.first = max(seen.first, step);
  return seen;
}

// Whether steps of the same sequence see different ones of the other.
MMER_DEVICE bool hides_by_position(const Window& window, int own_time) {
  return (window.own_chunk < own_time) | (window.causal != 0);
}

// What some rows, one after the other, see.
struct RowsSeen {
  Interval all;   // what every row sees
  Interval some;  // what any of them sees

  // `by_position`: of hides_by_position.
  MMER_DEVICE RowsSeen(const Window& window, bool by_position, int first_row, int rows,
                       int own_time, int other_time) {
    if (!by_position) {
      all = some = interval_of_chunk(window, 0, other_time);
      return;
    }
    const int last = own_time - 1;
    const Interval from = interval_of(window, min(first_row, last), other_time);
    const Interval to = interval_of(window, min(first_row + rows - 1, last), other_time);
    all = {to.first, from.end};
    some = {from.first, to.end};
  }
};

// Tiles of `steps` each of the other sequence: `count` from step `first` on.
struct Tiles {
  int first, count;
};

// Those that any of a block's rows sees. `first` is a multiple of 8, as the groups of dropout need.
template <int steps>
MMER_DEVICE Tiles tiles_seen(const RowsSeen& rows) {
  const int first = rows.some.first & ~7;
  return {first, max(rows.some.end - first + steps - 1, 0) / steps};
}

// What the rows of a warp see of a tile, by the tile's first step.
template <int steps>
struct TilesOfRows {
  int some_from, whole_from;
  uint32_t some_count, whole_count;

  MMER_DEVICE explicit TilesOfRows(const RowsSeen& rows)
      : some_from(rows.some.first - (steps - 1)),
        whole_from(rows.all.first),
        some_count(max(rows.some.end - some_from, 0)),
        whole_count(max(rows.all.end - (steps - 1) - whole_from, 0)) {}
  // Whether any row sees a step of the tile, and whether each sees all.
  MMER_DEVICE bool some(int first) const {
    return static_cast<uint32_t>(first - some_from) < some_count;
  }
  MMER_DEVICE bool whole(int first) const {
    return static_cast<uint32_t>(first - whole_from) < whole_count;
  }
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

// The same where only the end of the sequence hides keys, all of a tile but the first `count`.
template <int keys>
MMER_DEVICE void hide_end(float (&logits)[keys / 8][4], int count) {
  const int left = count - static_cast<int>(threadIdx.x % 4 * 2);
#pragma unroll
  for (int n = keys / 8 - 1; n >= 0; --n) {
    if (n * 8 + 8 <= count) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (n * 8 + e % 2 >= left) logits[n][e] = -infinity;
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
