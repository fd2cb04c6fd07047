// Backward of one direction, from the log-sum-exp that the forward kept.

#pragma once

#include "directed.h"
#include "gradients.h"
#include "groups.h"
#include "product_float32.h"

namespace mmer::cpu {
namespace {

// Gradients of keys and values from some groups of queries: of one group those of its windows, of a
// whole head those of all steps. That of the keys lacks the factor `scale`. Steps are counted
// through both segments.
struct KeyGradients {
  float* key[2];
  float* value[2];
  bool is_whole;

  explicit KeyGradients(Arena& arena, const DirectedProblem& problem, bool whole = false)
      : is_whole(whole) {
    for (int64_t n = 0; n < 2; ++n) {
      const Segment& segment = problem.segments[n];
      const int64_t count =
          round_up(whole ? segment.time : largest_window(problem, segment), 16) + 16;
      key[n] = arena.take(count * row_stride(problem.options.head_dim));
      value[n] = arena.take(count * row_stride(problem.value_dim));
    }
  }

  static Range all(const DirectedProblem& problem) {
    return {0, problem.segments[0].time + problem.segments[1].time};
  }

  // Step of the segment n where the memory begins.
  int64_t first(const DirectedProblem& problem, const Task& task, int64_t n) const {
    return is_whole ? 0 : window_of(problem, problem.segments[n], task.group).begin;
  }

  void clear(const DirectedProblem& problem, const Task& task) const {
    for (int64_t n = 0; n < 2; ++n) {
      const Segment& segment = problem.segments[n];
      const Range window =
          is_whole ? Range{0, segment.time} : window_of(problem, segment, task.group);
      const int64_t count = round_up(window.end - window.begin, 16) + 16;
      fill(key[n], count * row_stride(problem.options.head_dim), 0.0f);
      fill(value[n], count * row_stride(problem.value_dim), 0.0f);
    }
  }

  // Takes the gradients of the next group, of `task`, into those of the whole head.
  void merge(const DirectedProblem& problem, const Task& task, Range,
             const KeyGradients& next) const {
    for (int64_t n = 0; n < problem.segment_count; ++n) {
      const Range window = window_of(problem, problem.segments[n], task.group);
      const auto add = [&](float* total, const float* part, int64_t stride) {
        const int64_t count = (window.end - window.begin) * stride;
        for (int64_t k = 0; k < count; ++k) total[window.begin * stride + k] += part[k];
      };
      add(key[n], next.key[n], row_stride(problem.options.head_dim));
      add(value[n], next.value[n], row_stride(problem.value_dim));
    }
  }

  void write(const DirectedProblem& problem, const Task& task, Range steps) const {
    const int64_t tokens = problem.segments[0].time;
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      const int64_t n = step < tokens ? 0 : 1, own = step - n * tokens;
      write_step(problem, task, n, own, key[n] + own * row_stride(problem.options.head_dim),
                 value[n] + own * row_stride(problem.value_dim));
    }
  }

  // The same for a split head: each step's gradients in the groups that see it, in order.
  static void put_together(const DirectedProblem& problem, const Task& first, Range steps) {
    const int64_t tokens = problem.segments[0].time;
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      const int64_t n = step < tokens ? 0 : 1, own = step - n * tokens;
      float key_row[longest_row] = {}, value_row[longest_row] = {};
      for (int64_t group = 0; group < problem.options.groups; ++group) {
        const Task task = task_of(problem.options, first.number + group);
        const Range window = window_of(problem, problem.segments[n], group);
        if (own < window.begin || own >= window.end) continue;
        const KeyGradients part = partials_of<KeyGradients>(problem, task.number);
        const auto add = [&](float* row, const float* from, int64_t dim) {
          const float* there = from + (own - window.begin) * row_stride(dim);
          for (int64_t k = 0; k < dim; ++k) row[k] = group == 0 ? there[k] : row[k] + there[k];
        };
        add(key_row, part.key[n], problem.options.head_dim);
        add(value_row, part.value[n], problem.value_dim);
      }
      write_step(problem, first, n, own, key_row, value_row);
    }
  }

