// Steps, blocks and tasks: how the work of a head is cut up, and the masks and times of its steps.

#pragma once

#include "source.h"

namespace mmer::cpu {
namespace {

// A tile of scores stays in the second level of the cache, with the panels that it meets.
constexpr int64_t row_block = 64;
constexpr int64_t column_block = 128;
constexpr int64_t tile_stride = column_block + 16;
constexpr int64_t tile_size = row_block * tile_stride;

static_assert(column_block % panel_width == 0 && column_block % 4 == 0 && tile_stride % lanes == 0);

// bias (steps): 0 for a real step, -infinity for a padded one; how many are real.
inline int64_t read_mask(const MaskView& mask, int64_t batch, Range steps, float* bias) {
  int64_t real = 0;
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const bool here = is_real(mask, batch, step);
    bias[step - steps.begin] = here ? 0.0f : -infinity;
    real += here;
  }
  return real;
}

// times (steps), 0 for a padded step.
inline void read_times(const TimesView& times, int64_t batch, Range steps, const float* bias,
                       float* seconds) {
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    const int64_t n = step - steps.begin;
    const bool here = bias[n] != -infinity;
    seconds[n] = here ? times.data[batch * times.strides[0] + step * times.strides[1]] : 0.0f;
  }
}

// Earliest and latest real step of a block.
struct Interval {
  float first = infinity;
  float last = -infinity;
};

inline Interval interval_of(const float* seconds, const float* bias, int64_t count) {
  Interval interval;
  for (int64_t n = 0; n < count; ++n) {
    if (bias[n] == -infinity) continue;
    interval.first = seconds[n] < interval.first ? seconds[n] : interval.first;
    interval.last = seconds[n] > interval.last ? seconds[n] : interval.last;
  }
  return interval;
}

inline bool further_apart(const Interval& x, const Interval& y, float gap) {
  return x.first - y.last > gap || y.first - x.last > gap;
}

// Blocks of at most `most` steps, as equal as they can be if all but the last are whole units.
inline Range block_of(Range steps, int64_t most, int64_t unit, int64_t block) {
  const int64_t count = steps.end - steps.begin, blocks = (count + most - 1) / most;
  const int64_t begin = round_up(count * block / blocks, unit);
  const int64_t end = round_up(count * (block + 1) / blocks, unit);
  return {steps.begin + smaller(begin, count), steps.begin + smaller(end, count)};
}

inline int64_t blocks_of(Range steps, int64_t most) {
  return (steps.end - steps.begin + most - 1) / most;
}

inline float slope_of(const Options& options, int64_t head) {
  return options.decay == nullptr ? 0.0f : options.decay[head];
}

// Batch, head and group of a task.
struct Task {
  int64_t batch, head, group, number;
};

inline Task task_of(const Options& options, int64_t number) {
  const int64_t batch_head = number / options.groups;
  return {batch_head / options.heads, batch_head % options.heads, number % options.groups, number};
}

inline uint32_t dropout_row(const Options& options, const Task& task) {
  return static_cast<uint32_t>(task.batch * options.heads + task.head);
}

}  // namespace
}  // namespace mmer::cpu
