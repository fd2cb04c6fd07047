// Forward of shared cross-attention: one similarity matrix, formed once, tile by tile.
//
//   S = scale * rows columns^T      out_rows = softmax(S) v_columns      out_columns =
//   softmax(S^T) v_rows
//
// Where the scores are bounded, one exponential serves both softmaxes: with a common reference m,
// W = e^(S - m), out_rows = (W v_columns) / rowsum(W) and out_columns = (W^T v_rows) / colsum(W),
// with nothing to rescale. That holds as long as no row or column lies so far below m that its
// weights vanish, which the sums show; else, and with max_gap, where a sum of 0 may be right, each
// softmax gets an exponential and a running maximum of its own. So does a softmax over a single
// step, whose weight is then exactly 1.

#pragma once

#include <cmath>

#include "dropout.h"
#include "scores.h"

namespace mmer::cpu {
namespace {

// Running softmax of the columns of one group of rows: what is merged if there are several.
struct ColumnState {
  float* largest;
  float* sums;
  float* accumulator;

  ColumnState(Arena& arena, const SharedProblem& problem) {
    const int64_t padded = round_up(problem.columns.time, column_block);
    largest = arena.take(padded);
    sums = arena.take(padded);
    accumulator = arena.take(problem.columns.time * row_stride(problem.rows.value_dim));
  }
};

inline int64_t shared_forward_partials(const SharedProblem& problem) {
  Arena counting;
  ColumnState measured(counting, problem);
  return counting.used();
}

struct SharedForwardWorkspace {
  float *column_rows, *column_keys, *column_values, *column_bias, *column_times;
  float *queries, *values, *row_bias, *row_times, *row_largest, *row_sums, *row_accumulator;
  float *scores, *column_weights, *factors;
  ColumnState columns;

  SharedForwardWorkspace(Arena& arena, const SharedProblem& problem) : columns(arena, problem) {
    const int64_t count = problem.columns.time, padded = round_up(count, column_block);
    const int64_t dim = problem.options.head_dim;
    column_rows = arena.take(panel_width * row_stride(dim));
    column_keys = arena.take(panels_size(count, dim));
    column_values = arena.take(count * row_stride(problem.columns.value_dim));
    column_bias = arena.take(padded);
    column_times = arena.take(padded);
    queries = arena.take(row_block * row_stride(dim));
    values = arena.take(row_block * row_stride(problem.rows.value_dim));
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    row_largest = arena.take(row_block);
    row_sums = arena.take(row_block * lanes);
    row_accumulator = arena.take(row_block * row_stride(problem.columns.value_dim));
    scores = arena.take(tile_size);
    column_weights = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
  }
};

enum class Exponentials { one, two };

// With one exponential, weights lie below e^41 = 2^59 and the sums within these limits.
constexpr float largest_exponent = 41.0f;
constexpr float smallest_sum = 1e-16f;
constexpr float largest_sum = 1e30f;

inline bool is_safe(float sum) {
  return sum > smallest_sum && sum < largest_sum;
}

// Adds up the columns of the head's groups, in order, and writes them.
inline void write_columns(const SharedProblem& problem, const Task& task, Range columns,
                          const ColumnState& first) {
  const int64_t dim = problem.rows.value_dim, groups = problem.options.groups;
  const int64_t apart = groups > 1 ? shared_forward_partials(problem) : 0;
  for (int64_t j = columns.begin; j < columns.end; ++j) {
    const float* sums = first.sums + j;
    const float* references = first.largest + j;
    float largest = -infinity, sum = 0.0f;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t n = group * apart;
      if (sums[n] != 0.0f && !(references[n] <= largest)) largest = references[n];
    }
    float* total = first.accumulator + j * row_stride(dim);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t n = group * apart;
      const float factor = sums[n] == 0.0f ? 0.0f : exp_scalar(references[n] - largest);
      sum += factor * sums[n];
      if (group == 0) {
        scale_row(total, dim, factor);
      } else {
        for (int64_t k = 0; k < dim; ++k) total[k] += factor * total[n + k];
      }
    }
    write_output(problem.columns.out, problem.columns.lse, task, j, total, dim, largest, sum);
  }
}

