// Forward of shared cross-attention: one similarity matrix, formed once, tile by tile.
//
//   S = scale * rows columns^T
//   out_rows = softmax(S) v_columns      out_columns = softmax(S^T) v_rows
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
#include "product_float32.h"
#include "scores.h"
#include "shared_columns.h"

namespace mmer::cpu {
namespace {

template <class Arithmetic>
struct SharedForwardWorkspace {
  typename Arithmetic::RightColumns column_keys;
  typename Arithmetic::RightRows column_values, values;
  typename Arithmetic::LeftRows queries;
  typename Arithmetic::Weights row_left, column_left;
  float *column_bias, *column_times;
  float *row_bias, *row_times, *row_largest, *row_sums, *row_accumulator;
  float *scores, *column_weights, *factors;
  ColumnState total, part;

  SharedForwardWorkspace(Arena& arena, const SharedProblem& problem)
      : column_keys(arena, problem.columns.time, problem.options.head_dim),
        column_values(arena, problem.columns.time, problem.columns.value_dim),
        values(arena, row_block, problem.rows.value_dim),
        queries(arena, problem.options.head_dim),
        row_left(arena),
        column_left(arena),
        total(arena, problem),
        part(total) {
    const int64_t padded = round_up(problem.columns.time, column_block);
    column_bias = arena.take(padded);
    column_times = arena.take(padded);
    row_bias = arena.take(row_block);
    row_times = arena.take(row_block);
    row_largest = arena.take(row_block);
    row_sums = arena.take(row_block * lanes);
    row_accumulator = arena.take(row_block * row_stride(problem.columns.value_dim));
    scores = arena.take(tile_size);
    column_weights = arena.take(tile_size);
    factors = arena.take(problem.options.dropout.active ? tile_size : 0);
    if (problem.options.groups > 1) part = ColumnState(arena, problem);
  }
};

template <class Arithmetic>
class SharedForward {
 public:
  using Workspace = SharedForwardWorkspace<Arithmetic>;
  using Parts = ColumnState;
  using Session = typename Arithmetic::Session;

  SharedForward(const SharedProblem& problem, Workspace& work)
      : problem_(problem), options_(problem.options), work_(work) {}

  // The head's columns, which all of its groups read.
  void begin_head(const Task& task) {
    task_ = task;
    const Side& side = problem_.columns;
    const Range all{0, side.time};
    const int64_t padded = round_up(side.time, column_block);
    fill(work_.column_bias, padded, -infinity);
    fill(work_.column_times, padded, 0.0f);
    real_columns_ = read_mask(side.mask, task.batch, all, work_.column_bias);
    if (options_.timed) {
      read_times(side.times, task.batch, all, work_.column_bias, work_.column_times);
    }
    const Source keys{side.qk, task.batch, task.head, options_.head_dim, work_.column_bias};
    longest_column_ = larger_norm(0.0f, keys, all);
    work_.column_keys.pack(keys, all);
    work_.column_values.pack({side.value, task.batch, task.head, side.value_dim, work_.column_bias},
                             all);
  }

  void run_group(const Task& task, const ColumnState& columns) {
    task_ = task;
    columns_ = &columns;
    group_ = group_rows(problem_, task.group);
    const float reference = common_reference();
    if (std::isfinite(reference) && attend<Exponentials::one>(reference)) return;
    attend<Exponentials::two>(0.0f);
  }

 private:
  // m for the whole group; infinite if one exponential cannot serve.
  float common_reference() {
    if (options_.timed && options_.max_gap < infinity) return infinity;
    float longest_row = 0.0f;
    int64_t real_rows = 0;
    for (int64_t block = 0; block < blocks_of(group_, row_block); ++block) {
      const Range rows = block_of(group_, row_block, Arithmetic::row_unit, block);
      real_rows += read_mask(problem_.rows.mask, task_.batch, rows, work_.row_bias);
      longest_row = larger_norm(longest_row, queries_of(rows), rows);
    }
    if (real_columns_ == 1 || real_rows == 1) return infinity;
    return reference_of(options_.scale, longest_row, longest_column_);
  }

  Source queries_of(Range rows) const {
    return {problem_.rows.qk,  task_.batch,    task_.head,
            options_.head_dim, work_.row_bias, rows.begin};
  }

  // False if one exponential was not enough: what was computed is of no use then.
  template <Exponentials exponentials_used>
  bool attend(float reference) {
    is_only_block_ = blocks_of(group_, row_block) == 1;
    columns_->clear(problem_, exponentials_used == Exponentials::one ? reference : -infinity,
                    is_only_block_);
    int64_t real_rows = 0;
    for (int64_t block = 0; block < blocks_of(group_, row_block); ++block) {
      if (!attend_rows<exponentials_used>(block_of(group_, row_block, Arithmetic::row_unit, block),
                                          reference)) {
        return false;
      }
      real_rows += real_rows_;
    }
    return exponentials_used == Exponentials::two || real_rows == 0 ||
           are_safe(columns_->sums, work_.column_bias, problem_.columns.time);
  }

