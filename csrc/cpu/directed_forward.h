// Forward of one direction: a running softmax over tiles of keys.
//
//   out = softmax(scale * query keys^T) values

#pragma once

#include "directed.h"
#include "dropout.h"

namespace mmer::cpu {
namespace {

struct ForwardSegment {
  KeyBias bias;
  float *keys, *values;

  ForwardSegment(Arena& arena, const DirectedProblem& problem, const Segment& segment)
      : bias(arena, problem, segment) {
    const int64_t count = largest_window(problem, segment);
    keys = arena.take(panels_size(count, problem.options.head_dim));
    values = arena.take(count * row_stride(problem.value_dim));
  }
};

struct DirectedForwardWorkspace {
  ForwardSegment segments[2];
  float *key_rows, *queries, *row_bias, *row_times, *row_largest, *row_sums, *accumulator;
  float *scores, *factors;

  DirectedForwardWorkspace(Arena& arena, const DirectedProblem& problem)
      : segments{{arena, problem, problem.segments[0]}, {arena, problem, problem.segments[1]}} {
    const int64_t dim = problem.options.head_dim;
    key_rows = arena.take(panel_width * row_stride(dim));
    queries = arena.take(row_block * row_stride(dim));
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    row_largest = arena.take(row_block);
    row_sums = arena.take(row_block * lanes);
    accumulator = arena.take(row_block * row_stride(problem.value_dim));
    scores = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
  }
};

class DirectedForward {
 public:
  DirectedForward(const DirectedProblem& problem, DirectedForwardWorkspace& work, int64_t number)
      : problem_(problem),
        options_(problem.options),
        work_(work),
        task_(task_of(problem.options, number)) {}

  void run() {
    for (int64_t n = 0; n < problem_.segment_count; ++n) pack_segment(n);
    const Blocks blocks = blocks_of(problem_);
    const Range own = group_blocks(options_, blocks, task_.group);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const Range rows = rows_of(problem_, blocks, block);
      if (rows.begin < rows.end) attend_rows(rows);
    }
  }

 private:
  void pack_segment(int64_t n) {
    const Segment& segment = problem_.segments[n];
    const ForwardSegment& packed = work_.segments[n];
    const int64_t dim = options_.head_dim;
    const Range window = windows_[n] = window_of(problem_, segment, task_.group);
    packed.bias.read(problem_, segment, task_.batch, window);
    for (int64_t first = window.begin; first < window.end; first += panel_width) {
      const Range steps{first, smaller(first + panel_width, window.end)};
      const int64_t place = first - window.begin;
      pack_rows(segment.key, task_.batch, task_.head, steps, dim, packed.bias.bias + place,
                work_.key_rows);
      pack_panels(work_.key_rows, steps.end - steps.begin, dim, packed.keys + place * dim);
    }
    pack_rows(segment.value, task_.batch, task_.head, window, problem_.value_dim, packed.bias.bias,
              packed.values);
  }

  void attend_rows(Range rows) {
    const int64_t count = rows.end - rows.begin, value_dim = problem_.value_dim;
    rows_ = rows;
    const int64_t real = read_mask(problem_.mask, task_.batch, rows, work_.row_bias);
    pack_queries(problem_.query, task_.batch, task_.head, rows, options_.head_dim, work_.row_bias,
                 options_.scale, work_.queries);
    Interval interval;
    if (options_.timed) {
      read_times(problem_.times, task_.batch, rows, work_.row_bias, work_.row_times);
      interval = interval_of(work_.row_times, work_.row_bias, count);
    }
    fill(work_.row_largest, count, -infinity);
    fill(work_.row_sums, count * lanes, 0.0f);
    fill(work_.accumulator, count * row_stride(value_dim), 0.0f);
    for (int64_t n = 0; n < problem_.segment_count && real > 0; ++n) {
      visit_tiles(problem_, problem_.segments[n], windows_[n], work_.segments[n].bias, rows,
                  interval, [&](Range keys) { attend_tile(n, keys); });
    }
    for (int64_t i = 0; i < count; ++i) {
      write_output(problem_.out, problem_.lse, task_, rows.begin + i,
                   work_.accumulator + i * row_stride(value_dim), value_dim, work_.row_largest[i],
                   sum_lanes(load(work_.row_sums + i * lanes)));
    }
  }

  void attend_tile(int64_t n, Range keys) {
    const Segment& segment = problem_.segments[n];
    const ForwardSegment& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t dim = options_.head_dim, value_dim = problem_.value_dim;
    const int64_t place = keys.begin - windows_[n].begin;
    const Matrix scores{work_.scores, tile_stride};
    const Matrix accumulator{work_.accumulator, row_stride(value_dim)};

    // scores (rows, keys) = queries (rows, dim) keys^T (dim, keys)
    multiply<Left::row_major, Result::overwritten>(rows, dim, count, work_.queries, row_stride(dim),
                                                   transposed_panels(packed.keys, dim, place),
                                                   scores);
    if (options_.timed) {
      apply_times(scores, rows, count, work_.row_times, packed.bias.times + place,
                  slope_of(options_, task_.head), options_.max_gap);
    }
    if (is_cut_by_ranges(problem_, segment, rows_, keys)) {
      apply_ranges(problem_, segment, rows_, keys, scores);
    }
    const RunningRows running{work_.row_largest, work_.row_sums, accumulator, value_dim};
    raise_rows(scores, rows, count, work_.row_bias, packed.bias.bias + place, running);
    exponentials_of_rows(scores, rows, count, running);
    if (options_.dropout.active) {
      const Matrix factors{work_.factors, tile_stride};
      draw_by_rows({options_.dropout, dropout_row(options_, task_), segment.stream}, rows_, keys,
                   factors);
      multiply_elements(scores, factors, scores, rows, count);
    }
    // accumulator (rows, value_dim) += weights (rows, keys) values (keys, value_dim)
    multiply<Left::row_major, Result::added_to>(rows, count, value_dim, scores.data, tile_stride,
                                                row_panels(packed.values, value_dim, place),
                                                accumulator);
  }

  const DirectedProblem& problem_;
  const Options& options_;
  DirectedForwardWorkspace& work_;
  const Task task_;
  Range windows_[2];
  Range rows_;
};

inline void directed_forward(const DirectedProblem& problem, Range tasks) {
  Scratch<DirectedForwardWorkspace, DirectedProblem> scratch(problem);
  for (int64_t number = tasks.begin; number < tasks.end; ++number) {
    DirectedForward(problem, scratch.workspace, number).run();
  }
}

}  // namespace
}  // namespace mmer::cpu
