// What the groups of rows of one head add up for its columns, and how it is put together: always
// group by group in their order, whichever threads computed them.

#pragma once

#include <cmath>

#include "arena.h"
#include "groups.h"
#include "scores.h"

namespace mmer::cpu {
namespace {

// Rows of one group.
inline Range group_rows(const SharedProblem& problem, int64_t group) {
  const int64_t rows = problem.rows.time, groups = problem.options.groups;
  return {rows * group / groups, rows * (group + 1) / groups};
}

// Adds up the groups of a split head in their order, in the memory of the first, and writes them.
template <class Parts>
inline void put_together_columns(const SharedProblem& problem, const Task& first, Range columns) {
  const Parts total = partials_of<Parts>(problem, first.number);
  for (int64_t group = 1; group < problem.options.groups; ++group) {
    const Task task = task_of(problem.options, first.number + group);
    total.merge(problem, task, columns, partials_of<Parts>(problem, task.number));
  }
  total.write(problem, first, columns);
}

// Running softmax of the columns over the rows of some groups.
struct ColumnState {
  float* largest;
  float* sums;
  float* accumulator;

  ColumnState(Arena& arena, const SharedProblem& problem) {
    const int64_t padded = round_up(problem.columns.time, column_block);
    largest = arena.take(padded);
    sums = arena.take(padded);
    accumulator = arena.take(round_up(problem.columns.time, 16) * row_stride(value_dim(problem)));
  }

  static int64_t value_dim(const SharedProblem& problem) { return problem.rows.value_dim; }

  static Range all(const SharedProblem& problem) { return {0, problem.columns.time}; }

  static void put_together(const SharedProblem& problem, const Task& first, Range columns) {
    put_together_columns<ColumnState>(problem, first, columns);
  }

  // (columns, value_dim) from the column `first` on
  Matrix accumulator_of(const SharedProblem& problem, int64_t first) const {
    const int64_t stride = row_stride(value_dim(problem));
    return {accumulator + first * stride, stride};
  }

  // Where a single block of rows follows, what it accumulates overwrites what stands there.
  void clear(const SharedProblem& problem, float reference, bool is_only_block) const {
    const int64_t padded = round_up(problem.columns.time, column_block);
    fill(largest, padded, reference);
    fill(sums, padded, 0.0f);
    if (is_only_block) return;
    fill(accumulator, round_up(problem.columns.time, 16) * row_stride(value_dim(problem)), 0.0f);
  }

  // column_weights = exp(scores - largest of the column); what was summed before shrinks.
  void exponentials(Matrix scores, int64_t rows, Range columns, Matrix column_weights,
                    Matrix accumulated, int64_t dim) const {
    const int64_t count = columns.end - columns.begin;
    for (int64_t j = 0; j < count; j += lanes) {
      Vector tile_largest = load(scores.data + j);
      for (int64_t i = 1; i < rows; ++i) {
        tile_largest = maximum(tile_largest, load(scores.data + i * scores.stride + j));
      }
      float* references = largest + columns.begin + j;
      float* column_sums = sums + columns.begin + j;
      for (int64_t lane = 0; lane < smaller(lanes, count - j); ++lane) {
        if (!(tile_largest[lane] > references[lane])) continue;
        const float shrink = exp_scalar(references[lane] - tile_largest[lane]);
        references[lane] = tile_largest[lane];
        column_sums[lane] *= shrink;
        scale_row(accumulated.data + (j + lane) * accumulated.stride, dim, shrink);
      }
      Vector reference = load(references);
      reference = reference == broadcast(-infinity) ? Vector{} : reference;
      Vector sum = load(column_sums);
      for (int64_t i = 0; i < rows; ++i) {
        const Vector weight = exp_vector(load(scores.data + i * scores.stride + j) - reference);
        sum += weight;
        store(column_weights.data + i * column_weights.stride + j, weight);
      }
      store(column_sums, sum);
    }
  }

  // Takes the columns of the next group in.
  void merge(const SharedProblem& problem, const Task&, Range columns,
             const ColumnState& next) const {
    const int64_t dim = value_dim(problem);
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      if (next.sums[j] == 0.0f) continue;
      const bool first = sums[j] == 0.0f;
      const float reference = first || next.largest[j] > largest[j] ? next.largest[j] : largest[j];
      const float shrink = first ? 0.0f : exp_scalar(largest[j] - reference);
      const float next_shrink = exp_scalar(next.largest[j] - reference);
      float* row = accumulator_of(problem, j).data;
      const float* next_row = next.accumulator_of(problem, j).data;
      for (int64_t k = 0; k < dim; ++k) row[k] = shrink * row[k] + next_shrink * next_row[k];
      sums[j] = shrink * sums[j] + next_shrink * next.sums[j];
      largest[j] = reference;
    }
  }

  void write(const SharedProblem& problem, const Task& task, Range columns) const {
    const Side& side = problem.columns;
    write_outputs(side.out, side.lse, task, columns,
                  {accumulator_of(problem, columns.begin), value_dim(problem),
                   largest + columns.begin, sums + columns.begin});
  }
};

// Gradients of the columns from some groups of rows: that of qk without the factor `scale`.
struct ColumnGradients {
  float *qk, *value;

  ColumnGradients(Arena& arena, const SharedProblem& problem)
      : qk(arena.take(qk_size(problem))), value(arena.take(value_size(problem))) {}

  static int64_t qk_size(const SharedProblem& problem) {
    return round_up(problem.columns.time, 16) * row_stride(problem.options.head_dim);
  }

  static int64_t value_size(const SharedProblem& problem) {
    return round_up(problem.columns.time, 16) * row_stride(problem.columns.value_dim);
  }

  static Range all(const SharedProblem& problem) { return {0, problem.columns.time}; }

  static void put_together(const SharedProblem& problem, const Task& first, Range columns) {
    put_together_columns<ColumnGradients>(problem, first, columns);
  }

  void clear(const SharedProblem& problem, Range columns) const {
    const auto clear_rows = [&](float* rows, int64_t stride) {
      fill(rows + columns.begin * stride, (columns.end - columns.begin) * stride, 0.0f);
    };
    clear_rows(qk, row_stride(problem.options.head_dim));
    clear_rows(value, row_stride(problem.columns.value_dim));
  }

  // Takes the gradients of the next group in.
  void merge(const SharedProblem& problem, const Task&, Range columns,
             const ColumnGradients& next) const {
    const int64_t stride = row_stride(problem.options.head_dim);
    const int64_t value_stride = row_stride(problem.columns.value_dim);
    for (int64_t n = columns.begin * stride; n < columns.end * stride; ++n) qk[n] += next.qk[n];
    for (int64_t n = columns.begin * value_stride; n < columns.end * value_stride; ++n) {
      value[n] += next.value[n];
    }
  }

  void write(const SharedProblem& problem, const Task& task, Range columns) const {
    const Side& side = problem.columns;
    const int64_t dim = problem.options.head_dim;
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      write_row(side.grad_qk, task.batch, task.head, j, dim, qk + j * row_stride(dim),
                problem.options.scale);
      write_row(side.grad_value, task.batch, task.head, j, side.value_dim,
                value + j * row_stride(side.value_dim), 1.0f);
    }
  }
};

}  // namespace
}  // namespace mmer::cpu
