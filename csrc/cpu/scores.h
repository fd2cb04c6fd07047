// From scores to weights, one tile (rows, columns) at a time. The bias of a
// column or row is -infinity where it is padded.

#pragma once

#include <cmath>

#include "register_tile.h"
#include "steps.h"

namespace mmer::cpu {
namespace {

// A tile (rows, columns) of scores, kept as products: score = scale * product.
struct Scores {
  Matrix tile;
  float scale;
};

// The tile receives scale * product - slope * |row time - column time|; -infinity where that gap is
// larger than max_gap.
inline Scores apply_times(Scores scores, int64_t rows, int64_t columns, const float* row_times,
                          const float* column_times, float slope, float max_gap) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.tile.data + i * scores.tile.stride;
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector gap = absolute(row_times[i] - load(column_times + j));
      const Vector decayed = scores.scale * load(row + j) - slope * gap;
      store(row + j, gap <= max_gap ? decayed : broadcast(-infinity));
    }
  }
  return {scores.tile, 1.0f};
}

// Softmaxes along which sums grow.
enum class Ways { none, rows, both };

// Weights without a maximum: exp(scale * product + row_bias + column_bias), while row_sums (rows,
// lanes), except for none, and column_sums (columns), for both ways, grow.
template <Ways ways>
struct Weigh {
  Matrix tile;
  float scale;
  const float *row_bias, *column_bias;
  float* row_sums = nullptr;
  float* column_sums = nullptr;

  template <int rows, int vectors>
  void prepare(int64_t, int64_t) const {}

  // Products become weights.
  template <int rows, int vectors>
  __attribute__((always_inline)) void apply(Vector (&products)[rows][vectors], int64_t row,
                                            int64_t column) const {
    Vector bias[vectors], sums[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      bias[v] = load(column_bias + column + v * lanes);
      if constexpr (ways == Ways::both) sums[v] = load(column_sums + column + v * lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      Vector row_sum{};
      if constexpr (ways != Ways::none) row_sum = load(row_sums + (row + i) * lanes);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        Vector& product = products[i][v];
        product = exp_vector(scale * product + (row_bias[row + i] + bias[v]));
        row_sum += product;
        if constexpr (ways == Ways::both) sums[v] += product;
      }
      if constexpr (ways != Ways::none) store(row_sums + (row + i) * lanes, row_sum);
    }
    if constexpr (ways == Ways::both) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) store(column_sums + column + v * lanes, sums[v]);
    }
  }

  // They go to the tile.
  template <int rows, int vectors>
  __attribute__((always_inline)) void finish(Vector (&products)[rows][vectors], int64_t row,
                                             int64_t column) const {
    apply(products, row, column);
    Store<Result::overwritten>{tile}.finish(products, row, column);
  }
};

enum class Exponentials { one, two };

// Without a maximum, weights lie below e^41 = 2^59 and their sums must lie within these limits.
constexpr float largest_exponent = 41.0f;
constexpr float smallest_sum = 1e-16f;
constexpr float largest_sum = 1e30f;

inline bool is_safe(float sum) {
  return sum > smallest_sum && sum < largest_sum;
}

// A reference m that no score exceeds by more than largest_exponent, by the Cauchy-Schwarz
// inequality from the squared lengths of the longest query and key; infinite where it would lie so
// high that scores around 0 vanish.
inline float reference_of(float scale, float longest_query, float longest_key) {
  const float bound = std::fabs(scale) * std::sqrt(longest_query) * std::sqrt(longest_key);
  if (!(bound < largest_exponent + 35.0f)) return infinity;
  return bound > largest_exponent ? bound - largest_exponent : 0.0f;
}

// Running softmax along the rows: the largest score of each row so far, the sum of the
// exponentials relative to it (rows, lanes), and the weighted sum of values.
struct RunningRows {
  float* largest;
  float* sums;
  Matrix accumulator;
  int64_t width;
};