class SharedForward {
 public:
  SharedForward(const SharedProblem& problem, SharedForwardWorkspace& work, int64_t number)
      : problem_(problem),
        options_(problem.options),
        work_(work),
        task_(task_of(problem.options, number)),
        columns_(work.columns),
        group_{problem.rows.time * task_.group / options_.groups,
               problem.rows.time * (task_.group + 1) / options_.groups} {
    if (options_.groups > 1) {
      Arena partial(options_.partials + task_.number * shared_forward_partials(problem));
      columns_ = ColumnState(partial, problem);
    }
  }

  void run() {
    pack_columns();
    const float reference = common_reference();
    if (std::isfinite(reference) && attend<Exponentials::one>(reference)) return;
    attend<Exponentials::two>(0.0f);
  }

 private:
  void pack_columns() {
    const Side& side = problem_.columns;
    const Range all{0, side.time};
    const int64_t dim = options_.head_dim, padded = round_up(side.time, column_block);
    fill(work_.column_bias, padded, -infinity);
    fill(work_.column_times, padded, 0.0f);
    real_columns_ = read_mask(side.mask, task_.batch, all, work_.column_bias);
    if (options_.timed) {
      read_times(side.times, task_.batch, all, work_.column_bias, work_.column_times);
    }
    for (int64_t first = 0; first < side.time; first += panel_width) {
      const Range steps{first, smaller(first + panel_width, side.time)};
      pack_rows(side.qk, task_.batch, task_.head, steps, dim, work_.column_bias + first,
                work_.column_rows);
      const int64_t count = steps.end - steps.begin;
      largest_column_ = larger_norm(largest_column_, work_.column_rows, count);
      pack_panels(work_.column_rows, count, dim, work_.column_keys + first * dim);
    }
    pack_rows(side.value, task_.batch, task_.head, all, side.value_dim, work_.column_bias,
              work_.column_values);
  }

  // Squared length of the longest row so far.
  float larger_norm(float norm, const float* rows, int64_t count) const {
    const int64_t stride = row_stride(options_.head_dim);
    for (int64_t n = 0; n < count; ++n) {
      Vector squares{};
      for (int64_t k = 0; k < options_.head_dim; k += lanes) {
        const Vector x = load(rows + n * stride + k);
        squares += x * x;
      }
      const float squared = sum_lanes(squares);
      if (!(squared <= norm)) norm = squared;
    }
    return norm;
  }

  // m for the whole group, by the Cauchy-Schwarz inequality: no score exceeds the product of the
  // longest row's and column's length. Infinite if one exponential cannot serve.
  float common_reference() {
    if (options_.timed && options_.max_gap < infinity) return infinity;
    float largest_row = 0.0f;
    int64_t real_rows = 0;
    for (int64_t block = 0; block < blocks_of(group_, row_block); ++block) {
      pack_row_block(block_of(group_, row_block, block));
      largest_row = larger_norm(largest_row, work_.queries, rows_.end - rows_.begin);
      real_rows += real_rows_;
    }
    if (real_columns_ == 1 || real_rows == 1) return infinity;
    const float bound = std::sqrt(largest_row) * std::sqrt(largest_column_);
    // Further up, rows whose scores are around 0 would vanish below the reference.
    if (!(bound < largest_exponent + 35.0f)) return infinity;
    return bound > largest_exponent ? bound - largest_exponent : 0.0f;
  }

  void pack_row_block(Range rows) {
    const Side& side = problem_.rows;
    rows_ = rows;
    real_rows_ = read_mask(side.mask, task_.batch, rows, work_.row_bias);
    pack_queries(side.qk, task_.batch, task_.head, rows, options_.head_dim, work_.row_bias,
                 options_.scale, work_.queries);
  }