 private:
  static void write_step(const DirectedProblem& problem, const Task& task, int64_t n, int64_t step,
                         const float* key_row, const float* value_row) {
    const Segment& segment = problem.segments[n];
    write_row(segment.grad_key, task.batch, task.head, step, problem.options.head_dim, key_row,
              problem.options.scale);
    write_row(segment.grad_value, task.batch, task.head, step, problem.value_dim, value_row, 1.0f);
  }
};

template <class Arithmetic>
struct BackwardSegment {
  KeyBias bias;
  typename Arithmetic::RightRows key_rows;
  typename Arithmetic::RightColumns keys, values;

  BackwardSegment(Arena& arena, const DirectedProblem& problem, const Segment& segment)
      : bias(arena, problem, segment),
        key_rows(arena, largest_window(problem, segment), problem.options.head_dim),
        keys(arena, largest_window(problem, segment), problem.options.head_dim),
        values(arena, largest_window(problem, segment), problem.value_dim) {}
};

template <class Arithmetic>
struct DirectedBackwardWorkspace {
  KeyGradients total, part;
  QueryGradients rows;
  BackwardSegment<Arithmetic> segments[2];
  typename Arithmetic::LeftRows queries, grad_outs;
  typename Arithmetic::RightRows query_rows, grad_out_rows;
  typename Arithmetic::Weights weights_left, grad_left;
  float *row_bias, *row_times, *grad_queries, *scores, *grad_scores, *factors;

  DirectedBackwardWorkspace(Arena& arena, const DirectedProblem& problem)
      : total(arena, problem, true),
        part(total),
        rows(arena, row_block, problem.value_dim),
        segments{{arena, problem, problem.segments[0]}, {arena, problem, problem.segments[1]}},
        queries(arena, problem.options.head_dim),
        grad_outs(arena, problem.value_dim),
        query_rows(arena, row_block, problem.options.head_dim),
        grad_out_rows(arena, row_block, problem.value_dim),
        weights_left(arena),
        grad_left(arena) {
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    grad_queries = arena.take(row_block * row_stride(problem.options.head_dim));
    scores = arena.take(tile_size);
    grad_scores = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
    if (problem.options.groups > 1) part = KeyGradients(arena, problem);
  }
};

template <class Arithmetic>
class DirectedBackward {
 public:
  using Workspace = DirectedBackwardWorkspace<Arithmetic>;
  using Parts = KeyGradients;
  using Session = typename Arithmetic::Session;

  DirectedBackward(const DirectedProblem& problem, Workspace& work)
      : problem_(problem), options_(problem.options), work_(work) {}

  void begin_head(const Task&) {}

