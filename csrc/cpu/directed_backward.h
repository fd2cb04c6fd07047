// Backward of one direction, from the log-sum-exp that the forward kept.

#pragma once

#include "directed.h"
#include "gradients.h"

namespace mmer::cpu {
namespace {

// Gradients of the keys and values that one group of queries sees, from its windows' first keys on.
struct KeyGradients {
  float* key[2];
  float* value[2];

  KeyGradients(Arena& arena, const DirectedProblem& problem) {
    for (int64_t n = 0; n < 2; ++n) {
      const int64_t count = largest_window(problem, problem.segments[n]);
      key[n] = arena.take(count * row_stride(problem.options.head_dim));
      value[n] = arena.take(count * row_stride(problem.value_dim));
    }
  }
};

inline int64_t directed_backward_partials(const DirectedProblem& problem) {
  Arena counting;
  KeyGradients measured(counting, problem);
  return counting.used();
}

struct BackwardSegment {
  KeyBias bias;
  float *key_rows, *keys, *values;

  BackwardSegment(Arena& arena, const DirectedProblem& problem, const Segment& segment)
      : bias(arena, problem, segment) {
    const int64_t count = largest_window(problem, segment), dim = problem.options.head_dim;
    key_rows = arena.take(count * row_stride(dim));
    keys = arena.take(panels_size(count, dim));
    values = arena.take(panels_size(count, problem.value_dim));
  }
};

struct DirectedBackwardWorkspace {
  KeyGradients gradients;
  QueryGradients rows;
  BackwardSegment segments[2];
  float *value_rows, *queries, *row_bias, *row_times, *grad_queries, *row;
  float *scores, *grad_scores, *factors;

  DirectedBackwardWorkspace(Arena& arena, const DirectedProblem& problem)
      : gradients(arena, problem),
        rows(arena, row_block, problem.value_dim),
        segments{{arena, problem, problem.segments[0]}, {arena, problem, problem.segments[1]}} {
    const int64_t dim = problem.options.head_dim;
    value_rows = arena.take(panel_width * row_stride(problem.value_dim));
    queries = arena.take(row_block * row_stride(dim));
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    grad_queries = arena.take(row_block * row_stride(dim));
    row = arena.take(larger(dim, problem.value_dim));
    scores = arena.take(tile_size);
    grad_scores = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
  }
};

class DirectedBackward {
 public:
  DirectedBackward(const DirectedProblem& problem, DirectedBackwardWorkspace& work, int64_t number)
      : problem_(problem),
        options_(problem.options),
        work_(work),
        task_(task_of(problem.options, number)),
        gradients_(work.gradients) {
    if (options_.groups > 1) {
      Arena partial(options_.partials + task_.number * directed_backward_partials(problem));
      gradients_ = KeyGradients(partial, problem);
    }
  }

  void run() {
    for (int64_t n = 0; n < problem_.segment_count; ++n) pack_segment(n);
    const Blocks blocks = blocks_of(problem_);
    const Range own = group_blocks(options_, blocks, task_.group);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const Range rows = rows_of(problem_, blocks, block);
      if (rows.begin < rows.end) derive_rows_of(rows);
    }
    for (int64_t n = 0; n < problem_.segment_count && options_.groups == 1; ++n) {
      write_gradients(problem_, task_, n, {0, problem_.segments[n].time}, gradients_, work_.row);
    }
    if (options_.grad_decay != nullptr) options_.grad_decay[task_.number] = grad_decay_;
  }

  // Adds up the gradients of keys in the groups that see them, in order, and writes them. `first`
  // lies in the memory of the head's first group; `row` has room for one key or value.
  static void write_gradients(const DirectedProblem& problem, const Task& task, int64_t n,
                              Range keys, const KeyGradients& first, float* row) {
    const Segment& segment = problem.segments[n];
    add_up(problem, task, segment, keys, first.key[n], problem.options.head_dim, 1.0f,
           segment.grad_key, row);
    add_up(problem, task, segment, keys, first.value[n], problem.value_dim, 1.0f,
           segment.grad_value, row);
  }

