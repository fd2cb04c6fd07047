// The columns' counterparts of what gradients.h does for rows, for the shared S.

#pragma once

#include "gradients.h"

namespace mmer::cpu {
namespace {

// sums (columns) += weights that the columns' lse gives
inline void sum_column_weights(Scores scores, int64_t rows, int64_t columns, const float* row_bias,
                               const float* lse, float* sums) {
  for (int64_t j = 0; j < columns; j += lanes) {
    const Vector column_lse = load(lse + j);
    Vector sum = load(sums + j);
    for (int64_t i = 0; i < rows; ++i) {
      const Vector product = load(scores.tile.data + i * scores.tile.stride + j);
      sum += exp_vector(scores.scale * product + (row_bias[i] - column_lse));
    }
    store(sums + j, sum);
  }
}

// norm and correction of columns whose keys are all in the tile, as derive_whole_rows has them.
inline void settle_columns(Scores scores, Matrix grad_weights, const float* factors, int64_t rows,
                           int64_t columns, const float* row_bias, const float* lse,
                           const float* grad_lse, float* norm, float* correction) {
  for (int64_t j = 0; j < columns; j += lanes) {
    const Vector column_lse = load(lse + j);
    const auto weight = [&](int64_t i) {
      const Vector product = load(scores.tile.data + i * scores.tile.stride + j);
      return exp_vector(scores.scale * product + (row_bias[i] - column_lse));
    };
    Vector sum{};
    for (int64_t i = 0; i < rows; ++i) sum += weight(i);
    sum = sum == 0.0f ? broadcast(1.0f) : sum;
    Vector corrections = -load(grad_lse + j);
    for (int64_t i = 0; i < rows; ++i) {
      const Vector grad = load(grad_weights.data + i * grad_weights.stride + j);
      const Vector factor =
          factors == nullptr ? broadcast(1.0f) : load(factors + i * tile_stride + j);
      corrections += weight(i) / sum * (grad * factor);
    }
    store(norm + j, sum);
    store(correction + j, corrections);
  }
}

// weights = exp(scores + row_bias - lse) / norm, in place, with the factors of dropout, and
// grad_scores += weights (factors grad_weights - correction)
inline void derive_columns(Scores scores, Matrix grad_weights, const float* factors, int64_t rows,
                           int64_t columns, const float* row_bias, const float* lse,
                           const float* norm, const float* correction, Matrix grad_scores) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores.tile.data + i * scores.tile.stride;
    float* total = grad_scores.data + i * grad_scores.stride;
    const float* grad = grad_weights.data + i * grad_weights.stride;
    for (int64_t j = 0; j < columns; j += lanes) {
      const Vector factor =
          factors == nullptr ? broadcast(1.0f) : load(factors + i * tile_stride + j);
      const Vector score = scores.scale * load(row + j) + (row_bias[i] - load(lse + j));
      const Vector weight = exp_vector(score) / load(norm + j);
      store(total + j, load(total + j) + weight * (load(grad + j) * factor - load(correction + j)));
      store(row + j, weight * factor);
    }
  }
}

}  // namespace
}  // namespace mmer::cpu
