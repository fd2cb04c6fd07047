// From scores to weights, one tile (rows, columns) at a time. The bias of a
// column or row is -infinity where it is padded.

#pragma once

#include <cmath>

#include "pack.h"

namespace mmer::cpu {
namespace {

// A tile of scores stays in the second level of the cache, with the panels that it meets.
constexpr int64_t row_block = 72;
constexpr int64_t column_block = 128;
constexpr int64_t tile_stride = column_block + 16;
constexpr int64_t tile_size = row_block * tile_stride;

static_assert(column_block % panel_width == 0 && column_block % 4 == 0 && tile_stride % lanes == 0);

// scores -= slope * |row time - column time|; -infinity where that gap is larger than max_gap.
inline void apply_times(Matrix scores, int64_t rows, int64_t columns, const float* row_times,
                        const float* column_times, float slope, float max_gap) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.data + i * scores.stride;
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector gap = absolute(row_times[i] - load(column_times + j));
      const Vector decayed = load(row + j) - slope * gap;
      store(row + j, gap <= max_gap ? decayed : broadcast(-infinity));
    }
  }
}

// Both softmaxes on one exponential: weights = exp(scores + row_bias + column_bias) in place.
// row_sums (rows, lanes) and column_sums (columns) grow.
inline void exponentials(Matrix scores, int64_t rows, int64_t columns, const float* row_bias,
                         const float* column_bias, float* row_sums, float* column_sums) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.data + i * scores.stride;
    Vector row_sum = load(row_sums + i * lanes);
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector weight = exp_vector(load(row + j) + (row_bias[i] + load(column_bias + j)));
      row_sum += weight;
      store(column_sums + j, load(column_sums + j) + weight);
      store(row + j, weight);
    }
    store(row_sums + i * lanes, row_sum);
  }
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

// scores += row_bias + column_bias, and the rows take the tile's largest scores into account: what
// was summed before shrinks accordingly.
inline void raise_rows(Matrix scores, int64_t rows, int64_t columns, const float* row_bias,
                       const float* column_bias, const RunningRows& running) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.data + i * scores.stride;
    Vector tile_largest = broadcast(-infinity);
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector score = load(row + j) + (row_bias[i] + load(column_bias + j));
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

// out = accumulator / sum and lse = largest + log(sum); 0 and -infinity where nothing was seen.
inline void write_output(const TensorView& out, const TensorView& lse, const Task& task,
                         int64_t step, float* accumulator, int64_t dim, float largest, float sum) {
  const bool sees_a_key = sum != 0.0f;
  for (int64_t k = 0; k < dim; ++k) accumulator[k] = sees_a_key ? accumulator[k] / sum : 0.0f;
  write_row(out, task.batch, task.head, step, dim, accumulator, 1.0f);
  const double log_of_sum = largest + std::log(static_cast<double>(sum));
  write_scalar(lse, task.batch, task.head, step,
               sees_a_key ? static_cast<float>(log_of_sum) : -infinity);
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
