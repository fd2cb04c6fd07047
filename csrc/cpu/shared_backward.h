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

#include "product_float32.h"
#include "shared_columns.h"
#include "shared_gradients.h"

namespace mmer::cpu {
namespace {

template <class Arithmetic>
struct SharedBackwardWorkspace {
  ColumnGradients total, part;
  QueryGradients columns, rows;
  typename Arithmetic::RightColumns column_keys, column_values, column_grad_outs;
  typename Arithmetic::RightRows column_qk_rows, column_grad_out_rows, row_qk_rows,
      row_grad_out_rows;
  typename Arithmetic::LeftRows row_qk, row_values, row_grad_outs;
  typename Arithmetic::Weights row_left, column_left, grad_left;
  float *column_bias, *column_times, *row_bias, *row_times, *row_lse, *row_norm;
  float *grad_row_qk, *grad_row_value;
  float *scores, *grad_scores, *column_weights, *grad_column_weights, *factors;

  SharedBackwardWorkspace(Arena& arena, const SharedProblem& problem)
      : total(arena, problem),
        part(total),
        columns(arena, problem.columns.time, problem.rows.value_dim),
        rows(arena, row_block, problem.columns.value_dim),
        column_keys(arena, problem.columns.time, problem.options.head_dim),
        column_values(arena, problem.columns.time, problem.columns.value_dim),
        column_grad_outs(arena, problem.columns.time, problem.rows.value_dim),
        column_qk_rows(arena, problem.columns.time, problem.options.head_dim),
        column_grad_out_rows(arena, problem.columns.time, problem.rows.value_dim),
        row_qk_rows(arena, row_block, problem.options.head_dim),
        row_grad_out_rows(arena, row_block, problem.columns.value_dim),
        row_qk(arena, problem.options.head_dim),
        row_values(arena, problem.rows.value_dim),
        row_grad_outs(arena, problem.columns.value_dim),
        row_left(arena),
        column_left(arena),
        grad_left(arena) {
    const int64_t padded = round_up(problem.columns.time, column_block);
    column_bias = arena.take(padded);
    column_times = arena.take(padded);
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    row_lse = arena.take(problem.rows.time);
    row_norm = arena.take(problem.rows.time);
    grad_row_qk = arena.take(row_block * row_stride(problem.options.head_dim));
    grad_row_value = arena.take(row_block * row_stride(problem.rows.value_dim));
    scores = arena.take(tile_size);
    grad_scores = arena.take(tile_size);
    column_weights = arena.take(tile_size);
    grad_column_weights = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
    if (problem.options.groups > 1) part = ColumnGradients(arena, problem);
  }
};

// Log-sum-exps further apart get an exponential each.
constexpr float largest_lse_spread = 55.0f;

template <class Arithmetic>
class SharedBackward {
 public:
  using Workspace = SharedBackwardWorkspace<Arithmetic>;
  using Parts = ColumnGradients;
  using Session = typename Arithmetic::Session;

  SharedBackward(const SharedProblem& problem, Workspace& work)
      : problem_(problem),
        options_(problem.options),
        work_(work),
        scores_{work.scores, tile_stride},
        grad_scores_{work.grad_scores, tile_stride} {}

  // The head's columns, which all of its groups read.
  void begin_head(const Task& task) {
    task_ = task;
    const Side& side = problem_.columns;
    const Range all{0, side.time};
    const int64_t row_dim = problem_.rows.value_dim;
    read_columns();
    choose_reference();
    if (!exact_lse_ && !is_one_tile()) sum_weights();
    read_query_gradients({side.out, side.grad_out, side.grad_lse}, task_, all, row_dim,
                         work_.columns, {one_exponential_, reference_});
    const Source values{side.value, task.batch, task.head, side.value_dim, work_.column_bias};
    const Source grad_outs = Source::of(work_.columns.grad_out, row_stride(row_dim), row_dim);
    work_.column_values.pack(values, all);
    work_.column_grad_outs.pack(grad_outs, all);
    work_.column_grad_out_rows.pack(grad_outs, all);
  }

  void run_group(const Task& task, const ColumnGradients& gradients) {
    task_ = task;
    gradients_ = &gradients;
    grad_decay_ = 0.0;
    const Range group = group_rows(problem_, task.group);
    is_only_block_ = blocks_of(group, row_block) == 1;
    if (!is_only_block_) gradients.clear(problem_, Parts::all(problem_));
    for (int64_t block = 0; block < blocks_of(group, row_block); ++block) {
      derive_block(block_of(group, row_block, Arithmetic::row_unit, block));
    }
    if (options_.grad_decay != nullptr) options_.grad_decay[task.number] = grad_decay_;
  }

