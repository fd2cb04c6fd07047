// Forward of one direction, over tiles of keys.
//
//   out = softmax(scale * query keys^T) values
//
// Where the scores are bounded, weights need no maximum, and no sum is ever rescaled. Rows whose
// sums turn out to be too small or too large for that get a running softmax, as all do with
// max_gap, where a sum of 0 may be right.

#pragma once

#include "directed.h"
#include "dropout.h"
#include "product_float32.h"

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
    longest_key_ = 0.0f;
    for (int64_t n = 0; n < problem_.segment_count; ++n) pack_segment(n);
    const Blocks blocks = blocks_of(problem_);
    const Range own = group_blocks(options_, blocks, task.group);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const Range rows = rows_of(problem_, blocks, block);
      if (rows.begin == rows.end) continue;
      pack_rows(rows);
      const float reference = common_reference();
      if (std::isfinite(reference) && attend_rows<Exponentials::one>(reference)) continue;
      attend_rows<Exponentials::two>(0.0f);
    }
  }

 private:
  void pack_segment(int64_t n) {
    const Segment& segment = problem_.segments[n];
    ForwardSegment<Arithmetic>& packed = work_.segments[n];
    const Range window = windows_[n] = window_of(problem_, segment, task_.group);
    packed.bias.read(problem_, segment, task_.batch, window);
    const Source keys = source_of(segment.key, options_.head_dim, packed.bias.bias, window);
    longest_key_ = larger_norm(longest_key_, keys, window);
    packed.keys.pack(keys, window);
    packed.values.pack(source_of(segment.value, problem_.value_dim, packed.bias.bias, window),
                       window);
  }

  Source source_of(const TensorView& tensor, int64_t dim, const float* bias, Range steps) const {
    return {tensor, task_.batch, task_.head, dim, bias, steps.begin};
  }

  void pack_rows(Range rows) {
    rows_ = rows;
    real_rows_ = read_mask(problem_.mask, task_.batch, rows, work_.row_bias);
    work_.queries.pack(queries(), rows);
    interval_ = {};
    if (!options_.timed) return;
    read_times(problem_.times, task_.batch, rows, work_.row_bias, work_.row_times);
    interval_ = interval_of(work_.row_times, work_.row_bias, rows.end - rows.begin);
  }

  Source queries() const {
    return source_of(problem_.query, options_.head_dim, work_.row_bias, rows_);
  }

  // m for a block of rows; infinite if they need a running softmax. A softmax over a single key has
  // a weight of exactly 1 only there. In chunks neither may depend on what else is in the block:
  // that would tell where a stream was cut.
  float common_reference() const {
    if (options_.timed && options_.max_gap < infinity) return infinity;
    const bool in_chunks = problem_.chunking.chunk_size != 0;
    const Range window = windows_[0];
    if (!in_chunks && window.end - window.begin == 1) return infinity;
    const float longest_query = larger_norm(0.0f, queries(), rows_);
    const float reference = reference_of(options_.scale, longest_query, longest_key_);
    return in_chunks && reference != 0.0f ? infinity : reference;
  }

  // False if a sum is not safe: what was computed is of no use then.
  template <Exponentials exponentials_used>
  bool attend_rows(float reference) {
    constexpr bool one = exponentials_used == Exponentials::one;
    const int64_t count = rows_.end - rows_.begin, value_dim = problem_.value_dim;
    const int64_t stride = row_stride(value_dim);
    fill(work_.row_largest, count, one ? reference : -infinity);
    fill(work_.row_sums, count * lanes, 0.0f);
    is_first_tile_ = true;
    for (int64_t n = 0; n < problem_.segment_count && real_rows_ > 0; ++n) {
      visit_tiles(problem_, problem_.segments[n], windows_[n], work_.segments[n].bias, rows_,
                  interval_,
                  [&](Range keys) { attend_tile<exponentials_used>(n, keys, reference); });
    }
    float sums[row_block];
    add_lanes(work_.row_sums, count, sums);
    if (one && !are_safe(sums, work_.row_bias, count)) return false;
    write_outputs(problem_.out, problem_.lse, task_, rows_,
                  {{work_.accumulator, stride}, value_dim, work_.row_largest, sums});
    return true;
  }

  template <Exponentials exponentials_used>
  void attend_tile(int64_t n, Range keys, float reference) {
    const ForwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t value_dim = problem_.value_dim, place = keys.begin - windows_[n].begin;
    const Matrix tile{work_.scores, tile_stride};
    const Matrix accumulator{work_.accumulator, row_stride(value_dim)};
    const float* key_bias = packed.bias.bias + place;

    if constexpr (exponentials_used == Exponentials::one) {
      float biases[column_block];
      for (int64_t j = 0; j < round_up(count, lanes); j += lanes) {
        store(biases + j, load(key_bias + j) - reference);
      }
      weigh(n, keys, biases, tile);
    } else {
      const RunningRows running{work_.row_largest, work_.row_sums, accumulator, value_dim};
      raise_rows(score_tile(n, keys, tile), rows, count, work_.row_bias, key_bias, running);
      exponentials_of_rows(tile, rows, count, running);
    }
    if (options_.dropout.active) {
      const Matrix factors{work_.factors, tile_stride};
      draw_by_rows({options_.dropout, dropout_row(options_, task_), problem_.segments[n].stream},
                   rows_, keys, factors);
      multiply_elements(tile, factors, tile, rows, count);
    }
    if (exponentials_used == Exponentials::two || options_.dropout.active) {
      work_.weights.pack(tile, rows, count);
    }
    // accumulator (rows, value_dim) += weights (rows, keys) values (keys, value_dim)
    multiply_onto<Arithmetic>(is_first_tile_, rows, count, value_dim, work_.weights.factor(),
                              packed.values.factor(place), accumulator);
    is_first_tile_ = false;
  }

  bool is_cut(int64_t n, Range keys) const {
    return is_cut_by_ranges(problem_, problem_.segments[n], rows_, keys);
  }

  // Weights without a maximum: packed, or in the tile where dropout has yet to choose from them.
  void weigh(int64_t n, Range keys, const float* key_bias, Matrix tile) {
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    Weigh<Ways::rows> weigh{tile, options_.scale, work_.row_bias, key_bias, work_.row_sums};
    if (options_.timed || options_.dropout.active || is_cut(n, keys)) {
      weigh.scale = score_tile(n, keys, tile).scale;
      if (options_.dropout.active) {
        finish_tile(tile, rows, count, weigh);
      } else {
        work_.weights.pack(tile, rows, count, weigh);
      }
    } else {
      Arithmetic::template multiply_into<Result::overwritten>(
          rows, options_.head_dim, count, work_.queries.factor(),
          work_.segments[n].keys.factor(keys.begin - windows_[n].begin), tile, weigh,
          work_.weights);
    }
  }

  // products (rows, keys) = queries (rows, dim) keys^T (dim, keys)
  Scores score_tile(int64_t n, Range keys, Matrix tile) const {
    const ForwardSegment<Arithmetic>& packed = work_.segments[n];
    const int64_t rows = rows_.end - rows_.begin, count = keys.end - keys.begin;
    const int64_t place = keys.begin - windows_[n].begin;
    Scores scores{tile, options_.scale};
    Arithmetic::template multiply<Result::overwritten>(
        rows, options_.head_dim, count, work_.queries.factor(), packed.keys.factor(place), tile);
    if (options_.timed) {
      scores = apply_times(scores, rows, count, work_.row_times, packed.bias.times + place,
                           slope_of(options_, task_.head), options_.max_gap);
    }
    if (!is_cut(n, keys)) return scores;
    return apply_ranges(problem_, problem_.segments[n], rows_, keys, scores);
  }

  const DirectedProblem& problem_;
  const Options& options_;
  Workspace& work_;
  Task task_{};
  Range windows_[2];
  Range rows_;
  Interval interval_;
  int64_t real_rows_ = 0;
  float longest_key_ = 0.0f;
  bool is_first_tile_ = true;
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
