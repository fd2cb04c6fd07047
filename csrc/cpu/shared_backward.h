// Backward of shared cross-attention. Both softmaxes read the one S, so its gradient is the sum of
// theirs, and five products a tile become seven instead of ten.
//
// Where the log-sum-exps of all rows and columns lie close enough to a common reference m, one
// exponential W = e^(S - m) serves both: with dO scaled by e^(m - lse) and D alike,
//
//   dS = W (dO_rows v_columns^T + v_rows dO_columns^T - D_rows - D_columns)
//   dv_columns = W^T dO_rows      dv_rows = W dO_columns
//
// Else, and with dropout, each softmax has weights of its own.

#pragma once

#include "gradients.h"

namespace mmer::cpu {
namespace {

// Gradients of the columns from one group of rows.
struct ColumnGradients {
  float *qk, *value;

  ColumnGradients(Arena& arena, const SharedProblem& problem)
      : qk(arena.take(problem.columns.time * row_stride(problem.options.head_dim))),
        value(arena.take(problem.columns.time * row_stride(problem.columns.value_dim))) {}
};

inline int64_t shared_backward_partials(const SharedProblem& problem) {
  Arena counting;
  ColumnGradients measured(counting, problem);
  return counting.used();
}

struct SharedBackwardWorkspace {
  ColumnGradients gradients;
  QueryGradients columns, rows;
  float *column_qk, *column_keys, *column_value_rows, *column_values, *column_grad_outs;
  float *column_bias, *column_times;
  float *row_qk, *row_values, *row_bias, *row_times, *row_lse, *row_norm;
  float *grad_row_qk, *grad_row_value;
  float *scores, *grad_scores, *column_weights, *grad_column_weights, *factors, *row;

  SharedBackwardWorkspace(Arena& arena, const SharedProblem& problem)
      : gradients(arena, problem),
        columns(arena, problem.columns.time, problem.rows.value_dim),
        rows(arena, row_block, problem.columns.value_dim) {
    const int64_t count = problem.columns.time, padded = round_up(count, column_block);
    const int64_t dim = problem.options.head_dim;
    const int64_t row_dim = problem.rows.value_dim, column_dim = problem.columns.value_dim;
    column_qk = arena.take(count * row_stride(dim));
    column_keys = arena.take(panels_size(count, dim));
    column_value_rows = arena.take(panel_width * row_stride(column_dim));
    column_values = arena.take(panels_size(count, column_dim));
    column_grad_outs = arena.take(panels_size(count, row_dim));
    column_bias = arena.take(padded);
    column_times = arena.take(padded);
    row_qk = arena.take(row_block * row_stride(dim));
    row_values = arena.take(row_block * row_stride(row_dim));
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    row_lse = arena.take(problem.rows.time);
    row_norm = arena.take(problem.rows.time);
    grad_row_qk = arena.take(row_block * row_stride(dim));
    grad_row_value = arena.take(row_block * row_stride(row_dim));
    scores = arena.take(tile_size);
    grad_scores = arena.take(tile_size);
    column_weights = arena.take(tile_size);
    grad_column_weights = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
    row = arena.take(larger(row_dim, column_dim));
  }
};

// Log-sum-exps further apart get an exponential each.
constexpr float largest_lse_spread = 55.0f;

class SharedBackward {
 public:
  SharedBackward(const SharedProblem& problem, SharedBackwardWorkspace& work, int64_t number)
      : problem_(problem),
        options_(problem.options),
        work_(work),
        task_(task_of(problem.options, number)),
        gradients_(work.gradients),
        group_{problem.rows.time * task_.group / options_.groups,
               problem.rows.time * (task_.group + 1) / options_.groups} {
    if (options_.groups > 1) {
      Arena partial(options_.partials + task_.number * shared_backward_partials(problem));
      gradients_ = ColumnGradients(partial, problem);
    }
  }

  void run() {
    const int64_t columns = problem_.columns.time;
    pack_columns();
    choose_reference();
    if (!exact_lse_ && !is_one_tile()) sum_weights();
    if (one_exponential_) scale_by_lse(work_.columns, columns, problem_.rows.value_dim);
    pack_panels(work_.columns.grad_out, columns, problem_.rows.value_dim, work_.column_grad_outs);
    fill(gradients_.qk, columns * row_stride(options_.head_dim), 0.0f);
    fill(gradients_.value, columns * row_stride(problem_.columns.value_dim), 0.0f);
    for (int64_t block = 0; block < blocks_of(group_, row_block); ++block) {
      derive_block(block_of(group_, row_block, block));
    }
    if (options_.groups == 1) write_gradients(problem_, task_, {0, columns}, gradients_);
    if (options_.grad_decay != nullptr) options_.grad_decay[task_.number] = grad_decay_;
  }