 private:
  void read_columns() {
    const Side& side = problem_.columns;
    const Range all{0, side.time};
    const int64_t padded = round_up(side.time, column_block);
    fill(work_.column_bias, padded, -infinity);
    fill(work_.column_times, padded, 0.0f);
    fill(work_.columns.lse, padded, infinity);
    fill(work_.columns.correction, padded, 0.0f);
    fill(work_.columns.grad_lse, padded, 0.0f);
    fill(work_.columns.norm, padded, 1.0f);
    read_mask(side.mask, task_.batch, all, work_.column_bias);
    if (options_.timed) {
      read_times(side.times, task_.batch, all, work_.column_bias, work_.column_times);
    }
    const Source qk{side.qk, task_.batch, task_.head, options_.head_dim, work_.column_bias};
    work_.column_keys.pack(qk, all);
    work_.column_qk_rows.pack(qk, all);
    read_lse(side.lse, task_, all, work_.columns.lse);
  }

  bool is_one_tile() const {
    return problem_.rows.time <= row_block && problem_.columns.time <= column_block;
  }

  // m: the middle between the smallest and the largest log-sum-exp of the head. A softmax over a
  // single step has a weight of exactly 1 only by its own log-sum-exp.
  void choose_reference() {
    read_lse(problem_.rows.lse, task_, {0, problem_.rows.time}, work_.row_lse);
    float smallest = infinity, largest = -infinity;
    const auto include = [&](const float* lse, int64_t count) {
      int64_t seeing = 0;
      for (int64_t n = 0; n < count; ++n) {
        if (lse[n] == infinity) continue;
        smallest = lse[n] < smallest ? lse[n] : smallest;
        largest = lse[n] > largest ? lse[n] : largest;
        ++seeing;
      }
      return seeing;
    };
    const int64_t rows = include(work_.row_lse, problem_.rows.time);
    const int64_t columns = include(work_.columns.lse, problem_.columns.time);
    exact_lse_ = is_exact(work_.row_lse, problem_.rows.time) &&
                 is_exact(work_.columns.lse, problem_.columns.time);
    one_exponential_ = largest - smallest < largest_lse_spread && exact_lse_ &&
                       !options_.dropout.active &&
                       !(options_.timed && options_.max_gap < infinity) && rows > 1 &&
                       columns > 1 && !is_one_tile();
    reference_ = one_exponential_ && smallest <= largest ? 0.5f * (smallest + largest) : 0.0f;
  }

  void pack_queries(Range rows) {
    const Side& side = problem_.rows;
    rows_ = rows;
    real_rows_ = read_mask(side.mask, task_.batch, rows, work_.row_bias);
    work_.row_qk.pack(row_source(side.qk, options_.head_dim), rows);
    if (options_.timed) read_times(side.times, task_.batch, rows, work_.row_bias, work_.row_times);
  }

  Source row_source(const TensorView& tensor, int64_t dim) const {
    return {tensor, task_.batch, task_.head, dim, work_.row_bias, rows_.begin};
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
      pack_queries(block_of({0, rows}, row_block, Arithmetic::row_unit, block));
      visit_tiles([&](Range here) { sum_tile_weights(here); });
    }
    avoid_zeros(work_.row_norm, rows);
    avoid_zeros(work_.columns.norm, columns);
  }

  void sum_tile_weights(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const Scores scores = score_tile(columns);
    sum_row_weights(scores, rows, width, work_.column_bias + columns.begin,
                    work_.row_lse + rows_.begin, work_.row_norm + rows_.begin);
    sum_column_weights(scores, rows, width, work_.row_bias, work_.columns.lse + columns.begin,
                       work_.columns.norm + columns.begin);
  }