// A row or column that saw nothing yet has no largest score to subtract.
inline float finite_or_zero(float largest) {
  return largest == -infinity ? 0.0f : largest;
}

// The tile receives the scores + row_bias + column_bias, and the rows take its largest scores into
// account: what was summed before shrinks accordingly.
inline void raise_rows(Scores scores, int64_t rows, int64_t columns, const float* row_bias,
                       const float* column_bias, const RunningRows& running) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.tile.data + i * scores.tile.stride;
    Vector tile_largest = broadcast(-infinity);
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector score = scores.scale * load(row + j) + (row_bias[i] + load(column_bias + j));
      tile_largest = maximum(tile_largest, score);
      store(row + j, score);
    }
    const float largest = max_lanes(tile_largest);
    if (!(largest > running.largest[i])) continue;
    const float shrink = exp_scalar(running.largest[i] - largest);
    running.largest[i] = largest;
    scale_row(running.sums + i * lanes, lanes, shrink);
    scale_row(running.accumulator.data + i * running.accumulator.stride, running.width, shrink);
  }
}

// weights = exp(scores - largest of the row), in place; the sums grow.
inline void exponentials_of_rows(Matrix scores, int64_t rows, int64_t columns,
                                 const RunningRows& running) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.data + i * scores.stride;
    const float largest = finite_or_zero(running.largest[i]);
    Vector sum = load(running.sums + i * lanes);
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = exp_vector(load(row + j) - largest);
      sum += weight;
      store(row + j, weight);
    }
    store(running.sums + i * lanes, sum);
  }
}

// totals (steps) of the sums (steps, lanes)
inline void add_lanes(const float* sums, int64_t steps, float* totals) {
  for (int64_t first = 0; first < steps; first += lanes) {
    Vector parts[lanes] = {};
    const int64_t count = smaller(lanes, steps - first);
    for (int64_t n = 0; n < count; ++n) parts[n] = load(sums + (first + n) * lanes);
    store_first(totals + first, sum_each(parts), count);
  }
}

// Whether one exponential was enough for all steps that are real.
inline bool are_safe(const float* sums, const float* bias, int64_t count) {
  bool safe = true;
  for (int64_t n = 0; n < count; ++n) safe &= bias[n] == -infinity || is_safe(sums[n]);
  return safe;
}

// The softmax of some steps: weighted sums of values (steps, dim), and for each step the
// sum of its weights relative to the exponential of `largest`.
struct Sums {
  Matrix accumulator;
  int64_t dim;
  const float *largest, *sums;
};

// out = accumulator / sum and lse = largest + log(sum); 0 and -infinity where nothing was seen.
inline void write_outputs(const TensorView& out, const TensorView& lse, const Task& task,
                          Range steps, const Sums& softmax) {
  for (int64_t first = steps.begin; first < steps.end; first += lanes) {
    const int64_t place = first - steps.begin, count = smaller(lanes, steps.end - first);
    const Vector sums = load_first(softmax.sums + place, count);
    const Vector largest = load_first(softmax.largest + place, count);
    const Vector log_sums = log_vector(sums);
    write_scalars(lse, task.batch, task.head, first, count,
                  sums == Vector{} ? broadcast(-infinity) : largest + log_sums);
    for (int64_t n = 0; n < count; ++n) {
      const float* row = softmax.accumulator.data + (place + n) * softmax.accumulator.stride;
      const float sum = softmax.sums[place + n], inverse = 1.0f / sum;
      write_vectors(out, task.batch, task.head, first + n, softmax.dim, [&](int64_t k) {
        return sum == 0.0f ? Vector{} : divide(load(row + k), sum, inverse);
      });
    }
  }
}

// product = left * right, elementwise
inline void multiply_elements(Matrix left, Matrix right, Matrix product, int64_t rows,
                              int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += lanes) {
      store(product.data + i * product.stride + j,
            load(left.data + i * left.stride + j) * load(right.data + i * right.stride + j));
    }
  }
}

}  // namespace
}  // namespace mmer::cpu