  // Adds up the columns of the head's groups, in order, and writes them.
  static void write_gradients(const SharedProblem& problem, const Task& task, Range columns,
                              const ColumnGradients& first) {
    const Side& side = problem.columns;
    const int64_t dim = problem.options.head_dim;
    const int64_t apart = shared_backward_partials(problem), groups = problem.options.groups;
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      float* qk = first.qk + j * row_stride(dim);
      float* value = first.value + j * row_stride(side.value_dim);
      for (int64_t n = apart; n < groups * apart; n += apart) {
        for (int64_t k = 0; k < dim; ++k) qk[k] += qk[n + k];
        for (int64_t k = 0; k < side.value_dim; ++k) value[k] += value[n + k];
      }
      write_row(side.grad_qk, task.batch, task.head, j, dim, qk, 1.0f);
      write_row(side.grad_value, task.batch, task.head, j, side.value_dim, value, 1.0f);
    }
  }

 private:
  void pack_columns() {
    const Side& side = problem_.columns;
    const Range all{0, side.time};
    const int64_t dim = options_.head_dim, padded = round_up(side.time, column_block);
    fill(work_.column_bias, padded, -infinity);
    fill(work_.column_times, padded, 0.0f);
    fill(work_.columns.lse, padded, infinity);
    fill(work_.columns.correction, padded, 0.0f);
    fill(work_.columns.grad_lse, padded, 0.0f);
    fill(work_.columns.norm, padded, 1.0f);
    real_columns_ = read_mask(side.mask, task_.batch, all, work_.column_bias);
    if (options_.timed) {
      read_times(side.times, task_.batch, all, work_.column_bias, work_.column_times);
    }
    pack_rows(side.qk, task_.batch, task_.head, all, dim, work_.column_bias, work_.column_qk);
    pack_panels(work_.column_qk, side.time, dim, work_.column_keys);
    for (int64_t first = 0; first < side.time; first += panel_width) {
      const Range steps{first, smaller(first + panel_width, side.time)};
      pack_rows(side.value, task_.batch, task_.head, steps, side.value_dim,
                work_.column_bias + first, work_.column_value_rows);
      pack_panels(work_.column_value_rows, steps.end - steps.begin, side.value_dim,
                  work_.column_values + first * side.value_dim);
    }
    read_query_gradients({side.out, side.lse, side.grad_out, side.grad_lse}, task_, all,
                         problem_.rows.value_dim, work_.row, work_.columns);
  }

  bool is_one_tile() const {
    return problem_.rows.time <= row_block && problem_.columns.time <= column_block;
  }

  // m: the middle between the smallest and the largest log-sum-exp of the head.
  void choose_reference() {
    read_lse(problem_.rows.lse, task_, {0, problem_.rows.time}, work_.row_lse);
    float smallest = infinity, largest = -infinity;
    const auto include = [&](const float* lse, int64_t count) {
      for (int64_t n = 0; n < count; ++n) {
        if (lse[n] == infinity) continue;
        smallest = lse[n] < smallest ? lse[n] : smallest;
        largest = lse[n] > largest ? lse[n] : largest;
      }
    };
    include(work_.row_lse, problem_.rows.time);
    include(work_.columns.lse, problem_.columns.time);
    exact_lse_ = is_exact(work_.row_lse, problem_.rows.time) &&
                 is_exact(work_.columns.lse, problem_.columns.time);
    one_exponential_ =
        largest - smallest < largest_lse_spread && exact_lse_ && !options_.dropout.active &&
        !(options_.timed && options_.max_gap < infinity) && real_columns_ > 1 && !is_one_tile();
    reference_ = one_exponential_ && smallest <= largest ? 0.5f * (smallest + largest) : 0.0f;
  }

  // grad_out and correction *= e^(m - lse)
  void scale_by_lse(const QueryGradients& packed, int64_t count, int64_t dim) {
    for (int64_t n = 0; n < count; ++n) {
      const float factor = exp_scalar(reference_ - packed.lse[n]);
      packed.correction[n] *= factor;
      scale_row(packed.grad_out + n * row_stride(dim), dim, factor);
    }
  }