  void derive_block(Range rows) {
    const Side& side = problem_.rows;
    const int64_t count = rows.end - rows.begin, dim = options_.head_dim;
    const int64_t column_dim = problem_.columns.value_dim;
    pack_queries(rows);
    work_.row_qk_rows.pack(row_source(side.qk, dim), rows);
    work_.row_values.pack(row_source(side.value, side.value_dim), rows);
    std::memcpy(work_.rows.lse, work_.row_lse + rows.begin, count * sizeof(float));
    read_query_gradients({side.out, side.grad_out, side.grad_lse}, task_, rows, column_dim,
                         work_.rows, {one_exponential_, reference_});
    if (!exact_lse_ && !is_one_tile()) {
      std::memcpy(work_.rows.norm, work_.row_norm + rows.begin, count * sizeof(float));
    } else {
      fill(work_.rows.norm, count, 1.0f);
    }
    const Source grad_outs = Source::of(work_.rows.grad_out, row_stride(column_dim), column_dim);
    work_.row_grad_outs.pack(grad_outs, {0, count});
    work_.row_grad_out_rows.pack(grad_outs, {0, count});
    for (int64_t i = 0; i < count; ++i) work_.row_bias[i] -= reference_;
    is_first_tile_ = true;
    int64_t derived = 0;
    visit_tiles([&](Range columns) {
      if (is_only_block_) gradients_->clear(problem_, {derived, columns.begin});
      derive_tile(columns);
      derived = columns.end;
    });
    if (is_only_block_) gradients_->clear(problem_, {derived, problem_.columns.time});
    if (is_first_tile_) {
      fill(work_.grad_row_qk, count * row_stride(dim), 0.0f);
      fill(work_.grad_row_value, count * row_stride(side.value_dim), 0.0f);
    }
    for (int64_t i = 0; i < count; ++i) {
      write_row(side.grad_qk, task_.batch, task_.head, rows.begin + i, dim,
                work_.grad_row_qk + i * row_stride(dim), options_.scale);
      write_row(side.grad_value, task_.batch, task_.head, rows.begin + i, side.value_dim,
                work_.grad_row_value + i * row_stride(side.value_dim), 1.0f);
    }
  }

  Scores score_tile(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const Scores products{scores_, options_.scale};
    // products (rows, columns) = queries (rows, dim) keys^T (dim, columns)
    Arithmetic::template multiply<Result::overwritten>(
        rows, options_.head_dim, width, work_.row_qk.factor(),
        work_.column_keys.factor(columns.begin), products.tile);
    if (!options_.timed) return products;
    return apply_times(products, rows, width, work_.row_times, work_.column_times + columns.begin,
                       slope_of(options_, task_.head), options_.max_gap);
  }

  void derive_tile(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t dim = options_.head_dim, first = columns.begin;
    const int64_t row_dim = problem_.rows.value_dim, column_dim = problem_.columns.value_dim;
    if (one_exponential_) {
      derive_both(columns);
    } else {
      derive_apart(columns);
    }
    if (options_.grad_decay != nullptr) {
      grad_decay_ +=
          derive_decay(grad_scores_, rows, width, work_.row_times, work_.column_times + first);
    }
    const auto& column_left = one_exponential_ ? work_.row_left : work_.column_left;

    // grad_value_columns (columns, column_dim) += weights^T (columns, rows) grad_out (rows,
    // column_dim)
    multiply_onto<Arithmetic>(
        is_only_block_, width, rows, column_dim, work_.row_left.transposed(),
        work_.row_grad_out_rows.factor(0),
        {gradients_->value + first * row_stride(column_dim), row_stride(column_dim)});
    // grad_value_rows (rows, row_dim) += weights (rows, columns) grad_out (columns, row_dim)
    multiply_onto<Arithmetic>(is_first_tile_, rows, width, row_dim, column_left.factor(),
                              work_.column_grad_out_rows.factor(first),
                              {work_.grad_row_value, row_stride(row_dim)});
    // grad_qk_rows (rows, dim) += grad_scores (rows, columns) keys (columns, dim)
    multiply_onto<Arithmetic>(is_first_tile_, rows, width, dim, work_.grad_left.factor(),
                              work_.column_qk_rows.factor(first),
                              {work_.grad_row_qk, row_stride(dim)});
    // grad_qk_columns (columns, dim) += grad_scores^T (columns, rows) queries (rows, dim)
    multiply_onto<Arithmetic>(is_only_block_, width, rows, dim, work_.grad_left.transposed(),
                              work_.row_qk_rows.factor(0),
                              {gradients_->qk + first * row_stride(dim), row_stride(dim)});
    is_first_tile_ = false;
  }

  // grad_weights (rows, columns) = grad_out_rows (rows, column_dim) values^T (column_dim, columns)
  void multiply_values(Range columns) {
    Arithmetic::template multiply<Result::overwritten>(
        rows_.end - rows_.begin, problem_.columns.value_dim, columns.end - columns.begin,
        work_.row_grad_outs.factor(), work_.column_values.factor(columns.begin), grad_scores_);
  }