 private:
  static void add_up(const DirectedProblem& problem, const Task& task, const Segment& segment,
                     Range keys, const float* first, int64_t dim, float factor,
                     const TensorView& gradient, float* row) {
    const int64_t apart = directed_backward_partials(problem);
    Range windows[most_groups];
    for (int64_t group = 0; group < problem.options.groups; ++group) {
      windows[group] = window_of(problem, segment, group);
    }
    for (int64_t key = keys.begin; key < keys.end; ++key) {
      fill(row, dim, 0.0f);
      for (int64_t group = 0; group < problem.options.groups; ++group) {
        if (key < windows[group].begin || key >= windows[group].end) continue;
        const float* part = first + group * apart + (key - windows[group].begin) * row_stride(dim);
        for (int64_t k = 0; k < dim; ++k) row[k] += part[k];
      }
      write_row(gradient, task.batch, task.head, key, dim, row, factor);
    }
  }

  void pack_segment(int64_t n) {
    const Segment& segment = problem_.segments[n];
    const BackwardSegment& packed = work_.segments[n];
    const int64_t dim = options_.head_dim, value_dim = problem_.value_dim;
    const Range window = windows_[n] = window_of(problem_, segment, task_.group);
    const int64_t count = window.end - window.begin;
    packed.bias.read(problem_, segment, task_.batch, window);
    pack_rows(segment.key, task_.batch, task_.head, window, dim, packed.bias.bias, packed.key_rows);
    pack_panels(packed.key_rows, count, dim, packed.keys);
    for (int64_t first = window.begin; first < window.end; first += panel_width) {
      const Range steps{first, smaller(first + panel_width, window.end)};
      const int64_t place = first - window.begin;
      pack_rows(segment.value, task_.batch, task_.head, steps, value_dim, packed.bias.bias + place,
                work_.value_rows);
      pack_panels(work_.value_rows, steps.end - steps.begin, value_dim,
                  packed.values + place * value_dim);
    }
    fill(gradients_.key[n], count * row_stride(dim), 0.0f);
    fill(gradients_.value[n], count * row_stride(value_dim), 0.0f);
  }

  void derive_rows_of(Range rows) {
    const int64_t count = rows.end - rows.begin, dim = options_.head_dim;
    rows_ = rows;
    const int64_t real = read_mask(problem_.mask, task_.batch, rows, work_.row_bias);
    pack_queries(problem_.query, task_.batch, task_.head, rows, dim, work_.row_bias, options_.scale,
                 work_.queries);
    read_query_gradients({problem_.out, problem_.lse, problem_.grad_out, problem_.grad_lse}, task_,
                         rows, problem_.value_dim, work_.row, work_.rows);
    Interval interval;
    if (options_.timed) {
      read_times(problem_.times, task_.batch, rows, work_.row_bias, work_.row_times);
      interval = interval_of(work_.row_times, work_.row_bias, count);
    }
    fill(work_.grad_queries, count * row_stride(dim), 0.0f);
    const auto visit = [&](const auto& tile) {
      for (int64_t n = 0; n < problem_.segment_count && real > 0; ++n) {
        visit_tiles(problem_, problem_.segments[n], windows_[n], work_.segments[n].bias, rows,
                    interval, [&](Range keys) { tile(n, keys); });
      }
    };
    one_tile_ = problem_.segment_count == 1 &&
                is_one_tile(problem_, problem_.segments[0], windows_[0], rows);
    if (!one_tile_ && !is_exact(work_.rows.lse, count)) {
      fill(work_.rows.norm, count, 0.0f);
      visit([&](int64_t n, Range keys) {
        score_tile(n, keys);
        const float* bias = work_.segments[n].bias.bias + keys.begin - windows_[n].begin;
        sum_row_weights({work_.scores, tile_stride}, count, keys.end - keys.begin, bias,
                        work_.rows.lse, work_.rows.norm);
      });
      avoid_zeros(work_.rows.norm, count);
    }
    visit([&](int64_t n, Range keys) { derive_tile(n, keys); });
    for (int64_t i = 0; i < count; ++i) {
      write_row(problem_.grad_query, task_.batch, task_.head, rows.begin + i, dim,
                work_.grad_queries + i * row_stride(dim), options_.scale);
    }
  }

  void score_tile(int64_t n, Range keys) {
    const Segment& segment = problem_.segments[n];
    const BackwardSegment& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t dim = options_.head_dim, place = keys.begin - windows_[n].begin;
    const Matrix scores{work_.scores, tile_stride};

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
  }