  void run_group(const Task& task, const KeyGradients& gradients) {
    task_ = task;
    gradients_ = &gradients;
    grad_decay_ = 0.0;
    gradients.clear(problem_, task);
    for (int64_t n = 0; n < problem_.segment_count; ++n) pack_segment(n);
    const Blocks blocks = blocks_of(problem_);
    const Range own = group_blocks(options_, blocks, task.group);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const Range rows = rows_of(problem_, blocks, block);
      if (rows.begin < rows.end) derive_rows_of(rows);
    }
    if (options_.grad_decay != nullptr) options_.grad_decay[task.number] = grad_decay_;
  }

 private:
  void pack_segment(int64_t n) {
    const Segment& segment = problem_.segments[n];
    BackwardSegment<Arithmetic>& packed = work_.segments[n];
    const Range window = windows_[n] = window_of(problem_, segment, task_.group);
    packed.bias.read(problem_, segment, task_.batch, window);
    const Source keys = source_of(segment.key, options_.head_dim, packed.bias.bias, window);
    packed.keys.pack(keys, window);
    packed.key_rows.pack(keys, window);
    packed.values.pack(source_of(segment.value, problem_.value_dim, packed.bias.bias, window),
                       window);
  }

  Source source_of(const TensorView& tensor, int64_t dim, const float* bias, Range steps) const {
    return {tensor, task_.batch, task_.head, dim, bias, steps.begin};
  }

  void derive_rows_of(Range rows) {
    const int64_t count = rows.end - rows.begin, dim = options_.head_dim;
    const int64_t value_dim = problem_.value_dim;
    rows_ = rows;
    const int64_t real = read_mask(problem_.mask, task_.batch, rows, work_.row_bias);
    const Source queries = source_of(problem_.query, dim, work_.row_bias, rows);
    work_.queries.pack(queries, rows);
    work_.query_rows.pack(queries, rows);
    read_lse(problem_.lse, task_, rows, work_.rows.lse);
    read_query_gradients({problem_.out, problem_.grad_out, problem_.grad_lse}, task_, rows,
                         value_dim, work_.rows);
    fill(work_.rows.norm, count, 1.0f);
    const Source grad_outs = Source::of(work_.rows.grad_out, row_stride(value_dim), value_dim);
    work_.grad_outs.pack(grad_outs, {0, count});
    work_.grad_out_rows.pack(grad_outs, {0, count});
    for (int64_t i = 0; i < count; ++i) work_.row_bias[i] = -work_.rows.lse[i];
    Interval interval;
    if (options_.timed) {
      read_times(problem_.times, task_.batch, rows, work_.row_bias, work_.row_times);
      interval = interval_of(work_.row_times, work_.row_bias, count);
    }
    is_first_tile_ = true;
    const auto visit = [&](const auto& tile) {
      for (int64_t n = 0; n < problem_.segment_count && real > 0; ++n) {
        visit_tiles(problem_, problem_.segments[n], windows_[n], work_.segments[n].bias, rows,
                    interval, [&](Range keys) { tile(n, keys); });
      }
    };
    one_tile_ = problem_.segment_count == 1 &&
                is_one_tile(problem_, problem_.segments[0], windows_[0], rows);
    exact_lse_ = is_exact(work_.rows.lse, count);
    if (!one_tile_ && !exact_lse_) {
      fill(work_.rows.norm, count, 0.0f);
      visit([&](int64_t n, Range keys) {
        const float* bias = work_.segments[n].bias.bias + keys.begin - windows_[n].begin;
        sum_row_weights(score_tile(n, keys), count, keys.end - keys.begin, bias, work_.rows.lse,
                        work_.rows.norm);
      });
      avoid_zeros(work_.rows.norm, count);
    }
    visit([&](int64_t n, Range keys) { derive_tile(n, keys); });
    if (is_first_tile_) fill(work_.grad_queries, count * row_stride(dim), 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      write_row(problem_.grad_query, task_.batch, task_.head, rows.begin + i, dim,
                work_.grad_queries + i * row_stride(dim), options_.scale);
    }
  }

  Scores score_tile(int64_t n, Range keys) {
    const Segment& segment = problem_.segments[n];
    const BackwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t dim = options_.head_dim, place = keys.begin - windows_[n].begin;
    Scores scores{{work_.scores, tile_stride}, options_.scale};

    // products (rows, keys) = queries (rows, dim) keys^T (dim, keys)
    Arithmetic::template multiply<Result::overwritten>(rows, dim, count, work_.queries.factor(),
                                                       packed.keys.factor(place), scores.tile);
    if (options_.timed) {
      scores = apply_times(scores, rows, count, work_.row_times, packed.bias.times + place,
                           slope_of(options_, task_.head), options_.max_gap);
    }
    if (is_cut_by_ranges(problem_, segment, rows_, keys)) {
      scores = apply_ranges(problem_, segment, rows_, keys, scores);
    }
    return scores;
  }

  void derive_tile(int64_t n, Range keys) {
    const Segment& segment = problem_.segments[n];
    const BackwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t dim = options_.head_dim, value_dim = problem_.value_dim;
    const int64_t place = keys.begin - windows_[n].begin;
    if (one_tile_ || !exact_lse_ || options_.timed || options_.dropout.active ||
        is_cut_by_ranges(problem_, segment, rows_, keys)) {
      derive_in_memory(n, keys);
    } else {
      derive_in_registers(n, keys);
    }
    const int64_t own = keys.begin - gradients_->first(problem_, task_, n);

    // grad_values (keys, value_dim) += weights^T (keys, rows) grad_out (rows, value_dim)
    Arithmetic::template multiply<Result::added_to>(
        count, rows, value_dim, work_.weights_left.transposed(), work_.grad_out_rows.factor(0),
        {gradients_->value[n] + own * row_stride(value_dim), row_stride(value_dim)});
    // grad_queries (rows, dim) += grad_scores (rows, keys) keys (keys, dim)
    multiply_onto<Arithmetic>(is_first_tile_, rows, count, dim, work_.grad_left.factor(),
                              packed.key_rows.factor(place), {work_.grad_queries, row_stride(dim)});
    is_first_tile_ = false;
    // grad_keys (keys, dim) += grad_scores^T (keys, rows) queries (rows, dim)
    Arithmetic::template multiply<Result::added_to>(
        count, rows, dim, work_.grad_left.transposed(), work_.query_rows.factor(0),
        {gradients_->key[n] + own * row_stride(dim), row_stride(dim)});
  }

  // weights = exp(scores - lse); grad_scores = weights (grad_weights - D)
  void derive_in_registers(int64_t n, Range keys) {
    const BackwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t place = keys.begin - windows_[n].begin;
    const Matrix weights{work_.scores, tile_stride}, grad_scores{work_.grad_scores, tile_stride};
    const KeepWeights keep{{weights, options_.scale, work_.row_bias, packed.bias.bias + place}};
    Arithmetic::template multiply_into<Result::overwritten>(
        rows, options_.head_dim, count, work_.queries.factor(), packed.keys.factor(place), weights,
        keep, work_.weights_left);
    // grad_weights (rows, keys) = grad_out (rows, value_dim) values^T (value_dim, keys)
    const Derive<Ways::rows> derive{grad_scores, weights, work_.rows.correction};
    Arithmetic::template multiply_into<Result::overwritten>(
        rows, problem_.value_dim, count, work_.grad_outs.factor(), packed.values.factor(place),
        grad_scores, derive, work_.grad_left);
  }

  // The same, tile by tile through memory: with times, dropout, a limited range of keys, or sums
  // and corrections that the weights themselves give.
  void derive_in_memory(int64_t n, Range keys) {
    const Segment& segment = problem_.segments[n];
    const BackwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t value_dim = problem_.value_dim, place = keys.begin - windows_[n].begin;
    const Matrix weights{work_.scores, tile_stride}, grad_scores{work_.grad_scores, tile_stride};

    const Scores scores = score_tile(n, keys);
    // grad_weights (rows, keys) = grad_out (rows, value_dim) values^T (value_dim, keys)
    Arithmetic::template multiply<Result::overwritten>(
        rows, value_dim, count, work_.grad_outs.factor(), packed.values.factor(place), grad_scores);
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
    work_.weights_left.pack(weights, rows, count);
    work_.grad_left.pack(grad_scores, rows, count);
  }

  const DirectedProblem& problem_;
  const Options& options_;
  Workspace& work_;
  const KeyGradients* gradients_ = nullptr;
  Task task_{};
  Range windows_[2];
  Range rows_;
  bool one_tile_ = false;
  bool exact_lse_ = true;
  bool is_first_tile_ = true;
  double grad_decay_ = 0.0;
};

}  // namespace
}  // namespace mmer::cpu