  // weights = exp(scores - m); grad_scores = weights (grad_weights - D_rows - D_columns)
  void derive_both(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t first = columns.begin;
    KeepWeights keep{{scores_, options_.scale, work_.row_bias, work_.column_bias + first}};
    if (options_.timed) {
      keep.weigh.scale = score_tile(columns).scale;
      work_.row_left.pack(scores_, rows, width, keep);
    } else {
      Arithmetic::template multiply_into<Result::overwritten>(
          rows, options_.head_dim, width, work_.row_qk.factor(), work_.column_keys.factor(first),
          scores_, keep, work_.row_left);
    }
    multiply_values(columns);
    // grad_weights (rows, columns) += values (rows, row_dim) grad_out_columns^T (row_dim, columns)
    const int64_t row_dim = problem_.rows.value_dim;
    const auto values = work_.row_values.factor();
    const auto column_grad_outs = work_.column_grad_outs.factor(first);
    const Derive<Ways::both> derive{grad_scores_, scores_, work_.rows.correction,
                                    work_.columns.correction + first};
    if (options_.grad_decay != nullptr) {
      Arithmetic::template multiply<Result::added_to>(rows, row_dim, width, values,
                                                      column_grad_outs, grad_scores_);
      finish_tile(grad_scores_, rows, width, derive);
      work_.grad_left.pack(grad_scores_, rows, width);
    } else {
      Arithmetic::template multiply_into<Result::added_to>(
          rows, row_dim, width, values, column_grad_outs, grad_scores_, derive, work_.grad_left);
    }
  }

  // Each softmax by itself; grad_scores receives the sum of both gradients.
  void derive_apart(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const Matrix column_weights{work_.column_weights, tile_stride};
    const Matrix grad_column_weights{work_.grad_column_weights, tile_stride};
    const Scores scores = score_tile(columns);
    multiply_values(columns);
    // grad_column_weights (rows, columns) = values (rows, row_dim) grad_out_columns^T (row_dim,
    // columns)
    Arithmetic::template multiply<Result::overwritten>(
        rows, problem_.rows.value_dim, width, work_.row_values.factor(),
        work_.column_grad_outs.factor(columns.begin), grad_column_weights);
    const Matrix factors{work_.factors, tile_stride};
    const float* kept = options_.dropout.active ? work_.factors : nullptr;
    const uint32_t dropout_row_here = dropout_row(options_, task_);
    std::memcpy(column_weights.data, scores.tile.data, rows * tile_stride * sizeof(float));
    if (kept != nullptr) {
      draw_by_rows({options_.dropout, dropout_row_here, problem_.rows.stream}, rows_, columns,
                   factors);
    }
    if (problem_.columns.time <= column_block) {
      derive_whole_rows(scores, grad_scores_, kept, rows, width, work_.column_bias, work_.rows.lse,
                        work_.rows.grad_lse);
    } else {
      derive_rows(scores, grad_scores_, kept, rows, width, work_.column_bias + columns.begin,
                  work_.rows.lse, work_.rows.norm, work_.rows.correction);
    }
    if (kept != nullptr) {
      draw_by_columns({options_.dropout, dropout_row_here, problem_.columns.stream}, rows_, columns,
                      factors);
    }
    const Scores column_scores{column_weights, scores.scale};
    float* norm = work_.columns.norm + columns.begin;
    float* correction = work_.columns.correction + columns.begin;
    const float* lse = work_.columns.lse + columns.begin;
    if (problem_.rows.time <= row_block) {
      settle_columns(column_scores, grad_column_weights, kept, rows, width, work_.row_bias, lse,
                     work_.columns.grad_lse + columns.begin, norm, correction);
    }
    derive_columns(column_scores, grad_column_weights, kept, rows, width, work_.row_bias, lse, norm,
                   correction, grad_scores_);
    work_.row_left.pack(scores_, rows, width);
    work_.column_left.pack(column_weights, rows, width);
    work_.grad_left.pack(grad_scores_, rows, width);
  }

  const SharedProblem& problem_;
  const Options& options_;
  Workspace& work_;
  // Tiles of products or weights, and of their gradients.
  const Matrix scores_, grad_scores_;
  const ColumnGradients* gradients_ = nullptr;
  Task task_{};
  Range rows_;
  int64_t real_rows_ = 0;
  bool exact_lse_ = true;
  bool one_exponential_ = false;
  float reference_ = 0.0f;
  double grad_decay_ = 0.0;
  bool is_first_tile_ = true;
  bool is_only_block_ = false;
};

}  // namespace
}  // namespace mmer::cpu