  void pack_row_block(Range rows) {
    const Side& side = problem_.rows;
    rows_ = rows;
    real_rows_ = read_mask(side.mask, task_.batch, rows, work_.row_bias);
    pack_queries(side.qk, task_.batch, task_.head, rows, options_.head_dim, work_.row_bias,
                 options_.scale, work_.row_qk);
    if (options_.timed) read_times(side.times, task_.batch, rows, work_.row_bias, work_.row_times);
  }

  // Calls tile(columns) for each tile that the packed rows see something of.
  template <class Tile>
  void visit_tiles(const Tile& tile) const {
    Interval interval;
    if (options_.timed) {
      interval = interval_of(work_.row_times, work_.row_bias, rows_.end - rows_.begin);
    }
    for (int64_t first = 0; first < problem_.columns.time && real_rows_ > 0;
         first += column_block) {
      const Range columns{first, smaller(first + column_block, problem_.columns.time)};
      const Interval there = interval_of(work_.column_times + first, work_.column_bias + first,
                                         columns.end - columns.begin);
      if (there.first > there.last) continue;
      if (options_.timed && further_apart(interval, there, options_.max_gap)) continue;
      tile(columns);
    }
  }

  // Norms of all rows and columns of the head, where the log-sum-exps are too large to be exact.
  void sum_weights() {
    const int64_t rows = problem_.rows.time, columns = problem_.columns.time;
    fill(work_.row_norm, rows, 0.0f);
    fill(work_.columns.norm, columns, 0.0f);
    for (int64_t block = 0; block < blocks_of({0, rows}, row_block); ++block) {
      pack_row_block(block_of({0, rows}, row_block, block));
      visit_tiles([&](Range here) { sum_tile_weights(here); });
    }
    avoid_zeros(work_.row_norm, rows);
    avoid_zeros(work_.columns.norm, columns);
  }

  void sum_tile_weights(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const Matrix scores{work_.scores, tile_stride};
    score_tile(columns, scores);
    sum_row_weights(scores, rows, width, work_.column_bias + columns.begin,
                    work_.row_lse + rows_.begin, work_.row_norm + rows_.begin);
    for (int64_t j = 0; j < width; j += lanes) {
      float* sums = work_.columns.norm + columns.begin + j;
      const Vector lse = load(work_.columns.lse + columns.begin + j);
      Vector sum = load(sums);
      for (int64_t i = 0; i < rows; ++i) {
        sum += exp_vector(load(scores.data + i * scores.stride + j) + (work_.row_bias[i] - lse));
      }
      store(sums, sum);
    }
  }

  void derive_block(Range rows) {
    const Side& side = problem_.rows;
    const int64_t count = rows.end - rows.begin, dim = options_.head_dim;
    const int64_t column_dim = problem_.columns.value_dim;
    pack_row_block(rows);
    pack_rows(side.value, task_.batch, task_.head, rows, side.value_dim, work_.row_bias,
              work_.row_values);
    read_query_gradients({side.out, side.lse, side.grad_out, side.grad_lse}, task_, rows,
                         column_dim, work_.row, work_.rows);
    if (one_exponential_) scale_by_lse(work_.rows, count, column_dim);
    if (!exact_lse_ && !is_one_tile()) {
      std::memcpy(work_.rows.norm, work_.row_norm + rows.begin, count * sizeof(float));
    }
    fill(work_.grad_row_qk, count * row_stride(dim), 0.0f);
    fill(work_.grad_row_value, count * row_stride(side.value_dim), 0.0f);
    visit_tiles([&](Range columns) { derive_tile(columns); });
    for (int64_t i = 0; i < count; ++i) {
      write_row(side.grad_qk, task_.batch, task_.head, rows.begin + i, dim,
                work_.grad_row_qk + i * row_stride(dim), options_.scale);
      write_row(side.grad_value, task_.batch, task_.head, rows.begin + i, side.value_dim,
                work_.grad_row_value + i * row_stride(side.value_dim), 1.0f);
    }
  }

  // scores (rows, columns) = queries (rows, dim) keys^T (dim, columns)
  void score_tile(Range columns, Matrix scores) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t dim = options_.head_dim;
    multiply<Left::row_major, Result::overwritten>(
        rows, dim, width, work_.row_qk, row_stride(dim),
        transposed_panels(work_.column_keys, dim, columns.begin), scores);
    if (!options_.timed) return;
    apply_times(scores, rows, width, work_.row_times, work_.column_times + columns.begin,
                slope_of(options_, task_.head), options_.max_gap);
  }