  // False if one exponential was not enough: what was computed is of no use then.
  template <Exponentials exponentials_used>
  bool attend(float reference) {
    const int64_t columns = problem_.columns.time;
    fill(columns_.largest, round_up(columns, column_block),
         exponentials_used == Exponentials::one ? reference : -infinity);
    fill(columns_.sums, round_up(columns, column_block), 0.0f);
    fill(columns_.accumulator, columns * row_stride(problem_.rows.value_dim), 0.0f);
    int64_t real_rows = 0;
    for (int64_t block = 0; block < blocks_of(group_, row_block); ++block) {
      if (!attend_rows<exponentials_used>(block_of(group_, row_block, block), reference)) {
        return false;
      }
      real_rows += real_rows_;
    }
    if (exponentials_used == Exponentials::one && real_rows > 0) {
      for (int64_t j = 0; j < columns; ++j) {
        if (work_.column_bias[j] != -infinity && !is_safe(columns_.sums[j])) return false;
      }
    }
    if (options_.groups == 1) write_columns(problem_, task_, {0, columns}, columns_);
    return true;
  }

  template <Exponentials exponentials_used>
  bool attend_rows(Range rows, float reference) {
    const int64_t count = rows.end - rows.begin, value_dim = problem_.columns.value_dim;
    pack_row_block(rows);
    pack_rows(problem_.rows.value, task_.batch, task_.head, rows, problem_.rows.value_dim,
              work_.row_bias, work_.values);
    Interval interval;
    if (options_.timed) {
      read_times(problem_.rows.times, task_.batch, rows, work_.row_bias, work_.row_times);
      interval = interval_of(work_.row_times, work_.row_bias, count);
    }
    fill(work_.row_largest, count, exponentials_used == Exponentials::one ? reference : -infinity);
    fill(work_.row_sums, count * lanes, 0.0f);
    fill(work_.row_accumulator, count * row_stride(value_dim), 0.0f);
    if (exponentials_used == Exponentials::one) {
      for (int64_t i = 0; i < count; ++i) work_.row_bias[i] -= reference;
    }
    for (int64_t first = 0; first < problem_.columns.time && real_rows_ > 0;
         first += column_block) {
      const Range columns{first, smaller(first + column_block, problem_.columns.time)};
      const Interval there = interval_of(work_.column_times + first, work_.column_bias + first,
                                         columns.end - columns.begin);
      if (there.first > there.last) continue;
      if (options_.timed && further_apart(interval, there, options_.max_gap)) continue;
      attend_tile<exponentials_used>(columns);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float sum = sum_lanes(load(work_.row_sums + i * lanes));
      const bool real = work_.row_bias[i] != -infinity && real_columns_ > 0;
      if (exponentials_used == Exponentials::one && real && !is_safe(sum)) return false;
      write_output(problem_.rows.out, problem_.rows.lse, task_, rows.begin + i,
                   work_.row_accumulator + i * row_stride(value_dim), value_dim,
                   work_.row_largest[i], sum);
    }
    return true;
  }

  template <Exponentials exponentials_used>
  void attend_tile(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t dim = options_.head_dim, first = columns.begin;
    const int64_t column_dim = problem_.columns.value_dim, row_dim = problem_.rows.value_dim;
    const Matrix scores{work_.scores, tile_stride};
    Matrix row_weights = scores, column_weights = scores;

    // scores (rows, columns) = queries (rows, dim) keys^T (dim, columns)
    multiply<Left::row_major, Result::overwritten>(rows, dim, width, work_.queries, row_stride(dim),
                                                   transposed_panels(work_.column_keys, dim, first),
                                                   scores);
    if (options_.timed) {
      apply_times(scores, rows, width, work_.row_times, work_.column_times + first,
                  slope_of(options_, task_.head), options_.max_gap);
    }
    const Matrix row_accumulator{work_.row_accumulator, row_stride(column_dim)};
    const Matrix column_accumulator{columns_.accumulator + first * row_stride(row_dim),
                                    row_stride(row_dim)};
    if constexpr (exponentials_used == Exponentials::one) {
      exponentials(scores, rows, width, work_.row_bias, work_.column_bias + first, work_.row_sums,
                   columns_.sums + first);
    } else {
      column_weights.data = work_.column_weights;
      const RunningRows running{work_.row_largest, work_.row_sums, row_accumulator, column_dim};
      raise_rows(scores, rows, width, work_.row_bias, work_.column_bias + first, running);
      exponentials_of_columns(scores, rows, columns, column_weights, column_accumulator);
      exponentials_of_rows(scores, rows, width, running);
    }
    if (options_.dropout.active) {
      const Matrix factors{work_.factors, tile_stride};
      const uint32_t row = dropout_row(options_, task_);
      draw_by_columns({options_.dropout, row, problem_.columns.stream}, rows_, columns, factors);
      const Matrix kept{work_.column_weights, tile_stride};
      multiply_elements(column_weights, factors, kept, rows, width);
      column_weights = kept;
      draw_by_rows({options_.dropout, row, problem_.rows.stream}, rows_, columns, factors);
      multiply_elements(row_weights, factors, row_weights, rows, width);
    }
    // row_accumulator (rows, column_dim) += row_weights (rows, columns) values (columns,
    // column_dim)
    multiply<Left::row_major, Result::added_to>(
        rows, width, column_dim, row_weights.data, row_weights.stride,
        row_panels(work_.column_values, column_dim, first), row_accumulator);
    // column_accumulator (columns, row_dim) += column_weights^T (columns, rows) values (rows,
    // row_dim)
    multiply<Left::transposed, Result::added_to>(
        width, rows, row_dim, column_weights.data, column_weights.stride,
        row_panels(work_.values, row_dim, 0), column_accumulator);
  }

