// Forward of one direction: a running softmax over tiles of keys.
//
//   out = softmax(scale * query keys^T) values

#pragma once

#include "directed.h"
#include "dropout.h"

namespace mmer::cpu {
namespace {

template <class Arithmetic>
struct ForwardSegment {
  KeyBias bias;
  typename Arithmetic::RightColumns keys;
  typename Arithmetic::RightRows values;

  ForwardSegment(Arena& arena, const DirectedProblem& problem, const Segment& segment)
      : bias(arena, problem, segment),
        keys(arena, largest_window(problem, segment), problem.options.head_dim),
        values(arena, largest_window(problem, segment), problem.value_dim) {}
};

template <class Arithmetic>
struct DirectedForwardWorkspace {
  ForwardSegment<Arithmetic> segments[2];
  typename Arithmetic::LeftRows queries;
  typename Arithmetic::Weights weights;
  float *row_bias, *row_times, *row_largest, *row_sums, *accumulator, *scores, *factors;

  DirectedForwardWorkspace(Arena& arena, const DirectedProblem& problem)
      : segments{{arena, problem, problem.segments[0]}, {arena, problem, problem.segments[1]}},
        queries(arena, problem.options.head_dim),
        weights(arena) {
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    row_largest = arena.take(row_block);
    row_sums = arena.take(row_block * lanes);
    accumulator = arena.take(row_block * row_stride(problem.value_dim));
    scores = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
  }
};

template <class Arithmetic>
class DirectedForward {
 public:
  using Workspace = DirectedForwardWorkspace<Arithmetic>;

  DirectedForward(const DirectedProblem& problem, Workspace& work)
      : problem_(problem), options_(problem.options), work_(work) {}

  void run_group(const Task& task) {
    task_ = task;
    for (int64_t n = 0; n < problem_.segment_count; ++n) pack_segment(n);
    const Blocks blocks = blocks_of(problem_);
    const Range own = group_blocks(options_, blocks, task.group);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const Range rows = rows_of(problem_, blocks, block);
      if (rows.begin < rows.end) attend_rows(rows);
    }
  }

 private:
  void pack_segment(int64_t n) {
    const Segment& segment = problem_.segments[n];
    ForwardSegment<Arithmetic>& packed = work_.segments[n];
    const Range window = windows_[n] = window_of(problem_, segment, task_.group);
    packed.bias.read(problem_, segment, task_.batch, window);
    packed.keys.pack(source_of(segment.key, options_.head_dim, packed.bias.bias, window), window);
    packed.values.pack(source_of(segment.value, problem_.value_dim, packed.bias.bias, window),
                       window);
  }

  Source source_of(const TensorView& tensor, int64_t dim, const float* bias, Range steps) const {
    return {tensor, task_.batch, task_.head, dim, bias, steps.begin};
  }

  void attend_rows(Range rows) {
    const int64_t count = rows.end - rows.begin, value_dim = problem_.value_dim;
    rows_ = rows;
    const int64_t real = read_mask(problem_.mask, task_.batch, rows, work_.row_bias);
    work_.queries.pack(source_of(problem_.query, options_.head_dim, work_.row_bias, rows), rows);
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
    const ForwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t dim = options_.head_dim, value_dim = problem_.value_dim;
    const int64_t place = keys.begin - windows_[n].begin;
    const Matrix tile{work_.scores, tile_stride};
    const Matrix accumulator{work_.accumulator, row_stride(value_dim)};
    Scores scores{tile, options_.scale};

    // products (rows, keys) = queries (rows, dim) keys^T (dim, keys)
    Arithmetic::template multiply<Result::overwritten>(rows, dim, count, work_.queries.factor(),
                                                       packed.keys.factor(place), tile);
    if (options_.timed) {
      scores = apply_times(scores, rows, count, work_.row_times, packed.bias.times + place,
                           slope_of(options_, task_.head), options_.max_gap);
    }
    if (is_cut_by_ranges(problem_, segment, rows_, keys)) {
      scores = apply_ranges(problem_, segment, rows_, keys, scores);
    }
    const RunningRows running{work_.row_largest, work_.row_sums, accumulator, value_dim};
    raise_rows(scores, rows, count, work_.row_bias, packed.bias.bias + place, running);
    exponentials_of_rows(tile, rows, count, running);
    if (options_.dropout.active) {
      const Matrix factors{work_.factors, tile_stride};
      draw_by_rows({options_.dropout, dropout_row(options_, task_), segment.stream}, rows_, keys,
                   factors);
      multiply_elements(tile, factors, tile, rows, count);
    }
    work_.weights.pack(tile, rows, count);

    // accumulator (rows, value_dim) += weights (rows, keys) values (keys, value_dim)
    Arithmetic::template multiply<Result::added_to>(rows, count, value_dim, work_.weights.factor(),
                                                    packed.values.factor(place), accumulator);
  }

  const DirectedProblem& problem_;
  const Options& options_;
  Workspace& work_;
  Task task_{};
  Range windows_[2];
  Range rows_;
};

// Nothing is added up between groups.
template <class Arithmetic>
inline void run_directed_forward(const DirectedProblem& problem, Range tasks) {
  Scratch<DirectedForwardWorkspace<Arithmetic>, DirectedProblem> scratch(problem);
  [[maybe_unused]] const typename Arithmetic::Session session;
  DirectedForward<Arithmetic> kernel(problem, scratch.workspace);
  for (int64_t number = tasks.begin; number < tasks.end; ++number) {
    kernel.run_group(task_of(problem.options, number));
  }
}

}  // namespace
}  // namespace mmer::cpu