  void derive_tile(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t dim = options_.head_dim, first = columns.begin;
    const int64_t row_dim = problem_.rows.value_dim, column_dim = problem_.columns.value_dim;
    const Matrix row_weights{work_.scores, tile_stride};
    const Matrix grad_scores{work_.grad_scores, tile_stride};
    const Matrix own_weights{work_.column_weights, tile_stride};
    const Matrix column_weights = one_exponential_ ? row_weights : own_weights;

    score_tile(columns, row_weights);
    // grad_weights (rows, columns) = grad_out_rows (rows, column_dim) values^T (column_dim,
    // columns)
    multiply<Left::row_major, Result::overwritten>(
        rows, column_dim, width, work_.rows.grad_out, row_stride(column_dim),
        transposed_panels(work_.column_values, column_dim, first), grad_scores);
    const Panels column_grad_outs = transposed_panels(work_.column_grad_outs, row_dim, first);
    if (one_exponential_) {
      // grad_weights (rows, columns) += values (rows, row_dim) grad_out_columns^T (row_dim,
      // columns)
      multiply<Left::row_major, Result::added_to>(rows, row_dim, width, work_.row_values,
                                                  row_stride(row_dim), column_grad_outs,
                                                  grad_scores);
      derive_both(row_weights, grad_scores, rows, columns);
    } else {
      // grad_weights (rows, columns) = values (rows, row_dim) grad_out_columns^T (row_dim, columns)
      const Matrix grad_column_weights{work_.grad_column_weights, tile_stride};
      multiply<Left::row_major, Result::overwritten>(rows, row_dim, width, work_.row_values,
                                                     row_stride(row_dim), column_grad_outs,
                                                     grad_column_weights);
      derive_apart(row_weights, column_weights, grad_scores, grad_column_weights, columns);
    }
    if (options_.grad_decay != nullptr) {
      grad_decay_ +=
          derive_decay(grad_scores, rows, width, work_.row_times, work_.column_times + first);
    }
    // grad_value_columns (columns, column_dim) += weights^T (columns, rows) grad_out (rows,
    // column_dim)
    multiply<Left::transposed, Result::added_to>(
        width, rows, column_dim, row_weights.data, tile_stride,
        row_panels(work_.rows.grad_out, column_dim, 0),
        {gradients_.value + first * row_stride(column_dim), row_stride(column_dim)});
    // grad_value_rows (rows, row_dim) += weights (rows, columns) grad_out (columns, row_dim)
    multiply<Left::row_major, Result::added_to>(rows, width, row_dim, column_weights.data,
                                                tile_stride,
                                                row_panels(work_.columns.grad_out, row_dim, first),
                                                {work_.grad_row_value, row_stride(row_dim)});
    // grad_qk_rows (rows, dim) += grad_scores (rows, columns) keys (columns, dim)
    multiply<Left::row_major, Result::added_to>(rows, width, dim, grad_scores.data, tile_stride,
                                                row_panels(work_.column_qk, dim, first),
                                                {work_.grad_row_qk, row_stride(dim)});
    // grad_qk_columns (columns, dim) += grad_scores^T (columns, rows) queries (rows, dim)
    multiply<Left::transposed, Result::added_to>(
        width, rows, dim, grad_scores.data, tile_stride, row_panels(work_.row_qk, dim, 0),
        {gradients_.qk + first * row_stride(dim), row_stride(dim)});
  }

  // weights = exp(scores - m); grad_scores = weights (grad_weights - D_rows - D_columns)
  void derive_both(Matrix scores, Matrix grad_weights, int64_t rows, Range columns) {
    const float* column_correction = work_.columns.correction + columns.begin;
    const float* column_bias = work_.column_bias + columns.begin;
    for (int64_t i = 0; i < rows; ++i) {
      float* row = scores.data + i * scores.stride;
      float* grad = grad_weights.data + i * grad_weights.stride;
      const float bias = work_.row_bias[i] - reference_, correction = work_.rows.correction[i];
      for (int64_t j = 0; j < columns.end - columns.begin; j += lanes) {
        const Vector weight = exp_vector(load(row + j) + (bias + load(column_bias + j)));
        const Vector grad_weight = load(grad + j) - (correction + load(column_correction + j));
        store(grad + j, weight * grad_weight);
        store(row + j, weight);
      }
    }
  }