  // column_weights = exp(scores - largest of the column); what was summed before shrinks.
  void exponentials_of_columns(Matrix scores, int64_t rows, Range columns, Matrix column_weights,
                               Matrix accumulator) {
    const int64_t count = columns.end - columns.begin;
    for (int64_t j = 0; j < count; j += lanes) {
      Vector tile_largest = load(scores.data + j);
      for (int64_t i = 1; i < rows; ++i) {
        tile_largest = maximum(tile_largest, load(scores.data + i * scores.stride + j));
      }
      float* largest = columns_.largest + columns.begin + j;
      float* sums = columns_.sums + columns.begin + j;
      for (int64_t lane = 0; lane < smaller(lanes, count - j); ++lane) {
        if (!(tile_largest[lane] > largest[lane])) continue;
        const float shrink = exp_scalar(largest[lane] - tile_largest[lane]);
        largest[lane] = tile_largest[lane];
        sums[lane] *= shrink;
        scale_row(accumulator.data + (j + lane) * accumulator.stride, problem_.rows.value_dim,
                  shrink);
      }
      const Vector newest = load(largest);
      const Vector reference = newest == -infinity ? Vector{} : newest;
      Vector sum = load(sums);
      for (int64_t i = 0; i < rows; ++i) {
        const Vector weight = exp_vector(load(scores.data + i * scores.stride + j) - reference);
        sum += weight;
        store(column_weights.data + i * column_weights.stride + j, weight);
      }
      store(sums, sum);
    }
  }

 private:
  const SharedProblem& problem_;
  const Options& options_;
  SharedForwardWorkspace& work_;
  const Task task_;
  ColumnState columns_;
  const Range group_;
  Range rows_;
  int64_t real_rows_ = 0;
  int64_t real_columns_ = 0;
  float largest_column_ = 0.0f;
};

inline void shared_forward(const SharedProblem& problem, Range tasks) {
  Scratch<SharedForwardWorkspace, SharedProblem> scratch(problem);
  for (int64_t number = tasks.begin; number < tasks.end; ++number) {
    SharedForward(problem, scratch.workspace, number).run();
  }
}

inline void shared_forward_merge(const SharedProblem& problem, Range blocks) {
  const int64_t columns = problem.columns.time, groups = problem.options.groups;
  const int64_t blocks_a_head = (columns + merge_block - 1) / merge_block;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Task task = task_of(problem.options, block / blocks_a_head * groups);
    Arena partial(problem.options.partials + task.number * shared_forward_partials(problem));
    const int64_t first = block % blocks_a_head * merge_block;
    write_columns(problem, task, {first, smaller(first + merge_block, columns)},
                  ColumnState(partial, problem));
  }
}

}  // namespace
}  // namespace mmer::cpu