  void derive_tile(int64_t n, Range keys) {
    const Segment& segment = problem_.segments[n];
    const BackwardSegment& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t dim = options_.head_dim, value_dim = problem_.value_dim;
    const int64_t place = keys.begin - windows_[n].begin;
    const Matrix scores{work_.scores, tile_stride};
    const Matrix grad_scores{work_.grad_scores, tile_stride};

    score_tile(n, keys);
    // grad_weights (rows, keys) = grad_out (rows, value_dim) values^T (value_dim, keys)
    multiply<Left::row_major, Result::overwritten>(
        rows, value_dim, count, work_.rows.grad_out, row_stride(value_dim),
        transposed_panels(packed.values, value_dim, place), grad_scores);
    if (options_.dropout.active) {
      draw_by_rows({options_.dropout, dropout_row(options_, task_), segment.stream}, rows_, keys,
                   {work_.factors, tile_stride});
    }
    const float* factors = options_.dropout.active ? work_.factors : nullptr;
    if (one_tile_) {
      derive_whole_rows(scores, grad_scores, factors, rows, count, packed.bias.bias + place,
                        work_.rows.lse, work_.rows.grad_lse);
    } else {
      derive_rows(scores, grad_scores, factors, rows, count, packed.bias.bias + place,
                  work_.rows.lse, work_.rows.norm, work_.rows.correction);
    }
    if (options_.grad_decay != nullptr) {
      grad_decay_ +=
          derive_decay(grad_scores, rows, count, work_.row_times, packed.bias.times + place);
    }
    // grad_values (keys, value_dim) += weights^T (keys, rows) grad_out (rows, value_dim)
    multiply<Left::transposed, Result::added_to>(
        count, rows, value_dim, scores.data, tile_stride,
        row_panels(work_.rows.grad_out, value_dim, 0),
        {gradients_.value[n] + place * row_stride(value_dim), row_stride(value_dim)});
    // grad_queries (rows, dim) += grad_scores (rows, keys) keys (keys, dim)
    multiply<Left::row_major, Result::added_to>(rows, count, dim, grad_scores.data, tile_stride,
                                                row_panels(packed.key_rows, dim, place),
                                                {work_.grad_queries, row_stride(dim)});
    // grad_keys (keys, dim) += grad_scores^T (keys, rows) queries (rows, dim)
    multiply<Left::transposed, Result::added_to>(
        count, rows, dim, grad_scores.data, tile_stride, row_panels(work_.queries, dim, 0),
        {gradients_.key[n] + place * row_stride(dim), row_stride(dim)});
  }

  const DirectedProblem& problem_;
  const Options& options_;
  DirectedBackwardWorkspace& work_;
  const Task task_;
  KeyGradients gradients_;
  Range windows_[2];
  Range rows_;
  bool one_tile_ = false;
  double grad_decay_ = 0.0;
};

inline void directed_backward(const DirectedProblem& problem, Range tasks) {
  Scratch<DirectedBackwardWorkspace, DirectedProblem> scratch(problem);
  for (int64_t number = tasks.begin; number < tasks.end; ++number) {
    DirectedBackward(problem, scratch.workspace, number).run();
  }
}

struct MergeWorkspace {
  float* row;

  MergeWorkspace(Arena& arena, const DirectedProblem& problem)
      : row(arena.take(larger(problem.options.head_dim, problem.value_dim))) {}
};

inline void directed_backward_merge(const DirectedProblem& problem, Range blocks) {
  Scratch<MergeWorkspace, DirectedProblem> scratch(problem);
  int64_t blocks_a_head = 0;
  for (const Segment& segment : problem.segments) {
    blocks_a_head += (segment.time + merge_block - 1) / merge_block;
  }
  for (int64_t number = blocks.begin; number < blocks.end; ++number) {
    const Task task = task_of(problem.options, number / blocks_a_head * problem.options.groups);
    Arena partial(problem.options.partials + task.number * directed_backward_partials(problem));
    const int64_t token_blocks = (problem.segments[0].time + merge_block - 1) / merge_block;
    const int64_t block = number % blocks_a_head, n = block < token_blocks ? 0 : 1;
    const int64_t first = (block - n * token_blocks) * merge_block;
    DirectedBackward::write_gradients(
        problem, task, n, {first, smaller(first + merge_block, problem.segments[n].time)},
        KeyGradients(partial, problem), scratch.workspace.row);
  }
}

}  // namespace
}  // namespace mmer::cpu