  template <Exponentials exponentials_used>
  bool attend_rows(Range rows, float reference) {
    const int64_t count = rows.end - rows.begin, value_dim = problem_.columns.value_dim;
    const Side& side = problem_.rows;
    rows_ = rows;
    real_rows_ = read_mask(side.mask, task_.batch, rows, work_.row_bias);
    work_.queries.pack(queries_of(rows), rows);
    work_.values.pack(
        {side.value, task_.batch, task_.head, side.value_dim, work_.row_bias, rows.begin}, rows);
    Interval interval;
    if (options_.timed) {
      read_times(side.times, task_.batch, rows, work_.row_bias, work_.row_times);
      interval = interval_of(work_.row_times, work_.row_bias, count);
    }
    fill(work_.row_largest, count, exponentials_used == Exponentials::one ? reference : -infinity);
    fill(work_.row_sums, count * lanes, 0.0f);
    is_first_tile_ = true;
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
    float sums[row_block];
    add_lanes(work_.row_sums, count, sums);
    if (exponentials_used == Exponentials::one && real_columns_ > 0 &&
        !are_safe(sums, work_.row_bias, count)) {
      return false;
    }
    write_outputs(
        side.out, side.lse, task_, rows,
        {{work_.row_accumulator, row_stride(value_dim)}, value_dim, work_.row_largest, sums});
    return true;
  }

  // products (rows, columns) = queries (rows, dim) keys^T (dim, columns)
  Scores score_tile(Range columns, Matrix tile) const {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const Scores products{tile, options_.scale};
    Arithmetic::template multiply<Result::overwritten>(
        rows, options_.head_dim, width, work_.queries.factor(),
        work_.column_keys.factor(columns.begin), tile);
    if (!options_.timed) return products;
    return apply_times(products, rows, width, work_.row_times, work_.column_times + columns.begin,
                       slope_of(options_, task_.head), options_.max_gap);
  }

  // Weights on one exponential: packed, or in the tile where dropout has yet to choose from them.
  // The columns of the tile are summed apart first: the error of a sum grows with its length.
  void weigh_both_ways(Range columns, Matrix tile) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t first = columns.begin;
    float tile_sums[column_block] = {};
    Weigh<Ways::both> weigh{
        tile, options_.scale, work_.row_bias, work_.column_bias + first, work_.row_sums, tile_sums};
    if (options_.timed || options_.dropout.active) {
      weigh.scale = score_tile(columns, tile).scale;
      if (options_.dropout.active) {
        finish_tile(tile, rows, width, weigh);
      } else {
        work_.row_left.pack(tile, rows, width, weigh);
      }
    } else {
      Arithmetic::template multiply_into<Result::overwritten>(
          rows, options_.head_dim, width, work_.queries.factor(), work_.column_keys.factor(first),
          tile, weigh, work_.row_left);
    }
    float* column_sums = columns_->sums + first;
    for (int64_t j = 0; j < width; j += lanes) {
      store(column_sums + j, load(column_sums + j) + load(tile_sums + j));
    }
  }

  template <Exponentials exponentials_used>
  void attend_tile(Range columns) {
    const int64_t rows = rows_.end - rows_.begin, width = columns.end - columns.begin;
    const int64_t first = columns.begin;
    const int64_t column_dim = problem_.columns.value_dim, row_dim = problem_.rows.value_dim;
    const Matrix tile{work_.scores, tile_stride};
    const Matrix row_accumulator{work_.row_accumulator, row_stride(column_dim)};
    const Matrix column_accumulator = columns_->accumulator_of(problem_, first);
    Matrix row_weights = tile, column_weights = tile;

    if constexpr (exponentials_used == Exponentials::one) {
      weigh_both_ways(columns, tile);
    } else {
      column_weights.data = work_.column_weights;
      const RunningRows running{work_.row_largest, work_.row_sums, row_accumulator, column_dim};
      raise_rows(score_tile(columns, tile), rows, width, work_.row_bias, work_.column_bias + first,
                 running);
      columns_->exponentials(tile, rows, columns, column_weights, column_accumulator, row_dim);
      exponentials_of_rows(tile, rows, width, running);
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
    if (exponentials_used == Exponentials::two || options_.dropout.active) {
      work_.row_left.pack(row_weights, rows, width);
    }
    const bool apart = column_weights.data != row_weights.data;
    if (apart) work_.column_left.pack(column_weights, rows, width);
    const auto& column_left = apart ? work_.column_left : work_.row_left;

    // row_accumulator (rows, column_dim) += row_weights (rows, columns) values (columns,
    // column_dim)
    multiply_onto<Arithmetic>(is_first_tile_, rows, width, column_dim, work_.row_left.factor(),
                              work_.column_values.factor(first), row_accumulator);
    // column_accumulator (columns, row_dim) += column_weights^T (columns, rows) values (rows,
    // row_dim)
    multiply_onto<Arithmetic>(is_only_block_, width, rows, row_dim, column_left.transposed(),
                              work_.values.factor(0), column_accumulator);
    is_first_tile_ = false;
  }

  const SharedProblem& problem_;
  const Options& options_;
  Workspace& work_;
  const ColumnState* columns_ = nullptr;
  Task task_{};
  Range group_, rows_;
  int64_t real_rows_ = 0;
  int64_t real_columns_ = 0;
  float longest_column_ = 0.0f;
  bool is_first_tile_ = true;
  bool is_only_block_ = false;
};

}  // namespace
}  // namespace mmer::cpu