  // Each softmax by itself; grad_scores receives the sum of both gradients.
  void derive_apart(Matrix row_weights, Matrix column_weights, Matrix grad_scores,
                    Matrix grad_column_weights, Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const Matrix factors{work_.factors, tile_stride};
    const float* kept = options_.dropout.active ? work_.factors : nullptr;
    const uint32_t dropout_row_here = dropout_row(options_, task_);
    std::memcpy(column_weights.data, row_weights.data, rows * tile_stride * sizeof(float));
    if (kept != nullptr) {
      draw_by_rows({options_.dropout, dropout_row_here, problem_.rows.stream}, rows_, columns,
                   factors);
    }
    if (problem_.columns.time <= column_block) {
      derive_whole_rows(row_weights, grad_scores, kept, rows, width, work_.column_bias,
                        work_.rows.lse, work_.rows.grad_lse);
    } else {
      derive_rows(row_weights, grad_scores, kept, rows, width, work_.column_bias + columns.begin,
                  work_.rows.lse, work_.rows.norm, work_.rows.correction);
    }
    if (kept != nullptr) {
      draw_by_columns({options_.dropout, dropout_row_here, problem_.columns.stream}, rows_, columns,
                      factors);
    }
    if (problem_.rows.time <= row_block) {
      settle_columns(column_weights, grad_column_weights, kept, columns);
    }
    const float* lse = work_.columns.lse + columns.begin;
    const float* norm = work_.columns.norm + columns.begin;
    const float* correction = work_.columns.correction + columns.begin;
    for (int64_t i = 0; i < rows; ++i) {
      float* row = column_weights.data + i * tile_stride;
      float* grad = grad_scores.data + i * tile_stride;
      const float* grad_weights = grad_column_weights.data + i * tile_stride;
      for (int64_t j = 0; j < width; j += lanes) {
        const Vector factor = kept == nullptr ? broadcast(1.0f) : load(kept + i * tile_stride + j);
        const Vector weight =
            exp_vector(load(row + j) + (work_.row_bias[i] - load(lse + j))) / load(norm + j);
        const Vector grad_weight = load(grad_weights + j) * factor - load(correction + j);
        store(grad + j, load(grad + j) + weight * grad_weight);
        store(row + j, weight * factor);
      }
    }
  }

  // Sums and corrections of columns whose keys are all in the tile, as derive_whole_rows has them.
  void settle_columns(Matrix scores, Matrix grad_weights, const float* factors, Range columns) {
    const int64_t rows = rows_.end - rows_.begin;
    for (int64_t j = 0; j < columns.end - columns.begin; j += lanes) {
      const Vector lse = load(work_.columns.lse + columns.begin + j);
      const auto weight = [&](int64_t i) {
        return exp_vector(load(scores.data + i * tile_stride + j) + (work_.row_bias[i] - lse));
      };
      Vector sum{};
      for (int64_t i = 0; i < rows; ++i) sum += weight(i);
      sum = sum == 0.0f ? broadcast(1.0f) : sum;
      Vector correction = -load(work_.columns.grad_lse + columns.begin + j);
      for (int64_t i = 0; i < rows; ++i) {
        const Vector grad = load(grad_weights.data + i * tile_stride + j);
        const Vector factor =
            factors == nullptr ? broadcast(1.0f) : load(factors + i * tile_stride + j);
        correction += weight(i) / sum * (grad * factor);
      }
      store(work_.columns.norm + columns.begin + j, sum);
      store(work_.columns.correction + columns.begin + j, correction);
    }
  }

  const SharedProblem& problem_;
  const Options& options_;
  SharedBackwardWorkspace& work_;
  const Task task_;
  ColumnGradients gradients_;
  const Range group_;
  Range rows_;
  int64_t real_rows_ = 0;
  int64_t real_columns_ = 0;
  bool exact_lse_ = true;
  bool one_exponential_ = false;
  float reference_ = 0.0f;
  double grad_decay_ = 0.0;
};

inline void shared_backward(const SharedProblem& problem, Range tasks) {
  Scratch<SharedBackwardWorkspace, SharedProblem> scratch(problem);
  for (int64_t number = tasks.begin; number < tasks.end; ++number) {
    SharedBackward(problem, scratch.workspace, number).run();
  }
}

inline void shared_backward_merge(const SharedProblem& problem, Range blocks) {
  const int64_t columns = problem.columns.time, groups = problem.options.groups;
  const int64_t blocks_a_head = (columns + merge_block - 1) / merge_block;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Task task = task_of(problem.options, block / blocks_a_head * groups);
    Arena partial(problem.options.partials + task.number * shared_backward_partials(problem));
    const int64_t first = block % blocks_a_head * merge_block;
    SharedBackward::write_gradients(problem, task, {first, smaller(first + merge_block, columns)},
                                    ColumnGradients(partial, problem));
  }
}

}  // namespace
}  // namespace mmer::cpu
